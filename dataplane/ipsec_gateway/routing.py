"""Routes and rules that bring packets into the device: what they should be, and what they are.

The first table (``Numbers.table``) has a route through the device per remote subnet, and for each
an ``unreachable`` twin with the worst metric, which takes over when the device goes away with a
killed process. Packets that the nftables table marked to be steered look there, and nothing else
does while it has another route.

The second one (``table_source``) is for what the gateway itself sends. A connection that has no
source address yet looks there first and gets one that the policy covers; it is then marked and
steered as all others.
Linux lets a rule ask for "no source address" in IPv4 (``from 0.0.0.0/32``). In IPv6 it does not:
there the rule catches connections with an address too, and the output chain sends back on the usual
route what no policy matches.

The last rule comes after the main table, for nodes without a default route: what comes out of the
device must have some route back (RFC 3704 2.4, loose mode, which is set on the device alone). Loose
mode works only on a device that has an address, so it gets the IPv4 dummy address (RFC 7600 4.8),
with a scope in which nobody takes it as a source.

Where the kernel's SPD encrypts there is no device, and what the node's own tables say is good
enough: packets are encrypted on whatever way they leave. The second table then has only what needs
a source address or an MTU, the first what is for nodes without another way, both through the next
hop on the way to the peer. Nothing is steered by marks, and no twin is needed: with no route of
ours the usual one is taken, with the same policies.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ipsec_gateway.classify import Network
from ipsec_gateway.marks import (
    DEFAULT,
    FALLBACK_METRIC,
    ROUTE_PROTOCOL,
    RULE_LAST,
    Numbers,
)
from ipsec_gateway.nat import Translation

#: What ``ip address replace`` gives the device.
DUMMY_ADDRESS: Final = "192.0.0.8/32 scope host"


#: RTN_UNREACHABLE, as iproute2 shows it with -N.
_UNREACHABLE: Final = "7"
#: What the kernel takes where a route names no metric.
_DEFAULT_METRIC: Final = {4: 0, 6: 1024}
_WHOLE: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """A route of ours. An empty ``device`` is the unreachable twin; ``metric`` 0 is the kernel's
    own choice."""

    table: int
    destination: str
    device: str
    source: str = ""
    mtu: int = 0
    via: str = ""
    metric: int = 0

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
        hop = f"via {self.via} " if self.via else ""
        text = f"{self.destination} {hop}dev {self.device}"
        text += f" table {self.table} proto {ROUTE_PROTOCOL}"
        if self.metric:
            text += f" metric {self.metric}"
        if self.source:
            text += f" src {self.source}"
        return f"{text} mtu {self.mtu}" if self.mtu else text


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """A rule of ours, of one IP version: what has this ``mark`` under ``mask`` looks in ``table``.

    With ``to`` only on its way to that address; ``unbound``: only connections of this node that
    have no source address yet, as far as the kernel can tell.
    """

    version: int
    priority: int
    mark: int
    mask: int
    table: int
    to: str = ""
    unbound: bool = False

    def arguments(self) -> str:
        """What follows ``ip rule add`` or ``delete``."""
        text = f"pref {self.priority}"
        if self.unbound:
            text += " from 0.0.0.0/32 iif lo" if self.version == 4 else " iif lo"
        if self.to:
            text += f" to {self.to}"
        text += f" fwmark {self.mark:#x}/{self.mask:#x}"
        return f"{text} lookup {self.table} protocol {ROUTE_PROTOCOL}"


def steer_rule(version: int, numbers: Numbers) -> Rule:
    """What a policy protects looks in the first table."""
    return Rule(version, numbers.table, numbers.steer, numbers.steer, numbers.table)


def source_rule(version: int, numbers: Numbers) -> Rule:
    """What has no source address yet looks in the second one."""
    table = numbers.table_source
    return Rule(version, table, 0, numbers.mask, table, unbound=True)


def last_rule(version: int, numbers: Numbers) -> Rule:
    """What has no other way looks in the first one."""
    return Rule(version, RULE_LAST, 0, numbers.mask, numbers.table)


@dataclass(frozen=True, slots=True)
class Way:
    """How the node sends to an address: out of ``device``, to the next hop ``via`` if any."""

    device: str
    via: str = ""

    def hop(self, destination: Network) -> str:
        """The next hop in a route to ``destination``: none if it is of the other IP version.

        Such a route is for the look-up that finds the policy; who is next is then asked again, for
        the outer address.
        """
        return self.via if (":" in self.via) == (destination.version == 6) else ""


@dataclass(frozen=True, slots=True)
class Routing:
    """All of it."""

    routes: frozenset[Route] = frozenset()
    rules: frozenset[Rule] = frozenset()


@dataclass(frozen=True, slots=True)
class Wishes:
    """What routes to remote subnets shall have: an MTU in octets, a metric."""

    mtus: Mapping[Network, int] = field(default_factory=dict)
    metrics: Mapping[Network, int] = field(default_factory=dict)


def routing(
    pairs: Iterable[tuple[Network, Network]],
    *,
    device: str,
    addresses: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address] = (),
    wishes: Wishes | None = None,
    translations: Iterable[Translation] = (),
    numbers: Numbers = DEFAULT,
) -> Routing:
    """The routing for these (local, remote) subnets.

    ``addresses`` are the node's own; the first inside a local subnet becomes the source hint of the
    remote ones paired with it.
    """
    routes: set[Route] = set()

    def add(table: int, remote: Network, hint: str = "") -> None:
        it = wishes or Wishes()
        mtu, metric = it.mtus.get(remote, 0), it.metrics.get(remote, 0)
        routes.add(Route(table, str(remote), device, hint, mtu, metric=metric))
        routes.add(Route(table, str(remote), ""))

    hints = _hints(pairs, addresses)
    for remote, hint in hints.items():
        add(numbers.table, remote)
        # A policy to everything leaves the gateway its own way out.
        if remote.prefixlen:
            add(numbers.table_source, remote, hint)
    # After destination NAT, the other side's own networks are routed, but only where marked; a
    # source address is chosen before it.
    translated = tuple(translations)
    for remote in {t.wire_remote for t in translated}:
        add(numbers.table, remote)
    seen = _hints(((t.local, t.remote) for t in translated), addresses)
    for remote, hint in seen.items():
        if remote.prefixlen and remote not in hints:
            add(numbers.table_source, remote, hint)
    versions = {n.version for n in (*hints, *seen)}
    made = (steer_rule, source_rule, last_rule)
    rules = {make(version, numbers) for version in versions for make in made}
    return Routing(frozenset(routes), frozenset(rules))


def kernel_routing(
    pairs: Iterable[tuple[Network, Network]],
    *,
    ways: Mapping[Network, Way],
    addresses: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address] = (),
    wishes: Wishes | None = None,
    translations: Iterable[Translation] = (),
    numbers: Numbers = DEFAULT,
) -> Routing:
    """The same where the kernel's SPD encrypts.

    ``ways`` has how the node reaches the peer of each remote subnet; one whose peer cannot be
    reached now gets no route.
    """
    it = wishes or Wishes()
    routes: set[Route] = set()
    rules: set[Rule] = set()

    def add(table: int, remote: Network, way: Way, hint: str = "") -> None:
        mtu, metric = it.mtus.get(remote, 0), it.metrics.get(remote, 0)
        routes.add(Route(table, str(remote), way.device, hint, mtu, way.hop(remote), metric))

    hints = _hints(pairs, addresses)
    for remote, hint in hints.items():
        way = ways.get(remote)
        # The way to a default route is the node's own.
        if way is None or not remote.prefixlen:
            continue
        add(numbers.table, remote, way)
        rules.add(last_rule(remote.version, numbers))
        if hint or remote in it.mtus:
            add(numbers.table_source, remote, way, hint)
            rules.add(source_rule(remote.version, numbers))
    # The other side's own network may be ours too: marked packets must not take the way to ours.
    translated = tuple(translations)
    for remote in {t.wire_remote for t in translated}:
        way = ways.get(remote)
        if way is not None and remote.prefixlen:
            add(numbers.table, remote, way)
            rules |= {steer_rule(remote.version, numbers), last_rule(remote.version, numbers)}
    ends = {t.remote: t.wire_remote for t in translated}
    seen = _hints(((t.local, t.remote) for t in translated), addresses)
    for remote, hint in seen.items():
        way = ways.get(ends[remote])
        if way is not None and hint and remote.prefixlen and remote not in hints:
            add(numbers.table_source, remote, way, hint)
            rules.add(source_rule(remote.version, numbers))
    return Routing(frozenset(routes), frozenset(rules))


def parse_ways(text: str) -> list[tuple[str, Way]]:
    """Addresses and ways out of what a batch of ``ip -j route get`` lines says, loopback left out.

    Each line of the batch prints a list of its own.
    """
    found: list[tuple[str, Way]] = []
    decoder = json.JSONDecoder()
    at = 0
    while (at := text.find("[", at)) >= 0:
        entries, at = decoder.raw_decode(text, at)
        found.extend(
            (str(entry["dst"]), Way(str(entry["dev"]), _via(entry)))
            for entry in entries
            if entry.get("dev") not in (None, "lo")
        )
    return found


def _hints(
    pairs: Iterable[tuple[Network, Network]],
    addresses: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> dict[Network, str]:
    """For each remote subnet a source address of ours that the policy covers, or nothing."""
    own = sorted(addresses, key=lambda a: (a.version, int(a)))
    hints: dict[Network, str] = {}
    for local, remote in pairs:
        hints[remote] = hints.get(remote) or next(
            (str(a) for a in own if a.version == local.version and a in local), ""
        )
    return hints


def _via(entry: Mapping[str, Any]) -> str:
    return str(entry.get("gateway") or entry.get("via", {}).get("host", ""))


def parse_routes(shown: Iterable[Mapping[str, Any]], table: int, version: int) -> set[Route]:
    """What ``ip -j route show table TABLE`` says."""
    routes: set[Route] = set()
    for entry in shown:
        destination = str(entry["dst"])
        if destination == "default":
            destination = "0.0.0.0/0" if version == 4 else "::/0"
        elif "/" not in destination:
            destination += "/32" if version == 4 else "/128"
        unreachable = str(entry.get("type")) in ("unreachable", _UNREACHABLE)
        metrics = entry.get("metrics") or [{}]
        metric = int(entry.get("metric", 0))
        if unreachable or metric == _DEFAULT_METRIC[version]:
            metric = 0
        routes.add(
            Route(
                table,
                destination,
                "" if unreachable else str(entry.get("dev", "?")),
                str(entry.get("prefsrc", "")),
                int(metrics[0].get("mtu", 0)),
                _via(entry),
                metric,
            )
        )
    return routes


def parse_rules(shown: Iterable[Mapping[str, Any]], version: int) -> set[Rule]:
    """Those of ours among what ``ip -N -j rule`` shows, whatever numbers an earlier life had."""
    return {
        Rule(
            version,
            int(entry["priority"]),
            int(str(entry["fwmark"]), 16),
            int(str(entry.get("fwmask", hex(_WHOLE))), 16),
            int(entry["table"]),
            str(entry.get("dst", "")),
            entry.get("iif") == "lo",
        )
        for entry in shown
        if str(entry.get("protocol")) == str(ROUTE_PROTOCOL) and "fwmark" in entry
    }
