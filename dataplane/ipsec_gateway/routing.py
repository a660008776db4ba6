"""Routes and rules that bring packets into the device: what they should be, and what they are.

``TABLE`` has a route through the device per remote subnet, and for each an ``unreachable`` twin
with the worst metric, which takes over when the device goes away with a killed process. Packets
that the nftables table marked STEER look there, and nothing else does while it has another route.

``TABLE_SOURCE`` is for what the gateway itself sends. A connection that has no source address yet
looks there first and gets one that the policy covers; it is then marked and steered as all others.
Linux lets a rule ask for "no source address" in IPv4 (``from 0.0.0.0/32``). In IPv6 it does not:
there the rule catches connections with an address too, and the output chain sends back on the usual
route what no policy matches.

``RULE_LAST`` comes after the main table, for nodes without a default route: what comes out of the
device must have some route back (RFC 3704 2.4, loose mode, which is set on the device alone). Loose
mode works only on a device that has an address, so it gets the IPv4 dummy address (RFC 7600 4.8),
with a scope in which nobody takes it as a source.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ipsec_gateway.classify import Network
from ipsec_gateway.marks import (
    FALLBACK_METRIC,
    MARK_MASK,
    ROUTE_PROTOCOL,
    RULE_LAST,
    RULE_SOURCE,
    RULE_STEER,
    STEER,
    TABLE,
    TABLE_SOURCE,
)

#: Tables and rule priorities that are ours alone.
TABLES: Final = (TABLE, TABLE_SOURCE)
PRIORITIES: Final = (RULE_STEER, RULE_SOURCE, RULE_LAST)

#: What ``ip address replace`` gives the device.
DUMMY_ADDRESS: Final = "192.0.0.8/32 scope host"


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """A route of ours. An empty ``device`` is the unreachable twin."""

    table: int
    destination: str
    device: str
    source: str = ""
    mtu: int = 0

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.destination else 4

    def arguments(self) -> str:
        """What follows ``ip route add`` or ``delete``."""
        if not self.device:
            return (
                f"unreachable {self.destination} table {self.table}"
                f" metric {FALLBACK_METRIC} proto {ROUTE_PROTOCOL}"
            )
        text = f"{self.destination} dev {self.device} table {self.table} proto {ROUTE_PROTOCOL}"
        if self.source:
            text += f" src {self.source}"
        return f"{text} mtu {self.mtu}" if self.mtu else text


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """A rule of ours, of one IP version."""

    version: int
    priority: int

    def arguments(self) -> str:
        """What follows ``ip rule add`` or ``delete``."""
        unmarked = f"fwmark 0/{MARK_MASK:#x}"
        unbound = "from 0.0.0.0/32 iif lo" if self.version == 4 else "iif lo"
        what = {
            RULE_STEER: f"fwmark {STEER:#x}/{STEER:#x} lookup {TABLE}",
            RULE_SOURCE: f"{unbound} {unmarked} lookup {TABLE_SOURCE}",
            RULE_LAST: f"{unmarked} lookup {TABLE}",
        }[self.priority]
        return f"pref {self.priority} {what} protocol {ROUTE_PROTOCOL}"


@dataclass(frozen=True, slots=True)
class Routing:
    """All of it."""

    routes: frozenset[Route] = frozenset()
    rules: frozenset[Rule] = frozenset()


def routing(
    pairs: Iterable[tuple[Network, Network]],
    *,
    device: str,
    addresses: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address] = (),
    mtus: Mapping[Network, int] | None = None,
) -> Routing:
    """The routing for these (local, remote) subnets.

    ``addresses`` are the node's own; the first inside a local subnet becomes the source hint of the
    remote ones paired with it. ``mtus`` has route MTUs, in octets, of remote subnets.
    """
    own = sorted(addresses, key=lambda a: (a.version, int(a)))
    hints: dict[Network, str] = {}
    for local, remote in pairs:
        hints[remote] = hints.get(remote) or next(
            (str(a) for a in own if a.version == local.version and a in local), ""
        )
    routes: set[Route] = set()
    for remote, hint in hints.items():
        mtu = (mtus or {}).get(remote, 0)
        routes.add(Route(TABLE, str(remote), device, "", mtu))
        routes.add(Route(TABLE, str(remote), ""))
        # A policy to everything leaves the gateway its own way out.
        if remote.prefixlen:
            routes.add(Route(TABLE_SOURCE, str(remote), device, hint, mtu))
            routes.add(Route(TABLE_SOURCE, str(remote), ""))
    rules = {Rule(version, p) for version in {n.version for n in hints} for p in PRIORITIES}
    return Routing(frozenset(routes), frozenset(rules))


def parse_routes(shown: Iterable[Mapping[str, Any]], table: int, version: int) -> set[Route]:
    """What ``ip -j route show table TABLE`` says."""
    routes: set[Route] = set()
    for entry in shown:
        destination = str(entry["dst"])
        if destination == "default":
            destination = "0.0.0.0/0" if version == 4 else "::/0"
        elif "/" not in destination:
            destination += "/32" if version == 4 else "/128"
        unreachable = entry.get("type") == "unreachable"
        metrics = entry.get("metrics") or [{}]
        routes.add(
            Route(
                table,
                destination,
                "" if unreachable else str(entry.get("dev", "?")),
                str(entry.get("prefsrc", "")),
                int(metrics[0].get("mtu", 0)),
            )
        )
    return routes


def parse_rules(shown: Iterable[Mapping[str, Any]], version: int) -> set[Rule]:
    """Those of ours among what ``ip -j rule`` shows."""
    return {
        Rule(version, int(entry["priority"]))
        for entry in shown
        if entry.get("priority") in PRIORITIES
    }
