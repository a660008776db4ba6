"""TunnelConfig: what one accepted IPsecPeer comes to, fully resolved, for the gateway alone.

The operator renders one into one Secret per peer; the directory source gets it from ``compile`` in
the process. Everything a gateway needs is in here, references are resolved and defaults are filled
in, so that it never reads a tenant's objects. Order in ``policies`` carries no meaning of its own:
the gateway sorts the policies of all tunnels by ``(priority, namespace, name, index)``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, SecretBytes, field_serializer, field_validator

from ipsec_api.base import ApiModel


class ObjectRef(ApiModel):
    """The object that a status belongs to, at the generation that was compiled."""

    kind: Literal["IPsecPeer", "IPsecPolicy", "ModeConfig"]
    namespace: str
    name: str
    uid: str = ""
    generation: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class IdentityType(StrEnum):
    """How an identity is written (RFC 7296 3.5)."""

    AUTO = "auto"
    FQDN = "fqdn"
    EMAIL = "email"
    ADDRESS = "address"
    DN = "dn"
    KEY_ID = "keyID"
    IGNORE = "ignore"


class TunnelIdentity(ApiModel):
    """One pair of identities and the credentials that prove them."""

    name: str
    local_type: IdentityType = IdentityType.AUTO
    local_value: str = ""
    remote_type: IdentityType = IdentityType.AUTO
    remote_value: str = ""
    psk: SecretBytes
    psk_previous: SecretBytes | None = None
    #: Whether it may ask for policies within the templates of the group.
    generate: Literal["no", "port-override", "port-strict"] = "no"
    template_group: str = ""

    @field_validator("psk", "psk_previous", mode="before")
    @classmethod
    def _from_hex(cls, value: object) -> object:
        """Text is the hex of a rendered Secret; bytes are the key itself."""
        return bytes.fromhex(value) if isinstance(value, str) else value

    @field_serializer("psk", "psk_previous", when_used="json")
    def _reveal(self, value: SecretBytes | None) -> str | None:
        """Hex in the rendered Secret; ``repr`` and ``model_dump()`` stay masked."""
        return None if value is None else value.get_secret_value().hex()


class TunnelSelector(ApiModel):
    """One source/destination pair, seen from this gateway: ``src`` is local, ``dst`` is remote.

    CIDRs in canonical form. ``protocol`` 0 is any; ports are inclusive ranges.
    """

    src: str
    dst: str
    protocol: int = 0
    src_port: tuple[int, int] = (0, 65535)
    dst_port: tuple[int, int] = (0, 65535)


class TunnelProposal(ApiModel):
    """Algorithm names as users write them (``ipsec_api.algorithms``), in order of preference."""

    encryption: tuple[str, ...]
    integrity: tuple[str, ...] = ()
    prf: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    #: Offered ESN values in order of preference; IKE proposals leave it empty.
    esn: tuple[bool, ...] = ()


class TunnelInterface(ApiModel):
    """An interface whose traffic a policy protects. Addresses and routes in canonical CIDR form."""

    name: str
    addresses: tuple[str, ...] = ()
    #: Octets; None is automatic.
    mtu: int | None = None
    routes: tuple[str, ...] = ()


class TunnelPolicy(ApiModel):
    """One IPsecPolicy, or the one that ``remoteSubnets`` of the peer stands for, or a part of it.

    Without ``per_pair``, all ``src`` go with all ``dst`` of the same family and protocol, so that
    one CHILD_SA with the union of both sides carries these selectors and nothing else. A policy
    whose selectors are not like that comes as several, told apart by ``index``.
    """

    source: ObjectRef
    index: int = 0
    priority: int
    action: Literal["encrypt", "discard", "none"] = "encrypt"
    level: Literal["require", "unique", "use"] = "require"
    tunnel: bool = True
    protocol: Literal["esp", "ah"] = "esp"
    #: True: one CHILD_SA per selector pair; False: one for all (IKEv2 multiple selectors).
    per_pair: bool = False
    selectors: tuple[TunnelSelector, ...]
    proposals: tuple[TunnelProposal, ...] = ()
    #: Seconds, octets; 0 is no limit.
    lifetime: int = 1800
    lifebytes: int = 0
    lifepackets: int = 0
    replay_window: int = 1024
    #: Only what is routed into this interface; None: all traffic that matches the selectors.
    interface: TunnelInterface | None = None
    #: What becomes of these fields of the header between the tunnel's ends.
    dscp: Literal["Copy", "CopyBoth", "Clear"] = "Copy"
    ecn: Literal["Copy", "Clear"] = "Copy"
    df: Literal["Copy", "Clear"] = "Copy"


class TunnelService(ApiModel):
    """A protocol by number, and an inclusive range of its ports or all of them."""

    protocol: int
    ports: tuple[int, int] | None = None


class TunnelTemplate(TunnelPolicy):
    """A pattern for policies that peers ask for. ``default_route``: they may have all traffic."""

    group: str
    default_route: bool = False


class TunnelMapping(ApiModel):
    """One prefix that the other side sees as another one of the same length, in CIDR notation."""

    side: Literal["local", "remote"]
    original: str
    mapped: str


class TunnelFailover(ApiModel):
    """Which gateways may own the peer, and when another one takes it over."""

    #: Group of gateways; empty is the default group.
    group: str = ""
    #: Labels of the node.
    labels: dict[str, str] = Field(default_factory=dict)
    #: Whether a gateway whose probe fails gives the peer up.
    by_probe: bool = True
    #: Seconds of silence after which a gateway counts as gone.
    patience: int = 6
    #: Whether the preferred gateway takes the peer back.
    preempt: bool = False


class TunnelProbe(ApiModel):
    """How the tunnel is probed."""

    enabled: bool = True
    #: Addresses to ask; none: addresses that the gateway tries by itself.
    targets: tuple[str, ...] = ()
    protocol: Literal["ICMP", "UDP"] = "ICMP"
    #: Of UDP; None: that of gateways of our kind.
    port: int | None = None
    #: Seconds.
    interval: int = 2
    #: Lost probes in a row.
    failure_threshold: int = 5
    source_address: str | None = None


class TunnelConfig(ApiModel):
    """Everything about one peer."""

    source: ObjectRef
    #: Remote IKE addresses in order: IP addresses or DNS names; empty for a responder-only peer.
    addresses: tuple[str, ...] = ()
    #: Networks a responder accepts the peer from (an address is a host prefix). DNS names are
    #: resolved.
    remote_networks: tuple[str, ...] = ()
    port: int = 500
    local_address: str | None = None
    passive: bool = False
    send_initial_contact: bool = True
    ike_proposals: tuple[TunnelProposal, ...]
    #: Seconds.
    ike_lifetime: int = 28800
    dpd_interval: int = 8
    dpd_max_failures: int = 4
    #: None is as the data plane likes.
    force_encapsulation: bool | None = None
    fragmentation: bool = True
    childless: bool = False
    identities: tuple[TunnelIdentity, ...] = Field(min_length=1)
    policies: tuple[TunnelPolicy, ...]
    #: Of the groups that the identities name.
    templates: tuple[TunnelTemplate, ...] = ()
    #: What a network card computes of the SAs.
    hw_offload: Literal["Auto", "Off", "Crypto"] = "Auto"
    #: None is automatic.
    mtu: int | None = None
    tcp_mss: int | None = None
    mappings: tuple[TunnelMapping, ...] = ()
    nat_mode: Literal["Auto", "Exempt", "Masquerade", "SNAT"] = "Auto"
    #: Goes with SNAT.
    snat_address: str | None = None
    #: Which traffic skips connection tracking: what passes through the node (Pod), all of it (All).
    notrack: Literal["None", "Pod", "All"] = "None"
    #: Our interface for this peer, in place of ``local_address``.
    local_interface: str | None = None
    #: Routing table of IKE and ESP to the peer, and the priority of the rule that leads there.
    routing_table: int | None = None
    rule_priority: int | None = None
    failover: TunnelFailover = Field(default_factory=TunnelFailover)
    #: None is as the gateway likes.
    probe: TunnelProbe | None = None
    #: Mark of the outer packets, IKE and ESP, to the peer; bits of the gateway's own come on top.
    routing_mark: int | None = None
    #: Conntrack mark of the connections that nat_mode has enter the tunnel; None: all of them.
    connection_mark: int | None = None
    #: Of the routes to the remote networks; None is the kernel's default.
    metric: int | None = None
    #: What reaches this node and the local networks out of SAs only.
    require_ipsec: tuple[TunnelService, ...] = ()

    @property
    def key(self) -> str:
        """``namespace/name``, unique among peers."""
        return f"{self.source.namespace}/{self.source.name}"

    def to_json(self) -> str:
        """For the rendered Secret alone: the keys are in it, in clear."""
        return self.model_dump_json(by_alias=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> TunnelConfig:
        """The inverse of ``to_json``. Raises pydantic.ValidationError, which holds no values."""
        return cls.model_validate_json(text)
