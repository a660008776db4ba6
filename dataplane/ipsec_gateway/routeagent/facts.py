"""What of a node matters here: its addresses, its ways to gateways, the overlays of its CNI."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ipsec_gateway.classify import Address
from ipsec_gateway.routeagent.plan import Node, Settings, Way
from ipsec_gateway.routing import parse_ways
from ipsec_gateway.tools import run, run_json

#: Kinds of interfaces over which a CNI carries packets between nodes.
_OVERLAYS: Final = frozenset(
    {"vxlan", "geneve", "ipip", "sit", "gre", "ip6tnl", "ip6gre", "wireguard", "openvswitch"}
)
#: On which nobody answers for an address.
_SILENT: Final = frozenset({"NOARP", "POINTOPOINT", "LOOPBACK"})
#: What devices of this project are called.
_OURS: Final = "kipsec"


async def node_facts(
    name: str,
    addresses: tuple[Address, ...],
    gateways: Iterable[Address],
    settings: Settings,
) -> Node:
    """This node now. Without ``addresses`` those of its interfaces. Raises ToolError."""
    links = await run_json("ip", "-d", "-j", "link", "show")
    own = addresses or local_addresses(await run_json("ip", "-j", "address", "show"))
    wanted = sorted({str(a) for a in gateways} - {str(a) for a in own})
    # With a mark of the gateway's the look-up passes by our own rule.
    mark = 1 << (settings.mask.bit_length() - 1)
    lines = "".join(f"route get {a} mark {mark:#x}\n" for a in wanted)
    shown = (
        await run("ip", "-j", "-force", "-batch", "-", script=lines, check=False) if lines else ""
    )
    return Node(name, own, parse_ways_to(shown, links), overlays(links, settings.device))


def local_addresses(shown: Iterable[Mapping[str, Any]]) -> tuple[Address, ...]:
    """Global addresses of what ``ip -j address show`` lists, in its order, IPv4 first."""
    found = [
        ipaddress.ip_address(info["local"])
        for link in shown
        if not str(link.get("ifname", "")).startswith(_OURS)
        for info in link.get("addr_info", ())
        if info.get("scope") == "global" and not info.get("deprecated")
    ]
    return tuple(sorted(found, key=lambda a: a.version))


def overlays(links: Iterable[Mapping[str, Any]], device: str) -> frozenset[str]:
    """Interfaces over which a CNI may deliver what comes back."""
    return frozenset(
        str(link["ifname"])
        for link in links
        if link.get("linkinfo", {}).get("info_kind") in _OVERLAYS
        and link["ifname"] != device
        and not str(link["ifname"]).startswith(_OURS)
    )


def parse_ways_to(shown: str, links: Iterable[Mapping[str, Any]]) -> dict[Address, Way]:
    """What a batch of ``ip -j route get`` says, with the facts of the interfaces."""
    by_name = {str(link["ifname"]): link for link in links if "ifname" in link}
    found: dict[Address, Way] = {}
    for address, way in parse_ways(shown):
        link = by_name.get(way.device, {})
        talks = not _SILENT & set(link.get("flags", ()))
        neighbour = talks and not way.via
        found[ipaddress.ip_address(address)] = Way(way.device, neighbour, int(link.get("mtu", 0)))
    return found
