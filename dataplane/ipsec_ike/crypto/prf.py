"""Pseudorandom functions (transform type 2) and prf+ (RFC 7296 2.13).

HMAC PRFs take keys of any length and want keys as long as their output. AES-XCBC and AES-CMAC have
16-octet keys; for the variable keys of IKE (PSKs, nonces) their RFCs say how another length is
brought to 16 octets (RFC 4434 section 2, RFC 4615 section 3).
"""

from __future__ import annotations

from functools import cache
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

from ipsec_ike.crypto.mac import AesCmac, AesXcbc, Hmac, Mac, Octets
from ipsec_ike.errors import LocalMisuse
from ipsec_ike.numbers import Prf as PrfId

_AES_KEY: Final = 16


class Prf:
    """One pseudorandom function.

    ``key_length`` is the preferred key size in octets: that of SK_d, SK_pi, SK_pr (RFC 7296 2.14).
    ``output_length`` is in octets. ``id`` is the transform ID.
    """

    __slots__ = ("id", "key_length", "output_length")

    def __init__(self, prf: PrfId, length: int) -> None:
        self.id: Final = prf
        self.key_length: Final = length
        self.output_length: Final = length

    def keyed(self, key: bytes) -> Mac:
        """The function of one key, for several calls with it. Any key length."""
        raise NotImplementedError

    def mac(self, key: bytes, data: Octets) -> bytes:
        """prf(key, data). Any key length."""
        return self.keyed(key)(data)

    def nonce_key(self, ni: bytes, nr: bytes) -> bytes:
        """The key with which SKEYSEED of an initial IKE SA is computed from g^ir (RFC 7296 2.14).

        Ni | Nr, but only the first 8 octets of each for the two AES PRFs.
        """
        return ni + nr

    def __repr__(self) -> str:
        return f"<prf {self.id.name}>"


class _HmacPrf(Prf):
    __slots__ = ("_hash",)

    def __init__(self, prf: PrfId, algorithm: hashes.HashAlgorithm) -> None:
        super().__init__(prf, algorithm.digest_size)
        self._hash: Final = algorithm

    def keyed(self, key: bytes) -> Mac:
        return Hmac(key, self._hash)

    def mac(self, key: bytes, data: Octets) -> bytes:
        # Without the copy that ``keyed`` makes for a next call: most keys of IKE are used once.
        state = HMAC(key, self._hash)
        state.update(data)
        return state.finalize()


class _AesPrf(Prf):
    __slots__ = ()

    def nonce_key(self, ni: bytes, nr: bytes) -> bytes:
        return ni[:8] + nr[:8]


class _XcbcPrf(_AesPrf):
    __slots__ = ()

    def keyed(self, key: bytes) -> Mac:
        if len(key) > _AES_KEY:
            key = AesXcbc(bytes(_AES_KEY))(key)
        return AesXcbc(key.ljust(_AES_KEY, b"\0"))


class _CmacPrf(_AesPrf):
    __slots__ = ()

    def keyed(self, key: bytes) -> Mac:
        if len(key) != _AES_KEY:
            key = AesCmac(bytes(_AES_KEY))(key)
        return AesCmac(key)


#: Every PRF we know. MD5 and SHA-1 are here for peers that are allowed to be insecure.
_PRFS: Final[dict[int, Prf]] = {
    PrfId.HMAC_MD5: _HmacPrf(PrfId.HMAC_MD5, hashes.MD5()),  # noqa: S303 (legacy, opt-in)
    PrfId.HMAC_SHA1: _HmacPrf(PrfId.HMAC_SHA1, hashes.SHA1()),  # noqa: S303 (legacy, opt-in)
    PrfId.AES128_XCBC: _XcbcPrf(PrfId.AES128_XCBC, _AES_KEY),
    PrfId.HMAC_SHA2_256: _HmacPrf(PrfId.HMAC_SHA2_256, hashes.SHA256()),
    PrfId.HMAC_SHA2_384: _HmacPrf(PrfId.HMAC_SHA2_384, hashes.SHA384()),
    PrfId.HMAC_SHA2_512: _HmacPrf(PrfId.HMAC_SHA2_512, hashes.SHA512()),
    PrfId.AES128_CMAC: _CmacPrf(PrfId.AES128_CMAC, _AES_KEY),
}


def prf_for(prf: int) -> Prf:
    """The PRF of a transform ID. Raises LocalMisuse if there is none (ask ``is_supported``)."""
    found = _PRFS.get(prf)
    if found is None:
        raise LocalMisuse(f"no PRF with transform ID {prf}")
    return found


@cache
def is_supported(prf: int) -> bool:
    """Whether the PRF exists here; a host in FIPS mode may refuse MD5."""
    found = _PRFS.get(prf)
    if found is None:
        return False
    try:
        found.mac(bytes(found.key_length), b"")
    except UnsupportedAlgorithm:
        return False
    return True


def prf_plus(prf: Prf, key: bytes, seed: bytes, length: int) -> bytes:
    """``length`` octets of prf+(key, seed), RFC 7296 2.13.

    Raises LocalMisuse above 255 blocks, where prf+ is not defined.
    """
    blocks = -(-length // prf.output_length)
    if length < 0 or blocks > 255:
        raise LocalMisuse(f"prf+ cannot give {length} octets")
    mac = prf.keyed(key)
    block = b""
    stream = []
    for number in range(1, blocks + 1):
        block = mac(block + seed + bytes((number,)))
        stream.append(block)
    return b"".join(stream)[:length]


def psk_auth(prf: Prf, psk: bytes, octets: Octets) -> bytes:
    """AUTH data with a shared key: prf(prf(psk, "Key Pad for IKEv2"), octets), RFC 7296 2.15."""
    return prf.mac(prf.mac(psk, b"Key Pad for IKEv2"), octets)
