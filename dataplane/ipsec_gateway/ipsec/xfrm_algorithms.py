"""IKE's transforms to the kernel's algorithm names and key layouts. Pure.

Keys are in the kernel's order already: ``SaSpec.encryption_key`` is key and then salt, as RFC 4106,
3686, 4309 and 7634 have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.xfrm_attributes import (
    aead_attribute,
    encryption_attribute,
    integrity_attribute,
)
from ipsec_ike.numbers import Encr, Integ
from ipsec_ike.proposal import Transform


@dataclass(frozen=True, slots=True)
class KernelCipher:
    """``icv`` is bits of the ICV of a combined-mode cipher, 0 for the others."""

    name: str
    icv: int = 0


@dataclass(frozen=True, slots=True)
class KernelMac:
    """``icv`` is bits that are sent; the rest of the MAC is cut off."""

    name: str
    icv: int


#: ENCR 2 (DES) and 7 (Blowfish) have no name in ``Encr``.
CIPHERS: Final[dict[int, KernelCipher]] = {
    2: KernelCipher("cbc(des)"),
    Encr.DES3: KernelCipher("cbc(des3_ede)"),
    7: KernelCipher("cbc(blowfish)"),
    Encr.NULL: KernelCipher("ecb(cipher_null)"),
    Encr.AES_CBC: KernelCipher("cbc(aes)"),
    Encr.AES_CTR: KernelCipher("rfc3686(ctr(aes))"),
    Encr.AES_CCM_8: KernelCipher("rfc4309(ccm(aes))", 64),
    Encr.AES_CCM_12: KernelCipher("rfc4309(ccm(aes))", 96),
    Encr.AES_CCM_16: KernelCipher("rfc4309(ccm(aes))", 128),
    Encr.AES_GCM_8: KernelCipher("rfc4106(gcm(aes))", 64),
    Encr.AES_GCM_12: KernelCipher("rfc4106(gcm(aes))", 96),
    Encr.AES_GCM_16: KernelCipher("rfc4106(gcm(aes))", 128),
    Encr.NULL_AES_GMAC: KernelCipher("rfc4543(gcm(aes))", 128),
    Encr.CAMELLIA_CBC: KernelCipher("cbc(camellia)"),
    Encr.CHACHA20_POLY1305: KernelCipher("rfc7539esp(chacha20,poly1305)", 128),
}

MACS: Final[dict[int, KernelMac]] = {
    Integ.HMAC_MD5_96: KernelMac("hmac(md5)", 96),
    Integ.HMAC_SHA1_96: KernelMac("hmac(sha1)", 96),
    Integ.AES_XCBC_96: KernelMac("xcbc(aes)", 96),
    Integ.AES_CMAC_96: KernelMac("cmac(aes)", 96),
    Integ.HMAC_SHA2_256_128: KernelMac("hmac(sha256)", 128),
    Integ.HMAC_SHA2_384_192: KernelMac("hmac(sha384)", 192),
    Integ.HMAC_SHA2_512_256: KernelMac("hmac(sha512)", 256),
}


def names(encryption: Transform | None, integrity: Transform | None) -> str:
    """What to look for in ``/proc/crypto`` and in the kernel's configuration."""
    found = [
        table[each.id].name
        for table, each in ((CIPHERS, encryption), (MACS, integrity))
        if each is not None and each.id in table
    ]
    return " and ".join(found)


def algorithm_attributes(
    encryption: Transform | None,
    encryption_key: bytes,
    integrity: Transform | None,
    integrity_key: bytes,
) -> bytes:
    """The attributes of an SA; ``encryption`` None is AH. Raises DataplaneError for a transform
    that the kernel has no name for."""
    parts = []
    if integrity is not None:
        mac = MACS.get(integrity.id)
        if mac is None:
            raise DataplaneError(f"the kernel has no integrity algorithm {integrity}")
        parts.append(integrity_attribute(mac.name, integrity_key, mac.icv))
    if encryption is not None:
        cipher = CIPHERS.get(encryption.id)
        if cipher is None:
            raise DataplaneError(f"the kernel has no cipher {encryption}")
        if cipher.icv:
            parts.append(aead_attribute(cipher.name, encryption_key, cipher.icv))
        else:
            parts.append(encryption_attribute(cipher.name, encryption_key))
    return b"".join(parts)
