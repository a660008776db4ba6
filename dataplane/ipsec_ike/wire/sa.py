"""The SA payload: lists of proposals of lists of transforms (RFC 7296 3.3).

    Proposal substructure                            Transform substructure
    +-----------+----------+---------------------+   +-----------+----------+------------------+
    | Last (0/2)| RESERVED |   Proposal Length   |   | Last (0/3)| RESERVED | Transform Length |
    +-----------+----------+----------+----------+   +-----------+----------+------------------+
    | Number    | Protocol | SPI Size | # Transf.|   | Type      | RESERVED | Transform ID     |
    +-----------+----------+----------+----------+   +-----------+----------+------------------+
    | SPI (variable), then the transforms        |   | Attributes: AF=1 type(15) value(16), or |
    +--------------------------------------------+   | AF=0 type(15) length(16) value          |
                                                     +-----------------------------------------+

What a receiver must not understand is taken out here, where it is seen (RFC 7296 3.3.6): a
transform with an attribute other than Key Length is unusable and left out; a proposal that thereby
loses all transforms of one type is left out too, because without them it would say something else.
A transform of an unknown type stays in as a number: the whole proposal is unacceptable then, which
the one who chooses must see.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import ClassVar, Final, Self

from ipsec_ike.errors import InvalidSyntax, LocalMisuse
from ipsec_ike.numbers import PayloadType, Protocol
from ipsec_ike.proposal import Proposal, Transform

_PROPOSAL: Final = Struct(">BxHBBBB")
_TRANSFORM: Final = Struct(">BxHBxH")
_TRANSFORM_WITH_KEY: Final = Struct(">BxHBxHHH")
_ATTRIBUTE: Final = Struct(">HH")

_LAST: Final = 0
_MORE_PROPOSALS: Final = 2
_MORE_TRANSFORMS: Final = 3

_AF_TV: Final = 0x8000
#: Key Length, type 14, in the short form: the only attribute that is defined (RFC 7296 3.3.5).
_KEY_LENGTH: Final = _AF_TV | 14

_SPI_SIZES: Final[dict[int, tuple[int, ...]]] = {
    Protocol.IKE: (0, 8),
    Protocol.AH: (4,),
    Protocol.ESP: (4,),
}

#: Peers offer the same transforms over and over. Longer lists than this are not remembered, so that
#: a stranger can make the cache neither large nor slow.
_CACHED_OCTETS: Final = 512
_CACHED_LISTS: Final = 128


@dataclass(frozen=True, slots=True)
class SaPayload:
    """Proposals in order of preference; in an answer, exactly one with one transform of each
    type.
    """

    type: ClassVar[PayloadType] = PayloadType.SA

    proposals: tuple[Proposal, ...]

    def encode(self) -> bytes:
        """Raises LocalMisuse where there is no proposal or a field does not fit."""
        if not self.proposals:
            raise LocalMisuse("an SA payload needs a proposal")
        parts: list[bytes] = []
        left = len(self.proposals)
        for proposal in self.proposals:
            left -= 1
            spi = proposal.spi
            count = len(proposal.transforms)
            body = _encode_transforms(proposal.transforms)
            if count > 255 or len(spi) > 255:
                raise LocalMisuse(f"proposal with {count} transforms, SPI of {len(spi)} octets")
            parts += (
                _PROPOSAL.pack(
                    _MORE_PROPOSALS if left else _LAST,
                    8 + len(spi) + len(body),
                    proposal.number,
                    proposal.protocol,
                    len(spi),
                    count,
                ),
                spi,
                body,
            )
        return b"".join(parts)

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Raises InvalidSyntax. The result is empty where no proposal can be used at all."""
        proposals: list[Proposal] = []
        offset, end = 0, len(body)
        more = True
        while more:
            if end - offset < 8:
                raise InvalidSyntax("SA payload ends inside a proposal")
            last, length, number, protocol, spi_size, count = _PROPOSAL.unpack_from(body, offset)
            stop = offset + length
            transforms_at = offset + 8 + spi_size
            if transforms_at > stop or stop > end:
                raise InvalidSyntax(f"proposal {number} has length {length}")
            if last != (_LAST if stop == end else _MORE_PROPOSALS):
                raise InvalidSyntax(f"proposal {number} is marked {last}")
            if spi_size not in _SPI_SIZES.get(protocol, (spi_size,)):
                raise InvalidSyntax(f"SPI of {spi_size} octets for protocol {protocol}")
            data = bytes(body[transforms_at:stop])
            transforms = (
                _decode_cached(data, count)
                if len(data) <= _CACHED_OCTETS
                else _decode_transforms(data, count)
            )
            if transforms is not None:
                spi = bytes(body[offset + 8 : transforms_at])
                proposals.append(Proposal(protocol, transforms, spi, number))
            more = last == _MORE_PROPOSALS
            offset = stop
        return cls(tuple(proposals))


@lru_cache(maxsize=_CACHED_LISTS)
def _encode_transforms(transforms: tuple[Transform, ...]) -> bytes:
    """What we offer or choose comes from configuration, so the number of different lists is
    small.
    """
    parts: list[bytes] = []
    left = len(transforms)
    for transform in transforms:
        left -= 1
        last = _MORE_TRANSFORMS if left else _LAST
        if transform.key_length:
            parts.append(
                _TRANSFORM_WITH_KEY.pack(
                    last, 12, transform.type, transform.id, _KEY_LENGTH, transform.key_length
                )
            )
        else:
            parts.append(_TRANSFORM.pack(last, 8, transform.type, transform.id))
    return b"".join(parts)


def _decode_transforms(data: bytes, count: int) -> tuple[Transform, ...] | None:
    """The usable transforms, or None if one type has none left. Raises InvalidSyntax."""
    transforms: list[Transform] = []
    unusable: set[int] = set()
    offset, end = 0, len(data)
    for left in range(count - 1, -1, -1):
        if end - offset < 8:
            raise InvalidSyntax(f"proposal announces {count} transforms and has fewer")
        last, length, kind, ident = _TRANSFORM.unpack_from(data, offset)
        if length < 8 or length > end - offset:
            raise InvalidSyntax(f"transform of type {kind} has length {length}")
        if last != (_MORE_TRANSFORMS if left else _LAST):
            raise InvalidSyntax(f"transform of type {kind} is marked {last}")
        key_length = _key_length(data, offset + 8, offset + length) if length > 8 else 0
        if key_length is None:
            unusable.add(kind)
        else:
            transforms.append(Transform(kind, ident, key_length))
        offset += length
    if offset != end:
        raise InvalidSyntax(f"{end - offset} octets after the last of {count} transforms")
    if unusable and not unusable <= {t.type for t in transforms}:
        return None
    return tuple(transforms)


_decode_cached = lru_cache(maxsize=_CACHED_LISTS)(_decode_transforms)


def _key_length(data: bytes, offset: int, end: int) -> int | None:
    """The Key Length attribute in bits; None if there is any other attribute or it comes twice."""
    result: int | None = 0
    seen = False
    while offset < end:
        if end - offset < 4:
            raise InvalidSyntax("transform ends inside an attribute")
        kind, value = _ATTRIBUTE.unpack_from(data, offset)
        offset += 4
        if kind == _KEY_LENGTH and not seen:
            seen = True
            result = None if result is None else value
            continue
        result = None
        if not kind & _AF_TV:
            offset += value
            if offset > end:
                raise InvalidSyntax(f"attribute {kind} has length {value}")
    return result
