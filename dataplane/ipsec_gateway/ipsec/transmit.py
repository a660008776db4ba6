"""The outbound direction: TUN to wire. Everything but the loop that waits (``worker``).

One call of ``drain`` reads what the TUN device has, up to a bound. A large TCP packet is cut and
encrypted as a matrix (``segment.Rows``) and leaves in one or two sends. Ordinary packets of equal
size, SA and TOS in a row are put together into one send as well; the batch is flushed at the end of
the call, so that no packet ever waits for another that has not come yet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from ipsec_gateway.ipsec.base import PolicyId, PolicySpec, moved
from ipsec_gateway.ipsec.drops import Drop
from ipsec_gateway.ipsec.ecn import tos_of
from ipsec_gateway.ipsec.esp import encapsulate_into, sealed_length
from ipsec_gateway.ipsec.linux import UDP_MAX_SEGMENTS, VIRTIO_NET_HDR_F_NEEDS_CSUM
from ipsec_gateway.ipsec.outer import Outer, Path, PathMtu
from ipsec_gateway.ipsec.packed import PackedSa
from ipsec_gateway.ipsec.packet import Flow, complete_checksum, next_header_of, parse
from ipsec_gateway.ipsec.sa import Exhausted, OutboundSa
from ipsec_gateway.ipsec.segment import MAX_PAYLOAD, Rows, Super, segments
from ipsec_gateway.ipsec.shared import SharedState
from ipsec_gateway.ipsec.spd import OutboundDatabase
from ipsec_gateway.ipsec.tun import VNET, VNET_LENGTH
from ipsec_ike.actions import SaSpec, UpdateSa
from ipsec_ike.identifiers import SaId
from ipsec_ike.inputs import Acquire, Expire
from ipsec_ike.selectors import TrafficSelector

#: Packets read before the loop looks at its other business.
DRAIN: Final = 64
#: From so many segments on the matrix pays off.
VECTOR: Final = 8
#: Seconds between two Acquire for one reqid.
ACQUIRE_INTERVAL: Final = 1.0
#: The largest packet kept for an SA to come, in octets.
HELD_SIZE: Final = 9216
#: Seconds after which nobody waits for it any more.
HELD_TIME: Final = 10.0
#: Shapes of matrices kept, 130 kB each.
_SHAPES: Final = 16

Event = Acquire | Expire | PathMtu


class Batch:
    """Packets for one destination that leave together: of one size, but the last may be less."""

    def __init__(self, outer: Outer) -> None:
        self._outer: Final = outer
        self._buffer: Final = memoryview(bytearray(MAX_PAYLOAD))
        self._path: Path | None = None
        self._tos = 0
        self._segment = 0
        self._used = 0
        self._room = 0

    def room(self, path: Path, tos: int, size: int) -> memoryview:
        """Where to write the next packet of ``size`` octets; sends the batch first if it must."""
        if (
            path is not self._path
            or not self._room
            or size > self._segment
            or tos != self._tos
            or self._used + size > MAX_PAYLOAD
        ):
            self.flush()
            self._path, self._tos, self._segment = path, tos, size
            self._room = UDP_MAX_SEGMENTS if path.batches else 1
        # A shorter packet is the last of its batch.
        self._room = self._room - 1 if size == self._segment else 0
        start = self._used
        self._used += size
        return self._buffer[start : start + size]

    def flush(self) -> None:
        """Send what there is."""
        if self._path is not None and self._used:
            self._outer.send(self._path, self._buffer[: self._used], self._tos, self._segment)
        self._path = None
        self._used = 0


class Paths(dict[OutboundSa, Path]):
    """The way of each SA that has sent something, found when it does so first."""

    def __init__(self, outer: Outer) -> None:
        super().__init__()
        self._outer: Final = outer

    def find(self, sa: OutboundSa) -> Path:
        """Raises DataplaneError if there is no socket for its addresses."""
        spec = sa.spec
        mark = spec.handling.mark
        return self._outer.path(spec.source, spec.destination, encap=spec.encap, mark=mark)

    def __missing__(self, sa: OutboundSa) -> Path:
        self[sa] = path = self.find(sa)
        return path


class Transmitter:
    """Outbound SAD and SPD and the way of each packet.

    ``emit`` gets Acquire, Expire and PathMtu. ``tun`` is a descriptor that reads as a TUN device
    with virtio headers does. ``vector`` off leaves every packet to the plain path. ``catch_up`` may
    add the SA that a packet has not got yet.
    """

    def __init__(
        self,
        tun: int,
        outer: Callable[[Callable[[int], None], Callable[[PathMtu], None]], Outer],
        state: SharedState,
        emit: Callable[[Event], None],
        *,
        vector: bool = True,
        catch_up: Callable[[], object] = lambda: None,
    ) -> None:
        self._tun: Final = tun
        self._words: Final = state.words
        self._state: Final = state
        self._emit: Final = emit
        self._vector: Final = vector
        self._catch_up: Final = catch_up
        self._outer: Final = outer(self._send_failed, emit)
        self._batch: Final = Batch(self._outer)
        self._database: Final = OutboundDatabase()
        self._by_id: Final[dict[SaId, OutboundSa]] = {}
        self._paths: Final = Paths(self._outer)
        self._rows: Final[dict[tuple[int, ...], Rows]] = {}
        self._header: Final = bytearray(VNET_LENGTH)
        self._packet: Final = bytearray(65536 + 64)
        self._view: Final = memoryview(self._packet)
        self._data: Final = np.frombuffer(self._packet, np.uint8)
        self._held: Final[dict[int, tuple[bytes, bytes, float]]] = {}
        self._acquired: Final[dict[int, float]] = {}
        self._now = 0

    # What the gateway asks for.

    def add_sa(self, spec: SaSpec | PackedSa, slot: int) -> None:
        """Begin to use an SA; one that is there already stays as it is.

        Raises DataplaneError (no socket for its addresses) or LocalMisuse (keys that do not fit).
        """
        sa_id = spec.id
        sa = OutboundSa(spec, slot, self._state, self._emit)
        known = self._by_id.get(sa_id)
        if known is not None and known.spec == sa.spec:
            return
        path = None if isinstance(spec, PackedSa) else self._paths.find(sa)
        self.delete_sa(sa_id)
        self._by_id[sa_id] = sa
        if path is not None:
            self._paths[sa] = path
        self._database.add(sa)
        held = self._held.pop(sa.reqid, None)
        if held is not None and time.monotonic() - held[2] < HELD_TIME:
            header, packet, _ = held
            self._header[:] = header
            self._packet[: len(packet)] = packet
            self._handle(len(packet))
            self._batch.flush()

    def update_sa(self, update: UpdateSa) -> None:
        """Send an SA's packets another way from now on."""
        sa = self._by_id.get(update.id)
        if sa is not None:
            self._paths[sa] = self._outer.path(
                update.source,
                update.destination,
                encap=update.encap,
                mark=sa.spec.handling.mark,
            )
            sa.spec = moved(sa.spec, update)

    def delete_sa(self, sa_id: SaId) -> None:
        """Stop using an SA; it is no error if it is gone already."""
        sa = self._by_id.pop(sa_id, None)
        if sa is not None:
            self._database.remove(sa)
            self._paths.pop(sa, None)

    def put_policies(self, put: Sequence[PolicySpec], delete: Sequence[PolicyId]) -> None:
        """Apply a difference to the SPD."""
        self._database.put(put, delete)
        if delete:
            known = self._database.reqids()
            for waiting in (self._held, self._acquired):
                for reqid in waiting.keys() - known:
                    del waiting[reqid]

    # Packets.

    def drain(self) -> None:
        """Read and send up to DRAIN packets. Raises OSError if the device is gone."""
        buffers = (self._header, self._packet)
        self._now = time.monotonic_ns()
        for _ in range(DRAIN):
            try:
                size = os.readv(self._tun, buffers)
            except BlockingIOError:
                break
            self._handle(size - VNET_LENGTH)
        self._batch.flush()

    def _handle(self, size: int) -> None:
        """One read: the virtio header is in ``_header``, ``size`` octets are in ``_packet``."""
        flags, kind, _, mss, start, offset = VNET.unpack(self._header)
        packet = self._view[:size] if size > 0 else self._view[:0]
        parsed = parse(packet)
        if parsed is None:
            return self._drop(Drop.OUT_MALFORMED)
        flow, length = parsed
        sa = self._database.find(flow)
        if isinstance(sa, Drop):
            return self._refuse(sa, flow, packet)
        try:
            if kind:
                self._super(sa, packet[:length], start, mss)
                return None
            if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and start + offset + 2 <= length:
                complete_checksum(packet[:length], start, offset)
            self._single(sa, packet[:length])
        except Exhausted:
            self._drop(Drop.OUT_EXPIRED)
        return None

    def _single(self, sa: OutboundSa, packet: memoryview | bytearray) -> None:
        cipher = sa.cipher
        size = sealed_length(cipher, len(packet))
        if size > MAX_PAYLOAD:
            return self._drop(Drop.OUT_TOO_BIG)
        seq = sa.take(1)
        inner = memoryview(packet)
        out = self._batch.room(self._paths[sa], tos_of(inner), size)
        encapsulate_into(cipher, sa.spi, seq, inner, next_header_of(inner), out)
        sa.count(1, len(inner), self._now)
        return None

    def _super(self, sa: OutboundSa, packet: memoryview, l4: int, mss: int) -> None:
        whole = Super.of(packet, l4, mss)
        if whole is None:
            return self._drop(Drop.OUT_MALFORMED)
        path = self._paths[sa]
        if whole.count < VECTOR or not self._vector or l4 & 3:
            for segment in segments(whole):
                self._single(sa, segment)
            return None
        self._batch.flush()
        rows = self._rows_for(sa, whole)
        tos = tos_of(packet)
        at, total = 0, whole.count
        while at < total:
            count = min(rows.capacity, total - at)
            used = self._fill_rows(sa, whole, rows, at, count)
            # Equal parts: two bursts of 23 are received faster than one of 44 and one of 2.
            sends = -(-count // rows.burst)
            part = -(-count // sends) * rows.wire
            for start in range(0, used, part):
                self._outer.send(path, rows.out[start : min(start + part, used)], tos, rows.wire)
            at += count
        return None

    def _fill_rows(self, sa: OutboundSa, whole: Super, rows: Rows, at: int, count: int) -> int:
        """Encrypt ``count`` segments from ``at`` on; the octets they take in ``rows.out``."""
        packet, header, mss = whole.packet, whole.header, whole.mss
        first = sa.take(count)
        full = min(count, (len(packet) - header) // mss - at)
        rows.seal(whole, self._data, at, full, sa.cipher, sa.spi, first)
        used = full * rows.wire
        octets = full * (header + mss)
        if full < count:  # the last one, which is shorter
            rest = next(segments(whole, at + full))
            size = sealed_length(sa.cipher, len(rest))
            out = rows.out[used : used + size]
            encapsulate_into(sa.cipher, sa.spi, first + full, rest, next_header_of(packet), out)
            used += size
            octets += len(rest)
        sa.count(count, octets, self._now)
        return used

    def _rows_for(self, sa: OutboundSa, whole: Super) -> Rows:
        cipher = sa.cipher
        key = (
            whole.header,
            whole.l4,
            whole.mss,
            whole.version,
            cipher.iv_length,
            cipher.icv_length,
            cipher.alignment,
            len(cipher.salt),
        )
        rows = self._rows.get(key)
        if rows is None:
            if len(self._rows) >= _SHAPES:
                self._rows.clear()
            rows = self._rows[key] = Rows(whole.header, whole.l4, whole.mss, whole.version, cipher)
        return rows

    # Packets that are not sent.

    def _drop(self, reason: Drop) -> None:
        self._words[reason] += 1

    def _send_failed(self, packets: int) -> None:
        self._words[Drop.OUT_SEND_FAILED] += packets

    def _refuse(self, reason: Drop, flow: Flow, packet: memoryview) -> None:
        policy = self._database.policy(flow) if reason is Drop.OUT_NO_SA else None
        if policy is None:
            return self._drop(reason)
        # The newest packet of each policy waits for its SA, so that a first ping is answered.
        now = time.monotonic()
        if len(packet) <= HELD_SIZE:
            self._held[policy.reqid] = (bytes(self._header), bytes(packet), now)
            self._catch_up()
            if policy.reqid not in self._held:
                return None  # the SA was there, and the packet has gone
        self._drop(reason)
        if now - self._acquired.get(policy.reqid, -ACQUIRE_INTERVAL) >= ACQUIRE_INTERVAL:
            self._acquired[policy.reqid] = now
            src, dst, protocol, one, two = flow
            self._emit(
                Acquire(policy.reqid, _selector(src, protocol, one), _selector(dst, protocol, two))
            )
        return None


def _selector(address: bytes, protocol: int, port: int) -> TrafficSelector:
    if port < 0:
        return TrafficSelector(address, address, protocol, 65535, 0)
    if not port:
        return TrafficSelector(address, address, protocol)
    return TrafficSelector(address, address, protocol, port, port)
