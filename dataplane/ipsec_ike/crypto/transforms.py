"""What each transform needs (key octets and their order, IV, ICV, block); what is supported.

Key material of one direction is the encryption key, with the salt at its end, then the integrity
key (RFC 7296 2.14 and 2.17; RFC 4106 section 8.1, RFC 4309 section 7.1, RFC 3686 section 5.1 and
RFC 7634 section 2 for the salts).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ipsec_ike.crypto import groups, integ, prf
from ipsec_ike.crypto.prf import psk_auth
from ipsec_ike.errors import LocalMisuse
from ipsec_ike.numbers import Encr, Esn, Group, Integ, Protocol, TransformType
from ipsec_ike.proposal import AEAD, Transform

__all__ = [
    "CipherSpec",
    "EspTransform",
    "cipher_spec",
    "encr_key_octets",
    "esp_transform",
    "integ_key_octets",
    "is_supported",
    "psk_auth",
]


@dataclass(frozen=True, slots=True)
class CipherSpec:
    """Sizes of one encryption transform, in octets.

    ``salt`` octets at the end of the key material are part of each nonce and are never sent.
    ``block`` is what the plaintext, padding included, must be a multiple of. ``icv`` is 0 unless
    the cipher is a combined-mode one. ``fixed_key`` is None where the attribute gives the length.
    """

    salt: int
    iv: int
    icv: int
    block: int
    fixed_key: int | None = None
    ike: bool = True


_AES_BITS: Final = (128, 192, 256)

_CIPHERS: Final[dict[int, CipherSpec]] = {
    Encr.DES3: CipherSpec(salt=0, iv=8, icv=0, block=8, fixed_key=24),
    # RFC 7296 3.3.2: ENCR_NULL must not protect the IKE SA itself.
    Encr.NULL: CipherSpec(salt=0, iv=0, icv=0, block=1, fixed_key=0, ike=False),
    Encr.AES_CBC: CipherSpec(salt=0, iv=16, icv=0, block=16),
    Encr.AES_CTR: CipherSpec(salt=4, iv=8, icv=0, block=1),
    Encr.AES_CCM_8: CipherSpec(salt=3, iv=8, icv=8, block=1),
    Encr.AES_CCM_12: CipherSpec(salt=3, iv=8, icv=12, block=1),
    Encr.AES_CCM_16: CipherSpec(salt=3, iv=8, icv=16, block=1),
    Encr.AES_GCM_8: CipherSpec(salt=4, iv=8, icv=8, block=1),
    Encr.AES_GCM_12: CipherSpec(salt=4, iv=8, icv=12, block=1),
    Encr.AES_GCM_16: CipherSpec(salt=4, iv=8, icv=16, block=1),
    Encr.CHACHA20_POLY1305: CipherSpec(salt=4, iv=8, icv=16, block=1, fixed_key=32),
}


def cipher_spec(encr: Transform) -> CipherSpec:
    """The sizes of an encryption transform.

    Raises LocalMisuse if we do not have it or if its key length is not one that it can have.
    """
    if not _encr_is_known(encr):
        raise LocalMisuse(f"no encryption algorithm {encr}")
    return _CIPHERS[encr.id]


def _encr_is_known(encr: Transform) -> bool:
    spec = _CIPHERS.get(encr.id)
    if encr.type != TransformType.ENCR or spec is None:
        return False
    # RFC 7296 3.3.5: the attribute must be absent where the key length is fixed.
    return encr.key_length == 0 if spec.fixed_key is not None else encr.key_length in _AES_BITS


def encr_key_octets(encr: Transform) -> int:
    """Octets of key material of an encryption transform, salt included. Raises LocalMisuse."""
    spec = cipher_spec(encr)
    key = encr.key_length // 8 if spec.fixed_key is None else spec.fixed_key
    return key + spec.salt


def integ_key_octets(transform: Transform | None) -> int:
    """Octets of key of an integrity transform, 0 for None and NONE. Raises LocalMisuse."""
    if transform is None or transform.id == Integ.NONE:
        return 0
    return integ.integ_for(transform.id).key_length


def is_supported(protocol: int, transform: Transform) -> bool:
    """Whether this library can do the transform in a proposal for IKE, AH or ESP.

    It says nothing about what the policy allows, nor about what the kernel can do.
    """
    ike, ah, esp = (protocol == p for p in (Protocol.IKE, Protocol.AH, Protocol.ESP))
    if not (ike or ah or esp):
        return False
    match transform.type:
        case TransformType.ENCR:
            known = _encr_is_known(transform)
            return known and (esp or (ike and _CIPHERS[transform.id].ike))
        case TransformType.PRF:
            return ike and transform.key_length == 0 and prf.is_supported(transform.id)
        case TransformType.INTEG:
            if transform.id == Integ.NONE:
                return (ike or esp) and transform.key_length == 0
            return transform.key_length == 0 and integ.is_supported(transform.id)
        case TransformType.KE:
            if transform.id == Group.NONE:
                return ah or esp
            return transform.key_length == 0 and groups.is_supported(transform.id)
        case TransformType.ESN:
            return (ah or esp) and transform.id in (Esn.NO_ESN, Esn.ESN)
        case _:
            return False


@dataclass(frozen=True, slots=True)
class EspTransform:
    """Layout of one ESP SA (RFC 4303). All sizes are octets.

    ``encryption_key`` counts key and salt, as ``SaSpec.encryption_key`` holds them, of which the
    last ``salt`` are the salt. ``alignment`` is what payload, padding, pad length and next header
    together must be a multiple of: at least 4 (RFC 4303 2.4).
    """

    encr: Transform
    integ: Transform | None
    encryption_key: int
    salt: int
    integrity_key: int
    iv_length: int
    icv_length: int
    alignment: int
    aead: bool

    @property
    def key_octets(self) -> int:
        """Key material that KEYMAT must give for this direction."""
        return self.encryption_key + self.integrity_key

    def split(self, keymat: bytes) -> tuple[bytes, bytes]:
        """(encryption key with salt, integrity key) of ``key_octets`` octets of KEYMAT."""
        if len(keymat) != self.key_octets:
            raise LocalMisuse(f"{self.key_octets} octets of KEYMAT are needed, got {len(keymat)}")
        return keymat[: self.encryption_key], keymat[self.encryption_key :]

    def padding(self, length: int) -> int:
        """Octets of padding (0-15) between ``length`` octets of payload and the last two."""
        return -(length + 2) % self.alignment


@lru_cache(maxsize=256)
def esp_transform(encr: Transform, integrity: Transform | None) -> EspTransform:
    """The layout of a chosen ESP suite.

    Raises LocalMisuse for an unknown transform, for integrity beside a combined-mode cipher
    (RFC 4106 section 8) and for none beside any other: ESP without integrity is not offered.
    """
    spec = cipher_spec(encr)
    if integrity is not None and integrity.id == Integ.NONE:
        integrity = None
    aead = encr.id in AEAD
    if aead is (integrity is not None):
        raise LocalMisuse(f"{encr} with integrity {integrity} is no ESP suite")
    mac = None if integrity is None else integ.integ_for(integrity.id)
    return EspTransform(
        encr=encr,
        integ=integrity,
        encryption_key=encr_key_octets(encr),
        salt=spec.salt,
        integrity_key=0 if mac is None else mac.key_length,
        iv_length=spec.iv,
        icv_length=spec.icv if mac is None else mac.icv_length,
        alignment=max(4, spec.block),
        aead=aead,
    )
