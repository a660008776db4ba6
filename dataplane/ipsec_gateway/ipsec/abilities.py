"""What a data plane can do, so that nothing is offered to a peer that it could not carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ipsec_ike.numbers import Encr, Integ, TransformType
from ipsec_ike.proposal import Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """``encryption`` are ESP ciphers with their key lengths; integrity is by transform ID.

    ``kernel`` says in the messages to users what a remedy would be about.
    """

    dataplane: str
    encryption: frozenset[Transform]
    esp_integrity: frozenset[int]
    ah_integrity: frozenset[int] = frozenset()
    transport: bool = False
    esn: bool = True
    #: xfrm interfaces; choices about the outer header; network cards that compute ESP.
    interfaces: bool = False
    headers: bool = False
    offload: bool = False

    def can(self, transform: Transform, *, ah: bool = False) -> bool:
        """Whether a transform of an ESP (or AH) proposal can be carried out."""
        match transform.type:
            case TransformType.ENCR:
                return transform in self.encryption
            case TransformType.INTEG:
                return transform.id in (self.ah_integrity if ah else self.esp_integrity)
            case TransformType.ESN:
                return self.esn or not transform.id
            case _:
                return True


def ciphers(ids: tuple[int, ...], bits: tuple[int, ...] = (128, 192, 256)) -> frozenset[Transform]:
    """Ciphers in each of these key lengths; (0,) where the length is fixed."""
    return frozenset(Transform(TransformType.ENCR, each, b) for each in ids for b in bits)


#: What packets can be put into without the kernel (``cipher``).
USERSPACE: Final = Abilities(
    dataplane="userspace",
    encryption=ciphers(
        (
            Encr.AES_CBC,
            Encr.AES_CTR,
            Encr.AES_CCM_8,
            Encr.AES_CCM_12,
            Encr.AES_CCM_16,
            Encr.AES_GCM_8,
            Encr.AES_GCM_12,
            Encr.AES_GCM_16,
        )
    )
    | ciphers((Encr.CHACHA20_POLY1305, Encr.DES3, Encr.NULL), (0,)),
    esp_integrity=frozenset(
        (
            Integ.HMAC_MD5_96,
            Integ.HMAC_SHA1_96,
            Integ.AES_XCBC_96,
            Integ.AES_CMAC_96,
            Integ.HMAC_SHA2_256_128,
            Integ.HMAC_SHA2_384_192,
            Integ.HMAC_SHA2_512_256,
        )
    ),
)
