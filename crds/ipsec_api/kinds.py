"""The three kinds as the API server knows them: names, spec, status, columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ipsec_api.modeconfig import ModeConfigSpec, ModeConfigStatus
from ipsec_api.peer import IPsecPeerSpec
from ipsec_api.peer_status import IPsecPeerStatus
from ipsec_api.policy import IPsecPolicySpec, IPsecPolicyStatus
from ipsec_api.rules import SpecModel

GROUP: Final = "kubeipsec.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
CATEGORY: Final = "ipsec"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of ``kubectl get``; those of priority 1 show with ``-o wide``."""

    name: str
    type: Literal["string", "boolean", "date", "integer"]
    path: str
    description: str
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """One custom resource, namespaced, with a status subresource."""

    name: str
    plural: str
    short_name: str
    description: str
    spec: type[SpecModel]
    status: type[SpecModel]
    columns: tuple[Column, ...]
    #: Paths that ``--field-selector`` knows (Kubernetes 1.31 and later).
    selectable: tuple[str, ...] = ()

    @property
    def singular(self) -> str:
        return self.name.lower()


def _condition(kind: str, part: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{part}'


_READY = Column("Ready", "string", _condition("Ready", "status"), "Everything is in order.")
_AGE = Column("Age", "date", ".metadata.creationTimestamp", "Since the resource was created.")

PEER: Final = Kind(
    name="IPsecPeer",
    plural="ipsecpeers",
    short_name="ipp",
    description="A remote IKE endpoint: a router, a firewall or another cluster, and the tunnel to"
    " it.",
    spec=IPsecPeerSpec,
    status=IPsecPeerStatus,
    columns=(
        Column("Remote", "string", ".spec.address", "Where the peer is."),
        Column("Gateway", "string", ".status.activeGateway", "The gateway that owns it."),
        _READY,
        Column("Reason", "string", _condition("Ready", "reason"), "Why it is not ready."),
        Column("Uptime", "date", ".status.establishedAt", "Since the IKE SA was established."),
        Column("RTT", "string", ".status.lastProbe.rtt", "Round trip through the tunnel.", 1),
        Column("Cipher", "string", ".status.cipherSuite", "Algorithms of the IKE SA.", 1),
        Column("NAT", "boolean", ".status.natDetected.local", "Whether we are behind a NAT.", 1),
        _AGE,
    ),
    selectable=(".spec.disabled",),
)

POLICY: Final = Kind(
    name="IPsecPolicy",
    plural="ipsecpolicies",
    short_name="ipsp",
    description="Which traffic goes through the tunnel of an IPsecPeer, and how it is protected.",
    spec=IPsecPolicySpec,
    status=IPsecPolicyStatus,
    columns=(
        Column("Peer", "string", ".spec.peerRef.name", "Where the traffic goes."),
        Column("Src", "string", ".spec.srcAddress", "Local network."),
        Column("Dst", "string", ".spec.dstAddress", "Remote network."),
        Column("Action", "string", ".spec.action", "What happens to it."),
        Column("Level", "string", ".spec.level", "What happens while there is no SA."),
        Column("State", "string", ".status.state", "What happens now."),
        _AGE,
    ),
    selectable=(".spec.peerRef.name", ".spec.disabled"),
)

MODE_CONFIG: Final = Kind(
    name="ModeConfig",
    plural="modeconfigs",
    short_name="mcfg",
    description="Addresses, routes and DNS settings that a gateway hands out or asks for.",
    spec=ModeConfigSpec,
    status=ModeConfigStatus,
    columns=(
        Column("Responder", "boolean", ".spec.responder", "Whether it hands out or asks."),
        Column("Pool", "integer", ".status.total", "Addresses in the pool."),
        Column("Used", "integer", ".status.allocated", "Addresses in use."),
        _READY,
        _AGE,
    ),
)

KINDS: Final = (PEER, POLICY, MODE_CONFIG)
