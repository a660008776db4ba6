"""Proposals and transforms: what two peers can agree on (RFC 7296 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from ipsec_ike.numbers import (
    Encr,
    Esn,
    Group,
    Integ,
    OpenIntEnum,
    Prf,
    Protocol,
    TransformType,
)

#: The registry of each transform type, for readable names.
REGISTRY: Final[dict[TransformType, type[OpenIntEnum]]] = {
    TransformType.ENCR: Encr,
    TransformType.PRF: Prf,
    TransformType.INTEG: Integ,
    TransformType.KE: Group,
    TransformType.ESN: Esn,
}

#: Combined-mode ciphers: they carry their own ICV and exclude an integrity transform (RFC 5282 8).
AEAD: Final[frozenset[int]] = frozenset(
    {
        Encr.AES_CCM_8,
        Encr.AES_CCM_12,
        Encr.AES_CCM_16,
        Encr.AES_GCM_8,
        Encr.AES_GCM_12,
        Encr.AES_GCM_16,
        Encr.NULL_AES_GMAC,
        Encr.CHACHA20_POLY1305,
    }
)


class Transform(NamedTuple):
    """One transform: type, transform ID and, for ciphers with variable keys, the key length.

    ``key_length`` is in bits as on the wire (RFC 7296 3.3.5), 0 where the attribute is absent.
    """

    type: int
    id: int
    key_length: int = 0

    def __str__(self) -> str:
        registry = REGISTRY.get(TransformType(self.type))
        name = registry(self.id).name if registry else f"type{self.type}:{self.id}"
        return f"{name}_{self.key_length}" if self.key_length else name


@dataclass(frozen=True, slots=True)
class Proposal:
    """One proposal substructure. ``transforms`` keeps the order of preference within each type.

    ``number`` is the proposal number on the wire, 1-255; ``spi`` is empty for an initial IKE_SA,
    8 octets when an IKE SA is rekeyed, 4 octets for ESP and AH.
    """

    protocol: int
    transforms: tuple[Transform, ...]
    spi: bytes = b""
    number: int = 1

    def of_type(self, kind: int) -> tuple[Transform, ...]:
        """The transforms of one type, most preferred first."""
        return tuple(t for t in self.transforms if t.type == kind)

    def one(self, kind: int) -> Transform | None:
        """The first transform of one type; in a chosen proposal there is at most one."""
        return next((t for t in self.transforms if t.type == kind), None)

    def __str__(self) -> str:
        return f"{Protocol(self.protocol).name}:" + "/".join(map(str, self.transforms))
