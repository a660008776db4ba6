"""Those who masquerade on a Kubernetes node or a router, as they set their rules.

In all of them 10.1.0.0/16 is the pod network. The datagrams of the tests go to UDP ports 9 and 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pytest

from ipsec_gateway.marks import NFT_TABLE
from ipsec_lab.netns import Namespace, missing_programs

LEGACY: Final = "iptables-legacy"
NFT: Final = "iptables-nft"


@dataclass(frozen=True)
class Actor:
    """Somebody's rules: a shell script in which ``$T`` is the flavour of iptables."""

    name: str
    script: str
    tools: tuple[str, ...] = (LEGACY, NFT)

    def set_up(self, where: Namespace, tool: str) -> None:
        """Set its rules with ``tool``, one of ``tools``; a test that lacks a program is skipped."""
        needed = [tool] if tool else []
        if missing := missing_programs(*needed, *(["ipset"] if "ipset" in self.script else [])):
            pytest.skip(f"{' and '.join(missing)} not installed: apt-get install iptables ipset")
        where.run("sh", "-euc", f"T='{tool} -w'\n{self.script}")


KUBE_PROXY = Actor(
    "kube-proxy",
    """
    $T -t nat -N KUBE-MARK-MASQ
    $T -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
    $T -t nat -I PREROUTING -d 10.0.0.0/14 -j KUBE-MARK-MASQ
    $T -t nat -I OUTPUT -d 10.0.0.0/14 -j KUBE-MARK-MASQ
    $T -t nat -N KUBE-POSTROUTING
    $T -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
    $T -t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
    $T -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully
    $T -t nat -I POSTROUTING -j KUBE-POSTROUTING
    """,
)
FLANNEL = Actor(
    "flannel",
    """
    $T -t nat -N FLANNEL-POSTRTG
    $T -t nat -I POSTROUTING -j FLANNEL-POSTRTG
    $T -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
    $T -t nat -A FLANNEL-POSTRTG -s 10.1.0.0/24 -d 10.1.0.0/16 -j RETURN
    $T -t nat -A FLANNEL-POSTRTG -s 10.1.0.0/16 -d 10.1.0.0/24 -j RETURN
    $T -t nat -A FLANNEL-POSTRTG -s 10.1.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
    $T -t nat -A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.0.0/16 -j MASQUERADE --random-fully
    """,
)
CALICO = Actor(
    "calico",
    """
    ipset create cali40masq-ipam-pools hash:net && ipset add cali40masq-ipam-pools 10.1.0.0/16
    ipset create cali40all-ipam-pools hash:net && ipset add cali40all-ipam-pools 10.1.0.0/16
    $T -t nat -N cali-nat-outgoing
    $T -t nat -A cali-nat-outgoing -m set --match-set cali40masq-ipam-pools src \
        -m set ! --match-set cali40all-ipam-pools dst -j MASQUERADE --random-fully
    $T -t nat -I POSTROUTING -j cali-nat-outgoing
    """,
)
KINDNET = Actor(
    "kindnet",
    """
    $T -t nat -N KIND-MASQ-AGENT
    $T -t nat -A KIND-MASQ-AGENT -d 10.1.0.0/16 -j RETURN
    $T -t nat -A KIND-MASQ-AGENT -j MASQUERADE
    $T -t nat -I POSTROUTING -m addrtype ! --dst-type LOCAL -j KIND-MASQ-AGENT
    """,
)
ROUTER = Actor(
    "router",
    """
    $T -t nat -I POSTROUTING -j MASQUERADE
    $T -t nat -I POSTROUTING -p udp -o kipsec0 -j SNAT --to-source 192.0.2.1
    """,
)
#: Those who write nftables themselves: chains at 100, ahead of it, and as early as kindnet's.
TABLES = Actor(
    "nftables",
    """nft -f - <<END
    table ip kube-proxy {
      chain mark-masq { type nat hook prerouting priority -110; meta mark set meta mark | 0x4000; }
      chain nat-postrouting {
        type nat hook postrouting priority 100;
        meta mark & 0x4000 == 0 return
        meta mark set meta mark ^ 0x4000 masquerade fully-random
      }
    }
    table inet kindnet-ipmasq {
      set noMasqV4 { type ipv4_addr; flags interval; elements = { 10.1.0.0/16 }; }
      chain postrouting {
        type nat hook postrouting priority 95;
        ip daddr @noMasqV4 return
        masquerade
      }
    }
    table inet router { chain post { type nat hook postrouting priority 100; masquerade; }; }
END
    """,
    ("",),
)
ACTORS: Final = (KUBE_PROXY, FLANNEL, CALICO, KINDNET, ROUTER, TABLES)
#: Every actor with every tool.
CASES: Final = [(actor, tool) for actor in ACTORS for tool in actor.tools]


def keeps_sources(gateway: Namespace) -> bool:
    """Whether a gateway of ours keeps sources from their translation, for which the kernel tracks
    connections."""
    return "type nat" in gateway.run("nft", "list", "table", "inet", NFT_TABLE)
