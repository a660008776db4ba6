"""The payloads, one class each, without their generic header (RFC 7296 3.3-3.16).

``encode`` gives the octets after the generic header, ``decode`` takes them. RESERVED fields are
sent as zero and ignored on receipt, but for the identity payloads, whose RESERVED octets the AUTH
payload covers. SA and TS payloads have modules of their own and are part of this one's names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from struct import Struct
from typing import ClassVar, Final, Self

from ipsec_ike.errors import InvalidSyntax, LocalMisuse
from ipsec_ike.identity import Identity
from ipsec_ike.numbers import IdType, PayloadType, Protocol
from ipsec_ike.wire.sa import SaPayload
from ipsec_ike.wire.selectors import TsPayload

__all__ = [
    "AuthPayload",
    "CertPayload",
    "CertReqPayload",
    "CpPayload",
    "DeletePayload",
    "EapPayload",
    "IdPayload",
    "KePayload",
    "NoncePayload",
    "NotifyPayload",
    "Payload",
    "SaPayload",
    "TsPayload",
    "UnknownPayload",
    "VendorPayload",
]

_KE: Final = Struct(">HH")
_NOTIFY: Final = Struct(">BBH")
_DELETE: Final = Struct(">BBH")
_ATTRIBUTE: Final = Struct(">HH")

_RESERVED: Final = b"\0\0\0"


@dataclass(frozen=True, slots=True)
class KePayload:
    """RFC 7296 3.4: Group (2), RESERVED (2), Key Exchange Data."""

    type: ClassVar[PayloadType] = PayloadType.KE

    group: int
    data: bytes

    def encode(self) -> bytes:
        return _KE.pack(self.group, 0) + self.data

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Raises InvalidSyntax. Whether the data fits the group is for the group to say."""
        if len(body) < 5:
            raise InvalidSyntax(f"KE payload of {len(body)} octets")
        return cls(_KE.unpack_from(body)[0], bytes(body[4:]))


@dataclass(frozen=True, slots=True)
class IdPayload:
    """RFC 7296 3.5: ID Type (1), RESERVED (3), Identification Data.

    ``type`` is PayloadType.IDi or IDr. ``encode`` gives what the AUTH payload covers
    (RestOfIDPayload of RFC 7296 2.15), octet by octet as it was received.
    """

    type: PayloadType
    identity: Identity
    reserved: bytes = _RESERVED

    def encode(self) -> bytes:
        return bytes((self.identity.type,)) + self.reserved + self.identity.data

    @classmethod
    def decode(cls, body: memoryview, kind: PayloadType) -> Self:
        """``kind`` is the payload's own type. Raises InvalidSyntax."""
        if len(body) < 4:
            raise InvalidSyntax(f"ID payload of {len(body)} octets")
        size = _ADDRESS_OCTETS.get(body[0])
        if size is not None and len(body) != 4 + size:
            raise InvalidSyntax(f"ID payload of type {body[0]} with {len(body) - 4} octets")
        return cls(kind, Identity(body[0], bytes(body[4:])), bytes(body[1:4]))


_ADDRESS_OCTETS: Final[dict[int, int]] = {IdType.IPV4_ADDR: 4, IdType.IPV6_ADDR: 16}


@dataclass(frozen=True, slots=True)
class _Certificate:
    """What CERT and CERTREQ have in common."""

    type: ClassVar[PayloadType]

    encoding: int
    data: bytes

    def encode(self) -> bytes:
        return bytes((self.encoding,)) + self.data

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        if not body:
            raise InvalidSyntax(f"empty {cls.type.name} payload")
        return cls(body[0], bytes(body[1:]))


@dataclass(frozen=True, slots=True)
class CertPayload(_Certificate):
    """RFC 7296 3.6: Cert Encoding (1), Certificate Data."""

    type: ClassVar[PayloadType] = PayloadType.CERT


@dataclass(frozen=True, slots=True)
class CertReqPayload(_Certificate):
    """RFC 7296 3.7: Cert Encoding (1), Certification Authority."""

    type: ClassVar[PayloadType] = PayloadType.CERTREQ


@dataclass(frozen=True, slots=True)
class AuthPayload:
    """RFC 7296 3.8: Auth Method (1), RESERVED (3), Authentication Data."""

    type: ClassVar[PayloadType] = PayloadType.AUTH

    method: int
    data: bytes

    def encode(self) -> bytes:
        return bytes((self.method, 0, 0, 0)) + self.data

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        if len(body) < 4:
            raise InvalidSyntax(f"AUTH payload of {len(body)} octets")
        return cls(body[0], bytes(body[4:]))


@dataclass(frozen=True, slots=True)
class NoncePayload:
    """RFC 7296 3.9: 16 to 256 octets."""

    type: ClassVar[PayloadType] = PayloadType.NONCE

    data: bytes

    def encode(self) -> bytes:
        return self.data

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        if not 16 <= len(body) <= 256:
            raise InvalidSyntax(f"nonce of {len(body)} octets")
        return cls(bytes(body))


@dataclass(frozen=True, slots=True)
class NotifyPayload:
    """RFC 7296 3.10: Protocol ID (1), SPI Size (1), Notify Message Type (2), SPI, data.

    ``protocol`` is 0 where the notification concerns no SA, or the IKE SA it comes through.
    """

    type: ClassVar[PayloadType] = PayloadType.NOTIFY

    notify: int
    data: bytes = b""
    protocol: int = 0
    spi: bytes = b""

    def encode(self) -> bytes:
        return _NOTIFY.pack(self.protocol, len(self.spi), self.notify) + self.spi + self.data

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        if len(body) < 4:
            raise InvalidSyntax(f"Notify payload of {len(body)} octets")
        protocol, spi_size, notify = _NOTIFY.unpack_from(body)
        if 4 + spi_size > len(body):
            raise InvalidSyntax(f"Notify payload ends inside an SPI of {spi_size} octets")
        return cls(notify, bytes(body[4 + spi_size :]), protocol, bytes(body[4 : 4 + spi_size]))


@dataclass(frozen=True, slots=True)
class DeletePayload:
    """RFC 7296 3.11: Protocol ID (1), SPI Size (1), Num of SPIs (2), SPIs.

    ``spis`` is empty for the IKE SA itself; for ESP and AH they are the inbound SPIs of the sender.
    """

    type: ClassVar[PayloadType] = PayloadType.DELETE

    protocol: int
    spis: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """Raises LocalMisuse if the SPIs differ in length."""
        size = len(self.spis[0]) if self.spis else 4 if self.protocol in _CHILD_PROTOCOLS else 0
        if any(len(spi) != size for spi in self.spis):
            raise LocalMisuse("SPIs of different lengths in one Delete payload")
        return _DELETE.pack(self.protocol, size, len(self.spis)) + b"".join(self.spis)

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        if len(body) < 4:
            raise InvalidSyntax(f"Delete payload of {len(body)} octets")
        protocol, size, count = _DELETE.unpack_from(body)
        if protocol in _CHILD_PROTOCOLS and size != 4:
            raise InvalidSyntax(f"Delete payload with SPIs of {size} octets")
        if protocol == Protocol.IKE and size:
            raise InvalidSyntax("Delete payload with an SPI for the IKE SA")
        if len(body) != 4 + size * count:
            raise InvalidSyntax(f"Delete payload of {len(body)} octets for {count} SPIs")
        if not size:
            return cls(protocol)
        return cls(protocol, tuple(bytes(body[i : i + size]) for i in range(4, len(body), size)))


_CHILD_PROTOCOLS: Final[frozenset[int]] = frozenset({Protocol.AH, Protocol.ESP})


@dataclass(frozen=True, slots=True)
class VendorPayload:
    """RFC 7296 3.12."""

    type: ClassVar[PayloadType] = PayloadType.VENDOR

    data: bytes

    def encode(self) -> bytes:
        return self.data

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        return cls(bytes(body))


@dataclass(frozen=True, slots=True)
class CpPayload:
    """RFC 7296 3.15: CFG Type (1), RESERVED (3), then attributes: R (1 bit), type (15), length
    (16).
    """

    type: ClassVar[PayloadType] = PayloadType.CP

    cfg_type: int
    attributes: tuple[tuple[int, bytes], ...] = ()

    def encode(self) -> bytes:
        """Raises LocalMisuse where an attribute does not fit."""
        parts = [bytes((self.cfg_type, 0, 0, 0))]
        for kind, value in self.attributes:
            if kind > 0x7FFF or len(value) > 0xFFFF:
                raise LocalMisuse(f"configuration attribute {kind} of {len(value)} octets")
            parts += (_ATTRIBUTE.pack(kind, len(value)), value)
        return b"".join(parts)

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        end = len(body)
        if end < 4:
            raise InvalidSyntax(f"CP payload of {end} octets")
        attributes: list[tuple[int, bytes]] = []
        offset = 4
        while offset < end:
            if end - offset < 4:
                raise InvalidSyntax("CP payload ends inside an attribute")
            kind, length = _ATTRIBUTE.unpack_from(body, offset)
            offset += 4
            if length > end - offset:
                raise InvalidSyntax(f"configuration attribute {kind} has length {length}")
            attributes.append((kind & 0x7FFF, bytes(body[offset : offset + length])))
            offset += length
        return cls(body[0], tuple(attributes))


@dataclass(frozen=True, slots=True)
class EapPayload:
    """RFC 7296 3.16: one EAP message (RFC 3748): Code, Identifier, Length (2), and so on."""

    type: ClassVar[PayloadType] = PayloadType.EAP

    data: bytes

    def encode(self) -> bytes:
        return self.data

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        if len(body) < 4 or int.from_bytes(body[2:4]) != len(body):
            raise InvalidSyntax(f"EAP payload of {len(body)} octets")
        return cls(bytes(body))


@dataclass(frozen=True, slots=True)
class UnknownPayload:
    """A payload of a type that this implementation does not know, kept as it came."""

    type: int
    critical: bool
    body: bytes

    def encode(self) -> bytes:
        return self.body


Payload = (
    SaPayload
    | KePayload
    | IdPayload
    | CertPayload
    | CertReqPayload
    | AuthPayload
    | NoncePayload
    | NotifyPayload
    | DeletePayload
    | VendorPayload
    | TsPayload
    | CpPayload
    | EapPayload
    | UnknownPayload
)

#: What decodes each type. SK and SKF are no payloads in this sense but envelopes of messages.
DECODERS: Final[dict[int, Callable[[memoryview], Payload]]] = {
    PayloadType.SA: SaPayload.decode,
    PayloadType.KE: KePayload.decode,
    PayloadType.IDi: partial(IdPayload.decode, kind=PayloadType.IDi),
    PayloadType.IDr: partial(IdPayload.decode, kind=PayloadType.IDr),
    PayloadType.CERT: CertPayload.decode,
    PayloadType.CERTREQ: CertReqPayload.decode,
    PayloadType.AUTH: AuthPayload.decode,
    PayloadType.NONCE: NoncePayload.decode,
    PayloadType.NOTIFY: NotifyPayload.decode,
    PayloadType.DELETE: DeletePayload.decode,
    PayloadType.VENDOR: VendorPayload.decode,
    PayloadType.TSi: partial(TsPayload.decode, kind=PayloadType.TSi),
    PayloadType.TSr: partial(TsPayload.decode, kind=PayloadType.TSr),
    PayloadType.CP: CpPayload.decode,
    PayloadType.EAP: EapPayload.decode,
}
