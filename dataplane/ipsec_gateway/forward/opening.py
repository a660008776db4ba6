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
    """What to run so that this chain accepts all of it; nothing where it does already."""
    blocked = [(w, f) for w in sorted(wishes) if (f := _blocked(base, w, kernel=kernel))]
    useless = {rule for wish, _ in blocked for rule in ours(base, wish)}
    rest = replace(base, rules=tuple(r for r in base.rules if r not in useless))
    # Each is put ahead of the same rule, so that numbers stay right as they come.
    return [
        *(_delete(base, rule) for rule in base.rules if rule in useless),
        *(_insert(rest, wish, _place(rest, flow)) for wish, flow in blocked),
    ]


def closing(base: Base, wishes: Iterable[Wish] = ()) -> list[Command]:
    """What to run so that no rule of ours is left but for these wishes."""
    kept = {rule for wish in wishes for rule in ours(base, wish)}
    return [_delete(base, r) for r in base.rules if r.comment == COMMENT and r not in kept]


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
    commands = []
    for wish in sorted(wishes):
        flow = _blocked(base, wish, kernel=kernel)
        if flow is not None:
            commands.append(_insert(base, wish, _place(base, flow), mark=False))
    return "; ".join(map(shlex.join, commands))


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


def _insert(base: Base, wish: Wish, at: int, *, mark: bool = True) -> Command:
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
    if base.tool != NFTABLES:
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
