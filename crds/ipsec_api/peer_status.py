"""IPsecPeer: what is known of one remote IKE endpoint (the status)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ipsec_api.conditions import Conditions
from ipsec_api.rules import ListOf, SpecModel
from ipsec_api.scalars import Cidr, Text, Timestamp


class NatDetected(SpecModel):
    """Where a NAT was found."""

    local: bool = False
    """In front of us."""

    remote: bool = False
    """In front of the peer."""


class ChildSaCount(SpecModel):
    """How many child SAs there are."""

    installed: Annotated[int, Field(ge=0)] = 0
    """In the data plane now."""

    expected: Annotated[int, Field(ge=0)] = 0
    """According to the policies."""


class ChildOffload(SpecModel):
    """What computes the SAs of one child."""

    child: Text
    """Which child."""

    mode: Literal["None", "Crypto"] = "None"
    """None: the processor; Crypto: a network card, in one direction at least."""

    inbound: Text | None = None
    """The network device that decrypts, absent for the processor."""

    outbound: Text | None = None
    """The network device that encrypts, absent for the processor."""


class TemplateUse(SpecModel):
    """A template that the active gateway has for the peer."""

    template: Text
    """The IPsecPolicy."""

    generation: Annotated[int, Field(ge=0)] = 0
    """Its metadata.generation, as the gateway has it."""

    pairs: Annotated[int, Field(ge=0)] = 0
    """Pairs of selectors that the peer has from it now."""


class GeneratedChild(SpecModel):
    """What the peer has from a template, under one of its IKE SAs."""

    template: Text
    """The IPsecPolicy."""

    remote_id: Annotated[str, Field(max_length=512)] = Field(default="", alias="remoteID")
    """What the peer calls itself."""

    remote_address: Text = ""
    """The peer's address and port of the IKE SA."""

    local: Annotated[tuple[Text, ...], Field(max_length=16), ListOf("atomic")] = ()
    """Local selectors, the first of them."""

    remote: Annotated[tuple[Text, ...], Field(max_length=16), ListOf("atomic")] = ()
    """Remote selectors, the first of them."""

    pairs: Annotated[int, Field(ge=0)] = 0
    """Pairs of selectors, all of them."""


class LastProbe(SpecModel):
    """The newest result of the probe, rounded."""

    rtt: Text = ""
    """Round trip time, such as 12ms."""

    loss: Annotated[int, Field(ge=0, le=100)] = 0
    """Lost probes in percent."""

    time: Timestamp
    """When."""


class IPsecPeerStatus(SpecModel):
    """What is known of one remote IKE endpoint."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The metadata.generation that this status is about."""

    conditions: Conditions = ()
    """Accepted, ResolvedRefs, Programmed, Established, Forwarding, Healthy, Ready."""

    active_gateway: Text | None = None
    """The gateway that owns the peer."""

    standby_gateways: Annotated[tuple[Text, ...], Field(max_length=16), ListOf("atomic")] = ()
    """Gateways that would take over, in order."""

    local_address: Text | None = None
    """Our address and port of the IKE SA."""

    remote_address: Text | None = None
    """The peer's address and port of the IKE SA."""

    nat_detected: NatDetected | None = None
    """Where a NAT was found."""

    ike_version: Text | None = None
    """IKEv2 or IKEv1."""

    cipher_suite: Text | None = None
    """Algorithms of the IKE SA."""

    established_at: Timestamp | None = None
    """When the IKE SA was first established; rekeying does not change it."""

    effective_mtu: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        default=None, alias="effectiveMTU"
    )
    """MTU of the tunnel in octets."""

    nat_backend: Text | None = None
    """Who else translates sources on the gateway's node, from which the peer's traffic is kept:
    iptables-legacy, iptables-nft or nftables, with their users as far as known, or none."""

    child_sas: ChildSaCount | None = Field(default=None, alias="childSAs")
    """How many child SAs there are."""

    hw_offload: (
        Annotated[tuple[ChildOffload, ...], Field(max_length=64), ListOf("atomic")] | None
    ) = None
    """What came of spec.hwOffload, by child (the first 64); absent in the userspace data plane."""

    discovered_subnets: Annotated[tuple[Cidr, ...], Field(max_length=64), ListOf("atomic")] = ()
    """Local subnets found in the cluster."""

    templates: (
        Annotated[tuple[TemplateUse, ...], Field(max_length=100), ListOf("atomic")] | None
    ) = None
    """Templates that the peer may ask within, all of them (up to 100); absent where it may not."""

    generated: (
        Annotated[tuple[GeneratedChild, ...], Field(max_length=64), ListOf("atomic")] | None
    ) = None
    """What the peer has from templates, the first of it; absent where there is none."""

    certificate_expiry: Timestamp | None = None
    """When the first certificate in use expires."""

    last_probe: LastProbe | None = None
    """The newest result of the probe."""

    last_failover: Timestamp | None = None
    """When the peer last changed its gateway."""
