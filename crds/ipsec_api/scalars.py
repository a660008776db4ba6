"""The scalar types of the resources: addresses, prefixes, ports, durations, names."""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from ipsec_api.rules import Rule

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PREFIX = re.compile(r"[0-9A-Fa-f:.]+/(0|[1-9][0-9]{0,2})")
_DURATION = re.compile(r"(?:([0-9]{1,5})h)?(?:([0-9]{1,5})m)?(?:([0-9]{1,6})s)?")
_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?"
# A last label of digits only is a mistyped address, not a name.
_LAST = r"([A-Za-z]|[A-Za-z0-9]*[A-Za-z][-A-Za-z0-9]*[A-Za-z0-9]|[A-Za-z0-9][-A-Za-z0-9]*[A-Za-z])"
# "[.]" rather than an escape: the same text goes into a CEL string.
FQDN_PATTERN: Final = rf"^({_LABEL}[.])*{_LAST}[.]?$"
_FQDN = re.compile(FQDN_PATTERN)


def is_ip(text: str) -> bool:
    """What CEL's isIP accepts: no zone, no IPv4-mapped IPv6 address."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text and not (ip.version == 6 and ip.ipv4_mapped is not None)


def is_cidr(text: str) -> bool:
    """What CEL's isCIDR accepts: a prefix length (no netmask), host bits allowed."""
    if not _PREFIX.fullmatch(text) or not is_ip(text.partition("/")[0]):
        return False
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def is_network(text: str) -> bool:
    """A prefix without host bits."""
    if not is_cidr(text):
        return False
    return (
        ipaddress.ip_interface(text).ip == ipaddress.ip_network(text, strict=False).network_address
    )


def is_fqdn(text: str) -> bool:
    """A host name; one that ends in a number is taken for a mistyped address."""
    return _FQDN.fullmatch(text) is not None


@functools.lru_cache(maxsize=4096)
def network(text: str) -> Network:
    """The network of a checked prefix. The same few are asked for again and again."""
    return ipaddress.ip_network(text)


def seconds(duration: str) -> int:
    """Seconds of a checked duration: ``1h30m`` is 5400."""
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError("not a duration")
    hours, minutes, secs = (int(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + secs


def _duration(low: str, high: str) -> Rule:
    """Bounds, inclusive. CEL's ``duration`` knows no days, so days are written in hours."""
    first, last = seconds(low), seconds(high)

    def check(text: str) -> bool:
        return (
            bool(text) and _DURATION.fullmatch(text) is not None and first <= seconds(text) <= last
        )

    return Rule(
        cel=(
            r"self.matches('^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,6}s)?$') && size(self) > 0"
            f" && duration(self) >= duration('{low}') && duration(self) <= duration('{high}')"
        ),
        message=f"not a duration from {low} to {high}: write hours, minutes, seconds such as 8h,"
        f" 1h30m, 45s",
        check=check,
    )


def _canonical(text: str) -> str:
    return str(ipaddress.ip_network(text))


def _canonical_ip(text: str) -> str:
    return str(ipaddress.ip_address(text))


#: 1-65535.
Port = Annotated[int, Field(ge=1, le=65535)]

#: A prefix without host bits, IPv4 or IPv6, in canonical spelling once it is parsed.
Cidr = Annotated[
    str,
    Field(max_length=43),
    Rule(
        cel="isCIDR(self) && cidr(self) == cidr(self).masked()",
        message="not a network: write address/length without host bits, such as 10.1.0.0/24 or"
        " fd00:1::/64",
        check=is_network,
    ),
    AfterValidator(_canonical),
]

IpAddress = Annotated[
    str,
    Field(max_length=39),
    Rule(
        cel="isIP(self)",
        message="not an IP address: write it such as 192.0.2.1 or 2001:db8::1, without a prefix"
        " length",
        check=is_ip,
    ),
    AfterValidator(_canonical_ip),
]

#: Where a peer is: an address, a network it may come from, or a DNS name.
RemoteAddress = Annotated[
    str,
    Field(min_length=1, max_length=253),
    Rule(
        cel=(
            "isIP(self) || (isCIDR(self) && cidr(self) == cidr(self).masked())"
            f" || self.matches('{FQDN_PATTERN}')"
        ),
        message="not an IP address, network or DNS name: write 192.0.2.1, 192.0.2.0/24 or"
        " vpn.example.com",
        check=lambda v: is_ip(v) or is_network(v) or is_fqdn(v),
    ),
]

#: One address or DNS name.
HostName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    Rule(
        cel=f"isIP(self) || self.matches('{FQDN_PATTERN}')",
        message="not an IP address or DNS name: write 192.0.2.1 or vpn.example.com",
        check=lambda v: is_ip(v) or is_fqdn(v),
    ),
]

DomainName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    Rule(
        cel=f"self.matches('{FQDN_PATTERN}')",
        message="not a domain name: write it such as corp.example.com",
        check=is_fqdn,
    ),
]

#: 1 second to 7 days.
Lifetime = Annotated[str, Field(max_length=18), _duration("1s", "168h")]
#: 0s switches dead peer detection off.
DpdInterval = Annotated[str, Field(max_length=18), _duration("0s", "5m")]
LeaseDuration = Annotated[str, Field(max_length=18), _duration("3s", "60s")]

#: Octets or packets; 0 is no limit.
Volume = Annotated[int, Field(ge=0, le=2**62)]

#: metadata.name and metadata.namespace of another object.
ObjectName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    ),
]
#: A key in the data of a Secret or ConfigMap.
DataKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]

#: Short text of a status or a comment.
Text = Annotated[str, Field(max_length=256)]
LongText = Annotated[str, Field(max_length=32768)]
#: RFC 3339, UTC.
Timestamp = Annotated[str, Field(max_length=35, json_schema_extra={"format": "date-time"})]
