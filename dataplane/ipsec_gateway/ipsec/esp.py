"""ESP packets in tunnel mode, one at a time, without state (RFC 4303).

Bursts take faster ways to the same octets (``segment``, ``coalesce``); this module is what they are
tested against.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag

from ipsec_gateway.ipsec.cipher import HEADER, EspCipher, Octets
from ipsec_gateway.ipsec.drops import Drop
from ipsec_gateway.ipsec.linux import IPPROTO_IPIP, IPPROTO_IPV6, IPPROTO_NONE

_SPI_SEQ: Final = struct.Struct("!II")

#: Padding octets 1, 2, 3, ... (RFC 4303 2.4).
_PADDING: Final = bytes(range(1, 256))


class EspError(Exception):
    """A packet that is dropped; ``reason`` is how it is counted."""

    def __init__(self, reason: Drop) -> None:
        super().__init__(reason.name)
        self.reason: Final = reason


def trailer(length: int, alignment: int, next_header: int) -> bytes:
    """Padding, pad length and next header behind ``length`` octets of payload."""
    pad = -(length + 2) % alignment
    return _PADDING[:pad] + bytes((pad, next_header))


#: ``trailer`` by (IP version, length % 16) for alignment 4 and 16, ready to be appended.
_TRAILERS: Final = {
    alignment: {
        header: tuple(trailer(n, alignment, header) for n in range(16))
        for header in (IPPROTO_IPIP, IPPROTO_IPV6, IPPROTO_NONE)
    }
    for alignment in (4, 8, 16)
}


def sealed_length(cipher: EspCipher, inner: int) -> int:
    """Octets of the ESP packet that carries ``inner`` octets."""
    pad = -(inner + 2) % cipher.alignment
    return inner + pad + cipher.overhead


def encapsulate_into(
    cipher: EspCipher, spi: int, seq: int, inner: Octets, next_header: int, out: memoryview
) -> None:
    """Write the ESP packet with the 64-bit number ``seq`` to ``out`` (``sealed_length`` octets)."""
    _SPI_SEQ.pack_into(out, 0, spi, seq & 0xFFFFFFFF)
    tail = _TRAILERS[cipher.alignment][next_header][len(inner) & 15]
    cipher.seal_into(seq, b"".join((inner, tail)), out)


def encapsulate(
    cipher: EspCipher, spi: int, seq: int, inner: Octets, next_header: int
) -> bytearray:
    """The ESP packet that carries ``inner``; ``next_header`` is 4 for IPv4, 41 for IPv6."""
    out = bytearray(sealed_length(cipher, len(inner)))
    encapsulate_into(cipher, spi, seq, inner, next_header, memoryview(out))
    return out


def spi_and_sequence(packet: Octets) -> tuple[int, int]:
    """SPI and low half of the sequence number. Raises EspError if they are not there."""
    if len(packet) < HEADER:
        raise EspError(Drop.TOO_SHORT)
    spi, low = _SPI_SEQ.unpack_from(packet)
    return spi, low


def unseal(cipher: EspCipher, packet: memoryview, seq: int) -> memoryview:
    """What is inside, trailer included, of a packet whose 64-bit number is ``seq``. Writable.

    Raises EspError: TOO_SHORT, INTEGRITY.
    """
    if len(packet) < cipher.overhead:
        raise EspError(Drop.TOO_SHORT)
    try:
        return memoryview(bytearray(cipher.open(packet, seq)))
    except InvalidTag:
        raise EspError(Drop.INTEGRITY) from None


def strip(plain: memoryview) -> tuple[int, memoryview]:
    """(next header, payload) of what ``unseal`` gave. The payload may end in TFC padding.

    Raises EspError: PADDING where the padding is not 1, 2, 3, ... (RFC 4303 2.4), DUMMY for next
    header 59 (RFC 4303 2.6), NEXT_HEADER for anything but IPv4 and IPv6.
    """
    if len(plain) < 2:
        raise EspError(Drop.PADDING)
    pad, next_header = plain[-2], plain[-1]
    end = len(plain) - 2 - pad
    if end < 0 or plain[end : end + pad] != _PADDING[:pad]:
        raise EspError(Drop.PADDING)
    if next_header not in (IPPROTO_IPIP, IPPROTO_IPV6):
        raise EspError(Drop.DUMMY if next_header == IPPROTO_NONE else Drop.NEXT_HEADER)
    return next_header, plain[:end]
