"""Traffic selectors and what may be done with them: narrowing (RFC 7296 2.9, 3.13)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from ipsec_ike.errors import LocalMisuse

#: How many a TS payload can hold (RFC 7296 3.13).
MOST_SELECTORS: Final = 255
#: Protocol and ports of selectors that are about addresses alone, as most are.
_ANYTHING: Final = (0, 0, 65535)


class TrafficSelector(NamedTuple):
    """One range of addresses, ports and one protocol (0 = any).

    ``start`` and ``end`` are packed addresses, 4 octets (IPv4) or 16 (IPv6), inclusive; packed
    addresses of one family compare as the addresses do. Ports are 0-65535 inclusive; OPAQUE is
    ``start_port`` 65535 with ``end_port`` 0 (RFC 7296 3.13.1). For ICMP and ICMPv6 the port field
    holds type and code.
    """

    start: bytes
    end: bytes
    protocol: int = 0
    start_port: int = 0
    end_port: int = 65535

    @classmethod
    def network(
        cls, cidr: str, *, protocol: int = 0, start_port: int = 0, end_port: int = 65535
    ) -> TrafficSelector:
        """The selector of a prefix such as ``10.1.0.0/16`` or ``2001:db8::/32``.

        Raises LocalMisuse if the text is not a prefix.
        """
        try:
            net = ipaddress.ip_network(cidr, strict=False)
        except ValueError as exc:
            raise LocalMisuse(f"not a prefix: {cidr!r}") from exc
        return cls(
            net.network_address.packed,
            net.broadcast_address.packed,
            protocol,
            start_port,
            end_port,
        )

    def narrow(self, other: TrafficSelector) -> TrafficSelector | None:
        """The intersection, or None where there is none."""
        if len(self.start) != len(other.start):
            return None
        if self[2:] == other[2:] == _ANYTHING:
            start, end = max(self.start, other.start), min(self.end, other.end)
            return None if start > end else TrafficSelector(start, end)
        if self.protocol and other.protocol and self.protocol != other.protocol:
            return None
        start, end = max(self.start, other.start), min(self.end, other.end)
        low, high = max(self.start_port, other.start_port), min(self.end_port, other.end_port)
        if start > end:
            return None
        if low > high and not (self.is_opaque and other.is_opaque):
            if (self.is_opaque and other.any_port) or (other.is_opaque and self.any_port):
                low, high = 65535, 0
            else:
                return None
        return TrafficSelector(start, end, self.protocol or other.protocol, low, high)

    def contains(self, other: TrafficSelector) -> bool:
        """Whether every packet that ``other`` matches is matched by this selector."""
        if self[2:] == _ANYTHING:
            same_family = len(self.start) == len(other.start)
            return same_family and self.start <= other.start and other.end <= self.end
        return self.narrow(other) == other

    @property
    def any_port(self) -> bool:
        """Ports do not matter."""
        return self.start_port == 0 and self.end_port == 65535

    @property
    def is_opaque(self) -> bool:
        """Ports cannot be seen, as in fragments (RFC 7296 3.13.1)."""
        return self.start_port == 65535 and self.end_port == 0

    @property
    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The smallest list of prefixes that covers the address range."""
        first = ipaddress.ip_address(self.start)
        last = ipaddress.ip_address(self.end)
        return tuple(ipaddress.summarize_address_range(first, last))

    def __str__(self) -> str:
        nets = self.networks
        text = (
            str(nets[0])
            if len(nets) == 1
            else f"{ipaddress.ip_address(self.start)}-{ipaddress.ip_address(self.end)}"
        )
        if self.protocol or not self.any_port:
            ports = "" if self.any_port else f"/{self.start_port}"
            if not self.any_port and self.end_port != self.start_port:
                ports += f"-{self.end_port}"
            text += f"[{self.protocol or 'any'}{ports}]"
        return text


def narrow(
    offered: Sequence[TrafficSelector], ours: Iterable[TrafficSelector]
) -> tuple[TrafficSelector, ...]:
    """What of ``offered`` our policy allows, in the order of the offer and without duplicates.

    An empty result means TS_UNACCEPTABLE (RFC 7296 2.9). No more than a TS payload can hold is
    looked at, so that long lists on both sides cost little.
    """
    allowed = tuple(ours)
    result: dict[TrafficSelector, None] = {}
    for ts in offered:
        for own in allowed:
            common = ts.narrow(own)
            if common is not None and len(result) < MOST_SELECTORS:
                result[common] = None
    kept = tuple(result)
    if len(kept) < 2:
        return kept
    return tuple(
        ts
        for i, ts in enumerate(kept)
        if not any(o.contains(ts) for j, o in enumerate(kept) if i != j)
    )
