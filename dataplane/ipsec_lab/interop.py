"""Our gateway at site a, strongSwan at site b, and what both are told, for the interop tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ipsec_lab import manifests
from ipsec_lab.gateway import GatewayProcess
from ipsec_lab.guard import Guard
from ipsec_lab.manifests import Document
from ipsec_lab.netns import LabError
from ipsec_lab.stranger import open_half
from ipsec_lab.strongswan import Charon, CharonSettings, Child, Connection
from ipsec_lab.topology import Topology
from ipsec_lab.traffic import ping, ping_until, tcp_transfer

PSK: Final = b"an interop secret, 0123456789"
#: Of the peer at our site, of the connection at strongSwan's, and of the child there.
PEER: Final = "west"
CONNECTION: Final = "east"
CHILD: Final = "lans"


@dataclass(frozen=True)
class Suite:
    """One set of algorithms in the words of both sides."""

    name: str
    encryption: str
    group: str
    #: Of IKE, and of ESP where the cipher brings no integrity of its own.
    hash: str
    their_ike: str
    their_esp: str
    aead: bool = True

    @property
    def profile(self) -> Document:
        """``spec.profile`` of the IPsecPeer."""
        return {"encAlgorithms": [self.encryption], "hash": self.hash, "dhGroups": [self.group]}

    @property
    def proposal(self) -> Document:
        """``spec.proposal`` of the IPsecPolicy."""
        proposal: Document = {"encAlgorithms": [self.encryption], "pfsGroup": self.group}
        return proposal if self.aead else proposal | {"authAlgorithms": [self.hash]}


GCM: Final = Suite(
    "aes128gcm-x25519",
    "aes128-gcm",
    "x25519",
    "sha256",
    "aes128gcm16-prfsha256-x25519",
    "aes128gcm16-x25519",
)
SUITES: Final = (
    GCM,
    Suite(
        "aes256gcm-ecp384",
        "aes256-gcm",
        "ecp384",
        "sha384",
        "aes256gcm16-prfsha384-ecp384",
        "aes256gcm16-ecp384",
    ),
    Suite(
        "aes128cbc-sha256-modp2048",
        "aes128",
        "modp2048",
        "sha256",
        "aes128-sha256-modp2048",
        "aes128-sha256-modp2048",
        aead=False,
    ),
    Suite(
        "aes256cbc-sha512-modp3072",
        "aes256",
        "modp3072",
        "sha512",
        "aes256-sha512-modp3072",
        "aes256-sha512-modp3072",
        aead=False,
    ),
    Suite(
        "chacha20poly1305-ecp256",
        "chacha20poly1305",
        "ecp256",
        "sha256",
        "chacha20poly1305-prfsha256-ecp256",
        "chacha20poly1305-ecp256",
    ),
)


class InteropRig:
    """What one test works with. Nothing is started until it is asked for; the topology ends it."""

    def __init__(self, topology: Topology, guard: Guard, directory: Path) -> None:
        self.topology: Final = topology
        self.guard: Final = guard
        self._directory: Final = directory
        self._gateway: GatewayProcess | None = None
        self._charon: Charon | None = None

    @property
    def gateway(self) -> GatewayProcess:
        """Ours, at site a. Raises LabError before ``start_ours``."""
        if self._gateway is None:
            raise LabError("our gateway was not started")
        return self._gateway

    @property
    def charon(self) -> Charon:
        """Theirs, at site b. Raises LabError before ``start_theirs``."""
        if self._charon is None:
            raise LabError("charon was not started")
        return self._charon

    def documents(
        self,
        *,
        psk: bytes = PSK,
        suite: Suite = GCM,
        version: int = 4,
        address: str | None = None,
        selectors: Sequence[tuple[str, str]] | None = None,
        profile: Document | None = None,
        proposal: Document | None = None,
        policies: Sequence[Document] | None = None,
        **spec: Any,
    ) -> list[Document]:
        """Our manifests: Secret, IPsecPeer ``west`` and its policy from LAN to LAN.

        ``version`` is that of the outer addresses, ``profile`` and ``proposal`` are added to those
        of the suite, ``spec`` to the peer's; ``policies`` replace the one policy.
        """
        a, b = self.topology.a, self.topology.b
        peer = manifests.peer(
            PEER,
            address=address or b.wan_address(version),
            psk_from="west-psk",
            localAddress=a.wan_address(version),
            profile=suite.profile | (profile or {}),
            **spec,
        )
        one = manifests.policy(
            "lans",
            peer_name=PEER,
            selectors=selectors or manifests.pairs(a, b),
            proposal=suite.proposal | (proposal or {}),
        )
        return [manifests.secret("west-psk", psk), *(policies or [one]), peer]

    def template_documents(
        self, how: str = "port-strict", *, near: str = "10.1.0.0/16", far: str = "10.2.0.0/16"
    ) -> list[Document]:
        """Our manifests for road warriors: a passive peer that anybody with the secret may be, and
        a template from ``near`` to ``far``. ``how`` is ``generatePolicy``."""
        pattern = manifests.policy(
            "pool", peer_name=PEER, selectors=[(near, far)], proposal=GCM.proposal
        )
        del pattern["spec"]["peerRef"]
        pattern["spec"] |= {"template": True, "group": "warriors"}
        authentication = {
            "method": "preSharedKey",
            "secretRef": {"name": "west-psk"},
            "remoteID": {"type": "ignore"},
            "generatePolicy": how,
            "policyTemplateGroup": "warriors",
        }
        return self.documents(policies=[pattern], authentication=authentication, passive=True)

    def connection(
        self,
        *,
        suite: Suite = GCM,
        version: int = 4,
        child: dict[str, Any] | None = None,
        children: tuple[Child, ...] | None = None,
        **settings: Any,
    ) -> Connection:
        """strongSwan's side of ``documents``. ``child`` are settings of its child, ``settings`` of
        the connection; ``children`` replace the one child."""
        a, b = self.topology.a, self.topology.b
        one = {
            "name": CHILD,
            "local_ts": b.lans,
            "remote_ts": a.lans,
            "esp_proposals": (suite.their_esp,),
        }
        return Connection(
            **{
                "name": CONNECTION,
                "psk": PSK,
                "local_addrs": (b.wan_address(version),),
                "remote_addrs": (a.wan_address(version),),
                "proposals": (suite.their_ike,),
                "children": children or (Child(**(one | (child or {}))),),
            }
            | settings
        )

    def start_theirs(
        self, *connections: Connection, settings: CharonSettings | None = None
    ) -> Charon:
        """charon at site b, with these connections."""
        directory = self._directory / "charon"
        directory.mkdir()
        self._charon = Charon(self.topology, self.topology.gw_b, directory, settings)
        self._charon.start()
        self._charon.load(*connections)
        return self._charon

    def start_ours(self, documents: Sequence[Document], *options: str) -> GatewayProcess:
        """Our gateway at site a, with these manifests."""
        directory = self._directory / "gateway"
        directory.mkdir()
        self._gateway = GatewayProcess(self.topology, self.topology.gw_a, directory)
        self._gateway.apply(*documents)
        self._gateway.start(*options)
        return self._gateway

    def connect(self, role: str, documents: Sequence[Document], connection: Connection) -> None:
        """Start both and wait for the tunnel: we are the ``initiator`` or the ``responder``."""
        self.start_theirs(connection)
        self.start_ours(documents)
        if role == "responder":
            self.charon.initiate(child=connection.children[0].name)
        self.wait_up(connection)

    def wait_up(self, connection: Connection, *, timeout: float = 15.0) -> None:
        """Until both sides say that the peer and all of its children are there."""
        self.gateway.wait_condition(PEER, timeout=timeout)
        for child in connection.children:
            self.charon.wait_installed(child.name, timeout=timeout)

    def exchange_traffic(self, *, lan: tuple[int, ...] = (0, 1)) -> None:
        """Ping from both ends, and TCP, in the LANs of these indices. Raises LabError."""
        top = self.topology
        for index in lan:
            a, b = top.a.host(index), top.b.host(index)
            for namespace, source, address in ((top.lan_a, a, b), (top.lan_b, b, a)):
                ping_until(namespace, address, source=source)
                lost = ping(namespace, address, count=5, interval=0.01, source=source).lost
                if lost:
                    raise LabError(f"pings {lost} of 5 from {source} to {address} are lost")
            transfer = tcp_transfer(top.lan_a, top.lan_b, b, octets=1 << 20, source_address=a)
            if not transfer.intact:
                raise LabError(f"TCP to {b} arrived damaged")

    def half_open_at_charon(self, count: int) -> None:
        """IKE_SA_INIT requests from our site that never go on: charon waits for each of them."""
        own = self.topology.a.wan_address()
        open_half(self.topology.gw_a, (own,), self.topology.b.wan_address(), count)

    def half_open_at_ours(self, count: int, addresses: tuple[str, ...]) -> None:
        """``count`` such requests from each of these addresses, which site b's gateway gets."""
        gateway = self.topology.gw_b
        for address in addresses:
            self.guard.allow(address)
            gateway.ip(f"address replace {address}/24 dev wan0")
        try:
            open_half(gateway, addresses, self.topology.a.wan_address(), count)
        finally:
            for address in addresses:
                gateway.ip(f"address del {address}/24 dev wan0")

    def stop(self) -> None:
        """End both; charon first and silently, so that no test waits for the other side."""
        if self._charon is not None:
            self._charon.kill()
        if self._gateway is not None:
            self._gateway.kill()

    def logs(self) -> dict[str, str]:
        """What both have logged, by name."""
        found = {}
        if self._gateway is not None:
            found["our gateway"] = self._gateway.log()
        if self._charon is not None:
            found["charon"] = self._charon.log()
        return found
