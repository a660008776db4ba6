"""IPsecPolicy: which traffic is protected, how, and what happens to the rest."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from ipsec_api import cel
from ipsec_api.algorithms import (
    DEFAULT_ENCRYPTION,
    EncryptionAlgorithm,
    HashAlgorithm,
    PfsGroup,
    is_aead,
)
from ipsec_api.conditions import Conditions
from ipsec_api.peer_rules import no_default_route
from ipsec_api.policy_interface import MODE_RULES, PolicyInterface
from ipsec_api.references import LocalRef
from ipsec_api.rules import ListOf, Rule, SpecModel
from ipsec_api.scalars import Cidr, Lifetime, Text, Volume, network

#: Names of IP protocols (IANA "Protocol Numbers"); any other is written as its number.
PROTOCOLS: Final[dict[str, int]] = {
    "all": 0,
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ospf": 89,
    "pim": 103,
    "vrrp": 112,
    "l2tp": 115,
    "sctp": 132,
    "udplite": 136,
}
WITH_PORTS: Final = ("tcp", "udp", "sctp", "6", "17", "132")
_NUMBER = "[0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5]"
_PROTOCOL = f"^({'|'.join(PROTOCOLS)}|{_NUMBER})$"


def protocol_number(name: str) -> int:
    """0-255 of a checked protocol name; 0 is any."""
    return PROTOCOLS[name] if name in PROTOCOLS else int(name)


Protocol = Annotated[
    str,
    Field(max_length=8),
    Rule(
        cel=f"self.matches('{_PROTOCOL}')",
        message="not a protocol: write tcp, udp, icmp, gre or the like, or a number from 0 to 255"
        " in quotes",
        check=lambda v: re.fullmatch(_PROTOCOL, v) is not None,
    ),
]
PortNumber = Annotated[int, Field(ge=0, le=65535)]


class Selector(SpecModel):
    """One kind of traffic, seen from us: src is local, dst is behind the peer."""

    src: Cidr | None = None
    """Local network."""

    src_from: Literal["PodCIDR", "ServiceCIDR", "NodeCIDR"] | None = None
    """Local networks found in the cluster, instead of src."""

    dst: Cidr
    """Remote network."""

    protocol: Protocol = "all"
    """Protocol by name, or its number in quotes."""

    src_port: PortNumber | None = None
    """Local port, or the first of a range; any where absent."""

    src_end_port: PortNumber | None = None
    """Last local port of a range."""

    dst_port: PortNumber | None = None
    """Remote port, or the first of a range; any where absent."""

    dst_end_port: PortNumber | None = None
    """Last remote port of a range."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.src) != has(self.srcFrom)",
            message="no local network, or two: set exactly one of src and srcFrom",
            check=lambda s: (s.src is None) != (s.src_from is None),
            field="src",
            reason="FieldValueRequired",
        ),
        Rule(
            cel=f"!has(self.src) || {cel.same_family('self.src', 'self.dst')}",
            message="IPv4 on one side and IPv6 on the other: give src and dst the same family",
            check=lambda s: s.src is None or network(s.src).version == network(s.dst).version,
            field="dst",
        ),
        Rule(
            cel=f"(!has(self.srcPort) && !has(self.dstPort)) || self.protocol in"
            f" {cel.names(WITH_PORTS)}",
            message="this protocol has no ports: set protocol to tcp, udp or sctp, or remove the"
            " ports",
            check=lambda s: (s.src_port is None and s.dst_port is None) or s.protocol in WITH_PORTS,
            field="protocol",
        ),
        Rule(
            cel="!has(self.srcEndPort) || (has(self.srcPort) && self.srcEndPort >= self.srcPort)",
            message="not a range: set srcPort to its first port and srcEndPort to its last",
            check=lambda s: _is_range(s.src_port, s.src_end_port),
            field="srcEndPort",
        ),
        Rule(
            cel="!has(self.dstEndPort) || (has(self.dstPort) && self.dstEndPort >= self.dstPort)",
            message="not a range: set dstPort to its first port and dstEndPort to its last",
            check=lambda s: _is_range(s.dst_port, s.dst_end_port),
            field="dstEndPort",
        ),
    )


def _is_range(first: int | None, last: int | None) -> bool:
    return last is None or (first is not None and last >= first)


class Proposal(SpecModel):
    """How child SAs are protected (phase 2)."""

    enc_algorithms: Annotated[
        tuple[EncryptionAlgorithm, ...], Field(min_length=1, max_length=8), ListOf("set")
    ] = DEFAULT_ENCRYPTION
    """Ciphers, most preferred first."""

    auth_algorithms: Annotated[tuple[HashAlgorithm, ...], Field(max_length=8), ListOf("set")] = ()
    """Integrity algorithms for the ciphers that bring none, most preferred first; sha256, sha384
    and sha512 where empty."""

    pfs_group: PfsGroup = PfsGroup.AUTO
    """Key exchange of each child SA; auto takes the groups of the peer's profile."""

    lifetime: Lifetime = "30m"
    """Life of a child SA, 1s to 168h; it is replaced before."""

    lifebytes: Volume = 0
    """Octets after which a child SA ends; 0 is no limit."""

    lifepackets: Volume = 0
    """Packets after which a child SA ends; 0 is no limit."""

    esn: bool = True
    """Offer 64-bit sequence numbers first (RFC 4304); 32-bit ones are offered too."""

    replay_window: Annotated[int, Field(ge=32, le=4096)] = 1024
    """Packets that may arrive late."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.authAlgorithms) || size(self.authAlgorithms) == 0"
            " || self.encAlgorithms.exists(a,"
            f" !(a in {cel.names(a for a in EncryptionAlgorithm if is_aead(a))}))",
            message="these ciphers bring their own integrity: remove authAlgorithms, or add a"
            " cipher such as aes256",
            check=lambda p: not p.auth_algorithms or not all(map(is_aead, p.enc_algorithms)),
            field="authAlgorithms",
            reason="FieldValueForbidden",
        ),
    )


class IPsecPolicySpec(SpecModel):
    """What is wanted for one set of traffic."""

    peer_ref: LocalRef | None = None
    """The IPsecPeer that the traffic goes to."""

    template: bool = False
    """A pattern for policies that peers ask for, not a policy: identities with generatePolicy get
    what they ask for within the templates of their group, for as long as they have an SA."""

    group: Text = "default"
    """Group of templates that this one belongs to."""

    mode: Literal["policy", "routed"] = "policy"
    """policy: whatever matches the selectors is protected. routed: there is an interface, and what
    is routed into it is protected; nothing else is touched."""

    interface: PolicyInterface | None = None
    """The interface of a routed policy."""

    tunnel: bool = True
    """Tunnel mode; false is transport mode, for the hosts themselves."""

    selectors: (
        Annotated[tuple[Selector, ...], Field(min_length=1, max_length=64), ListOf("unique")] | None
    ) = None
    """The traffic."""

    src_address: Cidr | None = None
    """Local network, in place of selectors."""

    dst_address: Cidr | None = None
    """Remote network, in place of selectors."""

    selector_mode: Literal["Combined", "PerPair"] = "Combined"
    """Combined: one child SA for all selectors. PerPair: one for each, as older devices need it."""

    action: Literal["encrypt", "discard", "none"] = "encrypt"
    """encrypt it, discard it, or let it pass as it is."""

    level: Literal["require", "unique", "use"] = "require"
    """What happens while there is no SA. require: the traffic is dropped; unique: too, and the SA
    is for this policy only; use: it passes in clear text. The same is true of what is within a
    template and no peer has asked for, but nothing is dropped on the way to a default route unless
    the template names ports."""

    ipsec_protocols: Annotated[
        tuple[Literal["esp", "ah"], ...], Field(min_length=1, max_length=2), ListOf("set")
    ] = ("esp",)
    """esp encrypts; ah only proves the origin."""

    proposal: Proposal | None = None
    """How child SAs are protected; safe defaults where absent."""

    proposal_ref: LocalRef | None = None
    """A shared proposal instead of proposal."""

    dscp: Literal["Copy", "CopyBoth", "Clear"] = "Copy"
    """DSCP of the outer header. Copy: that of the packet; CopyBoth: and at the far end back into
    the packet; Clear: none."""

    ecn: Literal["Copy", "Clear"] = "Copy"
    """ECN of the outer header. Copy: as RFC 6040 says; Clear: none."""

    df: Literal["Copy", "Clear"] = "Copy"
    """DF bit of an outer IPv4 header. Copy: that of the packet; Clear: none, so that routers may
    fragment."""

    allow_default_route: bool = False
    """Allow 0.0.0.0/0 and ::/0 as selectors; of a template, as remote network of a peer. A routed
    policy needs no leave."""

    priority: Annotated[int, Field(ge=1, le=0x7FFFFFFF)] = 0x20000
    """Lower ones are looked at first; of those with the same, what is discarded comes last."""

    comment: Annotated[str, Field(max_length=1024)] | None = None
    """For people."""

    disabled: bool = False
    """Keep the resource, take the policy out."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.template != has(self.peerRef)",
            message="a policy has a peer and a template has none: set peerRef, or template: true"
            " without it",
            check=lambda s: s.template != (s.peer_ref is not None),
            field="peerRef",
            reason="FieldValueRequired",
        ),
        Rule(
            cel="has(self.srcAddress) == has(self.dstAddress)"
            " && has(self.selectors) != has(self.srcAddress)",
            message="no traffic is named, or twice: set selectors, or both srcAddress and"
            " dstAddress",
            check=lambda s: (
                (s.src_address is None) == (s.dst_address is None)
                and (s.selectors is None) != (s.src_address is None)
            ),
            field="selectors",
            reason="FieldValueRequired",
        ),
        Rule(
            cel="!has(self.srcAddress) || !has(self.dstAddress)"
            f" || {cel.same_family('self.srcAddress', 'self.dstAddress')}",
            message="IPv4 on one side and IPv6 on the other: give srcAddress and dstAddress the"
            " same family",
            check=lambda s: (
                s.src_address is None
                or s.dst_address is None
                or network(s.src_address).version == network(s.dst_address).version
            ),
            field="dstAddress",
        ),
        Rule(
            cel="self.tunnel || self.template || ((!has(self.selectors) || self.selectors.all(s,"
            f" (!has(s.src) || {cel.is_host('s.src')}) && {cel.is_host('s.dst')}))"
            f" && (!has(self.srcAddress) || {cel.is_host('self.srcAddress')})"
            f" && (!has(self.dstAddress) || {cel.is_host('self.dstAddress')}))",
            message="transport mode is for the hosts themselves: write /32 or /128, or set tunnel:"
            " true",
            check=lambda s: s.tunnel or s.template or all(_is_host(n) for n in _networks(s)),
            field="tunnel",
        ),
        Rule(
            cel="self.allowDefaultRoute || self.template || self.mode == 'routed'"
            " || ((!has(self.selectors)"
            f" || self.selectors.all(s, !(has(s.src) && {cel.is_default_route('s.src')})"
            f" && !{cel.is_default_route('s.dst')}))"
            f" && !(has(self.srcAddress) && {cel.is_default_route('self.srcAddress')})"
            f" && !(has(self.dstAddress) && {cel.is_default_route('self.dstAddress')}))",
            message="a default route would take all traffic: name the networks, or set"
            " allowDefaultRoute: true",
            check=lambda s: (
                s.allow_default_route
                or s.template
                or s.mode == "routed"
                or no_default_route(_networks(s))
            ),
            field="selectors",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="self.action == 'encrypt' || (!has(self.proposal) && !has(self.proposalRef))",
            message="nothing is encrypted here: remove the proposal, or set action: encrypt",
            check=lambda s: (
                s.action == "encrypt" or (s.proposal is None and s.proposal_ref is None)
            ),
            field="proposal",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="!self.template || self.action == 'encrypt'",
            message="a template is for what peers want encrypted: set action: encrypt, or write a"
            " policy with a peerRef",
            check=lambda s: not s.template or s.action == "encrypt",
            field="action",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="!(has(self.proposal) && has(self.proposalRef))",
            message="two proposals: remove proposal or proposalRef",
            check=lambda s: s.proposal is None or s.proposal_ref is None,
            field="proposalRef",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="self.template == oldSelf.template",
            message="a policy cannot become a template, nor the other way round: delete the"
            " resource and create it anew",
            check=None,
            field="template",
            reason="FieldValueForbidden",
        ),
        *MODE_RULES,
    )


def _networks(spec: IPsecPolicySpec) -> tuple[str, ...]:
    named = [n for s in spec.selectors or () for n in (s.src, s.dst)]
    return tuple(n for n in (*named, spec.src_address, spec.dst_address) if n is not None)


def _is_host(text: str) -> bool:
    return network(text).num_addresses == 1


class GeneratedPolicy(SpecModel):
    """What one peer has from a template."""

    peer: Text
    """The IPsecPeer."""

    remote_id: Annotated[str, Field(max_length=512)] = Field(default="", alias="remoteID")
    """What the peer calls itself."""

    remote_address: Text = ""
    """The peer's address and port of the IKE SA."""

    local: Annotated[tuple[Text, ...], Field(max_length=16), ListOf("atomic")] = ()
    """Local selectors, the first of them."""

    remote: Annotated[tuple[Text, ...], Field(max_length=16), ListOf("atomic")] = ()
    """Remote selectors, the first of them."""


class IPsecPolicyStatus(SpecModel):
    """What is known of one policy."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The metadata.generation that this status is about."""

    conditions: Conditions = ()
    """Accepted, ResolvedRefs, Programmed, Established, Ready."""

    state: Text | None = None
    """Established, Waiting, NoSa, Discarding, Passing, Template, Disabled or Rejected."""

    selectors_installed: Annotated[int, Field(ge=0)] = 0
    """Selectors with an SA, of those in the spec; of a template: pairs that peers have now."""

    owner_peer: Text | None = None
    """The peer that carries the policy."""

    dynamic: bool = False
    """Made from what a peer asked for: true for a template while some peer has something of it."""

    generated: Annotated[tuple[GeneratedPolicy, ...], Field(max_length=64), ListOf("atomic")] = ()
    """What peers have from this template, the first of them."""
