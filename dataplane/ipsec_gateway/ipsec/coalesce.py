"""A received burst becomes one large TCP packet again: the inverse of ``segment``.

Receive offload (UDP_GRO) gives up to 64 KiB of equal datagrams of one flow in one read. ``Burst``
sees them as a matrix, decrypts row by row into a second one, and finds the runs of rows that a
network card would have joined (the rules are those of the kernel's own GRO): same addresses, ports,
TTL, TOS, acknowledgement, window and TCP options, sequence numbers that follow on, PSH and FIN on
the last only, and every checksum right, because a joined packet has none of its own any more.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidTag
from numpy.typing import NDArray

from ipsec_gateway.ipsec import linux
from ipsec_gateway.ipsec.cipher import HEADER, EspCipher
from ipsec_gateway.ipsec.packet import ones_sum, set_v4_checksum
from ipsec_gateway.ipsec.segment import Array, column, slices, swapped
from ipsec_gateway.ipsec.tun import VNET

_ACK, _PSH, _FIN, _ECE = 0x10, 0x08, 0x01, 0x40
_H: Final = struct.Struct("!H")
#: The largest joined packet, in octets (IPv4 total length).
MAX_PACKET: Final = 65535


class Layout:
    """Where things are in the rows of one kind of TCP packet, and what may differ in a run."""

    __slots__ = ("dont_fragment", "header", "l4", "mask", "mss", "payloads", "version")

    def __init__(self, version: int, l4: int, header: int, inner: int, plain: Array) -> None:
        self.version: Final = version
        self.l4: Final = l4
        self.header: Final = header
        self.mss: Final = inner - header
        mask = np.full(header, 0xFF, np.uint8)
        if version == 4:
            mask[4:6] = 0  # identification
            mask[10:12] = 0  # checksum
        mask[l4 + 4 : l4 + 8] = 0  # sequence number
        mask[l4 + 13] = 0xFF & ~(_PSH | _FIN)
        mask[l4 + 16 : l4 + 18] = 0  # checksum
        self.mask: Final = mask.view("<u4")
        self.payloads: Final = slices(plain, header, inner)


class Burst:
    """Matrices for datagrams of one size. Not re-entrant.

    ``buffer`` is the receive buffer; datagram ``n`` begins at ``n * wire``. ``rows`` is how many
    whole datagrams the buffer can hold.
    """

    def __init__(self, buffer: bytearray, wire: int, cipher: EspCipher) -> None:
        rows = len(buffer) // wire
        body = HEADER + cipher.iv_length
        self.rows: Final = rows
        self.width: Final = wire - body - cipher.icv_length
        received = np.frombuffer(buffer, np.uint8, rows * wire).reshape(rows, wire)
        self._received: Final = received
        self._spi: Final = column(received, 0, ">u4")
        self._low: Final = column(received, 4, ">u4")
        self._iv: Final = column(received, 8, "u8")
        #: Plaintexts with their trailers, one per row.
        self.plain: Final = np.zeros((rows, self.width), np.uint8)
        nonces = np.zeros((rows, len(cipher.salt) + 8), np.uint8)
        wide = np.zeros((rows, 12), np.uint8)
        self._salts: Final = nonces[:, : len(cipher.salt)]
        self._nonce_iv: Final = column(nonces, len(cipher.salt), "u8")
        self._wide_spi: Final = column(wide, 0, ">u4")
        self._wide_seq: Final = column(wide, 4, ">u8")
        self._packets: Final = slices(received, 0, wire)
        self._bodies: Final = slices(received, body, wire)
        self._short_aads: Final = slices(received, 0, HEADER)
        self._wide_aads: Final = slices(wide, 0, 12)
        self._nonces: Final = slices(nonces, 0, nonces.shape[1])
        #: The same as ``plain``, by row.
        self.plains: Final = slices(self.plain, 0, self.width)
        self._layouts: Final[dict[tuple[int, int, int, int], Layout]] = {}

    def one_spi(self, count: int) -> bool:
        """Whether all datagrams belong to the SA of the first."""
        spis = self._spi[:count]
        return bool((spis == spis[0]).all())

    def numbers(self, count: int) -> Array | None:
        """The low halves of the sequence numbers, or None if they do not only grow."""
        low = self._low[:count].astype(np.int64)
        return low if bool((low[1:] > low[:-1]).all()) else None

    def open(self, count: int, cipher: EspCipher, numbers: Array) -> None:
        """Decrypt into ``plain``. ``numbers`` are the 64-bit ones. Raises InvalidTag at the first
        that does not verify; nothing in ``plain`` may be used then."""
        aead = cipher.aead
        if aead is None:
            for index in range(count):
                opened = cipher.open(self._packets[index], int(numbers[index]))
                if len(opened) != self.width:
                    raise InvalidTag
                self.plains[index][:] = opened
            return
        self._nonce_iv[:count] = self._iv[:count]
        self._salts[:] = np.frombuffer(cipher.salt, np.uint8)
        aads = self._short_aads
        if cipher.esn:
            aads = self._wide_aads
            self._wide_spi[:count] = self._spi[:count]
            self._wide_seq[:count] = numbers
        decrypt = aead.decrypt_into
        nonces, bodies, plains = self._nonces, self._bodies, self.plains
        for index in range(count):
            decrypt(nonces[index], bodies[index], aads[index], plains[index])

    def trailer(self, count: int) -> tuple[int, int] | None:
        """(octets of payload, next header) if all rows agree and their padding is right."""
        pad, next_header = self.plains[0][-2], self.plains[0][-1]
        inner = self.width - 2 - pad
        if inner < 40:
            return None
        expected = np.frombuffer(bytes(range(1, pad + 1)) + bytes((pad, next_header)), np.uint8)
        same = (self.plain[:count, inner:] == expected).all()
        return (inner, next_header) if same else None

    def layout(self, inner: int, next_header: int) -> Layout | None:
        """The layout of the first row if it is a TCP packet of ``inner`` octets that may be joined:
        no IPv4 options, no fragment, no IPv6 extension header."""
        row = self.plains[0]
        if next_header == linux.IPPROTO_IPIP:
            plain_tcp = (
                row[0] == 0x45
                and row[9] == linux.IPPROTO_TCP
                and not (row[6] & 0x3F or row[7])
                and row[2] << 8 | row[3] == inner
            )
            version, l4 = 4, 20
        else:
            plain_tcp = (
                row[0] >> 4 == 6
                and row[6] == linux.IPPROTO_TCP
                and (row[4] << 8 | row[5]) + 40 == inner
            )
            version, l4 = 6, 40
        if not plain_tcp or inner <= l4 + 20:
            return None
        header = l4 + (row[l4 + 12] >> 4) * 4
        if not l4 + 20 <= header < inner or self.width & 3:
            return None
        key = (version, l4, header, inner)
        found = self._layouts.get(key)
        if found is None:
            if len(self._layouts) >= 16:
                self._layouts.clear()
            found = self._layouts[key] = Layout(version, l4, header, inner, self.plain)
        return found

    def runs(self, count: int, layout: Layout) -> list[tuple[int, int]]:
        """Half-open ranges of rows that are one packet each, in order."""
        plain, l4, header = self.plain[:count], layout.l4, layout.header
        heads = plain[:, :header].view("<u4")
        joined = ~((heads[1:] ^ heads[:-1]) & layout.mask).any(axis=1)
        sequence = column(self.plain, l4 + 4, ">u4")[:count].astype(np.uint32)
        joined &= sequence[1:] - sequence[:-1] == np.uint32(layout.mss)
        flags = plain[:, l4 + 13]
        joined &= (flags[:-1] & (0xFF & ~_ECE)) == _ACK
        right = self._checksums(count, layout)
        if layout.version == 4:
            right &= np.add.reduce(heads[:, : l4 // 4], axis=1, dtype=np.uint64) % 65535 == 0
            if not self.plains[0][6] & 0x40:  # without DF the identification means something
                ids = column(self.plain, 4, ">u2")[:count].astype(np.uint16)
                joined &= ids[1:] - ids[:-1] == np.uint16(1)
        joined &= right[1:] & right[:-1]
        cuts = (np.flatnonzero(~joined) + 1).tolist()
        most = (MAX_PACKET - header) // layout.mss
        return [
            (at, min(at + most, end))
            for start, end in zip([0, *cuts], [*cuts, count], strict=True)
            for at in range(start, end, most)
        ]

    def _checksums(self, count: int, layout: Layout) -> NDArray[np.bool_]:
        """Whether each row's TCP checksum is right."""
        l4, inner = layout.l4, layout.header + layout.mss
        words = self.plain.view("<u4")[:count, l4 // 4 : -(-inner // 4)]
        surplus = 0
        if inner & 3:  # the last word reaches into the trailer, which is the same in all rows
            beyond = bytes(inner & 3) + bytes(self.plains[0][inner : inner + 4 - (inner & 3)])
            surplus = int.from_bytes(beyond, "little")
        sums = np.add.reduce(words, axis=1, dtype=np.uint64)
        first = self.plains[0]
        addresses = first[12:20] if layout.version == 4 else first[8:40]
        # Rows with other addresses than the first are wrongly judged, and then only not joined.
        pseudo = swapped((ones_sum(addresses) + 6 + inner - l4) % 65535)
        right: NDArray[np.bool_] = (sums + (pseudo + 65535 * 65537 - surplus)) % 65535 == 0
        return right

    def join(self, start: int, end: int, layout: Layout) -> tuple[bytes, bytearray]:
        """(virtio header, packet header) of rows ``start`` .. ``end - 1``; payloads follow."""
        l4, header, mss, version = layout.l4, layout.header, layout.mss, layout.version
        out = bytearray(self.plains[start][:header])
        length = header + (end - start) * mss
        if version == 4:
            _H.pack_into(out, 2, length)
            set_v4_checksum(memoryview(out)[:l4])
            addresses = out[12:20]
            kind = linux.VIRTIO_NET_HDR_GSO_TCPV4
        else:
            _H.pack_into(out, 4, length - 40)
            addresses = out[8:40]
            kind = linux.VIRTIO_NET_HDR_GSO_TCPV6
        out[l4 + 13] |= self.plains[end - 1][l4 + 13] & (_PSH | _FIN)
        _H.pack_into(out, l4 + 16, (ones_sum(addresses) + 6 + length - l4) % 65535)
        flags = linux.VIRTIO_NET_HDR_F_NEEDS_CSUM
        return VNET.pack(flags, kind, header, mss, l4, 16), out
