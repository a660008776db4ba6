"""The algorithm names that users may write, and what they are on the wire.

Names follow RouterOS, without its dashes after "aes" (``aes256`` is AES-CBC with a 256-bit key,
``aes256-gcm`` has the 16-octet ICV). Numbers are IANA's IKEv2 transform IDs; this package does not
know the engine, so they are plain integers here. ``insecure`` ones need ``allowInsecure: true`` on
the peer (design decision 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


@dataclass(frozen=True, slots=True)
class Cipher:
    """Transform type 1. ``key_bits`` 0: the key length attribute is absent."""

    id: int
    key_bits: int = 0
    aead: bool = False
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Mac:
    """Transform types 3 (integrity) and 2 (PRF) that go by one name."""

    integrity_id: int
    prf_id: int
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Transform type 4. IKEv1 group numbers are the same."""

    id: int
    insecure: bool = False


class EncryptionAlgorithm(StrEnum):
    """Ciphers of IKE and ESP."""

    AES128 = "aes128"
    AES192 = "aes192"
    AES256 = "aes256"
    AES128_CTR = "aes128-ctr"
    AES192_CTR = "aes192-ctr"
    AES256_CTR = "aes256-ctr"
    AES128_GCM = "aes128-gcm"
    AES192_GCM = "aes192-gcm"
    AES256_GCM = "aes256-gcm"
    AES128_GCM_8 = "aes128-gcm-8"
    AES192_GCM_8 = "aes192-gcm-8"
    AES256_GCM_8 = "aes256-gcm-8"
    AES128_GCM_12 = "aes128-gcm-12"
    AES192_GCM_12 = "aes192-gcm-12"
    AES256_GCM_12 = "aes256-gcm-12"
    AES128_CCM = "aes128-ccm"
    AES192_CCM = "aes192-ccm"
    AES256_CCM = "aes256-ccm"
    AES128_CCM_8 = "aes128-ccm-8"
    AES192_CCM_8 = "aes192-ccm-8"
    AES256_CCM_8 = "aes256-ccm-8"
    AES128_CCM_12 = "aes128-ccm-12"
    AES192_CCM_12 = "aes192-ccm-12"
    AES256_CCM_12 = "aes256-ccm-12"
    CHACHA20POLY1305 = "chacha20poly1305"
    CAMELLIA128 = "camellia128"
    CAMELLIA192 = "camellia192"
    CAMELLIA256 = "camellia256"
    TWOFISH = "twofish"
    BLOWFISH = "blowfish"
    DES3 = "3des"
    DES = "des"
    NULL = "null"


class HashAlgorithm(StrEnum):
    """Integrity and pseudo-random functions of IKE, and integrity of ESP and AH."""

    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"
    AES_XCBC = "aes-xcbc"
    AES_CMAC = "aes-cmac"
    SHA1 = "sha1"
    MD5 = "md5"


class AutoHash(StrEnum):
    """A hash, or ``auto``."""

    AUTO = "auto"
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"
    AES_XCBC = "aes-xcbc"
    AES_CMAC = "aes-cmac"
    SHA1 = "sha1"
    MD5 = "md5"


class DhGroup(StrEnum):
    """Key exchange methods."""

    X25519 = "x25519"
    X448 = "x448"
    ECP256 = "ecp256"
    ECP384 = "ecp384"
    ECP521 = "ecp521"
    BRAINPOOL256 = "brainpool256"
    BRAINPOOL384 = "brainpool384"
    BRAINPOOL512 = "brainpool512"
    MODP2048 = "modp2048"
    MODP3072 = "modp3072"
    MODP4096 = "modp4096"
    MODP6144 = "modp6144"
    MODP8192 = "modp8192"
    MODP1536 = "modp1536"
    MODP1024 = "modp1024"
    MODP768 = "modp768"
    EC2N155 = "ec2n155"
    EC2N185 = "ec2n185"


class PfsGroup(StrEnum):
    """A group, ``auto`` (those of the peer's profile) or ``none`` (no PFS)."""

    AUTO = "auto"
    NONE = "none"
    X25519 = "x25519"
    X448 = "x448"
    ECP256 = "ecp256"
    ECP384 = "ecp384"
    ECP521 = "ecp521"
    BRAINPOOL256 = "brainpool256"
    BRAINPOOL384 = "brainpool384"
    BRAINPOOL512 = "brainpool512"
    MODP2048 = "modp2048"
    MODP3072 = "modp3072"
    MODP4096 = "modp4096"
    MODP6144 = "modp6144"
    MODP8192 = "modp8192"
    MODP1536 = "modp1536"
    MODP1024 = "modp1024"
    MODP768 = "modp768"
    EC2N155 = "ec2n155"
    EC2N185 = "ec2n185"


def _aes(name: str, cipher_id: int, *, aead: bool) -> dict[EncryptionAlgorithm, Cipher]:
    return {
        EncryptionAlgorithm(name.format(bits)): Cipher(cipher_id, bits, aead=aead)
        for bits in (128, 192, 256)
    }


ENCRYPTION: Final[dict[EncryptionAlgorithm, Cipher]] = {
    **_aes("aes{}", 12, aead=False),
    **_aes("aes{}-ctr", 13, aead=False),
    **_aes("aes{}-ccm-8", 14, aead=True),
    **_aes("aes{}-ccm-12", 15, aead=True),
    **_aes("aes{}-ccm", 16, aead=True),
    **_aes("aes{}-gcm-8", 18, aead=True),
    **_aes("aes{}-gcm-12", 19, aead=True),
    **_aes("aes{}-gcm", 20, aead=True),
    EncryptionAlgorithm.CHACHA20POLY1305: Cipher(28, aead=True),
    EncryptionAlgorithm.CAMELLIA128: Cipher(23, 128),
    EncryptionAlgorithm.CAMELLIA192: Cipher(23, 192),
    EncryptionAlgorithm.CAMELLIA256: Cipher(23, 256),
    # IKEv2 has no number for Twofish; in IKEv1 it is ESP transform 253, private use.
    EncryptionAlgorithm.TWOFISH: Cipher(0, 256),
    EncryptionAlgorithm.BLOWFISH: Cipher(7, 128, insecure=True),
    EncryptionAlgorithm.DES3: Cipher(3, insecure=True),
    EncryptionAlgorithm.DES: Cipher(2, insecure=True),
    EncryptionAlgorithm.NULL: Cipher(11, insecure=True),
}

HASHES: Final[dict[HashAlgorithm, Mac]] = {
    HashAlgorithm.MD5: Mac(1, 1, insecure=True),
    HashAlgorithm.SHA1: Mac(2, 2, insecure=True),
    HashAlgorithm.AES_XCBC: Mac(5, 4),
    HashAlgorithm.AES_CMAC: Mac(8, 8),
    HashAlgorithm.SHA256: Mac(12, 5),
    HashAlgorithm.SHA384: Mac(13, 6),
    HashAlgorithm.SHA512: Mac(14, 7),
}

GROUPS: Final[dict[DhGroup, Group]] = {
    DhGroup.MODP768: Group(1, insecure=True),
    DhGroup.MODP1024: Group(2, insecure=True),
    DhGroup.EC2N155: Group(3, insecure=True),
    DhGroup.EC2N185: Group(4, insecure=True),
    DhGroup.MODP1536: Group(5, insecure=True),
    DhGroup.MODP2048: Group(14),
    DhGroup.MODP3072: Group(15),
    DhGroup.MODP4096: Group(16),
    DhGroup.MODP6144: Group(17),
    DhGroup.MODP8192: Group(18),
    DhGroup.ECP256: Group(19),
    DhGroup.ECP384: Group(20),
    DhGroup.ECP521: Group(21),
    DhGroup.BRAINPOOL256: Group(28),
    DhGroup.BRAINPOOL384: Group(29),
    DhGroup.BRAINPOOL512: Group(30),
    DhGroup.X25519: Group(31),
    DhGroup.X448: Group(32),
}

#: What a resource that names no algorithms gets, most preferred first.
DEFAULT_ENCRYPTION: Final = (
    EncryptionAlgorithm.AES256_GCM,
    EncryptionAlgorithm.AES128_GCM,
    EncryptionAlgorithm.AES256,
    EncryptionAlgorithm.AES128,
)
DEFAULT_HASHES: Final = (HashAlgorithm.SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512)
DEFAULT_GROUPS: Final = (
    DhGroup.X25519,
    DhGroup.ECP256,
    DhGroup.ECP384,
    DhGroup.MODP2048,
    DhGroup.MODP3072,
    DhGroup.MODP4096,
)


def is_aead(name: EncryptionAlgorithm) -> bool:
    """Combined-mode ciphers exclude an integrity algorithm (RFC 5282 8)."""
    return ENCRYPTION[name].aead


def insecure_names() -> frozenset[str]:
    """Every name that needs ``allowInsecure: true``."""
    return frozenset(
        [str(k) for k, c in ENCRYPTION.items() if c.insecure]
        + [str(k) for k, m in HASHES.items() if m.insecure]
        + [str(k) for k, g in GROUPS.items() if g.insecure]
    )
