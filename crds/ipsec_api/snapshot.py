"""All resources at one moment, typed: what ``compile`` works on, wherever they were read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ipsec_api.modeconfig import ModeConfigSpec
from ipsec_api.peer import IPsecPeerSpec
from ipsec_api.policy import IPsecPolicySpec
from ipsec_api.tunnel import ObjectRef


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """What is kept of ``metadata``. ``creation_timestamp`` (RFC 3339) decides who came first."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def age(self) -> tuple[str, str, str]:
        """The oldest is the least."""
        return self.creation_timestamp, *self.key


@dataclass(frozen=True, slots=True)
class IPsecPeer:
    metadata: ObjectMeta
    spec: IPsecPeerSpec

    @property
    def ref(self) -> ObjectRef:
        return _ref("IPsecPeer", self.metadata)


@dataclass(frozen=True, slots=True)
class IPsecPolicy:
    metadata: ObjectMeta
    spec: IPsecPolicySpec

    @property
    def ref(self) -> ObjectRef:
        return _ref("IPsecPolicy", self.metadata)


@dataclass(frozen=True, slots=True)
class ModeConfig:
    metadata: ObjectMeta
    spec: ModeConfigSpec

    @property
    def ref(self) -> ObjectRef:
        return _ref("ModeConfig", self.metadata)


@dataclass(frozen=True, slots=True)
class Secret:
    """A core/v1 Secret. The data is in no ``repr``."""

    metadata: ObjectMeta
    data: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The order of the objects carries no meaning."""

    peers: tuple[IPsecPeer, ...] = ()
    policies: tuple[IPsecPolicy, ...] = ()
    mode_configs: tuple[ModeConfig, ...] = ()
    secrets: tuple[Secret, ...] = ()


def _ref(kind: str, meta: ObjectMeta) -> ObjectRef:
    return ObjectRef.model_validate(
        {
            "kind": kind,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
            "generation": meta.generation,
        }
    )
