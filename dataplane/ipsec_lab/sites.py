"""Our own gateway at both sites, with manifests for one tunnel: whole gateways to be tested.

    lan-a --- gw-a === wan === gw-b --- lan-b       (ipsec_lab.topology; the guard drops clear text)

Site b is passive, so that one IKE SA is what there is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

from ipsec_lab import manifests
from ipsec_lab.gateway import GatewayProcess
from ipsec_lab.guard import Guard
from ipsec_lab.leftovers import footprint, left_behind
from ipsec_lab.manifests import Document
from ipsec_lab.topology import Topology
from ipsec_lab.traffic import ping

PSK: Final = b"a secret that no log may show"
SECRET: Final = manifests.secret("psk", PSK)


class Sites:
    """Two gateways with manifests for one tunnel. As a context: both are killed in the end."""

    def __init__(self, topology: Topology, folder: Path) -> None:
        self.topology = topology
        self.guard = Guard(topology)
        for name in ("a", "b"):
            (folder / name).mkdir()
        self.a = GatewayProcess(topology, topology.gw_a, folder / "a")
        self.b = GatewayProcess(topology, topology.gw_b, folder / "b")
        self.peer_b = self.peer("b")
        self.peer_a = self.peer("a", passive=True)
        self.before = {name: footprint(topology.gateway(name)) for name in ("a", "b")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.a.kill()
        self.b.kill()

    def peer(self, name: str, **spec: object) -> Document:
        """The IPsecPeer for site ``name`` at the other one."""
        remote, local = self.topology.site(name), self.topology.site("b" if name == "a" else "a")
        document = manifests.peer(
            name,
            address=remote.wan_address(),
            psk_from="psk",
            localSubnets=list(local.lans),
            remoteSubnets=list(remote.lans),
        )
        document["spec"] |= spec
        return document

    def start(self, *options: str) -> None:
        """Both, with these options of the gateway; until both are Ready. Raises LabError."""
        self.b.apply(SECRET, self.peer_a)
        self.a.apply(SECRET, self.peer_b)
        self.b.start(*options)
        self.a.start(*options)
        self.a.wait_condition("b")
        self.b.wait_condition("a")

    def left(self, name: str) -> list[str]:
        """What the gateway of site ``name`` has put into its namespace."""
        return left_behind(self.topology.gateway(name), self.before[name])

    def answers(self, address: str | None = None) -> bool:
        """Whether a ping from LAN a comes back; to LAN b's host if no address is named."""
        target = address or self.topology.b.host()
        return bool(ping(self.topology.lan_a, target, count=2, wait=0.5).received)
