"""Integrity transforms (transform type 3): a MAC with a fixed key length, truncated to the ICV."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from functools import cache, partial
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from ipsec_ike.crypto.mac import AesCmac, AesXcbc, Hmac, Mac, Octets
from ipsec_ike.errors import LocalMisuse
from ipsec_ike.numbers import Integ as IntegId


class Integ:
    """One integrity transform. ``key_length`` and ``icv_length`` are in octets."""

    __slots__ = ("_make", "icv_length", "id", "key_length")

    def __init__(
        self, integ: IntegId, key_length: int, icv_length: int, make: Callable[[bytes], Mac]
    ) -> None:
        self.id: Final = integ
        self.key_length: Final = key_length
        self.icv_length: Final = icv_length
        self._make: Final = make

    def keyed(self, key: bytes) -> Mac:
        """The untruncated MAC of one key. Raises LocalMisuse if the key has another length."""
        if len(key) != self.key_length:
            raise LocalMisuse(f"{self.id.name} takes {self.key_length} octets of key")
        return self._make(key)

    def icv(self, key: bytes, data: Octets) -> bytes:
        """The truncated code over ``data``."""
        return self.keyed(key)(data)[: self.icv_length]

    def verify(self, key: bytes, data: Octets, icv: Octets) -> bool:
        """Whether ``icv`` is the code of ``data``, in constant time."""
        return hmac.compare_digest(self.icv(key, data), icv)

    def __repr__(self) -> str:
        return f"<integ {self.id.name}>"


def _of_hash(algorithm: hashes.HashAlgorithm) -> Callable[[bytes], Mac]:
    return partial(Hmac, algorithm=algorithm)


#: RFC 2403, 2404, 3566, 4494, 4868. MD5 and SHA-1 are for peers that are allowed to be insecure.
_INTEGS: Final[dict[int, Integ]] = {
    i.id: i
    for i in (
        Integ(IntegId.HMAC_MD5_96, 16, 12, _of_hash(hashes.MD5())),  # noqa: S303 (legacy, opt-in)
        Integ(IntegId.HMAC_SHA1_96, 20, 12, _of_hash(hashes.SHA1())),  # noqa: S303 (see above)
        Integ(IntegId.AES_XCBC_96, 16, 12, AesXcbc),
        Integ(IntegId.AES_CMAC_96, 16, 12, AesCmac),
        Integ(IntegId.HMAC_SHA2_256_128, 32, 16, _of_hash(hashes.SHA256())),
        Integ(IntegId.HMAC_SHA2_384_192, 48, 24, _of_hash(hashes.SHA384())),
        Integ(IntegId.HMAC_SHA2_512_256, 64, 32, _of_hash(hashes.SHA512())),
    )
}


def integ_for(integ: int) -> Integ:
    """The transform of an ID. Raises LocalMisuse if there is none, also for NONE."""
    found = _INTEGS.get(integ)
    if found is None:
        raise LocalMisuse(f"no integrity algorithm with transform ID {integ}")
    return found


@cache
def is_supported(integ: int) -> bool:
    """Whether the algorithm exists here; a host in FIPS mode may refuse MD5. NONE is not one."""
    found = _INTEGS.get(integ)
    if found is None:
        return False
    try:
        found.icv(bytes(found.key_length), b"")
    except UnsupportedAlgorithm:
        return False
    return True
