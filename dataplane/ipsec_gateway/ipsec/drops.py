"""Why a packet did not get through: the reasons, as they are counted and named in /metrics."""

from __future__ import annotations

from enum import IntEnum


class Drop(IntEnum):
    """A reason. The number is its place in the shared counters; names are lower-cased labels."""

    # Outbound.
    #: Not an IP packet, or shorter than it says.
    OUT_MALFORMED = 0
    #: No policy matches.
    OUT_NO_POLICY = 1
    #: A ``discard`` policy matches.
    OUT_DISCARDED = 2
    #: A ``none`` policy matches: routing should not have brought the packet here.
    OUT_NOT_FOR_US = 3
    #: ``encrypt`` and no SA yet; the newest packet of each policy is kept and sent later.
    OUT_NO_SA = 4
    #: The SA is at its hard limit.
    OUT_EXPIRED = 5
    #: The kernel refused to send.
    OUT_SEND_FAILED = 6
    #: Larger than the protocol can carry.
    OUT_TOO_BIG = 7

    # Inbound.
    #: No room for header, IV and ICV.
    TOO_SHORT = 16
    #: Nobody has this SPI.
    UNKNOWN_SPI = 17
    #: Seen before, or too old to tell.
    REPLAYED = 18
    #: The ICV does not verify.
    INTEGRITY = 19
    #: Padding that is not 1, 2, 3, ...
    PADDING = 20
    #: Neither IPv4 nor IPv6 inside.
    NEXT_HEADER = 21
    #: A dummy packet (RFC 4303 2.6); not an error.
    DUMMY = 22
    #: What is inside is no valid IP packet.
    INNER_MALFORMED = 23
    #: The inner packet is not what the SA was negotiated for (RFC 4301 5.2).
    SELECTORS = 24
    #: Congestion marked on the outside of a packet that cannot say so (RFC 6040 4.2).
    ECN = 25
    #: The SA is at its hard limit.
    EXPIRED = 26
    #: The TUN device refused.
    DEVICE = 27


#: Places in the shared counters.
DROP_SLOTS = 32
