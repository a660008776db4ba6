"""Whole messages: chains of payloads, in the clear or inside an SK payload (RFC 7296 3.2, 3.14).

+--------------+-+-----------+------------------+   SK payload
| Next Payload |C| RESERVED  |  Payload Length  |   Next Payload: the first one inside
+--------------+-+-----------+------------------+
| IV                                            |
| encrypted: payloads, padding, pad length (1)  |
| integrity checksum                            |
+-----------------------------------------------+
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct
from typing import Final, NamedTuple, Protocol

from ipsec_ike.errors import (
    IntegrityFailure,
    InvalidSyntax,
    LocalMisuse,
    UnsupportedCriticalPayload,
)
from ipsec_ike.numbers import PayloadType
from ipsec_ike.wire.header import (
    FLAG_INITIATOR,
    FLAG_RESPONSE,
    FLAG_VERSION,
    HEADER_LENGTH,
    Header,
    decode_header,
)
from ipsec_ike.wire.payloads import DECODERS, Payload, UnknownPayload

__all__ = [
    "FLAG_INITIATOR",
    "FLAG_RESPONSE",
    "FLAG_VERSION",
    "HEADER_LENGTH",
    "Header",
    "Rng",
    "SkCipher",
    "decode_header",
    "decode_payloads",
    "encode_clear",
    "encode_payloads",
    "open_sk",
    "seal",
]

#: Gives that many random octets.
Rng = Callable[[int], bytes]

GENERIC: Final = Struct(">BBH")
GENERIC_LENGTH: Final = 4
_CRITICAL: Final = 0x80
_NONE: Final = int(PayloadType.NONE)
_ENVELOPES: Final = frozenset({int(PayloadType.SK), int(PayloadType.SKF)})
_LARGEST_BODY: Final = 0xFFFF - GENERIC_LENGTH


class SkCipher(Protocol):
    """What protects one direction of an IKE SA (``ipsec_ike.crypto.ciphers``)."""

    @property
    def iv_length(self) -> int: ...
    @property
    def icv_length(self) -> int: ...
    @property
    def block_size(self) -> int:
        """The length of a plaintext must be a multiple of this."""

    def seal(self, aad: bytes, iv: bytes, plaintext: bytes) -> bytes:
        """The ciphertext and its integrity checksum."""

    def open(self, aad: bytes, iv: bytes, ciphertext_and_icv: bytes) -> bytes:
        """The plaintext. Raises IntegrityFailure."""


def decode_payloads(first: int, body: memoryview, *, limit: int) -> list[Payload]:
    """The chain of payloads that fills ``body``; ``first`` is the type of the first one.

    Unknown payloads stay in as UnknownPayload unless they are critical. Raises InvalidSyntax, also
    above ``limit`` payloads, and UnsupportedCriticalPayload.
    """
    payloads: list[Payload] = []
    kind, offset, end = first, 0, len(body)
    while kind != _NONE:
        if len(payloads) >= limit:
            raise InvalidSyntax(f"more than {limit} payloads")
        if end - offset < GENERIC_LENGTH:
            raise InvalidSyntax(f"message ends before its payload of type {kind}")
        following, flags, length = GENERIC.unpack_from(body, offset)
        if length < GENERIC_LENGTH or length > end - offset:
            raise InvalidSyntax(f"payload of type {kind} has length {length}")
        content = body[offset + GENERIC_LENGTH : offset + length]
        decode = DECODERS.get(kind)
        if decode is not None:
            payloads.append(decode(content))
        elif kind in _ENVELOPES:
            raise InvalidSyntax("an encrypted payload where none can be")
        elif flags & _CRITICAL:
            raise UnsupportedCriticalPayload(f"payload of type {kind}", data=bytes((kind,)))
        else:
            payloads.append(UnknownPayload(kind, False, bytes(content)))
        kind = following
        offset += length
    if offset != end:
        raise InvalidSyntax(f"{end - offset} octets after the last payload")
    return payloads


def encode_payloads(payloads: Iterable[Payload]) -> tuple[int, bytes]:
    """The type of the first payload (0 if there is none) and the chain.

    Raises LocalMisuse where a payload does not fit its length field.
    """
    parts: list[bytes] = []
    following = _NONE
    for payload in reversed(tuple(payloads)):
        body = payload.encode()
        if len(body) > _LARGEST_BODY:
            raise LocalMisuse(f"payload of type {payload.type} has {len(body)} octets")
        critical = isinstance(payload, UnknownPayload) and payload.critical
        parts.append(body)
        parts.append(GENERIC.pack(following, _CRITICAL if critical else 0, 4 + len(body)))
        following = payload.type
    parts.reverse()
    return int(following), b"".join(parts)


def encode_clear(
    spi_i: bytes,
    spi_r: bytes,
    exchange: int,
    flags: int,
    message_id: int,
    payloads: Iterable[Payload],
) -> bytes:
    """A message without protection: IKE_SA_INIT and notifications outside of an IKE SA."""
    first, body = encode_payloads(payloads)
    length = HEADER_LENGTH + len(body)
    return Header(spi_i, spi_r, first, exchange, flags, message_id, length).encode() + body


def seal(
    spi_i: bytes,
    spi_r: bytes,
    exchange: int,
    flags: int,
    message_id: int,
    payloads: Iterable[Payload],
    cipher: SkCipher,
    rng: Rng,
) -> bytes:
    """A protected message in one SK payload, which may be empty."""
    first, chain = encode_payloads(payloads)
    return seal_chain(
        Header(spi_i, spi_r, PayloadType.SK, exchange, flags, message_id, 0),
        first,
        b"",
        chain,
        cipher,
        rng,
    )


def open_sk(data: bytes, header: Header, cipher: SkCipher, *, limit: int) -> list[Payload]:
    """The payloads inside the SK payload of a message.

    Raises IntegrityFailure for whatever does not verify or has nothing to verify: anyone may have
    sent it, so it is dropped. InvalidSyntax and UnsupportedCriticalPayload come from authenticated
    messages alone and may be answered.

    Payloads before the SK payload are not protected: only unknown, non-critical ones may be there,
    and they are ignored. Any padding of 0-255 octets is taken.
    """
    envelope = find_envelope(data, header, PayloadType.SK, limit=limit)
    plaintext = open_envelope(data, envelope.offset + GENERIC_LENGTH, cipher)
    return decode_payloads(envelope.first, plaintext, limit=limit)


def sealed_overhead(cipher: SkCipher, fields: int) -> int:
    """Octets of a protected message besides content and padding; ``fields`` as in seal_chain."""
    return HEADER_LENGTH + GENERIC_LENGTH + fields + cipher.iv_length + 1 + cipher.icv_length


def seal_chain(
    header: Header, first: int, fields: bytes, chain: bytes, cipher: SkCipher, rng: Rng
) -> bytes:
    """Encrypt ``chain`` into the envelope that ``header.next_payload`` names.

    ``fields`` stand between the generic header and the IV. Header and generic header get their
    lengths here.
    """
    padding = -(len(chain) + 1) % cipher.block_size
    plaintext = b"".join((chain, bytes(padding), bytes((padding,))))
    length = sealed_overhead(cipher, len(fields)) + len(chain) + padding
    if length - HEADER_LENGTH > 0xFFFF:
        raise LocalMisuse(f"protected message of {length} octets")
    generic = GENERIC.pack(first, 0, length - HEADER_LENGTH)
    aad = b"".join((header._replace(length=length).encode(), generic, fields))
    iv = rng(cipher.iv_length)
    return b"".join((aad, iv, cipher.seal(aad, iv, plaintext)))


class Envelope(NamedTuple):
    """Where the SK or SKF payload starts in the message, and the type of the first payload
    inside.
    """

    offset: int
    first: int


def find_envelope(data: bytes, header: Header, wanted: int, *, limit: int) -> Envelope:
    """The envelope of type ``wanted``, the last payload. Raises IntegrityFailure if it cannot
    be.
    """
    kind, offset, end = header.next_payload, HEADER_LENGTH, len(data)
    for _ in range(limit):
        if end - offset < GENERIC_LENGTH:
            break
        following, flags, length = GENERIC.unpack_from(data, offset)
        if kind == wanted:
            if offset + length != end:
                raise IntegrityFailure("the encrypted payload is not the rest of the message")
            return Envelope(offset, following)
        if kind in DECODERS or kind in _ENVELOPES or flags & _CRITICAL:
            raise IntegrityFailure(f"payload of type {kind} outside of the encrypted payload")
        if length < GENERIC_LENGTH:
            break
        kind = following
        offset += length
    raise IntegrityFailure("no encrypted payload")


def open_envelope(data: bytes, start: int, cipher: SkCipher) -> memoryview:
    """The content without padding of the envelope whose IV starts at ``start``.

    Raises IntegrityFailure, and InvalidSyntax for padding that cannot be.
    """
    ciphertext = start + cipher.iv_length
    encrypted = len(data) - ciphertext - cipher.icv_length
    if encrypted < 1 or encrypted % cipher.block_size:
        raise IntegrityFailure(f"encrypted payload with {encrypted} octets of ciphertext")
    plaintext = memoryview(cipher.open(data[:start], data[start:ciphertext], data[ciphertext:]))
    padding = plaintext[-1]
    if padding >= len(plaintext):
        raise InvalidSyntax(f"{padding} octets of padding in {len(plaintext)} octets")
    return plaintext[: -(padding + 1)]
