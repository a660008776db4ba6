"""DSCP and ECN across the tunnel (RFC 4301 5.1.2, RFC 6040).

The low two bits of the TOS octet or traffic class are ECN: 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE.
Outbound both fields are copied to the outer header, RFC 6040's normal mode. Inbound the DSCP of the
outer header is ignored and the ECN fields are combined by RFC 6040 figure 4.
"""

from __future__ import annotations

import struct
from typing import Final

NOT_ECT, ECT1, ECT0, CE = 0, 1, 2, 3
#: What ``combine`` says where the packet must be dropped.
DROP: Final = -1

#: By inner * 4 + outer.
_FIGURE_4: Final = (
    # outer Not-ECT, ECT(1), ECT(0), CE
    *(NOT_ECT, NOT_ECT, NOT_ECT, DROP),  # inner Not-ECT
    *(ECT1, ECT1, ECT1, CE),  # inner ECT(1)
    *(ECT0, ECT1, ECT0, CE),  # inner ECT(0)
    *(CE, CE, CE, CE),  # inner CE
)
_H: Final = struct.Struct("!H")


def combine(inner: int, outer: int) -> int:
    """The ECN field of the forwarded packet, or DROP. Only the low two bits are looked at."""
    return _FIGURE_4[(inner & 3) << 2 | outer & 3]


def tos_of(packet: memoryview) -> int:
    """TOS octet or traffic class of an IPv4 or IPv6 packet."""
    if packet[0] >> 4 == 4:
        return packet[1]
    return (packet[0] << 4 | packet[1] >> 4) & 0xFF


def set_ecn(packet: memoryview | bytearray, ecn: int) -> None:
    """Rewrite the ECN field in place and, for IPv4, the checksum by the difference (RFC 1624)."""
    if packet[0] >> 4 == 6:
        packet[1] = packet[1] & 0xCF | ecn << 4
        return
    before = packet[0] << 8 | packet[1]
    packet[1] = packet[1] & 0xFC | ecn
    after = packet[0] << 8 | packet[1]
    total = (~_H.unpack_from(packet, 10)[0] & 0xFFFF) + (~before & 0xFFFF) + after
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    _H.pack_into(packet, 10, ~total & 0xFFFF)
