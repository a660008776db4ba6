"""What peers ask for by remote subnet: sizes of packets and metrics of routes. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Final

from ipsec_api.tunnel import TunnelConfig
from ipsec_gateway.classify import Network
from ipsec_gateway.ipsec.base import PolicyId

#: Octets of IP and TCP headers without options.
_HEADERS: Final = {4: 40, 6: 60}


def sizes(
    owners: Mapping[PolicyId, TunnelConfig],
) -> tuple[dict[Network, int], dict[int, tuple[Network, ...]]]:
    """Route MTUs and MSS clamps. Where peers share a remote subnet the smaller MTU counts.

    An MTU that was chosen limits TCP too: of hosts behind the gateway no route of it is asked.
    """
    mtus: dict[Network, int] = {}
    clamps: dict[int, list[Network]] = {}
    for policy, tunnel in owners.items():
        for remote in policy.destination.networks:
            if tunnel.mtu is not None:
                mtus[remote] = min(tunnel.mtu, mtus.get(remote, tunnel.mtu))
            mss = tunnel.tcp_mss
            if mss is None and tunnel.mtu is not None:
                mss = tunnel.mtu - _HEADERS[remote.version]
            if mss is not None:
                clamps.setdefault(mss, []).append(remote)
    return mtus, {mss: collapsed(networks) for mss, networks in clamps.items()}


def metrics(owners: Mapping[PolicyId, TunnelConfig]) -> dict[Network, int]:
    """Where peers share a remote subnet the smaller one counts."""
    found: dict[Network, int] = {}
    for policy, tunnel in owners.items():
        if tunnel.metric is not None:
            for remote in policy.destination.networks:
                found[remote] = min(tunnel.metric, found.get(remote, tunnel.metric))
    return found


def collapsed(networks: Iterable[Network]) -> tuple[Network, ...]:
    """Without overlaps: a set of prefixes refuses them."""
    four = [n for n in networks if isinstance(n, ipaddress.IPv4Network)]
    six = [n for n in networks if isinstance(n, ipaddress.IPv6Network)]
    return (*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six))
