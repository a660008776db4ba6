"""What the data plane reads of an inner IP packet, and the checksums that it writes.

A *flow* is what selectors look at: (source, destination, protocol, source port, destination port),
addresses packed. For ICMP both ports are type and code (RFC 4301 4.4.1.1); a protocol without ports
has 0 in both; ports that cannot be seen, in fragments but the first, are OPAQUE.
"""

from __future__ import annotations

import struct
from typing import Final

from ipsec_gateway.ipsec.linux import IPPROTO_IPIP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP
from ipsec_ike.selectors import TrafficSelector

Flow = tuple[bytes, bytes, int, int, int]
#: A port that cannot be seen (RFC 4301 4.4.1.1).
OPAQUE: Final = -1

# The start of an IPv4 header without options and the first four octets behind it.
_V4: Final = struct.Struct("!BxH2xHxBxx4s4sHH")
_V4_BARE: Final = struct.Struct("!BxH2xHxBxx4s4s")
# An IPv6 header and the first four octets behind it.
_V6: Final = struct.Struct("!IHBx16s16sHH")
_V6_BARE: Final = struct.Struct("!IHBx16s16s")
_PORTS: Final = struct.Struct("!HH")
_H: Final = struct.Struct("!H")

_SCTP, _DCCP, _UDPLITE = 132, 33, 136
#: Protocols whose first four octets are two ports.
WITH_PORTS: Final = frozenset({IPPROTO_TCP, IPPROTO_UDP, _SCTP, _DCCP, _UDPLITE})
_ICMP: Final = frozenset({1, 58})

# IPv6 extension headers that may precede the upper layer (RFC 8200 4.1, RFC 7045).
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION, _AH, _MOBILITY, _HIP, _SHIM6 = (
    0,
    43,
    44,
    60,
    51,
    135,
    139,
    140,
)
_EXTENSIONS: Final = frozenset(
    {_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION, _AH, _MOBILITY, _HIP, _SHIM6}
)


def next_header_of(packet: memoryview) -> int:
    """4 or 41 by the packet's version, 0 for anything else."""
    version = packet[0] >> 4 if packet else 0
    return IPPROTO_IPIP if version == 4 else IPPROTO_IPV6 if version == 6 else 0


def parse(packet: memoryview) -> tuple[Flow, int] | None:
    """(flow, length by its header) of an IP packet; None if it is malformed or cut short.

    Octets behind the header's length are TFC padding or a link's (RFC 4303 2.7).
    """
    size = len(packet)
    if size < 20:
        return None
    version = packet[0] >> 4
    if version == 4:
        return _parse_v4(packet, size)
    return _parse_v6(packet, size) if version == 6 else None


def _parse_v4(packet: memoryview, size: int) -> tuple[Flow, int] | None:
    if size >= 24 and packet[0] == 0x45:
        _, length, fragment, protocol, src, dst, one, two = _V4.unpack_from(packet)
        if 24 <= length <= size and not fragment & 0x1FFF:
            if protocol in WITH_PORTS:
                return (src, dst, protocol, one, two), length
            if protocol in _ICMP:
                return (src, dst, protocol, one, one), length
            return (src, dst, protocol, 0, 0), length
    head, length, fragment, protocol, src, dst = _V4_BARE.unpack_from(packet)
    header = (head & 15) * 4
    if header < 20 or not header <= length <= size:
        return None
    if fragment & 0x1FFF:
        return (src, dst, protocol, OPAQUE, OPAQUE), length
    return (src, dst, protocol, *_ports(packet, header, length, protocol)), length


def _parse_v6(packet: memoryview, size: int) -> tuple[Flow, int] | None:
    if size < 40:
        return None
    _, payload, protocol, src, dst = _V6_BARE.unpack_from(packet)
    length = payload + 40
    if length > size:
        return None
    if protocol not in _EXTENSIONS:
        if length >= 44 and protocol in WITH_PORTS:
            return (src, dst, protocol, *_PORTS.unpack_from(packet, 40)), length
        return (src, dst, protocol, *_ports(packet, 40, length, protocol)), length
    upper = upper_layer_v6(packet, length)
    if upper is None:
        return None
    protocol, offset = upper
    if offset < 0:
        return (src, dst, protocol, OPAQUE, OPAQUE), length
    return (src, dst, protocol, *_ports(packet, offset, length, protocol)), length


def upper_layer_v6(packet: memoryview, length: int) -> tuple[int, int] | None:
    """(protocol, offset) behind the extension headers; offset -1 in a fragment but the first.

    None if a header is cut short. The walk is bounded by the packet's length.
    """
    protocol, offset = packet[6], 40
    while protocol in _EXTENSIONS:
        if offset + 8 > length:
            return None
        following, size = packet[offset], packet[offset + 1]
        if protocol == _FRAGMENT:
            # 13 bits of fragment offset (RFC 8200 4.5).
            if (packet[offset + 2] << 8 | packet[offset + 3]) & 0xFFF8:
                return following, -1
            offset += 8
        elif protocol == _AH:
            offset += (size + 2) * 4
        else:
            offset += (size + 1) * 8
        protocol = following
    return (protocol, offset) if offset <= length else None


def _ports(packet: memoryview, offset: int, length: int, protocol: int) -> tuple[int, int]:
    if offset + 4 > length:
        return (OPAQUE, OPAQUE) if protocol in WITH_PORTS or protocol in _ICMP else (0, 0)
    one, two = _PORTS.unpack_from(packet, offset)
    if protocol in WITH_PORTS:
        return one, two
    return (one, one) if protocol in _ICMP else (0, 0)


def covers(ts: TrafficSelector, address: bytes, protocol: int, port: int) -> bool:
    """Whether one end of a flow is in the selector (RFC 4301 4.4.1.1)."""
    if len(ts.start) != len(address) or not ts.start <= address <= ts.end:
        return False
    if ts.protocol and ts.protocol != protocol:
        return False
    if ts.any_port:
        return True
    return ts.is_opaque if port == OPAQUE else ts.start_port <= port <= ts.end_port


def reverse(flow: Flow) -> Flow:
    """The flow of the answers; ICMP keeps its type and code on both sides."""
    src, dst, protocol, one, two = flow
    return dst, src, protocol, two, one


def ones_sum(data: bytes | bytearray | memoryview) -> int:
    """The 16-bit one's complement sum, not complemented (RFC 1071).

    65536 is 1 modulo 65535, so the sum of all words is the whole number modulo 65535.
    """
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    return value % 65535


def checksum(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """The Internet checksum; ``start`` is a sum to begin with.

    Of the two zeros of one's complement it gives 0xFFFF, which every receiver takes as well, and
    which is the one that UDP must send (RFC 768).
    """
    return ~((ones_sum(data) + start) % 65535) & 0xFFFF


def complete_checksum(packet: bytearray | memoryview, start: int, offset: int) -> None:
    """Finish a checksum that the sender left to the device (virtio NEEDS_CSUM).

    The field at ``start + offset`` holds the sum of the pseudo-header; the sum runs from ``start``
    to the end.
    """
    _H.pack_into(packet, start + offset, checksum(packet[start:]))


def set_v4_checksum(header: bytearray | memoryview) -> None:
    """Recompute the header checksum of an IPv4 header (and nothing behind it)."""
    _H.pack_into(header, 10, 0)
    _H.pack_into(header, 10, checksum(header))
