"""Which datagrams the responder answers. Pure: time is an argument.

It sends back what came, so it could be made to talk to itself, to other echo services, or to hosts
that have asked for nothing. Hence what is answered is a probe of our format (``format``) that

- came out of an SA, to one address of this node and from one host,
- from a port that no well-known service and no responder has,
- not more often than probing needs, from one address or at all.

The answer is as large as the question, from the address and port that were asked.
"""

from __future__ import annotations

import ipaddress
from enum import Enum
from typing import Final, NamedTuple

from ipsec_gateway.pathprobe.format import parse
from ipsec_ike.sa.rate import RateLimit

#: Answers to all within one second; to one address on average and at once.
ALL: Final = 5000
EACH: Final = 20.0
BURST: Final = 40.0
#: Addresses that are remembered.
KNOWN: Final = 4096

_WELL_KNOWN: Final = 1024
_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")


class Outcome(Enum):
    """What became of a datagram; the values are label values of the metric."""

    ANSWERED = "answered"
    NO_PROBE = "no_probe"
    CLEAR_TEXT = "clear_text"
    LOOP = "loop"
    ADDRESS = "address"
    RATE = "rate"
    UNSENT = "unsent"


class Arrival(NamedTuple):
    """One datagram: from where, to which address in its header, which of ours the kernel took it
    for, and whether it came out of an SA."""

    data: bytes
    source: str
    port: int
    asked: str
    own: str
    protected: bool


class Judge:
    """For one responder at ``port``."""

    def __init__(self, port: int) -> None:
        self._port: Final = port
        self._all: Final = RateLimit(ALL, 1.0)
        #: What each address has left, and when it was counted; the longest unseen one first.
        self._each: dict[str, tuple[float, float]] = {}

    def judge(self, it: Arrival, now: float) -> Outcome:
        """ANSWERED: it is to be answered, which is counted."""
        if parse(it.data) is None:
            return Outcome.NO_PROBE
        if not it.protected:
            return Outcome.CLEAR_TEXT
        if it.port < _WELL_KNOWN or it.port == self._port:
            return Outcome.LOOP
        if it.asked != it.own or not _single(it.asked) or not _single(it.source):
            return Outcome.ADDRESS
        if not self._may(it.source, now):
            return Outcome.RATE
        return Outcome.ANSWERED

    def _may(self, source: str, now: float) -> bool:
        left, since = self._each.pop(source, (BURST, now))
        left = min(BURST, left + max(0.0, now - since) * EACH)
        allowed = left >= 1 and self._all.allows(now)
        self._each[source] = (left - 1 if allowed else left, now)
        if len(self._each) > KNOWN:
            del self._each[next(iter(self._each))]
        return allowed


def _single(text: str) -> bool:
    """Whether this can be one host's address beyond the link."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (
        address.is_multicast
        or address.is_unspecified
        or address.is_loopback
        or address.is_link_local
        or address == _BROADCAST
    )
