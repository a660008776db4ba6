"""The way to a peer: marks of IKE and ESP packets, and rules that have them look in a table.

``routing.routingMark`` of a peer is on every packet to it, IKE and ESP, in UDP or not, together
with the gateway's own bit ``bypass``. So rules of the node that match the mark (with a mask) route
all of them alike, and a firewall can tell them. ``routing.tableID`` needs no rule of the node: ours
leads there, by address, and by mark for a peer that may come from anywhere. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ipsec_api.tunnel import TunnelConfig
from ipsec_gateway.classify import Network
from ipsec_gateway.marks import DEFAULT, Numbers
from ipsec_gateway.routing import Rule


@dataclass(frozen=True, slots=True)
class OuterMarks:
    """Whole marks of packets to peers, where some peer asks for one: by address, then by network,
    the longest prefix first. 0: the gateway's own bit alone."""

    addresses: Mapping[str, int] = field(default_factory=dict)
    networks: tuple[tuple[Network, int], ...] = ()

    def of(self, address: str) -> int:
        """Of packets to ``address``."""
        found = self.addresses.get(address)
        if found is not None or not self.networks:
            return found or 0
        remote = ipaddress.ip_address(address)
        return next(
            (m for net, m in self.networks if net.version == remote.version and remote in net), 0
        )


def outer_marks(
    tunnels: Iterable[TunnelConfig],
    resolved: Mapping[str, tuple[str, ...]],
    live: Mapping[str, str],
    numbers: Numbers = DEFAULT,
) -> OuterMarks:
    """Marks for these peers.

    ``resolved`` has the addresses of names, ``live`` where each peer is now, as far as it is known.
    Peers without a mark are in it too: their packets must not get that of a wider network.
    """
    listed = tuple(tunnels)
    if all(t.routing_mark is None for t in listed):
        return OuterMarks()
    addresses: dict[str, int] = {}
    networks: dict[Network, int] = {}
    for tunnel in listed:
        mark = outer_word(tunnel, numbers)
        for address in known_addresses(tunnel, resolved, live):
            addresses[address] = addresses.get(address, 0) or mark
        for name in tunnel.remote_networks:
            try:
                network = ipaddress.ip_network(name)
            except ValueError:
                # A name: its addresses are known.
                continue
            networks[network] = networks.get(network, 0) or mark
    ordered = sorted(networks.items(), key=lambda each: -each[0].prefixlen)
    return OuterMarks(addresses, tuple(ordered))


def outer_word(tunnel: TunnelConfig, numbers: Numbers) -> int:
    """The whole mark of packets to this peer, 0 if it asks for none."""
    return 0 if tunnel.routing_mark is None else numbers.word(tunnel.routing_mark)


def known_addresses(
    tunnel: TunnelConfig, resolved: Mapping[str, tuple[str, ...]], live: Mapping[str, str]
) -> tuple[str, ...]:
    """Where this peer is or may be, the likeliest first; networks are left out."""
    names = tunnel.addresses
    found = [address for name in names for address in resolved.get(name, ())]
    if tunnel.key in live:
        found.insert(0, live[tunnel.key])
    return tuple(dict.fromkeys(found))


def detours(
    tunnels: Iterable[TunnelConfig],
    resolved: Mapping[str, tuple[str, ...]],
    live: Mapping[str, str],
    numbers: Numbers = DEFAULT,
) -> tuple[Rule, ...]:
    """Rules that lead IKE and ESP to peers with a table of their own there."""
    rules: set[Rule] = set()
    for tunnel in tunnels:
        table = tunnel.routing_table
        if table is None:
            continue
        priority = tunnel.rule_priority or numbers.rule_detour
        mark = mask = numbers.bypass
        if tunnel.routing_mark is not None:
            mark, mask = numbers.word(tunnel.routing_mark), 0xFFFFFFFF
        for address in known_addresses(tunnel, resolved, live):
            version = 6 if ":" in address else 4
            rules.add(Rule(version, priority, mark, mask, table, address))
        if tunnel.routing_mark is not None and not tunnel.addresses:
            rules |= {Rule(version, priority, mark, mask, table) for version in (4, 6)}
    return tuple(sorted(rules))


def clash(tunnel: TunnelConfig, numbers: Numbers) -> str:
    """Why this gateway cannot give a peer its mark; empty if it can."""
    taken = (tunnel.routing_mark or 0) & numbers.mask
    if not taken:
        return ""
    return (
        f"routing.routingMark {tunnel.routing_mark:#x} has bits of the gateway itself"
        f" ({numbers.mask:#x}): take others, such as 0x1 to 0xf, or start the gateway with other"
        " --mark-bits"
    )
