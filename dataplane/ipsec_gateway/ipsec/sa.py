"""The SAs of the packet processes: what one packet needs to know, without looking anything up.

An SA without packets is small: what it needs for the first one (the spec, unpacked; ciphers, which
hold some 3 kB of the crypto library's; windows and caches) is made when that one comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ipsec_gateway.ipsec.cipher import EspCipher
from ipsec_gateway.ipsec.packed import PackedSa
from ipsec_gateway.ipsec.packet import Flow, covers
from ipsec_gateway.ipsec.replay import ReplayWindow
from ipsec_gateway.ipsec.shared import SharedState, Word
from ipsec_ike.actions import SaSpec
from ipsec_ike.config import Lifetime
from ipsec_ike.inputs import Endpoint, Expire
from ipsec_ike.selectors import TrafficSelector

#: Sequence numbers reserved at a time. So many are lost when a process is replaced.
RESERVE: Final = 1024
_LAST_32: Final = (1 << 32) - 1
_LAST_64: Final = (1 << 64) - 1
#: Without a limit of its own an SA asks for a rekey when this part of its numbers is used up.
_SOFT_PART: Final = 0.9


class Exhausted(Exception):
    """The SA has no number left, or reached its hard limit."""


@dataclass(slots=True)
class Limits:
    """Soft and hard limits by octets and packets, as thresholds; infinity means none."""

    soft_bytes: float
    soft_packets: float
    hard_bytes: float
    hard_packets: float

    @classmethod
    def of(cls, soft: Lifetime, hard: Lifetime) -> Limits:
        """From the absolute numbers of an SaSpec, where 0 means none."""
        return cls(
            soft.bytes or math.inf,
            soft.packets or math.inf,
            hard.bytes or math.inf,
            hard.packets or math.inf,
        )


class _Sa:
    """What both directions have: shared counters, limits, selectors.

    Slots that ``_prepare`` fills are empty before the first packet; whoever looks at one of them
    has all of them filled (``__getattr__``).
    """

    __slots__ = (
        "_base",
        "_bytes",
        "_emit",
        "_given",
        "_limits",
        "_packets",
        "_soft_sent",
        "_words",
        "cipher",
        "expired",
        "reqid",
        "spec",
        "spi",
    )

    spec: SaSpec
    cipher: EspCipher
    _limits: Limits
    _bytes: int
    _packets: int

    def __init__(
        self,
        given: SaSpec | PackedSa,
        slot: int,
        state: SharedState,
        emit: Callable[[Expire], None],
    ) -> None:
        """Raises LocalMisuse for keys that do not fit; a packed SA has been checked."""
        self.spi: Final = given.id.spi
        self.reqid: Final = given.reqid
        self.expired = False
        self._given: SaSpec | PackedSa | None = given
        self._emit: Final = emit
        self._soft_sent = False
        self._words: Final = state.words
        self._base: Final = state.base(slot)
        if isinstance(given, SaSpec):
            self._prepare(given)

    def __getattr__(self, name: str) -> object:
        given = self._given
        if given is None:
            raise AttributeError(name)
        self._prepare(given if isinstance(given, SaSpec) else given.unpack())
        return getattr(self, name)

    def _prepare(self, spec: SaSpec) -> None:
        """Everything that packets need."""
        self.cipher = EspCipher(spec)
        self._limits = Limits.of(spec.soft, spec.hard)
        self._bytes = self._words[self._base + Word.BYTES]
        self._packets = self._words[self._base + Word.PACKETS]
        self.spec = spec
        self._given = None

    def count(self, packets: int, octets: int, now: int) -> None:
        """Add to the totals (inner octets); ``now`` in nanoseconds. Reports limits once each.

        A burst is counted as one, so a limit may be passed by what is left of the burst.
        """
        self._packets += packets
        self._bytes += octets
        words, base = self._words, self._base
        # BYTES, PACKETS and LAST_SEEN of Word, as plain numbers: this runs for each packet.
        words[base + 1] = self._bytes
        words[base + 2] = self._packets
        words[base + 5] = now
        limits = self._limits
        if self._bytes >= limits.soft_bytes or self._packets >= limits.soft_packets:
            self.soften()
        if self._bytes >= limits.hard_bytes or self._packets >= limits.hard_packets:
            self.expire()

    def soften(self) -> None:
        """Ask for a rekey, once."""
        if not self._soft_sent:
            self._soft_sent = True
            self._emit(Expire(self.spec.id, hard=False))

    def expire(self) -> None:
        """Carry nothing from now on, and say so, once."""
        if not self.expired:
            self.expired = True
            self._emit(Expire(self.spec.id, hard=True))


class OutboundSa(_Sa):
    """Numbers packets. Begins behind the mark of an earlier process, if there was one."""

    __slots__ = ("_last", "_next", "_reserved", "_soft_number")

    _reserved: int
    _next: int
    _last: int
    _soft_number: float

    def _prepare(self, spec: SaSpec) -> None:
        super()._prepare(spec)
        self._reserved = self._words[self._base + Word.MARK]
        self._next = self._reserved + 1
        self._last = _LAST_64 if spec.esn else _LAST_32
        self._soft_number = math.inf if spec.esn else int(_LAST_32 * _SOFT_PART)

    def take(self, count: int) -> int:
        """The first of ``count`` consecutive sequence numbers, 64 bits.

        They are reserved in shared memory first. Raises Exhausted (RFC 4303 3.3.3: a number never
        repeats, with or without an anti-replay service, because the IV is derived from it).
        """
        if self.expired:
            raise Exhausted
        first = self._next
        following = first + count
        if following > self._reserved:
            if following - 1 > self._last:
                self.expire()
                raise Exhausted
            self._reserved = min(following + RESERVE, self._last)
            self._words[self._base] = self._reserved
        if following > self._soft_number:
            self.soften()
        self._next = following
        return first

    def carries(self, flow: Flow) -> bool:
        """Whether the negotiated selectors contain an outbound packet."""
        src, dst, protocol, one, two = flow
        return _pair(self.spec.local_ts, self.spec.remote_ts, src, dst, protocol, one, two)


class InboundSa(_Sa):
    """Checks numbers. Refuses everything up to the mark of an earlier process, if there was one."""

    __slots__ = ("_flows", "remote", "window")

    window: ReplayWindow
    #: Where the peer sends from, as the engine knows it.
    remote: Endpoint
    _flows: dict[Flow, bool]

    def _prepare(self, spec: SaSpec) -> None:
        super()._prepare(spec)
        self.window = ReplayWindow(
            spec.replay_window, esn=spec.esn, restored=self._words[self._base + Word.MARK]
        )
        self.remote = spec.source
        self._flows = {}

    def mark(self) -> None:
        """Publish the window's top, before what it let through is delivered."""
        self._words[self._base] = self.window.top

    def count_replay(self, packets: int = 1) -> None:
        """Packets that the window refused."""
        self._words[self._base + Word.REPLAYED] += packets

    def count_forged(self, packets: int = 1) -> None:
        """Packets whose ICV did not verify."""
        self._words[self._base + Word.INTEGRITY] += packets

    def admits(self, flow: Flow) -> bool:
        """Whether the negotiated selectors contain an inbound packet (RFC 4301 5.2 step 4)."""
        known = self._flows.get(flow)
        if known is None:
            src, dst, protocol, one, two = flow
            known = _pair(self.spec.remote_ts, self.spec.local_ts, src, dst, protocol, one, two)
            if len(self._flows) >= FLOW_CACHE:
                self._flows.clear()
            self._flows[flow] = known
        return known


#: Flows remembered, per inbound SA and for all outbound ones; when full it starts over.
FLOW_CACHE: Final = 4096


def _pair(
    sources: tuple[TrafficSelector, ...],
    destinations: tuple[TrafficSelector, ...],
    src: bytes,
    dst: bytes,
    protocol: int,
    src_port: int,
    dst_port: int,
) -> bool:
    return any(covers(ts, src, protocol, src_port) for ts in sources) and any(
        covers(ts, dst, protocol, dst_port) for ts in destinations
    )
