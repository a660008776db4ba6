"""A transparent cipher: what it seals can be read in the test, and any change is noticed."""

import hashlib
from dataclasses import dataclass

import pytest

from ipsec_ike.errors import IntegrityFailure


@dataclass
class PlainCipher:
    """Ciphertext is plaintext; the ICV is a hash of AAD, IV and ciphertext."""

    iv_length: int = 8
    icv_length: int = 16
    block_size: int = 1

    def seal(self, aad: bytes, iv: bytes, plaintext: bytes) -> bytes:
        assert len(plaintext) % self.block_size == 0
        return plaintext + self._icv(aad + iv + plaintext)

    def open(self, aad: bytes, iv: bytes, ciphertext_and_icv: bytes) -> bytes:
        split = len(ciphertext_and_icv) - self.icv_length
        plaintext, icv = ciphertext_and_icv[:split], ciphertext_and_icv[split:]
        if self._icv(aad + iv + plaintext) != icv:
            raise IntegrityFailure("ICV")
        return plaintext

    def _icv(self, data: bytes) -> bytes:
        return hashlib.sha256(data).digest()[: self.icv_length]


@pytest.fixture
def plain_cipher() -> type[PlainCipher]:
    return PlainCipher
