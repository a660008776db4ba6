"""The agent's nftables table: what no route can say. Pure.

- ``keep_source``: pods keep their address on the way to a remote subnet and replies keep theirs,
  whatever the CNI masquerades, or no policy at the gateway would match.
- ``received`` and ``handed_on``: a packet is handed from node to node once.
- ``clamp``: TCP fits through VXLAN from its first segment on, in both directions.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from ipsec_gateway.routeagent.plan import Wanted

TABLE: Final = "kube_ipsec_routes"
#: Octets of TCP and IP headers without options.
_HEADERS: Final = {4: 40, 6: 60}


def remove() -> str:
    """A script that removes the table; no error if there is none."""
    return f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n"


def script(wanted: Wanted) -> str:
    """A script that puts the table in place of what is there, in one transaction."""
    if not wanted.foreign and wanted.vxlan is None:
        return remove()
    chains = [*_keep_source(wanted), *_received(wanted), *_handed_on(wanted), *_clamp(wanted)]
    sets = "".join(
        f"  set {name}{version} {{ type ipv{version}_addr; flags interval;"
        f"{_elements(networks, version)} }}\n"
        for name, networks in (("foreign", wanted.foreign), ("own", wanted.own))
        for version in (4, 6)
    )
    body = "\n".join(f"  {line}" for line in chains)
    return (
        remove()
        + f'table inet {TABLE} {{\n  comment "kube-ipsec route agent. Its own: it is replaced,'
        + f' not edited. docs/route-agent.md explains it."\n{sets}{body}\n}}\n'
    )


def _elements(networks: Iterable[str], version: int) -> str:
    """Without overlaps, which an interval set refuses."""
    if version == 4:
        fours = [ipaddress.IPv4Network(n) for n in networks if ":" not in n]
        members = [str(n) for n in ipaddress.collapse_addresses(fours)]
    else:
        sixes = [ipaddress.IPv6Network(n) for n in networks if ":" in n]
        members = [str(n) for n in ipaddress.collapse_addresses(sixes)]
    return f" elements = {{ {', '.join(members)} }}" if members else ""


def _keep_source(wanted: Wanted) -> list[str]:
    if not wanted.foreign:
        return []
    # The kernel translates sources at 100 whatever the priority, which only orders the chains
    # among each other: 0 is ahead of the lowest known one (kindnet, 95).
    return [
        "chain keep_source {",
        "  type nat hook postrouting priority 0; policy accept;",
        "  ip daddr @foreign4 snat ip to ip saddr",
        "  ip saddr @foreign4 snat ip to ip saddr",
        "  ip6 daddr @foreign6 snat ip6 to ip6 saddr",
        "  ip6 saddr @foreign6 snat ip6 to ip6 saddr",
        "}",
    ]


def _received(wanted: Wanted) -> list[str]:
    if wanted.vxlan is None:
        return []
    return [
        "chain received {",
        "  type filter hook prerouting priority -150; policy accept;",
        f'  iifname != "{wanted.vxlan.name}" return',
        "  ip daddr @own4 return",
        "  ip6 daddr @own6 return",
        '  counter drop comment "by VXLAN, and not for a peer that this node carries"',
        "}",
    ]


def _handed_on(wanted: Wanted) -> list[str]:
    if not wanted.links or not wanted.foreign:
        return []
    lines = ["chain handed_on {", "  type filter hook forward priority -150; policy accept;"]
    lines += [f"  ip{s} daddr @own{v} return" for v, s in ((4, ""), (6, "6"))]
    lines += [
        f'  iifname "{link}" oifname "{link}" ip{suffix} daddr @foreign{version} counter drop'
        ' comment "from one node by way of this one to another"'
        for link in sorted(wanted.links)
        for version, suffix in ((4, ""), (6, "6"))
    ]
    return [*lines, "}"]


def _clamp(wanted: Wanted) -> list[str]:
    if wanted.vxlan is None or not wanted.foreign:
        return []
    four, six = (wanted.vxlan.mtu - _HEADERS[v] for v in (4, 6))
    return [
        "chain clamp {",
        "  type filter hook forward priority -150; policy accept;",
        "  tcp flags & (syn | rst) != syn return",
        f'  oifname "{wanted.vxlan.name}" tcp option maxseg size set rt mtu',
        f"  ip saddr @foreign4 tcp option maxseg size set {four}",
        f"  ip6 saddr @foreign6 tcp option maxseg size set {six}",
        "}",
    ]
