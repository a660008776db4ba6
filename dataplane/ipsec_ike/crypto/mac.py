"""Keyed MACs, built once per key and called many times; PRFs and integrity transforms use them.

The object keeps the state after the key is absorbed and copies it for each message. That costs less
than half of a fresh HMAC for the short inputs of IKE, and it hides the key from ``repr``.
"""

from __future__ import annotations

from typing import Final, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hmac import HMAC

#: What the functions of this package take as data. Keys are always ``bytes``.
Octets = bytes | bytearray | memoryview

_BLOCK: Final = 16


class Mac(Protocol):
    """One key; each call gives the whole, untruncated code of the concatenated parts."""

    def __call__(self, *parts: Octets) -> bytes: ...


class Hmac:
    """HMAC (RFC 2104). Any key length, the empty one too."""

    __slots__ = ("_state",)

    def __init__(self, key: bytes, algorithm: hashes.HashAlgorithm) -> None:
        self._state: Final = HMAC(key, algorithm)

    def __call__(self, *parts: Octets) -> bytes:
        state = self._state.copy()
        for part in parts:
            state.update(part)
        return state.finalize()


class AesCmac:
    """AES-CMAC (RFC 4493) with a 16-octet key."""

    __slots__ = ("_state",)

    def __init__(self, key: bytes) -> None:
        self._state: Final = CMAC(algorithms.AES128(key))

    def __call__(self, *parts: Octets) -> bytes:
        state = self._state.copy()
        for part in parts:
            state.update(bytes(part))
        return state.finalize()


class AesXcbc:
    """AES-XCBC-MAC, all 128 bits (RFC 3566 section 4) with a 16-octet key.

    The chain of section 4 is CBC encryption with a zero IV of a message whose last block is
    masked with K2 or K3; the code is the last block of the result.
    """

    __slots__ = ("_k1", "_k2", "_k3")

    def __init__(self, key: bytes) -> None:
        # K1, K2, K3 must come from independent blocks, hence ECB.
        ecb = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()  # noqa: S305 (RFC 3566 4)
        subkeys = ecb.update(b"\x01" * _BLOCK + b"\x02" * _BLOCK + b"\x03" * _BLOCK)
        self._k1: Final = algorithms.AES128(subkeys[:16])
        self._k2: Final = int.from_bytes(subkeys[16:32], "big")
        self._k3: Final = int.from_bytes(subkeys[32:], "big")

    def __call__(self, *parts: Octets) -> bytes:
        data = b"".join(parts)
        # An empty message is one block of padding only.
        cut = (len(data) - 1) // _BLOCK * _BLOCK if data else 0
        last = data[cut:]
        if len(last) == _BLOCK:
            masked = int.from_bytes(last, "big") ^ self._k2
        else:
            masked = int.from_bytes((last + b"\x80").ljust(_BLOCK, b"\0"), "big") ^ self._k3
        cbc = Cipher(self._k1, modes.CBC(bytes(_BLOCK))).encryptor()
        return cbc.update(data[:cut] + masked.to_bytes(_BLOCK, "big"))[-_BLOCK:]
