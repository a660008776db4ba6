"""From who carries what to routes, neighbours and packet rules of one node. Pure.

One table, asked for every packet that carries none of our marks, has for every remote subnet one
route:

=============================  =================================================================
who carries the peer           route
=============================  =================================================================
this node                      none (``throw`` where the route of another peer covers it): the
                               gateway on this node takes it from here
a neighbour on the same link   ``via`` its node address
any other node                 ``via`` it ``dev`` our VXLAN device, ``onlink``
nobody                         ``unreachable``, unless all its policies tolerate clear text
=============================  =================================================================

The VXLAN device learns nothing and has no address but the IPv4 dummy address (RFC 7600 4.8),
without which reverse path checks would refuse all that comes by it. Its MAC address follows from
the name of the node, so that everybody knows everybody's; a next hop is the node address of the
gateway (or, where that is of the other IP version, the link-local address of that MAC address),
with a permanent neighbour entry and one entry in the forwarding database.

A packet is handed from node to node once: what came by VXLAN goes to a peer that this node carries,
or nowhere; what came from a link does not go back to another gateway on that link. So two nodes
that disagree for a moment cannot send a packet in circles.

What the peers send comes back the way that the CNI has from the gateway's node to the pod, and may
arrive on another interface than the one that leads to the peer: reverse path checks are loose on
``Wanted.loose``.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from ipsec_gateway.classify import Address, Network
from ipsec_gateway.routeagent.picture import Carried

#: ``proto`` of the agent's routes and rules: not the gateway's, which tells its own by it.
PROTOCOL: Final = 78
#: Octets that VXLAN adds to an inner packet: inner Ethernet, VXLAN, UDP, outer IP.
OVERHEAD: Final = {4: 14 + 8 + 8 + 20, 6: 14 + 8 + 8 + 40}
#: What every IPv4 link carries (RFC 791); under 1280 the device has no IPv6 (RFC 8200 section 5).
MIN_MTU: Final = 576

Transport = Literal["auto", "vxlan"]
Kind = Literal["unicast", "unreachable", "throw"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the administrator says. ``mask`` are the mark bits of the gateway, ``table`` is both the
    number of our table and the priority of the rule that leads to it."""

    table: int = 4502
    mask: int = 0x70
    device: str = "kipsec-vx"
    vni: int = 4499
    port: int = 4499
    transport: Transport = "auto"
    #: Networks that no remote subnet takes from the cluster: pods, services, nodes.
    exclude: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """How this node reaches an address: the interface, its MTU in octets (0: not known), and
    whether the address is a neighbour on it that answers to ARP or ND."""

    device: str
    neighbour: bool
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """This node: its name, its own addresses, preferred first, and its ways to gateways."""

    name: str
    addresses: tuple[Address, ...] = ()
    ways: Mapping[Address, Way] = field(default_factory=dict)
    #: Tunnel interfaces of others (the CNI's overlay), on which replies may come in.
    overlays: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """One route of ours. ``mtu`` in octets, 0: the device's."""

    destination: str
    kind: Kind
    device: str = ""
    via: str = ""
    source: str = ""
    mtu: int = 0

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.destination else 4

    def arguments(self, table: int) -> str:
        """What follows ``ip route replace`` or ``delete``."""
        text = f"{self.destination} table {table} proto {PROTOCOL}"
        if self.kind != "unicast":
            return f"{self.kind} {text}"
        family = "inet6 " if self.version == 4 and ":" in self.via else ""
        text += f" via {family}{self.via} dev {self.device} onlink"
        if self.source:
            text += f" src {self.source}"
        return f"{text} mtu {self.mtu}" if self.mtu else text


@dataclass(frozen=True, slots=True)
class Vxlan:
    """The device: ``local`` is the outer source address, ``mtu`` in octets of inner packets."""

    name: str
    vni: int
    port: int
    local: str
    mac: str
    mtu: int


@dataclass(frozen=True, slots=True, order=True)
class Neighbour:
    """A next hop behind the VXLAN device: its address, and the MAC address it stands for."""

    address: str
    mac: str


@dataclass(frozen=True, slots=True, order=True)
class Forwarding:
    """Frames to this MAC address go to that node address."""

    mac: str
    node: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that the node should have. ``problems`` are for the log, each with its remedy."""

    routes: frozenset[Route] = frozenset()
    #: IP versions that have the rule.
    rules: frozenset[int] = frozenset()
    vxlan: Vxlan | None = None
    neighbours: frozenset[Neighbour] = frozenset()
    forwarding: frozenset[Forwarding] = frozenset()
    #: Remote subnets carried by other nodes, and by this one.
    foreign: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    #: Interfaces with gateways as neighbours.
    links: frozenset[str] = frozenset()
    loose: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()


def mac_of(node: str) -> str:
    """The MAC address of a node's VXLAN device: locally administered, from the name."""
    octets = bytearray(hashlib.blake2b(node.encode(), digest_size=6).digest())
    octets[0] = octets[0] & 0xFC | 0x02
    return ":".join(f"{o:02x}" for o in octets)


def link_local(mac: str) -> str:
    """The link-local address of a MAC address (RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    host = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + host))


def outer_version(node: Node) -> int | None:
    """The IP version that carries VXLAN: that of the node's preferred address."""
    return node.addresses[0].version if node.addresses else None


def plan(
    carried: Mapping[str, Carried],
    gateways: Mapping[str, tuple[Address, ...]],
    node: Node,
    settings: Settings,
) -> Wanted:
    """What ``node`` should have. ``gateways`` are the node addresses of all that are known."""
    return _Plan(gateways, node, settings).of(carried)


class _Plan:
    def __init__(
        self, gateways: Mapping[str, tuple[Address, ...]], node: Node, settings: Settings
    ) -> None:
        self._gateways = gateways
        self._node = node
        self._settings = settings
        self._version = outer_version(node)
        self._problems: dict[str, None] = {}
        self._remote = {n: a for n, a in gateways.items() if n != node.name}
        self._ends = {n: self._outer(a) for n, a in self._remote.items()}
        self._mtu = self._inner_mtu()

    def of(self, carried: Mapping[str, Carried]) -> Wanted:
        owners = self._owners(carried)
        routes = {n: self._route(n, gateway) for n, gateway in owners.items()}
        foreign = {n for n, gateway in owners.items() if gateway != self._node.name}
        own = owners.keys() - foreign
        kept = {n: r for n, r in routes.items() if r is not None}
        cover = _Cover(kept)
        covered = [n for n in own if cover.contains(n)]
        held = [n for n in self._held() if cover.contains(n) and n not in kept]
        everything = {
            *kept.values(),
            *(Route(str(n), "throw") for n in (*covered, *held)),
        }
        versions = {n.version for n in owners}
        receives = self._node.name in self._gateways
        hops = {
            Neighbour(str(hop), mac_of(name)): Forwarding(mac_of(name), str(end))
            for name, end in self._ends.items()
            if end is not None
            if any(self._near(name, version) is None for version in versions)
            for hop in self._hops(name)
        }
        device = self._vxlan() if receives or hops else None
        if device is None:
            hops = {}
        links = {
            way.device
            for addresses in self._remote.values()
            for a in addresses
            if (way := self._node.ways.get(a)) and way.neighbour
        }
        uplinks = {
            w.device
            for addresses in self._remote.values()
            for a in addresses
            if (w := self._node.ways.get(a))
        }
        involved = bool(kept or own)
        return Wanted(
            routes=frozenset(everything),
            rules=frozenset(r.version for r in everything),
            vxlan=device,
            neighbours=frozenset(hops),
            forwarding=frozenset(hops.values()),
            foreign=frozenset(map(str, foreign)),
            own=frozenset(map(str, own)),
            links=frozenset(links) if self._settings.transport == "auto" else frozenset(),
            loose=frozenset(
                (uplinks | self._node.overlays if involved else set())
                | ({device.name} if device else set())
            ),
            problems=tuple(self._problems),
        )

    def _owners(self, carried: Mapping[str, Carried]) -> dict[Network, str | None]:
        """Who carries each remote subnet; of two peers with the same one the first by name."""
        owners: dict[Network, str | None] = {}
        whose: dict[Network, str] = {}
        for peer, it in sorted(carried.items()):
            if it.gateway is None and it.tolerant:
                continue
            for remote in it.remotes:
                if not remote.prefixlen:
                    self._problem(
                        f"{peer} has everything ({remote}) behind it: only pods on the gateway's"
                        " own node reach it; name its networks instead"
                    )
                elif remote in owners:
                    self._problem(
                        f"{remote} is behind both {whose[remote]} and {peer}: it goes to"
                        f" {whose[remote]}; take it out of one of them"
                    )
                else:
                    owners[remote], whose[remote] = it.gateway, peer
        return owners

    def _route(self, remote: Network, gateway: str | None) -> Route | None:
        if gateway == self._node.name:
            return None
        refused = Route(str(remote), "unreachable")
        if gateway is None or gateway not in self._gateways:
            return refused
        source = next((str(a) for a in self._node.addresses if a.version == remote.version), "")
        near = self._near(gateway, remote.version)
        if near is not None:
            address, way = near
            return Route(str(remote), "unicast", way.device, str(address), source)
        if self._version is None:
            self._problem("this node's address is not known: set NODE_IP or --node-ip")
            return refused
        if self._ends.get(gateway) is None:
            self._problem(
                f"gateway {gateway} has no address of IPv{self._version} as this node has"
                f" ({self._node.addresses[0]}): its peers cannot be reached from here"
            )
            return refused
        hop = self._hop(gateway, remote.version)
        return Route(str(remote), "unicast", self._settings.device, hop, source, self._mtu)

    def _near(self, gateway: str, version: int) -> tuple[Address, Way] | None:
        """The gateway's address of this IP version if it is a neighbour."""
        if self._settings.transport != "auto":
            return None
        for address in self._remote.get(gateway, ()):
            way = self._node.ways.get(address)
            if address.version == version and way is not None and way.neighbour:
                return address, way
        return None

    def _outer(self, addresses: Iterable[Address]) -> Address | None:
        return next((a for a in addresses if a.version == self._version), None)

    def _hop(self, gateway: str, version: int) -> str:
        if version == 4:
            for address in self._remote[gateway]:
                if address.version == 4:
                    return str(address)
        return link_local(mac_of(gateway))

    def _hops(self, gateway: str) -> set[str]:
        return {self._hop(gateway, 4), self._hop(gateway, 6)}

    def _inner_mtu(self) -> int:
        """What fits through VXLAN to every gateway."""
        if self._version is None:
            return 0
        ways = (self._node.ways.get(end) for end in self._ends.values() if end is not None)
        smallest = min((w.mtu for w in ways if w is not None and w.mtu), default=1500)
        return max(smallest - OVERHEAD[self._version], MIN_MTU)

    def _vxlan(self) -> Vxlan | None:
        if self._version is None:
            return None
        own = self._node.addresses[0]
        it = self._settings
        return Vxlan(it.device, it.vni, it.port, str(own), mac_of(self._node.name), self._mtu)

    def _held(self) -> set[Network]:
        """What stays the cluster's: the excluded networks, and all outer addresses."""
        addresses = {*self._node.addresses, *(a for many in self._gateways.values() for a in many)}
        return {*self._settings.exclude, *(ipaddress.ip_network(str(a)) for a in addresses)}

    def _problem(self, text: str) -> None:
        self._problems[text] = None


class _Cover:
    """Networks, asked whether one of them contains another: one look-up per prefix length."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._members: dict[tuple[int, int], set[int]] = {}
        for n in networks:
            members = self._members.setdefault((n.version, n.prefixlen), set())
            members.add(int(n.network_address))

    def contains(self, network: Network) -> bool:
        value, width = int(network.network_address), network.max_prefixlen
        return any(
            version == network.version
            and length <= network.prefixlen
            and (value >> (width - length) << (width - length)) in members
            for (version, length), members in self._members.items()
        )
