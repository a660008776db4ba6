"""Services that only what came out of an SA reaches (``requireIPsec``). Pure.

They are services of this node, at whatever address, and of the local networks of the peers that ask
for them. Which SA it was does not matter: that is for the selectors.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ipsec_api.tunnel import TunnelConfig
from ipsec_gateway.classify import Network

_UDP: Final = 17


@dataclass(frozen=True, slots=True)
class ProtectedService:
    """One protocol and, where it has some, ports (inclusive; None: all), beside this node itself
    in these networks, which do not overlap. ``name`` has the peers, for people."""

    protocol: int
    ports: tuple[int, int] | None
    networks: tuple[Network, ...] = ()
    name: str = ""

    @property
    def match(self) -> str:
        """As nft writes it."""
        if self.ports is None:
            return f"meta l4proto {self.protocol}"
        first, last = self.ports
        span = str(first) if first == last else f"{first}-{last}"
        return f"meta l4proto {self.protocol} th dport {span}"


def protected_services(
    tunnels: Iterable[TunnelConfig], *, responder: int = 0
) -> tuple[ProtectedService, ...]:
    """What these peers ask for: one entry for each service, whoever asks. ``responder``: also the
    UDP port at which this node answers probes."""
    networks: dict[tuple[int, tuple[int, int] | None], set[Network]] = {}
    names: dict[tuple[int, tuple[int, int] | None], dict[str, None]] = {}
    if responder:
        key: tuple[int, tuple[int, int] | None] = (_UDP, (responder, responder))
        names[key], networks[key] = {"probes": None}, set()
    for tunnel in tunnels:
        for service in tunnel.require_ipsec:
            key = service.protocol, service.ports
            names.setdefault(key, {})[tunnel.key] = None
            networks.setdefault(key, set()).update(
                ipaddress.ip_network(selector.src)
                for policy in tunnel.policies
                if policy.action == "encrypt"
                for selector in policy.selectors
            )
    return tuple(
        ProtectedService(*key, _collapsed(found), ", ".join(names[key]))
        for key, found in networks.items()
    )


def _collapsed(networks: set[Network]) -> tuple[Network, ...]:
    four = (n for n in networks if isinstance(n, ipaddress.IPv4Network))
    six = (n for n in networks if isinstance(n, ipaddress.IPv6Network))
    return (*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six))
