"""Scripts that make the kernel's nftables table the wanted one, without a moment of clear text.

Each is for ``nft -f -``, which applies one in a single transaction. That alone is not enough. The
kernel brings in new rules first and what it has put into a set of pairs (pipapo) afterwards: for
microseconds, or as long as that processor is taken away meanwhile, a rule may ask a set that is
still empty, and lets pass in clear text what it should hold. Kernels before 6.17 do the same with
elements that replace others, and trees of single networks miss some, too. So

1. a set is filled in a transaction of its own before a rule asks it: rules that change come with
   sets of other names, and those from before go with the rules that asked them;
2. where rules stay, elements are added before others are deleted. Some that overlap with what is to
   go are refused by the kernel; then the rules are changed as in 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from ipsec_gateway.marks import NFT_TABLE
from ipsec_gateway.nftables import NftSet, Ruleset

_TABLE: Final = f"inet {NFT_TABLE}"

#: Octets that fit a comment of nft, which writes a terminator too.
_COMMENT: Final = 127

#: What of a rule needs a module that a kernel may not have.
_MODULES: Final = (
    ("fib ", "nft_fib_inet"),
    ("type nat ", "nft_chain_nat"),
    ("snat ", "nft_nat"),
    ("dnat ", "nft_nat"),
    ("notrack", "nft_ct"),
    ("ct mark", "nft_ct"),
    ("ct original", "nft_ct"),
    ("rt ipsec", "xfrm_user"),
    ("meta ipsec", "xfrm_user"),
)

_ASKED: Final = re.compile(r"@(\w+)")
_CHAIN: Final = re.compile(r"\bchain (\w+) \{")


class Found(NamedTuple):
    """Names of what the kernel's table has."""

    sets: Collection[str]
    chains: Collection[str]


class Installed(NamedTuple):
    """The table as the kernel has it; ``names`` is what its sets are called there."""

    ruleset: Ruleset
    names: Mapping[str, str]


class Change(NamedTuple):
    """Scripts to be run one after the other, and what the kernel has then."""

    scripts: tuple[str, ...]
    then: Installed


def found(listed: Mapping[str, Any]) -> Found:
    """From what ``nft -j list table`` prints."""
    objects = listed.get("nftables", ())
    return Found(
        tuple(each["set"]["name"] for each in objects if "set" in each),
        tuple(each["chain"]["name"] for each in objects if "chain" in each),
    )


def change(desired: Ruleset, actual: Installed) -> Change:
    """From ``actual`` to ``desired``; without scripts if nothing differs. Counters go on."""
    before = actual.ruleset
    if desired.body != before.body or _types(desired) != _types(before):
        chains = _CHAIN.findall(before.body)
        return install(desired, Found(tuple(actual.names.values()), chains))
    first, second = "", ""
    for name, each in desired.sets.items():
        target = f"{_TABLE} {actual.names[name]}"
        old = before.sets[name].elements
        fresh = {e: t for e, t in each.elements.items() if e not in old}
        gone = {e: t for e, t in old.items() if e not in each.elements}
        first += _listed("add", target, fresh)
        second += _listed("delete", target, gone)
    return Change(tuple(filter(None, (first, second))), Installed(desired, actual.names))


def install(desired: Ruleset, there: Found) -> Change:
    """From whatever is ``there``, such as the table of a killed gateway. Counters go on."""
    names = {name: _free(name, there.sets) for name in desired.sets}
    sets = "".join(_declared(names[name], each) for name, each in desired.sets.items())
    chains = set(_CHAIN.findall(desired.body))
    gone = [f"chain {_TABLE} {name}" for name in there.chains if name not in chains]
    gone += [f"set {_TABLE} {name}" for name in there.sets]
    rules = (
        f"flush table {_TABLE}\n"
        + "".join(f"delete {each}\n" for each in gone)
        + _table(_ASKED.sub(lambda match: "@" + names.get(match[1], match[1]), desired.body))
    )
    scripts = (_table(sets), rules) if sets else (rules,)
    return Change(scripts, Installed(desired, names))


def replace(desired: Ruleset) -> Change:
    """All of it at once, whatever is there: where there is no table of ours yet."""
    sets = "".join(_declared(name, each) for name, each in desired.sets.items())
    names = {name: name for name in desired.sets}
    return Change((remove() + _table(sets + desired.body),), Installed(desired, names))


def remove() -> str:
    """A script that removes the table; no error if there is none."""
    return f"table {_TABLE} {{}}\ndelete table {_TABLE}\n"


def explained(refusal: str) -> str:
    """What nft said about a script, with what the kernel seems to lack and how to get it.

    A refused script has changed nothing at all.
    """
    refused = refusal.splitlines()
    if not any("Could not process rule" in line for line in refused):
        return refusal
    lacks = dict.fromkeys(
        module for line in refused for text, module in _MODULES if text in line.partition("^")[0]
    )
    hint = f"; the kernel may lack {', '.join(lacks)}: try modprobe on the node" if lacks else ""
    return f"the kernel refuses the table inet {NFT_TABLE}, nothing was changed: {refusal}{hint}"


def _table(content: str) -> str:
    return f"table {_TABLE} {{\n{content}\n}}\n"


def _declared(name: str, each: NftSet) -> str:
    return (
        f'  set {name} {{ type {each.type}; flags interval; comment "{each.comment}";'
        f" elements = {{ {_commented(each.elements)} }} }}\n"
    )


def _listed(verb: str, target: str, elements: Mapping[str, str]) -> str:
    return f"{verb} element {target} {{ {_commented(elements)} }}\n" if elements else ""


def _commented(elements: Mapping[str, str]) -> str:
    return ", ".join(
        f"{element}{_comment(text)}" if text else element
        for element, text in sorted(elements.items())
    )


def _comment(text: str) -> str:
    """Names have no quotes in them; nft takes 128 octets."""
    return f' comment "{text[:_COMMENT].replace(chr(34), "")}"'


def _free(name: str, taken: Collection[str]) -> str:
    """``name``, or with the lowest number that nothing there has."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def _types(of: Ruleset) -> dict[str, str]:
    return {name: each.type for name, each in of.sets.items()}
