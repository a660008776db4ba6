"""Who else translates sources on this node: what ``status.natBackend`` says.

Ours does not depend on it: protected traffic keeps its source ahead of everybody (see "NAT" in
docs/gateway.md). It is for who asks why a packet has the source that it has. Known is which tool
keeps the rules, and of nftables, which ``iptables-nft`` is too, who made the chains, by their
names. Legacy iptables tells that there are rules, and no more without its own program. Pure: what
``nft -j list chains`` shows and the tables of legacy iptables come in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from ipsec_gateway.marks import NFT_TABLE

#: Nobody translates.
NONE: Final = "none"
LEGACY: Final = "iptables-legacy"
NFT: Final = "iptables-nft"
NFTABLES: Final = "nftables"

#: Names of the tables of legacy iptables in this namespace; there once one was looked at.
_LEGACY_TABLES: Final = ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")
#: The chain that iptables-nft makes for ``-t nat``.
_IPTABLES_CHAIN: Final = "POSTROUTING"
#: Beginnings of names of chains (iptables) and of tables (nftables), and whose they are.
_CHAINS: Final = (
    ("KUBE-POSTROUTING", "kube-proxy"),
    ("FLANNEL-POSTRTG", "flannel"),
    ("cali-", "Calico"),
    ("CILIUM_", "Cilium"),
    ("KIND-MASQ", "kindnet"),
    ("IP-MASQ", "ip-masq-agent"),
    ("AWS-SNAT", "AWS VPC CNI"),
    ("WEAVE", "Weave"),
    ("KUBE-ROUTER", "kube-router"),
    ("ANTREA-", "Antrea"),
    ("OVN-KUBE", "OVN-Kubernetes"),
    ("CNI-HOSTPORT", "portmap"),
    ("DOCKER", "Docker"),
)
_TABLES: Final = (
    ("kube-proxy", "kube-proxy"),
    ("kindnet", "kindnet"),
    ("kube-network-policies", "kindnet"),
    ("flannel", "flannel"),
    ("calico", "Calico"),
    ("ovn-kube", "OVN-Kubernetes"),
    ("firewalld", "firewalld"),
    ("docker", "Docker"),
)
#: Owners that one line names.
_MOST: Final = 6


def backend(shown: Mapping[str, Any], legacy: Iterable[str]) -> str:
    """Such as ``iptables-nft (flannel, kube-proxy); nftables (kindnet)``, or ``none``.

    ``shown`` is what ``nft -j list chains`` says, ``legacy`` are the tables of legacy iptables.
    """
    chains = [e["chain"] for e in shown.get("nftables", ()) if "chain" in e]
    translating = {
        (c["family"], c["table"], c["name"])
        for c in chains
        if c.get("type") == "nat" and c.get("hook") == "postrouting" and c["table"] != NFT_TABLE
    }
    iptables = {
        family
        for family, table, name in translating
        if table == "nat" and name == _IPTABLES_CHAIN and family in ("ip", "ip6")
    }
    found: list[str] = []
    if "nat" in legacy:
        found.append(LEGACY)
    if iptables:
        names = (c["name"] for c in chains if c["table"] == "nat" and c.get("family") in iptables)
        found.append(_line(NFT, (_whose(name, _CHAINS) for name in names)))
    tables = {
        table for family, table, _ in translating if not (table == "nat" and family in iptables)
    }
    if tables:
        found.append(_line(NFTABLES, (_whose(table, _TABLES) or table for table in tables)))
    return "; ".join(found) or NONE


def legacy_tables(paths: Iterable[str] = _LEGACY_TABLES) -> frozenset[str]:
    """The tables of legacy iptables that this namespace has; none where the kernel has no such."""
    found: set[str] = set()
    for path in paths:
        try:
            found.update(Path(path).read_text().split())
        except OSError:
            # No such module, or not ours to see: then there is nothing to be said of it.
            continue
    return frozenset(found)


def _whose(name: str, known: Iterable[tuple[str, str]]) -> str:
    return next((owner for start, owner in known if name.startswith(start)), "")


def _line(tool: str, owners: Iterable[str]) -> str:
    named = sorted({owner for owner in owners if owner}, key=str.lower)
    if len(named) > _MOST:
        named = [*named[:_MOST], "and others"]
    return f"{tool} ({', '.join(named)})" if named else tool
