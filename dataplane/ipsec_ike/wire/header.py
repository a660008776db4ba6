"""The fixed header of every IKE message (RFC 7296 3.1).

 0                   1                   2                   3
+---------------------------------------------------------------+
|                  IKE SA Initiator's SPI (8)                   |
|                  IKE SA Responder's SPI (8)                   |
+---------------+-------+-------+---------------+---------------+
| Next Payload  | MjVer | MnVer | Exchange Type |     Flags     |
+---------------+-------+-------+---------------+---------------+
|                          Message ID                           |
|                            Length                             |
+---------------------------------------------------------------+
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple, Self

from ipsec_ike.errors import InvalidMajorVersion, InvalidSyntax, LocalMisuse

HEADER_LENGTH: Final = 28

#: Set in messages of the original initiator of the IKE SA.
FLAG_INITIATOR: Final = 0x08
#: The sender could speak a higher major version. We cannot; ignored on receipt.
FLAG_VERSION: Final = 0x10
FLAG_RESPONSE: Final = 0x20

_HEADER: Final = Struct(">8s8sBBBBII")


class Header(NamedTuple):
    """``length`` counts all octets of the message including this header."""

    spi_i: bytes
    spi_r: bytes
    next_payload: int
    exchange: int
    flags: int
    message_id: int
    length: int
    major: int = 2
    minor: int = 0

    @property
    def initiator(self) -> bool:
        """Whether the original initiator of the IKE SA sent the message."""
        return self.flags & FLAG_INITIATOR != 0

    @property
    def response(self) -> bool:
        """Whether the message answers a request with the same message ID."""
        return self.flags & FLAG_RESPONSE != 0

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the fields and check nothing, as an answer to a foreign version needs them.

        Raises InvalidSyntax where there are fewer than 28 octets.
        """
        if len(data) < HEADER_LENGTH:
            raise InvalidSyntax(f"message of {len(data)} octets is shorter than the header")
        spi_i, spi_r, first, version, exchange, flags, message_id, length = _HEADER.unpack_from(
            data
        )
        return cls(
            spi_i, spi_r, first, exchange, flags, message_id, length, version >> 4, version & 15
        )

    def encode(self) -> bytes:
        """Raises LocalMisuse for SPIs that do not have 8 octets."""
        if len(self.spi_i) != 8 or len(self.spi_r) != 8:
            raise LocalMisuse("an IKE SPI has 8 octets")
        return _HEADER.pack(
            self.spi_i,
            self.spi_r,
            self.next_payload,
            self.major << 4 | self.minor,
            self.exchange,
            self.flags,
            self.message_id,
            self.length,
        )


def decode_header(data: bytes) -> Header:
    """The header of a message of version 2.

    Raises InvalidSyntax if the message is too short, has another length than it says or is of a
    lower major version, InvalidMajorVersion (RFC 7296 2.5) if it is of a higher one.
    """
    header = Header.parse(data)
    if header.major > 2:
        raise InvalidMajorVersion(f"major version {header.major}")
    if header.major < 2:
        raise InvalidSyntax(f"major version {header.major} is not IKEv2")
    if header.length != len(data):
        raise InvalidSyntax(f"header says {header.length} octets, {len(data)} arrived")
    return header
