"""Whom to ask, and from which address, for each tunnel; and where we answer. Pure.

The source must be an address of this node that the tunnel's policies protect: the packet then goes
where a pod's would. With most CNIs nodes have one in the pod network (bridge, VXLAN, IPIP). By the
same choice a gateway of our kind is told where we answer (``own_responder``), and of what it tells
us that counts which lies within what was agreed on.

Addresses are as our side sees them. What is said over IKE is as it is inside the tunnel: where a
network is mapped to another one, the two differ.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from ipsec_api.cluster import PROBE_PORT
from ipsec_api.tunnel import TunnelConfig, TunnelMapping, TunnelProbe, TunnelSelector
from ipsec_gateway.classify import Network
from ipsec_ike.config import Responder

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Targets of one tunnel.
MOST: Final = 8
#: Any protocol, ICMP, ICMPv6.
_PINGS: Final = frozenset({0, 1, 58})
_UDP: Final = 17
_ALL_PORTS: Final = (0, 65535)


class Way(NamedTuple):
    """From where to where; ``port`` 0 is a ping."""

    source: str
    target: str
    port: int = 0


class Targets(NamedTuple):
    """In order, and why there are none. ``asked``: somebody named them, so that they count."""

    ways: tuple[Way, ...]
    asked: bool = False
    why: str = ""


def targets(
    tunnel: TunnelConfig, addresses: Iterable[Address], responder: Responder | None = None
) -> Targets:
    """Whom to ask. ``responder`` is what the peer has told of itself, as far as its selectors allow
    that."""
    probe = tunnel.probe or TunnelProbe()
    own = tuple(addresses)
    port = (probe.port or PROBE_PORT) if probe.protocol == "UDP" else 0
    pairs = list(_pairs(tunnel, port))
    if not pairs:
        what = f"UDP to port {port}" if port else "pings"
        return Targets((), why=f"no policy of this peer carries {what}")
    if probe.targets:
        named = [ipaddress.ip_address(t) for t in probe.targets]
        ways = _ways(named, pairs, own, probe.source_address, port)
        return Targets(ways, True, "" if ways else _why(probe, named, pairs))
    if responder is not None and (responder.port or not port):
        # There it answers, whatever port others would be asked at.
        there = responder.port if port else 0
        told = _believed(responder, tunnel)
        through = list(_pairs(tunnel, there, routed=False))
        ways = _ways(told, through, own, probe.source_address, there)
        if ways:
            return Targets(ways, True)
    ways = _ways(_guesses(pairs), pairs, own, probe.source_address, port)
    return Targets(ways, False, "" if ways else _why(probe, (), pairs))


def own_responder(
    tunnel: TunnelConfig, addresses: Iterable[Address], port: int
) -> Responder | None:
    """Where this node answers probes of the peer, as the peer sees it, or None. ``tunnel`` has the
    selectors of the wire (``nat.on_the_wire``). ``port`` 0: pings alone."""
    if tunnel.nat_mode in ("Masquerade", "SNAT"):
        return None
    probe = tunnel.probe or TunnelProbe()
    # Of all networks none is the one where the peer would find us.
    locals_ = [local for local, _ in _pairs(tunnel, 0, routed=False) if local.prefixlen]
    own = [
        _moved(address, tunnel.mappings, "local")
        for address in addresses
        if probe.source_address in (None, str(address))
    ]
    found = dict.fromkeys(_own(local, own, None) for local in locals_)
    there = tuple(str(address) for address in found if address is not None)
    return Responder(port, there[:MOST]) if there else None


def _ways(
    wanted: Iterable[Address],
    pairs: Iterable[tuple[Network, Network]],
    own: tuple[Address, ...],
    source_address: str | None,
    port: int,
) -> tuple[Way, ...]:
    found: dict[Way, None] = {}
    for target in wanted:
        source = _source(target, pairs, own, source_address)
        if source is not None and target not in own:
            found[Way(str(source), str(target), port)] = None
    return tuple(found)[:MOST]


def _why(
    probe: TunnelProbe, named: Iterable[Address], pairs: Iterable[tuple[Network, Network]]
) -> str:
    if probe.source_address is not None:
        return (
            f"probe.sourceAddress {probe.source_address} is no address of this node in a local"
            " subnet of the peer: correct or remove it"
        )
    if probe.targets and not any(t in remote for t in named for _, remote in pairs):
        return "probe.targets are in no remote subnet of the peer: correct them"
    return (
        "this node has no address in the local subnets of the peer to send probes from: give it"
        " one, such as on a dummy device"
    )


def _believed(responder: Responder, tunnel: TunnelConfig) -> Iterator[Address]:
    """What the peer has told, without what our policies leave in clear text or drop."""
    others = [
        ipaddress.ip_network(selector.dst)
        for policy in tunnel.policies
        if policy.action != "encrypt"
        for selector in policy.selectors
    ]
    for text in responder.addresses:
        address = _moved(ipaddress.ip_address(text), tunnel.mappings, "remote")
        if not any(address in network for network in others):
            yield address


def _pairs(
    tunnel: TunnelConfig, port: int, *, routed: bool = True
) -> Iterator[tuple[Network, Network]]:
    """(local, remote) of what probes can be sent through, as our side sees it. ``routed``: also of
    policies that take only what is routed to them, wherever it goes otherwise."""
    mapped = [
        (ipaddress.ip_network(m.original), ipaddress.ip_network(m.mapped))
        for m in tunnel.mappings
        if m.side == "remote"
    ]
    carries = _carries(port)
    for policy in tunnel.policies:
        if policy.action != "encrypt" or (policy.interface is not None and not routed):
            continue
        for selector in policy.selectors:
            if not carries(selector):
                continue
            local, remote = ipaddress.ip_network(selector.src), ipaddress.ip_network(selector.dst)
            seen = [new for old, new in mapped if old.version == remote.version and old == remote]
            for each in seen or [remote]:
                yield local, each


def _carries(port: int) -> Callable[[TunnelSelector], bool]:
    if not port:
        return lambda selector: selector.protocol in _PINGS

    def udp(selector: TunnelSelector) -> bool:
        low, high = selector.dst_port
        # Any of our ports may be the probe's.
        return not selector.protocol or (
            selector.protocol == _UDP and low <= port <= high and selector.src_port == _ALL_PORTS
        )

    return udp


def _guesses(pairs: Iterable[tuple[Network, Network]]) -> Iterator[Address]:
    """The first address of each remote subnet, where the router usually is."""
    for _, remote in pairs:
        if remote.prefixlen == 0:
            continue
        single = remote.prefixlen >= remote.max_prefixlen - 1
        yield remote.network_address if single else remote.network_address + 1


def _source(
    target: Address,
    pairs: Iterable[tuple[Network, Network]],
    own: tuple[Address, ...],
    wanted: str | None,
) -> Address | None:
    for local, remote in pairs:
        if target in remote and (found := _own(local, own, wanted)) is not None:
            return found
    return None


def _own(local: Network, own: Iterable[Address], wanted: str | None) -> Address | None:
    """Our address in a network, or the wanted one."""
    return next((a for a in own if a in local and wanted in (None, str(a))), None)


def _moved(address: Address, mappings: Iterable[TunnelMapping], side: str) -> Address:
    """As the other side of the mapping sees it."""
    for mapping in mappings:
        original, mapped = (ipaddress.ip_network(n) for n in (mapping.original, mapping.mapped))
        if mapping.side == side and address in original:
            return mapped[int(address) - int(original.network_address)]
    return address
