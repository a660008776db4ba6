"""What the TUN device hands over as one large TCP packet becomes the packets of the wire.

The kernel leaves segmentation to us (virtio TSO): one read gives up to 64 KiB of one TCP stream
with one header. The packets are cut as a network card would: TCP sequence number and, without DF,
IPv4 identification counted on, PSH and FIN on the last only, CWR on the first only, checksums made.

``segments`` does so packet by packet. ``Rows`` does it for all equal segments at once: a matrix
with one plaintext per row, columns filled by numpy, then one encryption per row into a second
matrix, which is one UDP_SEGMENT send.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ipsec_gateway.ipsec.cipher import HEADER, EspCipher
from ipsec_gateway.ipsec.esp import trailer
from ipsec_gateway.ipsec.linux import IPPROTO_IPIP, IPPROTO_IPV6, UDP_MAX_SEGMENTS
from ipsec_gateway.ipsec.packet import checksum, ones_sum, set_v4_checksum

#: The largest UDP payload over IPv4, in octets: 65535 less the IPv4 and UDP headers.
MAX_PAYLOAD: Final = 65507

_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_H: Final = struct.Struct("!H")
_I: Final = struct.Struct("!I")
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Super:
    """A large TCP packet, and where things are in it (octets from its start)."""

    packet: memoryview
    l4: int
    header: int
    mss: int
    version: int

    @classmethod
    def of(cls, packet: memoryview, l4: int, mss: int) -> Super | None:
        """From what the virtio header says (checksum start, segment size); None if it cannot be."""
        if mss < 1 or len(packet) < l4 + 20 or l4 < 20:
            return None
        header = l4 + (packet[l4 + 12] >> 4) * 4
        version = packet[0] >> 4
        if header < l4 + 20 or header >= len(packet) or version not in (4, 6):
            return None
        return cls(packet, l4, header, mss, version)

    @property
    def count(self) -> int:
        """Packets that come out."""
        return -(-(len(self.packet) - self.header) // self.mss)

    @property
    def atomic(self) -> bool:
        """Whether it says DF: then the identification means nothing and stays (RFC 6864 4.1).

        Numbers and checksums that are equal save an eighth of the cost of a segment.
        """
        return self.packet[6] & 0x40 != 0

    def pseudo_sum(self) -> int:
        """The sum of addresses and protocol of the TCP pseudo-header, without the length."""
        addresses = self.packet[12:20] if self.version == 4 else self.packet[8:40]
        return ones_sum(addresses) + 6


def segments(whole: Super, at: int = 0) -> Iterator[bytearray]:
    """The packets in order, from number ``at`` on."""
    packet, l4, header, mss = whole.packet, whole.l4, whole.header, whole.mss
    size = len(packet)
    pseudo = whole.pseudo_sum()
    sequence = _I.unpack_from(packet, l4 + 4)[0]
    identification = _H.unpack_from(packet, 4)[0]
    flags = packet[l4 + 13]
    for index, start in enumerate(range(header + at * mss, size, mss), at):
        out = bytearray(packet[:header])
        out += packet[start : start + mss]
        if whole.version == 4:
            _H.pack_into(out, 2, len(out))
            if not whole.atomic:
                _H.pack_into(out, 4, (identification + index) & 0xFFFF)
            set_v4_checksum(memoryview(out)[: (out[0] & 15) * 4])
        else:
            _H.pack_into(out, 4, len(out) - 40)
        _I.pack_into(out, l4 + 4, (sequence + start - header) & 0xFFFFFFFF)
        kept = flags if start + mss >= size else flags & ~(_PSH | _FIN)
        out[l4 + 13] = kept if index == 0 else kept & ~_CWR
        _H.pack_into(out, l4 + 16, 0)
        value = checksum(memoryview(out)[l4:], pseudo + len(out) - l4)
        _H.pack_into(out, l4 + 16, value)
        yield out


def column(matrix: Array, offset: int, kind: str) -> Array:
    """One field of every row, as numbers of ``kind`` (a numpy type such as ``>u4``)."""
    rows, width = matrix.shape
    return np.ndarray((rows,), kind, matrix.data, offset, (width,))


def swapped(value: int) -> int:
    """The octets of a 16-bit word in the other order (RFC 1071 2B: sums work in either)."""
    return (value & 0xFF) << 8 | value >> 8


class Rows:
    """Matrices for equal segments of one shape. Not re-entrant: a result lives until the next call.

    ``capacity`` is how many packets fit, ``wire`` the octets of each, ``burst`` how many of them
    one UDP_SEGMENT send takes.
    """

    def __init__(self, header: int, l4: int, mss: int, version: int, cipher: EspCipher) -> None:
        inner = header + mss
        self._l4: Final = l4
        self._header: Final = header
        self._mss: Final = mss
        self._inner: Final = inner
        self._version: Final = version
        tail = trailer(inner, cipher.alignment, IPPROTO_IPIP if version == 4 else IPPROTO_IPV6)
        width = inner + len(tail)
        self.wire: Final = HEADER + cipher.iv_length + width + cipher.icv_length
        self.burst: Final = max(1, min(UDP_MAX_SEGMENTS, MAX_PAYLOAD // self.wire))
        self.capacity: Final = min(2 * UDP_MAX_SEGMENTS, -(-65536 // mss))
        rows = self.capacity
        self._plain: Final = np.zeros((rows, width), np.uint8)
        self._plain[:, inner:] = np.frombuffer(tail, np.uint8)
        out = np.zeros((rows, self.wire), np.uint8)
        nonces = np.zeros((rows, len(cipher.salt) + 8), np.uint8)
        wide = np.zeros((rows, 12), np.uint8)
        self._salts: Final = nonces[:, : len(cipher.salt)]
        self._steps: Final = np.arange(rows, dtype=np.uint64)
        self._offsets: Final = np.arange(rows, dtype=np.uint32) * np.uint32(mss)
        #: Whose SPI and salt are in all rows.
        self._owner: tuple[int, bytes] | None = None
        # The inner packet's columns.
        self._heads: Final = self._plain[:, :header]
        self._payloads: Final = self._plain[:, header:inner]
        self._id: Final = column(self._plain, 4, ">u2")
        self._ip_sum: Final = column(self._plain, 10, "<u2")
        self._sequence: Final = column(self._plain, l4 + 4, ">u4")
        self._sum: Final = column(self._plain, l4 + 16, "<u2")
        # TCP begins at a multiple of 4 and every row does, so sums can go by words of 32 bits. The
        # last word may reach into the trailer, whose part is known.
        last = -(-inner // 4)
        self._words: Final = self._plain.view("<u4")[:, l4 // 4 : last]
        beyond = bytes(inner % 4 or 4) + tail
        self._surplus: Final = int.from_bytes(beyond[:4], "little") if inner % 4 else 0
        # The ESP packet's columns.
        self._spi: Final = column(out, 0, ">u4")
        self._low: Final = column(out, 4, "u4")
        self._iv: Final = column(out, 8, "u8")
        self._wide_spi: Final = column(wide, 0, ">u4")
        self._wide_seq: Final = column(wide, 4, "u8")
        self._nonce_iv: Final = column(nonces, len(cipher.salt), "u8")
        # One view per row and purpose, made once.
        body = HEADER + cipher.iv_length
        self._plains: Final = slices(self._plain, 0, width)
        self._packets: Final = slices(out, 0, self.wire)
        self._bodies: Final = slices(out, body, self.wire)
        self._short_aads: Final = slices(out, 0, HEADER)
        self._wide_aads: Final = slices(wide, 0, 12)
        self._nonces: Final = slices(nonces, 0, nonces.shape[1])
        self.out: Final = out.data.cast("B")

    def seal(
        self, whole: Super, data: Array, at: int, count: int, cipher: EspCipher, spi: int, seq: int
    ) -> None:
        """Fill ``out`` with the segments ``at`` .. ``at + count - 1``, all of full size.

        ``data`` are the octets of ``whole.packet``; ``seq`` numbers the first packet.
        """
        self._fill(whole, data, at, count)
        if self._owner != (spi, cipher.salt):
            self._owner = (spi, cipher.salt)
            self._spi[:] = spi
            self._wide_spi[:] = spi
            if cipher.aead is not None:
                self._salts[:] = np.frombuffer(cipher.salt, np.uint8)
        # Turned to network order once; the columns take them as they are.
        numbers = (self._steps[:count] + seq).astype(">u8")
        self._low[:count] = numbers.view("u4")[1::2]
        aead = cipher.aead
        if aead is None:
            for index in range(count):
                cipher.seal_into(seq + index, self._plains[index], self._packets[index])
            return
        numbers = numbers.view("u8")
        self._iv[:count] = numbers
        self._nonce_iv[:count] = numbers
        aads = self._short_aads
        if cipher.esn:
            aads = self._wide_aads
            self._wide_seq[:count] = numbers
        encrypt = aead.encrypt_into
        nonces, plains, bodies = self._nonces, self._plains, self._bodies
        for index in range(count):
            encrypt(nonces[index], plains[index], aads[index], bodies[index])

    def _fill(self, whole: Super, data: Array, at: int, count: int) -> None:
        """The plaintexts. What is equal in all rows is made once and copied with the header."""
        mss, l4, inner, packet = self._mss, self._l4, self._inner, whole.packet
        start = whole.header + at * mss
        head = bytearray(packet[: whole.header])
        flags = head[l4 + 13]
        head[l4 + 13] = flags & ~(_PSH | _FIN | _CWR)
        _H.pack_into(head, l4 + 16, 0)
        if self._version == 4:
            _H.pack_into(head, 2, inner)
            set_v4_checksum(memoryview(head)[:l4])
        else:
            _H.pack_into(head, 4, inner - 40)
        self._heads[:count] = np.frombuffer(head, np.uint8)
        self._payloads[:count] = data[start : start + count * mss].reshape(count, mss)
        if self._version == 4 and not whole.atomic:
            self._number(head, at, count)
        first = _I.unpack_from(head, l4 + 4)[0] + at * mss
        self._sequence[:count] = self._offsets[:count] + np.uint32(first & 0xFFFFFFFF)
        if at == 0:
            self._plains[0][l4 + 13] |= flags & _CWR
        if start + count * mss >= len(packet):
            self._plains[count - 1][l4 + 13] |= flags & (_PSH | _FIN)
        pseudo = swapped((whole.pseudo_sum() + inner - l4) % 65535)
        sums = np.add.reduce(self._words[:count], axis=1, dtype=np.uint64)
        self._sum[:count] = 65535 - (sums + (pseudo + 65535 * 65537 - self._surplus)) % 65535

    def _number(self, head: bytearray, at: int, count: int) -> None:
        """IPv4 identifications that count on, and the checksums that go with them."""
        ids = (self._steps[:count] + (_H.unpack_from(head, 4)[0] + at)) & 0xFFFF
        self._id[:count] = ids
        _H.pack_into(head, 4, 0)
        _H.pack_into(head, 10, 0)
        sums = 65535 - (ids + ones_sum(head[: self._l4])) % 65535
        self._ip_sum[:count] = (sums & 0xFF) << 8 | sums >> 8


def slices(matrix: Array, start: int, end: int) -> list[memoryview]:
    """The octets ``start`` .. ``end`` of every row."""
    rows, width = matrix.shape
    flat = matrix.data.cast("B")
    return [flat[row * width + start : row * width + end] for row in range(rows)]
