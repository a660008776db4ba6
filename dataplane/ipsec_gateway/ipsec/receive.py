"""The inbound direction: wire to TUN. Everything but the loop that waits (``worker``).

For each packet, in this order (RFC 4303 3.4, RFC 4301 5.2): SA by SPI; anti-replay look; ICV and
decryption; window moved and published; padding; inner header; the SA's negotiated selectors; ECN;
device. Bursts do the same by matrix (``coalesce``); whatever is unusual about one, down to a single
wrong ICV, sends all of it to the plain path, which judges packet by packet.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidTag

from ipsec_gateway.ipsec import ecn
from ipsec_gateway.ipsec.ancillary import discard_errors, local_address, udp_ancillary
from ipsec_gateway.ipsec.base import IkeFromDataplane, moved
from ipsec_gateway.ipsec.coalesce import Burst, Layout
from ipsec_gateway.ipsec.drops import Drop
from ipsec_gateway.ipsec.esp import EspError, spi_and_sequence, strip, unseal
from ipsec_gateway.ipsec.natt import is_ike
from ipsec_gateway.ipsec.packed import PackedSa
from ipsec_gateway.ipsec.packet import next_header_of, parse
from ipsec_gateway.ipsec.sa import InboundSa
from ipsec_gateway.ipsec.shared import SharedState
from ipsec_gateway.ipsec.tun import VNET_NONE
from ipsec_ike.actions import SaSpec, UpdateSa
from ipsec_ike.identifiers import SaId
from ipsec_ike.inputs import Endpoint, Expire, Mapping, UnknownSpi

#: Reads per socket before the loop looks at its other business.
DRAIN: Final = 16
#: From so many datagrams in one read on the matrix pays off.
VECTOR: Final = 8
#: UnknownSpi reports in one second, and one per SPI.
UNKNOWN_PER_SECOND: Final = 10
#: Nanoseconds between two Mapping reports of one SA.
MAPPING_INTERVAL: Final = 1_000_000_000
_SHAPES: Final = 16
_ALL: Final = (1 << 64) - 1
_SECOND: Final = 1_000_000_000
#: What one read may give, and how many reads are looked at together.
_READ: Final = 65536
_BUFFER: Final = 4 * _READ
#: Datagrams looked at together.
_ROWS: Final = 128

#: Octets of a datagram, outer TOS, sender.
_Origin = tuple[int, int, Endpoint]
#: Octets read, where they come from, ancillary data.
_Read = tuple[int, _Origin, list[tuple[int, int, bytes]]]
_NOBODY: Final = (0, 0, Endpoint("", 0))
_NOTHING: Final[list[tuple[int, int, bytes]]] = []

Event = Expire | Mapping | UnknownSpi | IkeFromDataplane


class Receiver:
    """Inbound SAD and the way of each packet. ``emit`` gets Expire, Mapping, UnknownSpi and IKE
    messages that receive offload brought here. ``tun`` is a descriptor that takes writes as a TUN
    device with virtio headers does. ``catch_up`` may add the SA of an SPI that nobody knows yet."""

    def __init__(
        self,
        tun: int,
        state: SharedState,
        emit: Callable[[Event], None],
        *,
        vector: bool = True,
        catch_up: Callable[[], object] = lambda: None,
    ) -> None:
        self._tun: Final = tun
        self._state: Final = state
        self._words: Final = state.words
        self._emit: Final = emit
        self._vector: Final = vector
        self._catch_up: Final = catch_up
        self._by_spi: Final[dict[int, InboundSa]] = {}
        self._buffer: Final = bytearray(_BUFFER)
        self._view: Final = memoryview(self._buffer)
        # What the last datagram came with, and what it means.
        self._ancillary = _NOTHING
        self._address: tuple[str, int] = ("", 0)
        self._joined = 0
        self._origin: _Origin = _NOBODY
        self._outer_header: Final = bytearray(20)
        self._bursts: Final[dict[tuple[int, int, int, int], Burst]] = {}
        self._mapped: Final[dict[int, int]] = {}
        self._unknown: Final[set[int]] = set()
        self._unknown_since = 0
        self._now = 0

    # What the gateway asks for.

    def add_sa(self, spec: SaSpec | PackedSa, slot: int) -> None:
        """Begin to accept an SA; one that is there already stays as it is.

        Raises LocalMisuse for keys that do not fit.
        """
        sa = InboundSa(spec, slot, self._state, self._emit)
        known = self._by_spi.get(sa.spi)
        if known is None or known.spec != sa.spec:
            self._by_spi[sa.spi] = sa

    def update_sa(self, update: UpdateSa) -> None:
        """The peer of an SA sends from elsewhere now."""
        sa = self._by_spi.get(update.id.spi)
        if sa is not None:
            sa.spec = moved(sa.spec, update)
            sa.remote = update.source
            self._mapped.pop(sa.spi, None)

    def delete_sa(self, sa_id: SaId) -> None:
        """Stop accepting an SA; it is no error if it is gone already."""
        self._by_spi.pop(sa_id.spi, None)
        self._mapped.pop(sa_id.spi, None)

    def deliver(self, data: bytes, remote: Endpoint) -> None:
        """An ESP packet that arrived on an IKE socket."""
        self._now = time.monotonic_ns()
        self._one(memoryview(data), 0, remote)

    # Sockets.

    def drain_udp(self, sock: socket.socket) -> None:
        """Read what a UDP socket has, up to DRAIN times."""

        def read(used: int) -> _Read:
            size, ancillary, _, address = sock.recvmsg_into(
                (self._view[used : used + _READ],), 256, socket.MSG_DONTWAIT
            )
            # Most reads say what the one before said: not to take it apart again saves 2 us.
            if ancillary != self._ancillary or address != self._address:
                self._ancillary, self._address = ancillary, address
                self._joined, tos = udp_ancillary(ancillary)
                self._origin = (self._joined or size, tos, Endpoint(address[0], address[1]))
            elif not self._joined and size != self._origin[0]:
                self._origin = (size, *self._origin[1:])
            return size, self._origin, ancillary

        self._collect(read, DRAIN, sock)

    def drain_raw(self, sock: socket.socket) -> None:
        """Read what a socket for IP protocol 50 has, up to 4 * DRAIN times."""

        def read_v4(used: int) -> _Read:
            # The IP header comes first; its destination was ours, or it would not be here.
            header, body = self._outer_header, self._view[used : used + _READ]
            size, _, _, address = sock.recvmsg_into((header, body), 0, socket.MSG_DONTWAIT)
            size -= len(header)
            options = (header[0] & 15) * 4 - len(header)
            if options > 0:
                size -= options
                body[:size] = body[options : options + size]
            return size, (size, header[1], Endpoint(address[0], 0)), _NOTHING

        def read_v6(used: int) -> _Read:
            body = self._view[used : used + _READ]
            size, ancillary, _, address = sock.recvmsg_into((body,), 256, socket.MSG_DONTWAIT)
            tos = udp_ancillary(ancillary)[1]
            return size, (size, tos, Endpoint(address[0], 0)), _NOTHING

        if sock.family == socket.AF_INET6:
            self._collect(read_v6, 4 * DRAIN, None)
            discard_errors(sock)
        else:
            self._collect(read_v4, 4 * DRAIN, None)

    def _collect(
        self, read: Callable[[int], _Read], times: int, sock: socket.socket | None
    ) -> None:
        """Call ``read`` until there is nothing, or ``times`` times.

        Reads of whole datagrams of one size from one peer are put behind each other in the buffer
        and looked at together, because a matrix costs nearly the same whatever its height.
        """
        self._now = time.monotonic_ns()
        used = 0
        origin, ancillary = _NOBODY, _NOTHING
        for _ in range(times):
            try:
                size, fresh, new_ancillary = read(used)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error about what we sent; the kernel has noted the path MTU
            if used and fresh != origin:
                self._datagrams(used, origin, sock, ancillary)
                self._view[:size] = self._view[used : used + size]
                used = 0
            origin, ancillary = fresh, new_ancillary
            segment = origin[0]
            used += size
            if not segment or size % segment or used > _BUFFER - _READ or used > _ROWS * segment:
                self._datagrams(used, origin, sock, ancillary)
                used = 0
        if used:
            self._datagrams(used, origin, sock, ancillary)

    def _datagrams(
        self,
        size: int,
        origin: _Origin,
        sock: socket.socket | None,
        ancillary: Iterable[tuple[int, int, bytes]],
    ) -> None:
        """``size`` octets of datagrams of one size, of which the last may be shorter.

        ``sock`` is given where there may be IKE among them.
        """
        segment, tos, remote = origin
        start = 0
        if self._vector and segment and size >= VECTOR * segment:
            count = size // segment
            if self._burst(count, segment, tos, remote):
                start = count * segment
        while start < size:
            packet = self._view[start : min(start + segment, size)]
            start += segment
            if sock is not None and is_ike(packet):
                self._ike(packet, remote, sock, ancillary)
            else:
                self._one(packet, tos, remote)

    def _ike(
        self,
        packet: memoryview,
        remote: Endpoint,
        sock: socket.socket,
        ancillary: Iterable[tuple[int, int, bytes]],
    ) -> None:
        """Receive offload put it behind ESP. Keepalives and fragments of a marker are dropped."""
        if len(packet) > 4:
            local = Endpoint(local_address(ancillary), sock.getsockname()[1])
            self._emit(IkeFromDataplane(bytes(packet[4:]), local, remote))

    # One packet.

    def _one(self, packet: memoryview, tos: int, remote: Endpoint) -> None:
        try:
            spi, low = spi_and_sequence(packet)
            sa = self._by_spi.get(spi)
            if sa is None:
                self._catch_up()
                sa = self._by_spi.get(spi)
            if sa is None:
                self._unknown_spi(spi, remote)
                raise EspError(Drop.UNKNOWN_SPI)
            if sa.expired:
                raise EspError(Drop.EXPIRED)
            seq = sa.window.infer(low)
            if not sa.window.check(seq):
                sa.count_replay()
                raise EspError(Drop.REPLAYED)
            plain = unseal(sa.cipher, packet, seq)
            sa.window.accept(seq)
            sa.mark()
            if remote != sa.remote and seq == sa.window.top:
                self._moved(sa, remote)
            next_header, payload = strip(plain)
            self._deliver(sa, next_header, payload, tos)
        except EspError as exc:
            if exc.reason is Drop.INTEGRITY and sa is not None:
                sa.count_forged()
            self._words[exc.reason] += 1

    def _deliver(
        self, sa: InboundSa, next_header: int, packet: memoryview, tos: int, *, count: bool = True
    ) -> None:
        """Give one authentic inner packet to the device, or raise EspError."""
        if count:
            sa.count(1, len(packet), self._now)
        parsed = parse(packet)
        if parsed is None or next_header_of(packet) != next_header:
            raise EspError(Drop.INNER_MALFORMED)
        flow, length = parsed
        if not sa.admits(flow):
            raise EspError(Drop.SELECTORS)
        if tos & 3:
            self._combine_ecn(packet, tos)
        self._write((VNET_NONE, packet[:length]))

    @staticmethod
    def _combine_ecn(header: memoryview | bytearray, tos: int) -> None:
        inner = ecn.tos_of(memoryview(header))
        combined = ecn.combine(inner, tos)
        if combined == ecn.DROP:
            raise EspError(Drop.ECN)
        if combined != inner & 3:
            ecn.set_ecn(header, combined)

    def _write(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        try:
            os.writev(self._tun, parts)  # type: ignore[arg-type]  # any sequence of buffers
        except OSError as exc:
            # EIO while the device is down, ENOMEM, EAGAIN, EINVAL for what the kernel finds odd.
            raise EspError(Drop.DEVICE) from exc

    # A burst.

    def _burst(self, count: int, wire: int, tos: int, remote: Endpoint) -> bool:
        """The first ``count`` datagrams of the buffer by matrix. False: nothing was done."""
        sa = self._by_spi.get(int.from_bytes(self._view[:4], "big"))
        if sa is None or sa.expired or wire < sa.cipher.overhead + 40:
            return False
        burst = self._burst_for(wire, sa)
        found = burst.numbers(count)
        if found is None:
            return False
        window = sa.window
        low, high = int(found[0]), int(found[-1])
        first = window.infer(low & 0xFFFFFFFF)
        if first <= window.top:
            return False
        numbers = found - np.uint64(low - first & _ALL)
        try:
            burst.open(count, sa.cipher, sa.spi, numbers)
        except InvalidTag:
            return False
        if high - low == count - 1:
            window.accept_run(first, count)
        else:
            for number in numbers.tolist():
                window.accept(number)
        sa.mark()
        if remote != sa.remote:
            self._moved(sa, remote)
        self._deliver_burst(sa, burst, count, tos)
        return True

    def _deliver_burst(self, sa: InboundSa, burst: Burst, count: int, tos: int) -> None:
        trailer = burst.trailer(count)
        layout = None
        if trailer is not None:
            inner, next_header = trailer
            sa.count(count, count * inner, self._now)
            layout = burst.layout(inner, next_header)
        if layout is None:
            for index in range(count):
                self._deliver_row(sa, burst, index, tos, count=trailer is None)
            return
        for start, end in burst.runs(count, layout):
            if end - start == 1:
                self._deliver_row(sa, burst, start, tos, count=False)
                continue
            try:
                self._deliver_run(sa, burst, start, end, layout, tos)
            except EspError as exc:
                self._words[exc.reason] += end - start

    def _deliver_row(
        self, sa: InboundSa, burst: Burst, index: int, tos: int, *, count: bool
    ) -> None:
        try:
            next_header, payload = strip(burst.plains[index])
            self._deliver(sa, next_header, payload, tos, count=count)
        except EspError as exc:
            self._words[exc.reason] += 1

    def _deliver_run(
        self, sa: InboundSa, burst: Burst, start: int, end: int, layout: Layout, tos: int
    ) -> None:
        row = burst.plains[start]
        parsed = parse(row)
        if parsed is None:
            raise EspError(Drop.INNER_MALFORMED)
        if not sa.admits(parsed[0]):
            raise EspError(Drop.SELECTORS)
        if tos & 3:
            self._combine_ecn(row, tos)
        vnet, header = burst.join(start, end, layout)
        self._write((vnet, header, *layout.payloads[start:end]))

    def _burst_for(self, wire: int, sa: InboundSa) -> Burst:
        cipher = sa.cipher
        key = (wire, cipher.iv_length, cipher.icv_length, len(cipher.salt))
        burst = self._bursts.get(key)
        if burst is None:
            if len(self._bursts) >= _SHAPES:
                self._bursts.clear()
            burst = self._bursts[key] = Burst(self._buffer, wire, cipher)
        return burst

    # What the engine is told.

    def _moved(self, sa: InboundSa, remote: Endpoint) -> None:
        if not sa.spec.encap:
            return
        last = self._mapped.get(sa.spi)
        if last is None or self._now - last >= MAPPING_INTERVAL:
            self._mapped[sa.spi] = self._now
            self._emit(Mapping(sa.spi, remote))

    def _unknown_spi(self, spi: int, remote: Endpoint) -> None:
        if self._now - self._unknown_since >= _SECOND:
            self._unknown_since = self._now
            self._unknown.clear()
        if spi not in self._unknown and len(self._unknown) < UNKNOWN_PER_SECOND:
            self._unknown.add(spi)
            self._emit(UnknownSpi(spi, remote))
