"""Whom to ask, and from which address, for each tunnel. Pure.

The source must be an address of this node that the tunnel's policies protect: the packet then goes
where a pod's would. With most CNIs nodes have one in the pod network (bridge, VXLAN, IPIP).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final

from ipsec_api.tunnel import TunnelConfig, TunnelProbe
from ipsec_gateway.classify import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Targets of one tunnel.
MOST: Final = 8
#: Any protocol, ICMP, ICMPv6.
_PINGS: Final = frozenset({0, 1, 58})


def targets(
    tunnel: TunnelConfig, addresses: Iterable[Address]
) -> tuple[tuple[tuple[str, str], ...], str]:
    """(source, target) in order, and why there are none."""
    probe = tunnel.probe or TunnelProbe()
    own = tuple(addresses)
    pairs = list(_pairs(tunnel))
    if not pairs:
        return (), "no policy of this peer carries pings"
    wanted = [ipaddress.ip_address(t) for t in probe.targets] or list(_guesses(pairs))
    found: dict[tuple[str, str], None] = {}
    for target in wanted:
        source = _source(target, pairs, own, probe.source_address)
        if source is not None and target not in own:
            found[str(source), str(target)] = None
    if found:
        return tuple(found)[:MOST], ""
    if probe.source_address is not None:
        return (), (
            f"probe.sourceAddress {probe.source_address} is no address of this node in a local"
            " subnet of the peer: correct or remove it"
        )
    if probe.targets and not any(t in remote for t in wanted for _, remote in pairs):
        return (), "probe.targets are in no remote subnet of the peer: correct them"
    return (), (
        "this node has no address in the local subnets of the peer to send probes from: give it"
        " one, such as on a dummy device"
    )


def _pairs(tunnel: TunnelConfig) -> Iterator[tuple[Network, Network]]:
    """(local, remote) of what pings can be sent through, as our side sees it."""
    mapped = [
        (ipaddress.ip_network(m.original), ipaddress.ip_network(m.mapped))
        for m in tunnel.mappings
        if m.side == "remote"
    ]
    for policy in tunnel.policies:
        if policy.action != "encrypt":
            continue
        for selector in policy.selectors:
            if selector.protocol not in _PINGS:
                continue
            local, remote = ipaddress.ip_network(selector.src), ipaddress.ip_network(selector.dst)
            seen = [new for old, new in mapped if old.version == remote.version and old == remote]
            for each in seen or [remote]:
                yield local, each


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
        if target in remote:
            for address in own:
                if address in local and wanted in (None, str(address)):
                    return address
    return None
