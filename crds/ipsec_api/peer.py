"""IPsecPeer: one remote IKE endpoint, how the IKE SA is made, and who may answer (the spec)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ipsec_api import cel
from ipsec_api.algorithms import (
    DEFAULT_ENCRYPTION,
    DEFAULT_GROUPS,
    AutoHash,
    DhGroup,
    EncryptionAlgorithm,
)
from ipsec_api.peer_rules import IDENTITY_REF_RULES, MARK_RULES, PEER_RULES
from ipsec_api.references import Labels, LocalRef, SecretRef, TrustBundleRef
from ipsec_api.rules import ListOf, Rule, SpecModel
from ipsec_api.scalars import (
    Cidr,
    DpdInterval,
    HostName,
    IpAddress,
    LeaseDuration,
    Lifetime,
    Port,
    RemoteAddress,
    Text,
    Volume,
    is_ip,
    seconds,
)
from ipsec_api.services import Service
from ipsec_api.tunnel import IdentityType

Subnets = Annotated[tuple[Cidr, ...], Field(max_length=64), ListOf("set")]


class GatewaySelector(SpecModel):
    """Which gateways may own the peer."""

    node_selector: Labels | None = None
    """Labels of the gateway nodes."""

    group: Text | None = None
    """Gateway group; the chart's default group where it is absent."""


class Failover(SpecModel):
    """When another gateway takes the peer over."""

    mode: Literal["LeaseOnly", "LeaseAndProbe"] = "LeaseAndProbe"
    """LeaseOnly: when the gateway is gone. LeaseAndProbe: also when its probe of the peer fails."""

    lease_duration: LeaseDuration = "6s"
    """Silence after which a gateway counts as gone, 3s to 60s."""

    preempt: bool = False
    """Whether the preferred gateway takes the peer back once it has recovered."""


class Dpd(SpecModel):
    """Dead peer detection (RFC 7296 2.4, RFC 3706)."""

    interval: DpdInterval = "8s"
    """Silence after which the peer is asked for a sign of life; 0s switches it off."""

    max_failures: Annotated[int, Field(ge=1, le=100)] = 4
    """Unanswered questions after which the peer is dead. IKEv1 only; IKEv2 retransmits instead."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="duration(self.interval).getSeconds() * self.maxFailures <= 300",
            message="interval times maxFailures is more than 5m: lower one of them",
            check=lambda d: seconds(d.interval) * d.max_failures <= 300,
            field="interval",
        ),
    )


class Profile(SpecModel):
    """How the IKE SA is protected (phase 1)."""

    enc_algorithms: Annotated[
        tuple[EncryptionAlgorithm, ...], Field(min_length=1, max_length=8), ListOf("set")
    ] = DEFAULT_ENCRYPTION
    """Ciphers, most preferred first."""

    hash: AutoHash = AutoHash.AUTO
    """Integrity algorithm; auto offers sha256, sha384 and sha512."""

    prf: AutoHash = AutoHash.AUTO
    """Pseudo-random function; auto follows hash. IKEv2 only."""

    dh_groups: Annotated[tuple[DhGroup, ...], Field(min_length=1, max_length=8), ListOf("set")] = (
        DEFAULT_GROUPS
    )
    """Key exchange groups, most preferred first."""

    lifetime: Lifetime = "8h"
    """Life of an IKE SA, 1s to 168h; it is replaced before."""

    lifebytes: Volume = 0
    """Octets after which an IKE SA ends; 0 is no limit. IKEv1 only."""

    dpd: Dpd | None = None
    """Dead peer detection; every 8s where absent."""

    nat_traversal: bool = True
    """Whether NAT traversal is offered. IKEv1 only; IKEv2 always detects NAT."""

    proposal_check: Literal["claim", "exact", "obey", "strict"] = "obey"
    """What a responder does about a different lifetime. IKEv1 only."""

    force_encapsulation: bool | None = None
    """Whether to put ESP into UDP even where no NAT is found, for firewalls that drop protocol 50.
    Absent: if the data plane is faster so, as the userspace one is."""

    childless: bool = False
    """Make the IKE SA without a child (RFC 6023) where the peer can, so that each child has a key
    exchange of its own."""


class PeerIdentity(SpecModel):
    """What one side calls itself (RFC 7296 3.5)."""

    type: IdentityType = IdentityType.AUTO
    """auto: our address; for the peer, whatever it proves with the credentials. ignore accepts
    any."""

    value: Annotated[str, Field(max_length=512)] | None = None
    """The identity; absent for auto and ignore."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.type in ['auto', 'ignore']) != (has(self.value) && size(self.value) > 0)",
            message="value goes with fqdn, email, address, dn and keyID only: set it there, and"
            " leave it out for auto and ignore",
            check=lambda i: (i.type in (IdentityType.AUTO, IdentityType.IGNORE)) != bool(i.value),
            field="value",
            reason="FieldValueRequired",
        ),
        Rule(
            cel="self.type != 'address' || !has(self.value) || isIP(self.value)",
            message="an identity of type address is an IP address: write it such as 192.0.2.1, or"
            " use type fqdn",
            check=lambda i: i.type is not IdentityType.ADDRESS or not i.value or is_ip(i.value),
            field="value",
        ),
        Rule(
            cel="self.type != 'email' || !has(self.value) || self.value.contains('@')",
            message="an identity of type email contains @: write user@example.com, or use type"
            " fqdn",
            check=lambda i: i.type is not IdentityType.EMAIL or not i.value or "@" in i.value,
            field="value",
        ),
    )


class Authentication(SpecModel):
    """Who we are, who may answer, and how both prove it."""

    method: Literal["preSharedKey", "certificate", "rsaKey", "eap", "eapRadius"]
    """How identities are proved."""

    secret_ref: SecretRef | None = None
    """The pre-shared key, RSA key or EAP credentials."""

    certificate_ref: LocalRef | None = None
    """Secret of type kubernetes.io/tls with our certificate."""

    trust_bundle_ref: TrustBundleRef | None = None
    """Authorities that the peer's certificate must come from."""

    local_id: PeerIdentity | None = Field(default=None, alias="localID")
    """What we call ourselves; auto where absent."""

    remote_id: PeerIdentity | None = Field(default=None, alias="remoteID")
    """What the peer must call itself; auto where absent."""

    match_by: Literal["remoteID", "certificate"] = "remoteID"
    """What an incoming peer is found by."""

    generate_policy: Literal["no", "port-override", "port-strict"] = "no"
    """Whether policies are made from what the peer asks for, within the templates of a group."""

    policy_template_group: Text | None = None
    """Group of policy templates; goes with generatePolicy."""

    mode_config_ref: LocalRef | None = None
    """ModeConfig that addresses and DNS settings come from."""

    notrack: Literal["None", "Pod", "All"] = "None"
    """Which traffic skips connection tracking."""

    RULES: ClassVar[tuple[Rule, ...]] = IDENTITY_REF_RULES


class Identity(Authentication):
    """One of several identities of a peer."""

    name: Annotated[
        str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    ]
    """Name of this entry, unique in the peer."""


class SubnetMapping(SpecModel):
    """One prefix that the other side sees as another one (1:1)."""

    local: Cidr | None = None
    """Our prefix."""

    remote: Cidr | None = None
    """The peer's prefix."""

    mapped: Cidr
    """What it looks like on the other side."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.local) != has(self.remote)",
            message="a mapping is of one side: set exactly one of local and remote",
            check=lambda m: (m.local is None) != (m.remote is None),
            reason="FieldValueRequired",
        ),
        Rule(
            cel="(has(self.local) ? [self.local] : has(self.remote) ? [self.remote] : []).all(s,"
            f" {cel.same_length('s', 'self.mapped')} && {cel.same_family('s', 'self.mapped')})",
            message="the mapped prefix has another size: give it the family and length of the"
            " original",
            check=lambda m: _same_size(m.local or m.remote, m.mapped),
            field="mapped",
        ),
    )


def _same_size(original: str | None, mapped: str) -> bool:
    if original is None:
        return True
    return original.partition("/")[2] == mapped.partition("/")[2] and (":" in original) == (
        ":" in mapped
    )


class Nat(SpecModel):
    """What happens to the source address of traffic that enters the tunnel."""

    mode: Literal["Auto", "Exempt", "Masquerade", "SNAT"] = "Auto"
    """Auto and Exempt keep it; SNAT rewrites it to snatAddress."""

    snat_address: IpAddress | None = None
    """New source address; goes with SNAT."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.mode == 'SNAT') == has(self.snatAddress)",
            message="snatAddress goes with mode SNAT: set both or neither",
            check=lambda n: (n.mode == "SNAT") == (n.snat_address is not None),
            field="snatAddress",
            reason="FieldValueRequired",
        ),
    )


Mark = Annotated[int, Field(ge=0, le=0xFFFFFFFF, json_schema_extra={"format": "int64"})]


class Routing(SpecModel):
    """Where routes and rules of the tunnel go."""

    table_id: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] | None = Field(
        default=None, alias="tableID"
    )
    """Routing table in which the way to the peer is looked up; main where absent."""

    rule_priority: Annotated[int, Field(ge=1, le=32765)] | None = None
    """Priority of the routing rule; automatic where absent."""

    routing_mark: Mark | None = None
    """Mark of IKE and IPsec packets of this peer, for routing rules and firewalls. The gateway adds
    its own bit (0x40): match it with a mask, such as 0x7/0xf."""

    connection_mark: Mark | None = None
    """Conntrack mark: of the traffic of this peer's policies only connections with it enter the
    tunnel. Goes with nat.mode SNAT or Masquerade."""

    metric: Annotated[int, Field(ge=0, le=0xFFFFFFFF)] | None = None
    """Metric of the routes to the remote subnets; the kernel's default where absent."""

    allow_mark_conflict: bool = False
    """Allow marks that kube-proxy, Calico, Cilium or another peer may also use."""

    RULES: ClassVar[tuple[Rule, ...]] = MARK_RULES


class Probe(SpecModel):
    """Packets sent through the tunnel to see that it carries traffic."""

    enabled: bool = True
    """Whether to probe."""

    targets: Annotated[tuple[IpAddress, ...], Field(max_length=8), ListOf("set")] = ()
    """Addresses behind the peer to ask, in order. Where empty: those that the peer names if it is
    a gateway of our kind, else the first one of each remote subnet, which counts once it has
    answered."""

    protocol: Literal["ICMP", "UDP"] = "ICMP"
    """ICMP: a ping. UDP: a datagram to a port where an echo service answers (RFC 862), or another
    gateway of our kind."""

    port: Port | None = None
    """UDP port to ask, 4498 where absent; goes with protocol UDP."""

    interval: Lifetime = "2s"
    """Time between probes."""

    failure_threshold: Annotated[int, Field(ge=1, le=100)] = 5
    """Lost probes in a row that make the peer unhealthy."""

    source_address: IpAddress | None = None
    """Source address of the probes, one of the gateway's own in a local subnet; found by itself
    where absent."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.port) || self.protocol == 'UDP'",
            message="port goes with UDP, ICMP has none: set protocol: UDP, or remove port",
            check=lambda p: p.port is None or p.protocol == "UDP",
            field="port",
            reason="FieldValueForbidden",
        ),
    )


class IPsecPeerSpec(SpecModel):
    """What is wanted of one remote IKE endpoint."""

    address: RemoteAddress | None = None
    """Where the peer is: IP address or DNS name; for a passive peer also a network, or nothing for
    anywhere."""

    fallback_addresses: Annotated[tuple[HostName, ...], Field(max_length=7), ListOf("set")] = ()
    """Further addresses of the peer: IP addresses or DNS names that are tried in order when the
    ones before do not answer."""

    port: Port = 500
    """UDP port of the peer when we initiate."""

    local_address: IpAddress | None = None
    """Our address for this peer; from the routing table where absent."""

    local_interface: (
        Annotated[str, Field(min_length=1, max_length=15, pattern=r"^[^/\s]+$")] | None
    ) = None
    """Our interface for this peer; from the routing table where absent."""

    exchange_mode: Literal["ike2", "main", "base", "aggressive"] = "ike2"
    """IKEv2, or one of the modes of IKEv1."""

    passive: bool = False
    """Wait for the peer; never initiate."""

    send_initial_contact: bool = True
    """Let the peer drop what is left of earlier SAs."""

    allow_insecure: bool = False
    """Allow 3DES, MD5, SHA-1, MODP below 2048, EC2N, NULL and aggressive mode."""

    allow_default_route: bool = False
    """Allow 0.0.0.0/0 and ::/0 as subnets."""

    gateway_selector: GatewaySelector | None = None
    """Which gateways may own the peer."""

    failover: Failover | None = None
    """When another gateway takes the peer over."""

    profile: Profile | None = None
    """How the IKE SA is protected; safe defaults where absent."""

    profile_ref: LocalRef | None = None
    """A shared profile instead of profile."""

    authentication: Authentication | None = None
    """Identities and credentials, for a peer with one pair of identities."""

    identities: (
        Annotated[tuple[Identity, ...], Field(min_length=1, max_length=32), ListOf("map", "name")]
        | None
    ) = None
    """Several identities instead of authentication."""

    remote_subnets: Subnets | None = None
    """Networks behind the peer; stands for an IPsecPolicy from localSubnets to them."""

    local_subnets: Subnets | None = None
    """Networks behind us; the pod and service networks of the cluster where absent."""

    subnet_mapping: Annotated[
        tuple[SubnetMapping, ...], Field(max_length=64), ListOf("atomic")
    ] = ()
    """1:1 address translation, for networks that both sides use."""

    nat: Nat | None = None
    """What happens to source addresses."""

    routing: Routing | None = None
    """Routing tables and marks; automatic where absent."""

    require_ipsec: Annotated[tuple[Service, ...], Field(max_length=64), ListOf("atomic")] = Field(
        default=(), alias="requireIPsec"
    )
    """Services of this gateway and its local subnets that only what came out of an SA reaches."""

    hw_offload: Literal["Auto", "Off", "Crypto"] = "Auto"
    """Whether network cards compute the SAs. Auto: where card and driver can; Crypto: or there is
    no SA."""

    mtu: Annotated[int, Field(ge=576, le=9000)] | None = None
    """MTU of the tunnel in octets; computed where absent."""

    tcp_mss: Annotated[int, Field(ge=88, le=8960)] | None = Field(default=None, alias="tcpMSS")
    """Limit for the maximum segment size of TCP in octets; computed where absent."""

    probe: Probe | None = None
    """Probing of the tunnel; automatic where absent."""

    disabled: bool = False
    """Keep the resource, take the tunnel down."""

    deletion_policy: Literal["Graceful", "Force"] = "Graceful"
    """Graceful tells the peer about a deletion; Force does not wait for anybody."""

    deletion_timeout: Lifetime = "60s"
    """How long a graceful deletion may take."""

    RULES: ClassVar[tuple[Rule, ...]] = PEER_RULES
