"""Who else uses what is ours on this node: mark bits, rules, routing tables, and ways around the
guard.

A node has one 32-bit packet mark and one space of table numbers for everybody. Where somebody else
uses our part, nothing of ours is set up beside it: the message says who, as far as the kernel
knows. Pure: what ``ip -j`` and ``nft -j`` show comes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ipsec_gateway.marks import DEFAULT, NFT_TABLE, ROUTE_PROTOCOL, RULE_LAST, Numbers

#: Values of rtm_protocol as iproute2 shows them with -N, and who stands behind them.
_OWNERS: Final = {
    "2": "the kernel",
    "3": "boot scripts",
    "4": "an administrator (static)",
    "12": "BIRD (Calico)",
    "16": "DHCP",
    "80": "Calico",
    "186": "FRR (BGP)",
}
_WHOLE: Final = 0xFFFFFFFF


def owner(entry: Mapping[str, Any]) -> str:
    """Who made a rule or route, such as "protocol 80 (Calico)"."""
    protocol = str(entry.get("protocol", "3"))
    name = _OWNERS.get(protocol)
    return f"protocol {protocol}" + (f" ({name})" if name else "")


def foreign(entry: Mapping[str, Any]) -> bool:
    """Whether a rule or route is not ours."""
    return str(entry.get("protocol", "")) != str(ROUTE_PROTOCOL)


def of_rules(shown: Iterable[Mapping[str, Any]], numbers: Numbers = DEFAULT) -> list[str]:
    """Other people's rules that look at our bits of the mark, or have our numbers."""
    found: list[str] = []
    for entry in shown:
        if not foreign(entry):
            continue
        whose = f"the rule with priority {entry['priority']} of {owner(entry)}"
        move = f"move it, or give the gateway others than {numbers.table} (--tables)"
        if str(entry.get("table")) in map(str, numbers.tables):
            found.append(f"{whose} looks in table {entry['table']}, which is the gateway's: {move}")
        elif entry["priority"] in numbers.priorities and entry["priority"] != RULE_LAST:
            found.append(f"{whose} has a number of the gateway: {move}")
        if "fwmark" not in entry:
            continue
        value = int(str(entry["fwmark"]), 16)
        mask = int(str(entry.get("fwmask", hex(_WHOLE))), 16)
        # A rule for one value of the whole word does not mean single bits.
        if mask != _WHOLE and mask & numbers.mask and value & mask & numbers.mask:
            found.append(
                f"{whose} looks at mark {value:#x}/{mask:#x}, and {mask & numbers.mask:#x} of that"
                f" is the gateway's (mask {numbers.mask:#x}): move it to other bits, or the"
                " gateway (--mark-bits)"
            )
    return found


def of_routes(shown: Iterable[Mapping[str, Any]], table: int) -> list[str]:
    """Other people's routes in a table of ours."""
    return [
        f"the route to {entry['dst']} in table {table} is of {owner(entry)}, and the table is the"
        " gateway's: move it to another one, or the gateway (--tables)"
        for entry in shown
        if foreign(entry)
    ]


def of_flowtables(shown: Mapping[str, Any]) -> list[str]:
    """Flowtables, whose flows pass by all chains."""
    found = [e["flowtable"] for e in shown.get("nftables", ()) if "flowtable" in e]
    return [
        f"flowtable {each['family']} {each['table']} {each['name']} carries established flows past"
        f" the chains of table {NFT_TABLE}: leave the tunnels' networks out of its rules (flow add)"
        for each in found
    ]
