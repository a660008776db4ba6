"""IKE fragmentation: one message in several, each protected on its own (RFC 7383).

+--------------+-+-----------+------------------+   SKF payload
| Next Payload |C| RESERVED  |  Payload Length  |   Next Payload: the first one inside in
+--------------+-+-----------+------------------+   fragment 1, zero in the others
|       Fragment Number      | Total Fragments  |
+----------------------------+------------------+
| IV, encrypted part, integrity checksum as SK  |
+-----------------------------------------------+
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final

from ipsec_ike.config import Limits
from ipsec_ike.errors import IntegrityFailure, InvalidSyntax, LocalMisuse
from ipsec_ike.numbers import PayloadType
from ipsec_ike.wire.header import Header
from ipsec_ike.wire.message import (
    GENERIC_LENGTH,
    Rng,
    SkCipher,
    decode_payloads,
    encode_payloads,
    find_envelope,
    open_envelope,
    seal_chain,
    sealed_overhead,
)
from ipsec_ike.wire.payloads import Payload

_FRAGMENT: Final = Struct(">HH")
_FIELDS: Final = GENERIC_LENGTH + _FRAGMENT.size


def seal_fragments(
    spi_i: bytes,
    spi_r: bytes,
    exchange: int,
    flags: int,
    message_id: int,
    payloads: Iterable[Payload],
    cipher: SkCipher,
    rng: Rng,
    *,
    max_size: int,
) -> list[bytes]:
    """The message in datagrams of at most ``max_size`` octets each, without UDP header and marker.

    A message that fits is one SK payload as always (RFC 7383 2.5). Raises LocalMisuse if
    ``max_size`` leaves no room for content.
    """
    first, chain = encode_payloads(payloads)
    header = Header(spi_i, spi_r, PayloadType.SK, exchange, flags, message_id, 0)
    if _room(cipher, 0, max_size) >= len(chain):
        return [seal_chain(header, first, b"", chain, cipher, rng)]
    room = _room(cipher, _FRAGMENT.size, max_size)
    if room < 1:
        raise LocalMisuse(f"no room for content in {max_size} octets")
    total = -(-len(chain) // room)
    if total > 0xFFFF:
        raise LocalMisuse(f"{total} fragments")
    header = header._replace(next_payload=PayloadType.SKF)
    return [
        seal_chain(
            header,
            first if number == 1 else PayloadType.NONE,
            _FRAGMENT.pack(number, total),
            chain[(number - 1) * room : number * room],
            cipher,
            rng,
        )
        for number in range(1, total + 1)
    ]


def _room(cipher: SkCipher, fields: int, max_size: int) -> int:
    """How many octets of payloads fit; negative if not even the frame does."""
    space = max_size - sealed_overhead(cipher, fields) + 1
    return space - space % cipher.block_size - 1


class Reassembler:
    """Puts the fragments of one message together: one per direction of an IKE SA.

    A fragment of another message ID than the last drops what was collected. Nothing is kept that
    did not verify. Memory is bounded by ``limits``: ``fragments`` of one message, ``message_size``
    octets in total.
    """

    __slots__ = ("_first", "_limits", "_message_id", "_parts", "_size", "_total")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._message_id = -1
        self._clear(0)

    def _clear(self, total: int) -> None:
        self._total = total
        self._parts: dict[int, bytes] = {}
        self._size = 0
        self._first: int = PayloadType.NONE

    @property
    def pending(self) -> int:
        """How many fragments are held."""
        return len(self._parts)

    def reset(self) -> None:
        """Forget everything, as when the message is no longer awaited."""
        self._message_id = -1
        self._clear(0)

    def add(self, data: bytes, header: Header, cipher: SkCipher) -> list[Payload] | None:
        """The payloads of the message once it is whole, None before and for duplicates.

        Raises IntegrityFailure, InvalidSyntax and UnsupportedCriticalPayload as ``open_sk`` does.
        A total that is higher than before starts anew: the peer repeats the message in smaller
        pieces; a lower one is an old repetition (RFC 7383 2.6).
        """
        limits = self._limits
        envelope = find_envelope(data, header, PayloadType.SKF, limit=limits.payloads)
        start = envelope.offset + _FIELDS
        if len(data) < start:
            raise IntegrityFailure("fragment shorter than its fields")
        number, total = _FRAGMENT.unpack_from(data, start - _FRAGMENT.size)
        if not 0 < number <= total:
            raise IntegrityFailure(f"fragment {number} of {total}")
        if total > limits.fragments:
            raise IntegrityFailure(f"{total} fragments are more than {limits.fragments}")
        if (number == 1) != (envelope.first != PayloadType.NONE):
            raise IntegrityFailure(f"fragment {number} names a next payload of {envelope.first}")
        same = header.message_id == self._message_id
        if same and (total < self._total or (total == self._total and number in self._parts)):
            return None
        content = bytes(open_envelope(data, start, cipher))
        if not same or total > self._total:
            self._message_id = header.message_id
            self._clear(total)
        if self._size + len(content) > limits.message_size:
            raise InvalidSyntax(f"reassembled message is above {limits.message_size} octets")
        self._parts[number] = content
        self._size += len(content)
        if number == 1:
            self._first = envelope.first
        if len(self._parts) < total:
            return None
        chain = b"".join(self._parts[i] for i in range(1, total + 1))
        first = self._first
        self.reset()
        return decode_payloads(first, memoryview(chain), limit=limits.payloads)
