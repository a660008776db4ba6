"""Commands that let our traffic pass a chain, and that take them back. Pure.

A rule of ours comes as late as it can, right before what would drop: what others drop ahead of it,
such as network policies, they go on dropping. firewalld alone has it first, since it sends packets
into chains of zones that each end in a reject. The comment says whose it is.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from ipsec_gateway.forward.chains import (
    Base,
    Condition,
    Flow,
    Interface,
    Protected,
    Rule,
    Verdict,
    outcome,
)
from ipsec_gateway.forward.flows import Wish, any_of
from ipsec_gateway.forward.listed import NFTABLES

#: The comment of all our rules in others' chains.
COMMENT: Final = "kube-ipsec"
#: firewalld's table.
FIREWALLD: Final = "firewalld"

Command = tuple[str, ...]


def opening(base: Base, wishes: Iterable[Wish], *, kernel: bool) -> list[Command]:
    """What to run so that this chain accepts all of it, and has no other rule of ours."""
    chosen = frozenset(wishes)
    blocked = [wish for wish in chosen if _blocked(base, wish, kernel=kernel)]
    useless = _useless(base, chosen.difference(blocked))
    rest = replace(base, rules=tuple(r for r in base.rules if r not in useless))
    return [
        *(_delete(base, rule) for rule in useless),
        *_inserts(rest, blocked, kernel=kernel, mark=True),
    ]


def closing(base: Base, wishes: Iterable[Wish] = ()) -> list[Command]:
    """What to run so that no rule of ours is left but for these wishes."""
    return [_delete(base, rule) for rule in _useless(base, wishes)]


def _useless(base: Base, wishes: Iterable[Wish]) -> list[Rule]:
    """Rules of ours that are for none of these wishes."""
    kept = {rule for wish in wishes for rule in ours(base, wish)}
    return [rule for rule in base.rules if rule.comment == COMMENT and rule not in kept]


def ours(base: Base, wish: Wish) -> list[Rule]:
    """Our rules for this wish."""
    want = _conditions(wish)
    return [
        rule
        for rule in base.rules
        if rule.comment == COMMENT and rule.verdict is Verdict.ACCEPT and rule.conditions == want
    ]


def remedy(base: Base, wishes: Iterable[Wish], remote: Sequence[str], *, kernel: bool) -> str:
    """What an administrator runs, or an empty text where nothing can be said."""
    if base.tool == NFTABLES and base.table == FIREWALLD:
        return _firewalld(remote)
    return "; ".join(map(shlex.join, _inserts(base, wishes, kernel=kernel, mark=False)))


def _inserts(base: Base, wishes: Iterable[Wish], *, kernel: bool, mark: bool) -> list[Command]:
    """For those of the wishes that are blocked: each right before what drops it."""
    places = [
        (_place(base, flow), wish)
        for wish in sorted(wishes)
        if (flow := _blocked(base, wish, kernel=kernel))
    ]
    # The last place first: what is put in moves the numbers of what comes behind it.
    places.sort(key=lambda each: each[0], reverse=True)
    return [_insert(base, wish, at, mark=mark) for at, wish in places]


def _blocked(base: Base, wish: Wish, *, kernel: bool) -> Flow | None:
    flows = (any_of(wish, version, kernel=kernel) for version in base.versions)
    return next((flow for flow in flows if not outcome(base, flow).passes), None)


def _place(base: Base, flow: Flow) -> int:
    return 0 if base.table == FIREWALLD else outcome(base, flow).at


def program(base: Base) -> str:
    """Of iptables, the one for this version of IP."""
    return base.tool if base.family == "ip" else base.tool.replace("ip", "ip6", 1)


def _iptables(base: Base, *words: str) -> Command:
    # -w: others change tables, too; 5 s are much.
    return program(base), "-w", "5", "-t", base.table, *words


def _insert(base: Base, wish: Wish, at: int, *, mark: bool) -> Command:
    last = at >= len(base.rules)
    comment: Command
    if base.tool != NFTABLES:
        place: Command = ("-A", base.name) if last else ("-I", base.name, str(at + 1))
        comment = ("-m", "comment", "--comment", COMMENT) if mark else ()
        return _iptables(base, *place, *_words(wish), *comment, "-j", "ACCEPT")
    where = (base.family, base.table, base.name)
    place = ("add", "rule", *where)
    if not last:
        place = ("insert", "rule", *where, "position", base.rules[at].name)
    comment = ("comment", f'"{COMMENT}"') if mark else ()
    return ("nft", *place, *_expression(wish), "counter", "accept", *comment)


def _delete(base: Base, rule: Rule) -> Command:
    if not rule.name:
        return _iptables(base, "-D", base.name, *rule.words)
    return ("nft", "delete", "rule", base.family, base.table, base.name, "handle", rule.name)


def _words(wish: Wish) -> Command:
    if wish.device:
        return ("-i" if wish.side == "in" else "-o", wish.device)
    return ("-m", "policy", "--dir", wish.side, "--pol", "ipsec")


def _expression(wish: Wish) -> Command:
    if wish.device:
        return (f"{'iif' if wish.side == 'in' else 'oif'}name", f'"{wish.device}"')
    return ("meta" if wish.side == "in" else "rt", "ipsec", "exists")


def _conditions(wish: Wish) -> tuple[Condition, ...]:
    return (Interface(wish.side, wish.device) if wish.device else Protected(wish.side),)


def _firewalld(remote: Sequence[str]) -> str:
    policy = "firewall-cmd --permanent --policy=kube-ipsec"
    rules = (
        f'{policy} --add-rich-rule=\'rule family="ipv{6 if ":" in network else 4}" {end}'
        f' address="{network}" accept\''
        for network in remote
        for end in ("source", "destination")
    )
    steps = (
        "firewall-cmd --permanent --new-policy=kube-ipsec",
        f"{policy} --add-ingress-zone=ANY",
        f"{policy} --add-egress-zone=ANY",
        *rules,
        "firewall-cmd --reload",
    )
    return " && ".join(steps)
