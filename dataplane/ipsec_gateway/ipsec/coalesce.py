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

    __slots__ = (
        "flags",
        "header",
        "heads",
        "ids",
        "l4",
        "mask",
        "mss",
        "offsets",
        "payloads",
        "sequence",
        "version",
        "words",
    )

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
        self.heads: Final = plain[:, :header].view("<u4")
        self.ids: Final = column(plain, 4, ">u2")
        self.sequence: Final = column(plain, l4 + 4, ">u4")
        self.flags: Final = plain[:, l4 + 13]
        #: From the TCP header on; the last word may reach into the trailer.
        self.words: Final = plain.view("<u4")[:, l4 // 4 : -(-inner // 4)]
        self.offsets: Final = np.arange(len(plain), dtype=np.uint32) * np.uint32(self.mss)


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
        self._spi_seq: Final = column(received, 0, ">u8")
        self._iv: Final = column(received, 8, "u8")
        #: Plaintexts with their trailers, one per row.
        self.plain: Final = np.zeros((rows, self.width), np.uint8)
        nonces = np.zeros((rows, len(cipher.salt) + 8), np.uint8)
        wide = np.zeros((rows, 12), np.uint8)
        self._salts: Final = nonces[:, : len(cipher.salt)]
        self._nonce_iv: Final = column(nonces, len(cipher.salt), "u8")
        self._wide_spi: Final = column(wide, 0, ">u4")
        self._wide_seq: Final = column(wide, 4, ">u8")
        #: Whose SPI and salt are in all rows.
        self._owner: tuple[int, bytes] | None = None
        self._packets: Final = slices(received, 0, wire)
        self._bodies: Final = slices(received, body, wire)
        self._short_aads: Final = slices(received, 0, HEADER)
        self._wide_aads: Final = slices(wide, 0, 12)
        self._nonces: Final = slices(nonces, 0, nonces.shape[1])
        #: The same as ``plain``, by row.
        self.plains: Final = slices(self.plain, 0, self.width)
        self._trailers: Final[dict[tuple[int, int], Array]] = {}
        self._layouts: Final[dict[tuple[int, int, int, int], Layout]] = {}

    def numbers(self, count: int) -> Array | None:
        """SPI and low half of the sequence number, as one number of 64 bits each.

        None if the datagrams are not all of one SA or their numbers do not only grow.
        """
        found = self._spi_seq[:count].astype(np.uint64)
        if int(found[0]) >> 32 != int(found[-1]) >> 32 or not (found[1:] > found[:-1]).all():
            return None
        return found

    def open(self, count: int, cipher: EspCipher, spi: int, numbers: Array) -> None:
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
        if self._owner != (spi, cipher.salt):
            self._owner = (spi, cipher.salt)
            self._salts[:] = np.frombuffer(cipher.salt, np.uint8)
            self._wide_spi[:] = spi
        self._nonce_iv[:count] = self._iv[:count]
        aads = self._short_aads
        if cipher.esn:
            aads = self._wide_aads
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
        expected = self._trailers.get((pad, next_header))
        if expected is None:
            octets = bytes(range(1, pad + 1)) + bytes((pad, next_header))
            expected = self._trailers[pad, next_header] = np.frombuffer(octets, np.uint8)
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
        l4, header = layout.l4, layout.header
        heads = layout.heads[:count]
        same = heads & layout.mask
        # What grows by the payload is equal once that is taken away.
        same[:, l4 // 4 + 1] = layout.sequence[:count] - layout.offsets[:count]
        cut = (layout.flags[: count - 1] & (0xFF & ~_ECE)) != _ACK
        cut[np.flatnonzero(same[1:] != same[:-1]) // same.shape[1]] = True
        wrong = self._checksums(count, layout)
        if layout.version == 4:
            wrong |= np.add.reduce(heads[:, : l4 // 4], axis=1, dtype=np.uint64) % 65535
            if not self.plains[0][6] & 0x40:  # without DF the identification means something
                ids = layout.ids[:count].astype(np.uint16)
                cut |= ids[1:] - ids[:-1] != 1
        if wrong.any():
            cut |= (wrong[1:] | wrong[:-1]) != 0
        cuts = (np.flatnonzero(cut) + 1).tolist()
        most = (MAX_PACKET - header) // layout.mss
        return [
            (at, min(at + most, end))
            for start, end in zip([0, *cuts], [*cuts, count], strict=True)
            for at in range(start, end, most)
        ]

    def _checksums(self, count: int, layout: Layout) -> NDArray[np.uint64]:
        """0 for each row whose TCP checksum is right."""
        l4, inner = layout.l4, layout.header + layout.mss
        surplus = 0
        if inner & 3:  # the last word reaches into the trailer, which is the same in all rows
            beyond = bytes(inner & 3) + bytes(self.plains[0][inner : inner + 4 - (inner & 3)])
            surplus = int.from_bytes(beyond, "little")
        sums: NDArray[np.uint64] = np.add.reduce(layout.words[:count], axis=1, dtype=np.uint64)
        first = self.plains[0]
        addresses = first[12:20] if layout.version == 4 else first[8:40]
        # Rows with other addresses than the first are wrongly judged, and then only not joined.
        pseudo = swapped((ones_sum(addresses) + 6 + inner - l4) % 65535)
        return (sums + (pseudo + 65535 * 65537 - surplus)) % 65535

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
