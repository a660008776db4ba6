"""COOKIE: proof that a stranger receives at the address it sends from (RFC 7296 2.6).

A cookie is <number of secret, 1 octet> | first 16 octets of
HMAC-SHA-256(secret, Ni | SPIi | address | port). Nothing is kept per stranger.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from ipsec_ike.inputs import Endpoint
from ipsec_ike.sa.nat import packed


class Cookies:
    """Makes and checks cookies; each secret signs for ``lifetime`` seconds, verifies for two."""

    __slots__ = ("_lifetime", "_number", "_rng", "_secrets", "_since")

    def __init__(self, rng: Callable[[int], bytes], lifetime: float) -> None:
        self._rng = rng
        self._lifetime = lifetime
        self._number = 0
        self._since = 0.0
        self._secrets: dict[int, bytes] = {}

    def make(self, ni: bytes, spi_i: bytes, remote: Endpoint, now: float) -> bytes:
        """The cookie that ``remote`` has to return."""
        self._rotate(now)
        return bytes((self._number,)) + self._tag(self._number, ni, spi_i, remote)

    def check(self, cookie: bytes, ni: bytes, spi_i: bytes, remote: Endpoint, now: float) -> bool:
        """Whether we made it, not long ago, for this sender and request."""
        self._rotate(now)
        if len(cookie) != 17 or cookie[0] not in self._secrets:
            return False
        return hmac.compare_digest(cookie[1:], self._tag(cookie[0], ni, spi_i, remote))

    def _tag(self, number: int, ni: bytes, spi_i: bytes, remote: Endpoint) -> bytes:
        octets = b"".join((ni, spi_i, packed(remote.address), remote.port.to_bytes(2)))
        return hmac.digest(self._secrets[number], octets, "sha256")[:16]

    def _rotate(self, now: float) -> None:
        age = now - self._since
        if self._secrets and 0 <= age < self._lifetime:
            return
        last = self._number
        self._number = (last + 1) % 256
        keep = (
            {last: self._secrets[last]}
            if last in self._secrets and age < 2 * self._lifetime
            else {}
        )
        self._secrets = {**keep, self._number: self._rng(32)}
        self._since = now
