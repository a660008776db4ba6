"""Chains of nftables, out of ``nft -j`` (libnftables-json(5)). Pure.

Rules of iptables-nft are in there as well, with what nft does not understand of them as ``xt``:
such conditions are unknown.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final

from ipsec_gateway.classify import Network
from ipsec_gateway.forward.chains import (
    Address,
    Base,
    Condition,
    Interface,
    Protected,
    Rule,
    Unknown,
    Verdict,
    Version,
)
from ipsec_gateway.marks import NFT_TABLE
from ipsec_gateway.translators import NFT

#: What keeps a chain that is not iptables'.
NFTABLES: Final = "nft"
#: Tables of iptables that have a chain FORWARD for filtering.
IPTABLES_TABLES: Final = ("filter", "mangle", "security")

#: Our own, and the route agent's.
_OURS: Final = (NFT_TABLE, f"{NFT_TABLE}_routes")
_VERDICTS: Final = {
    "accept": Verdict.ACCEPT,
    "drop": Verdict.DROP,
    "reject": Verdict.DROP,
    "jump": Verdict.JUMP,
    "goto": Verdict.GOTO,
    "return": Verdict.RETURN,
    "queue": Verdict.OTHER,
    "vmap": Verdict.OTHER,
}
#: Statements that let every packet go on.
_IDLE: Final = frozenset(("counter", "log", "mangle", "notrack", "continue", "ct helper"))


def bases(shown: Mapping[str, Any]) -> list[Base]:
    """Foreign chains on the forward hook, without their rules, out of ``list chains``."""
    return [
        Base(_tool(c), c["family"], c["table"], c["name"], c.get("policy") == "drop")
        for each in shown.get("nftables", ())
        if (c := each.get("chain"))
        and c.get("hook") == "forward"
        and c.get("type") == "filter"
        and c["family"] in ("ip", "ip6", "inet")
        and c["table"] not in _OURS
    ]


def rules(shown: Mapping[str, Any]) -> dict[str, tuple[Rule, ...]]:
    """Rules by chain, out of ``list chain`` or ``list table``."""
    found: dict[str, list[Rule]] = {}
    for each in shown.get("nftables", ()):
        if "chain" in each:
            found.setdefault(each["chain"]["name"], [])
        elif "rule" in each:
            found.setdefault(each["rule"]["chain"], []).append(_rule(each["rule"]))
    return {name: tuple(those) for name, those in found.items()}


def _tool(each: Mapping[str, Any]) -> str:
    iptables = each["family"] in ("ip", "ip6") and each["name"] == "FORWARD"
    return NFT if iptables and each["table"] in IPTABLES_TABLES else NFTABLES


def _rule(each: Mapping[str, Any]) -> Rule:
    conditions: list[Condition] = []
    verdict, target = Verdict.NONE, ""
    for statement in each.get("expr", ()):
        key, value = next(iter(statement.items()))
        if key == "match":
            conditions += _conditions(value)
        elif key == "xt":
            if value and value.get("type") == "target":
                rejects = value.get("name") == "REJECT"
                verdict = Verdict.DROP if rejects else Verdict.NONE
            elif not value or value.get("name") != "comment":
                conditions.append(Unknown())
        elif key in _VERDICTS:
            verdict = _VERDICTS[key]
            if verdict in (Verdict.JUMP, Verdict.GOTO):
                target = value["target"]
        elif key not in _IDLE:
            conditions.append(Unknown())
    return Rule(
        tuple(conditions),
        verdict,
        target,
        name=str(each.get("handle", "")),
        comment=each.get("comment", ""),
    )


def _conditions(match: Mapping[str, Any]) -> Iterator[Condition]:
    """Those of one match; it is unknown unless all of it is understood."""
    left, right, negated = match.get("left"), match.get("right"), match.get("op") == "!="
    if not isinstance(left, dict) or match.get("op") not in ("==", "!=", "in"):
        yield Unknown()
        return
    kind, value = next(iter(left.items()))
    key = value.get("key") if isinstance(value, dict) else None
    match kind, key:
        case "meta", "iifname" | "oifname" if isinstance(right, str) and right[:1] != "@":
            yield Interface("in" if key == "iifname" else "out", right, negated)
        case "meta", "nfproto" if right in ("ipv4", "ipv6") and not negated:
            yield Version(4 if right == "ipv4" else 6)
        case (("meta" | "rt"), "ipsec") if isinstance(right, bool):
            yield Protected("in" if kind == "meta" else "out", right is negated)
        case "payload", None if value.get("field") in ("saddr", "daddr"):
            networks = _networks(right)
            source = value["field"] == "saddr"
            yield Address(source, networks, negated) if networks else Unknown()
        case _:
            yield Unknown()


def _networks(right: Any) -> tuple[Network, ...]:
    """Of an address, a prefix, a range or a set of these; nothing where it is something else."""
    try:
        match right:
            case str():
                return (ipaddress.ip_network(right),)
            case {"prefix": {"addr": str(address), "len": int(length)}}:
                return (ipaddress.ip_network(f"{address}/{length}"),)
            case {"range": [str(first), str(last)]}:
                low, high = map(ipaddress.ip_address, (first, last))
                return tuple(ipaddress.summarize_address_range(low, high))
            case {"set": [*members]}:
                parts = [_networks(member) for member in members]
                return tuple(chain.from_iterable(parts)) if all(parts) else ()
    except (ValueError, TypeError):
        # The name of a set, or of a host.
        return ()
    return ()
