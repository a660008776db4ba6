"""Protection of SK and SKF payloads (RFC 7296 3.14, RFC 5282), which fits ESP as well.

A cipher object has one key and one direction. It keeps the key; what the crypto library builds
from it (up to 2.6 kB) is made when first used and given back by ``drop``, so that an idle SA stays
small.
The caller gives the IV. For AEADs and CTR it is 8 octets that never repeat under one key (a counter
will do); for CBC it is a whole unpredictable block.
"""

from __future__ import annotations

import hmac
from abc import ABC, abstractmethod
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from ipsec_ike.crypto.integ import Integ, integ_for
from ipsec_ike.crypto.mac import Mac, Octets
from ipsec_ike.crypto.transforms import CipherSpec, cipher_spec, encr_key_octets
from ipsec_ike.errors import IntegrityFailure, InvalidSyntax, LocalMisuse
from ipsec_ike.numbers import Encr
from ipsec_ike.numbers import Integ as IntegId
from ipsec_ike.proposal import AEAD, Transform

_BAD_ICV: Final = "the ICV does not verify"
_TOO_SHORT: Final = "the message is too short for its IV and ICV"
_NO_TAIL: Final = "a combined mode authenticates nothing after the ciphertext"


class SkCipher(ABC):
    """One key in one direction.

    ``iv_length`` and ``icv_length`` are what the message carries, in octets; ``block_size`` is what
    the plaintext, padding included, must be a multiple of (1: no padding is needed).
    """

    __slots__ = ("block_size", "icv_length", "iv_length")

    def __init__(self, spec: CipherSpec, icv_length: int) -> None:
        self.iv_length: Final = spec.iv
        self.icv_length: Final = icv_length
        self.block_size: Final = spec.block

    @abstractmethod
    def seal(self, aad: Octets, iv: Octets, plaintext: Octets, tail: bytes = b"") -> bytes:
        """Ciphertext and ICV. ``aad`` is authenticated and not sent.

        ``tail`` is for ESP with a separate integrity algorithm: the high half of a 64-bit sequence
        number, authenticated after the ciphertext (RFC 4303 2.2.1). In combined modes it is part
        of ``aad``.
        Raises LocalMisuse for a wrong IV or plaintext length.
        """

    @abstractmethod
    def open(self, aad: Octets, iv: Octets, sealed: Octets, tail: bytes = b"") -> bytes:
        """The plaintext. Raises IntegrityFailure if anything was changed or is too short;
        InvalidSyntax if the authenticated ciphertext is no multiple of the block size."""

    @abstractmethod
    def drop(self) -> None:
        """Give back what was built from the key. The object stays usable."""

    def _check_iv(self, iv: Octets) -> None:
        if len(iv) != self.iv_length:
            raise LocalMisuse(f"the IV must have {self.iv_length} octets, not {len(iv)}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lstrip('_')}>"


class _Aead(SkCipher):
    """AES-GCM-16, AES-CCM and ChaCha20-Poly1305: nonce = salt | IV."""

    __slots__ = ("_aead", "_key", "_salt")

    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        super().__init__(spec, spec.icv)
        self._key: Final = key[: -spec.salt]
        self._salt: Final = key[-spec.salt :]
        self._aead: AESGCM | AESCCM | ChaCha20Poly1305 | None = None

    def _build(self) -> AESGCM | AESCCM | ChaCha20Poly1305:
        self._aead = built = self._make()
        return built

    @abstractmethod
    def _make(self) -> AESGCM | AESCCM | ChaCha20Poly1305: ...

    def seal(self, aad: Octets, iv: Octets, plaintext: Octets, tail: bytes = b"") -> bytes:
        self._check_iv(iv)
        if tail:
            raise LocalMisuse(_NO_TAIL)
        return (self._aead or self._build()).encrypt(self._salt + iv, plaintext, aad)

    def open(self, aad: Octets, iv: Octets, sealed: Octets, tail: bytes = b"") -> bytes:
        if tail:
            raise LocalMisuse(_NO_TAIL)
        if len(iv) != self.iv_length or len(sealed) < self.icv_length:
            raise IntegrityFailure(_TOO_SHORT)
        try:
            return (self._aead or self._build()).decrypt(self._salt + iv, sealed, aad)
        except InvalidTag:
            raise IntegrityFailure(_BAD_ICV) from None

    def drop(self) -> None:
        self._aead = None


class _AesGcm(_Aead):
    """RFC 4106, RFC 5282."""

    __slots__ = ()

    def _make(self) -> AESGCM:
        return AESGCM(self._key)


class _AesGcmShort(_AesGcm):
    """ICV of 8 or 12 octets. The library's one-shot AEAD has 16 only: encrypting cuts, and
    decrypting goes through the context with an explicit tag."""

    __slots__ = ()

    def seal(self, aad: Octets, iv: Octets, plaintext: Octets, tail: bytes = b"") -> bytes:
        return super().seal(aad, iv, plaintext, tail)[: len(plaintext) + self.icv_length]

    def open(self, aad: Octets, iv: Octets, sealed: Octets, tail: bytes = b"") -> bytes:
        cut = len(sealed) - self.icv_length
        if tail:
            raise LocalMisuse(_NO_TAIL)
        if len(iv) != self.iv_length or cut < 0:
            raise IntegrityFailure(_TOO_SHORT)
        mode = modes.GCM(self._salt + iv, bytes(sealed[cut:]), min_tag_length=self.icv_length)
        context = Cipher(algorithms.AES(self._key), mode).decryptor()
        context.authenticate_additional_data(aad)
        plaintext = context.update(sealed[:cut])
        try:
            return plaintext + context.finalize()
        except InvalidTag:
            raise IntegrityFailure(_BAD_ICV) from None


class _AesCcm(_Aead):
    """RFC 4309, RFC 5282: 3 octets of salt, so the nonce has 11."""

    __slots__ = ()

    def _make(self) -> AESCCM:
        return AESCCM(self._key, tag_length=self.icv_length)


class _ChaCha(_Aead):
    """RFC 7634."""

    __slots__ = ()

    def _make(self) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(self._key)


class _EncryptThenMac(SkCipher):
    """A cipher and an integrity algorithm: the ICV covers aad | IV | ciphertext | tail."""

    __slots__ = ("_integ", "_integ_key", "_key", "_mac")

    def __init__(self, spec: CipherSpec, key: bytes, integ: Integ, integ_key: bytes) -> None:
        super().__init__(spec, integ.icv_length)
        self._key: Final = key
        self._integ: Final = integ
        self._integ_key: Final = integ_key
        self._mac: Mac | None = None

    @abstractmethod
    def _context(self, iv: Octets, *, encrypt: bool) -> CipherContext: ...

    def _icv(self, *parts: Octets) -> bytes:
        mac = self._mac
        if mac is None:
            self._mac = mac = self._integ.keyed(self._integ_key)
        return mac(*parts)[: self.icv_length]

    def seal(self, aad: Octets, iv: Octets, plaintext: Octets, tail: bytes = b"") -> bytes:
        self._check_iv(iv)
        if len(plaintext) % self.block_size:
            raise LocalMisuse(f"the plaintext is no multiple of {self.block_size} octets")
        ciphertext = self._context(iv, encrypt=True).update(plaintext)
        return ciphertext + self._icv(aad, iv, ciphertext, tail)

    def open(self, aad: Octets, iv: Octets, sealed: Octets, tail: bytes = b"") -> bytes:
        cut = len(sealed) - self.icv_length
        if len(iv) != self.iv_length or cut < 0:
            raise IntegrityFailure(_TOO_SHORT)
        ciphertext = sealed[:cut]
        if not hmac.compare_digest(self._icv(aad, iv, ciphertext, tail), sealed[cut:]):
            raise IntegrityFailure(_BAD_ICV)
        if cut % self.block_size:
            raise InvalidSyntax(f"the ciphertext is no multiple of {self.block_size} octets")
        return self._context(iv, encrypt=False).update(ciphertext)

    def drop(self) -> None:
        self._mac = None


class _AesCbc(_EncryptThenMac):
    """RFC 3602."""

    __slots__ = ()

    def _context(self, iv: Octets, *, encrypt: bool) -> CipherContext:
        cipher = Cipher(algorithms.AES(self._key), modes.CBC(iv))
        return cipher.encryptor() if encrypt else cipher.decryptor()


class _AesCtr(_EncryptThenMac):
    """RFC 3686 section 4, RFC 5930: the counter block is nonce | IV | counter, first 1."""

    __slots__ = ()

    def _context(self, iv: Octets, *, encrypt: bool) -> CipherContext:
        block = self._key[-4:] + iv + b"\x00\x00\x00\x01"
        return Cipher(algorithms.AES(self._key[:-4]), modes.CTR(block)).encryptor()


class _TripleDesCbc(_EncryptThenMac):
    """RFC 2451. For peers that are allowed to be insecure."""

    __slots__ = ()

    def _context(self, iv: Octets, *, encrypt: bool) -> CipherContext:
        cipher = Cipher(TripleDES(self._key), modes.CBC(iv))
        return cipher.encryptor() if encrypt else cipher.decryptor()


class _Null(_EncryptThenMac):
    """RFC 2410: integrity alone."""

    __slots__ = ()

    def _context(self, iv: Octets, *, encrypt: bool) -> CipherContext:
        return _IDENTITY


class _Identity(CipherContext):
    """A context that changes nothing."""

    def update(self, data: Octets) -> bytes:
        return bytes(data)

    def update_into(self, data: Octets, buf: Octets) -> int:
        raise LocalMisuse("NULL has no update_into")

    def finalize(self) -> bytes:
        return b""

    def reset_nonce(self, nonce: bytes) -> None:
        raise LocalMisuse("NULL has no nonce")


_IDENTITY: Final = _Identity()

_COMBINED: Final[dict[int, type[_Aead]]] = {
    Encr.AES_GCM_8: _AesGcmShort,
    Encr.AES_GCM_12: _AesGcmShort,
    Encr.AES_GCM_16: _AesGcm,
    Encr.AES_CCM_8: _AesCcm,
    Encr.AES_CCM_12: _AesCcm,
    Encr.AES_CCM_16: _AesCcm,
    Encr.CHACHA20_POLY1305: _ChaCha,
}

_PLAIN: Final[dict[int, type[_EncryptThenMac]]] = {
    Encr.DES3: _TripleDesCbc,
    Encr.NULL: _Null,
    Encr.AES_CBC: _AesCbc,
    Encr.AES_CTR: _AesCtr,
}


def sk_cipher(
    encr: Transform, encr_key: bytes, integ: Transform | None = None, integ_key: bytes = b""
) -> SkCipher:
    """The protection of one direction.

    ``encr_key`` is key and salt (``encr_key_octets``); ``integ`` is None or NONE for combined
    modes.
    Raises LocalMisuse for unknown transforms, wrong key lengths, and integrity that is missing or
    one too many. Whether a transform may protect an IKE SA is for ``is_supported`` to say: NULL is
    accepted here, because ESP has it.
    """
    spec = cipher_spec(encr)
    if len(encr_key) != encr_key_octets(encr):
        raise LocalMisuse(f"{encr} takes {encr_key_octets(encr)} octets of key and salt")
    if integ is not None and integ.id == IntegId.NONE:
        integ = None
    if encr.id in AEAD:
        if integ is not None or integ_key:
            raise LocalMisuse(f"{encr} takes no integrity algorithm")
        return _COMBINED[encr.id](spec, encr_key)
    if integ is None:
        raise LocalMisuse(f"{encr} needs an integrity algorithm")
    algorithm = integ_for(integ.id)
    if len(integ_key) != algorithm.key_length:
        raise LocalMisuse(f"{integ} takes {algorithm.key_length} octets of key")
    return _PLAIN[encr.id](spec, encr_key, algorithm, integ_key)
