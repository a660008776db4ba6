"""ModeConfig: addresses, routes and DNS settings that a responder hands out or an initiator
takes."""

from __future__ import annotations

import ipaddress
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ipsec_api.conditions import Conditions
from ipsec_api.references import LabelSelector, LocalRef
from ipsec_api.rules import ListOf, Rule, SpecModel
from ipsec_api.scalars import Cidr, DomainName, IpAddress, Text, Timestamp, is_ip, network

#: Addresses in one pool.
POOL_LIMIT = 65536


def _range_ok(text: str) -> bool:
    first, dash, last = text.partition("-")
    if not dash or not is_ip(first) or not is_ip(last) or ":" in text:
        return False
    low, high = ipaddress.ip_address(first).packed, ipaddress.ip_address(last).packed
    return low[:2] == high[:2] and low <= high


_OCTET = "int(self.split('-')[{}].split('.')[{}])"
AddressRange = Annotated[
    str,
    Field(max_length=31),
    Rule(
        cel="self.matches('^[0-9.]+-[0-9.]+$') && self.split('-').all(a, isIP(a))"
        f" && {_OCTET.format(0, 0)} == {_OCTET.format(1, 0)}"
        f" && {_OCTET.format(0, 1)} == {_OCTET.format(1, 1)}"
        f" && {_OCTET.format(0, 2)} * 256 + {_OCTET.format(0, 3)}"
        f" <= {_OCTET.format(1, 2)} * 256 + {_OCTET.format(1, 3)}",
        message="not a range of IPv4 addresses within one /16: write first-last such as"
        " 192.168.77.2-192.168.77.254",
        check=_range_ok,
    ),
]


class AddressPool(SpecModel):
    """Addresses to hand out, one per client."""

    cidrs: Annotated[tuple[Cidr, ...], Field(max_length=16), ListOf("set")] = ()
    """Networks, each of at most 65536 addresses."""

    ranges: Annotated[tuple[AddressRange, ...], Field(max_length=16), ListOf("set")] = ()
    """IPv4 ranges, first-last, each within one /16."""

    exclude: Annotated[tuple[Cidr, ...], Field(max_length=64), ListOf("set")] = ()
    """Networks and addresses in them that are not handed out."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(has(self.cidrs) && size(self.cidrs) > 0) || (has(self.ranges) &&"
            " size(self.ranges) > 0)",
            message="the pool is empty: set cidrs or ranges",
            check=lambda p: bool(p.cidrs or p.ranges),
            field="cidrs",
            reason="FieldValueRequired",
        ),
        Rule(
            cel="!has(self.cidrs) || self.cidrs.all(c, !isCIDR(c)"
            " || cidr(c).prefixLength() >= (c.contains(':') ? 112 : 16))",
            message="the pool has more than 65536 addresses: use /16 or longer (IPv6: /112)",
            check=lambda p: all(network(c).num_addresses <= POOL_LIMIT for c in p.cidrs),
            field="cidrs",
        ),
    )


class SrcAddressList(SpecModel):
    """Whose traffic gets the received address as its source."""

    pod_selector: LabelSelector | None = None
    """Pods."""

    namespace_selector: LabelSelector | None = None
    """Namespaces of the pods; this one where absent."""

    cidrs: Annotated[tuple[Cidr, ...], Field(max_length=64), ListOf("set")] = ()
    """Networks."""


class ConnectionMark(SpecModel):
    """Marked connections."""

    value: Annotated[int, Field(ge=0, le=0xFFFFFFFF)]
    """Mark."""

    mask: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] = 0xFFFFFFFF
    """Bits of the mark that count."""


class ModeConfigSpec(SpecModel):
    """What is handed out (responder) or asked for (initiator)."""

    responder: bool = False
    """true hands out; false asks."""

    address_pool: AddressPool | None = None
    """Addresses to hand out."""

    address_prefix_length: Annotated[int, Field(ge=1, le=128)] = 32
    """Prefix length that goes with a handed out address."""

    address: IpAddress | None = None
    """One address to hand out, in place of a pool."""

    split_include: Annotated[tuple[Cidr, ...], Field(max_length=64), ListOf("set")] = ()
    """Networks that the client is to send through the tunnel."""

    split_dns: Annotated[tuple[DomainName, ...], Field(max_length=64), ListOf("set")] = Field(
        default=(), alias="splitDNS"
    )
    """Domains that the client is to resolve through the tunnel."""

    system_dns: bool = Field(default=False, alias="systemDNS")
    """Hand out the DNS servers of the gateway."""

    static_dns: Annotated[tuple[IpAddress, ...], Field(max_length=8), ListOf("set")] = Field(
        default=(), alias="staticDNS"
    )
    """Hand out these DNS servers."""

    use_responder_dns: Literal["yes", "exclusively", "no"] = Field(
        default="exclusively", alias="useResponderDNS"
    )
    """Whether an initiator uses the DNS servers that it is given."""

    src_address_list: SrcAddressList | None = None
    """Traffic that gets the received address as its source."""

    connection_mark: ConnectionMark | None = None
    """Traffic that gets the received address as its source, by mark."""

    service_ref: LocalRef | None = None
    """Service through which the clients of a responder are exported."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.responder == (has(self.addressPool) != has(self.address))"
            " && !(has(self.addressPool) && has(self.address))",
            message="a responder hands out addresses and an initiator does not: set exactly one of"
            " addressPool and address on a responder, neither on an initiator",
            check=lambda s: (
                s.responder == ((s.address_pool is None) != (s.address is None))
                and (s.address_pool is None or s.address is None)
            ),
            field="addressPool",
            reason="FieldValueRequired",
        ),
        Rule(
            cel="!self.systemDNS || !has(self.staticDNS) || size(self.staticDNS) == 0",
            message="two sources of DNS servers: remove systemDNS or staticDNS",
            check=lambda s: not (s.system_dns and s.static_dns),
            field="staticDNS",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="!self.responder || (!has(self.srcAddressList) && !has(self.connectionMark))",
            message="srcAddressList and connectionMark are for an initiator: remove them, or set"
            " responder: false",
            check=lambda s: (
                not s.responder or (s.src_address_list is None and s.connection_mark is None)
            ),
            field="srcAddressList",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="!(has(self.srcAddressList) && has(self.connectionMark))",
            message="two choices of traffic: remove srcAddressList or connectionMark",
            check=lambda s: s.src_address_list is None or s.connection_mark is None,
            field="connectionMark",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="!self.responder || self.useResponderDNS == 'exclusively'",
            message="useResponderDNS is for an initiator: remove it, or set responder: false",
            check=lambda s: not s.responder or s.use_responder_dns == "exclusively",
            field="useResponderDNS",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="self.responder == oldSelf.responder",
            message="a responder cannot become an initiator, nor the other way round: delete the"
            " resource and create it anew",
            check=None,
            field="responder",
            reason="FieldValueForbidden",
        ),
    )


class AddressLease(SpecModel):
    """An address in use."""

    address: Text
    """The address."""

    identity: Text
    """Who has it."""

    expires: Timestamp | None = None
    """When it becomes free; while the client is connected, absent."""


class ModeConfigStatus(SpecModel):
    """What is known of one mode config."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The metadata.generation that this status is about."""

    conditions: Conditions = ()
    """Accepted, ResolvedRefs, Ready."""

    allocated: Annotated[int, Field(ge=0)] = 0
    """Addresses in use."""

    total: Annotated[int, Field(ge=0)] = 0
    """Addresses in the pool."""

    leases: Annotated[tuple[AddressLease, ...], Field(max_length=100), ListOf("atomic")] = ()
    """Addresses in use, as long as they are no more than 100."""

    assigned_address: Text | None = None
    """The address that an initiator was given."""

    pushed_dns: Annotated[tuple[Text, ...], Field(max_length=16), ListOf("atomic")] = Field(
        default=(), alias="pushedDNS"
    )
    """The DNS servers that an initiator was given."""

    srcnat_pods: Annotated[int, Field(ge=0)] = 0
    """Pods whose traffic gets the received address."""
