"""Key exchange (transform type 4): MODP (RFC 3526), ECP (RFC 5903), Brainpool (RFC 6954), x25519
and x448 (RFC 8031).

A private value is drawn from the caller's ``rng`` and lives as long as the KeyExchange. What a peer
sends is checked as RFC 6989 section 2 and RFC 8031 section 3 ask: the length always, 1 < y < p-1
for MODP (all primes are safe ones), a point on the curve for ECP and Brainpool, a secret that is
not all zero for x25519 and x448.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey, X448PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ipsec_ike.crypto.modp import EXPONENT_OCTETS, Power, power_for
from ipsec_ike.crypto.modp_primes import PRIMES
from ipsec_ike.errors import InvalidSyntax, LocalMisuse
from ipsec_ike.numbers import Group

#: ``rng(n)`` gives n octets fit for keys.
Rng = Callable[[int], bytes]


class KeyExchange(ABC):
    """Our half of one exchange. ``public`` is the Key Exchange Data of our KE payload."""

    __slots__ = ("group", "public")

    def __init__(self, group: int, public: bytes) -> None:
        self.group: Final = group
        self.public: Final = public

    @abstractmethod
    def shared(self, peer_public: bytes) -> bytes:
        """g^ir as SKEYSEED wants it: fixed length, big-endian for MODP and curves (x only), the raw
        output for x25519 and x448. Raises InvalidSyntax for a malformed or degenerate value."""

    @abstractmethod
    def seed(self) -> bytes:
        """The octets that ``generate`` has to get from its ``rng`` to make the same again."""

    def __repr__(self) -> str:
        return f"<key exchange {Group(self.group).name}>"


def _malformed(group: int, what: str) -> InvalidSyntax:
    return InvalidSyntax(f"KE payload of {Group(group).name}: {what}")


class _X25519(KeyExchange):
    __slots__ = ("_private",)

    def __init__(self, group: int, rng: Rng) -> None:
        self._private: Final = X25519PrivateKey.from_private_bytes(rng(32))
        super().__init__(group, self._private.public_key().public_bytes_raw())

    def seed(self) -> bytes:
        return self._private.private_bytes_raw()

    def shared(self, peer_public: bytes) -> bytes:
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            raise _malformed(self.group, "wrong length or a point of low order") from None


class _X448(KeyExchange):
    __slots__ = ("_private",)

    def __init__(self, group: int, rng: Rng) -> None:
        self._private: Final = X448PrivateKey.from_private_bytes(rng(56))
        super().__init__(group, self._private.public_key().public_bytes_raw())

    def seed(self) -> bytes:
        return self._private.private_bytes_raw()

    def shared(self, peer_public: bytes) -> bytes:
        try:
            return self._private.exchange(X448PublicKey.from_public_bytes(peer_public))
        except ValueError:
            raise _malformed(self.group, "wrong length or a point of low order") from None


#: Group: curve, octets of a coordinate, order of the base point (SEC 2, RFC 5639).
_CURVES: Final[dict[int, tuple[ec.EllipticCurve, int, int]]] = {
    Group.ECP_256: (
        ec.SECP256R1(),
        32,
        0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    ),
    Group.ECP_384: (
        ec.SECP384R1(),
        48,
        0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    ),
    Group.ECP_521: (
        ec.SECP521R1(),
        66,
        0x1FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409,
    ),
    Group.BRAINPOOL_256: (
        ec.BrainpoolP256R1(),
        32,
        0xA9FB57DBA1EEA9BC3E660A909D838D718C397AA3B561A6F7901E0E82974856A7,
    ),
    Group.BRAINPOOL_384: (
        ec.BrainpoolP384R1(),
        48,
        0x8CB91E82A3386D280F5D6F7E50E641DF152F7109ED5456B31F166E6CAC0425A7CF3AB6AF6B7FC3103B883202E9046565,
    ),
    Group.BRAINPOOL_512: (
        ec.BrainpoolP512R1(),
        64,
        0xAADD9DB8DBE9C48B3FD4E6AE33C9FC07CB308DB3B3C9D20ED6639CCA70330870553E5C414CA92619418661197FAC10471DB1D381085DDADDB58796829CA90069,
    ),
}


class _Ecp(KeyExchange):
    """KE data is x | y without a leading 0x04; the secret is x (RFC 5903 section 7, RFC 6954)."""

    __slots__ = ("_private",)

    def __init__(self, group: int, rng: Rng) -> None:
        curve, size, order = _CURVES[group]
        # 64 bits more than needed make the reduction uniform (FIPS 186-5 A.2.1).
        scalar = int.from_bytes(rng(size + 8), "big") % (order - 1) + 1
        self._private: Final = ec.derive_private_key(scalar, curve)
        point = self._private.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )
        super().__init__(group, point[1:])

    def seed(self) -> bytes:
        size = _CURVES[self.group][1]
        return (self._private.private_numbers().private_value - 1).to_bytes(size + 8)

    def shared(self, peer_public: bytes) -> bytes:
        curve, size, _ = _CURVES[self.group]
        if len(peer_public) != 2 * size:
            raise _malformed(self.group, f"{len(peer_public)} octets instead of {2 * size}")
        try:
            point = ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + peer_public)
        except ValueError:
            raise _malformed(self.group, "not a point on the curve") from None
        return self._private.exchange(ec.ECDH(), point)


class _Modp(KeyExchange):
    """y and the secret are padded to the length of the prime (RFC 7296 2.14 and 3.4)."""

    __slots__ = ("_exponent", "_power")

    def __init__(self, group: int, rng: Rng) -> None:
        octets = EXPONENT_OCTETS[group]
        # The top bit is set so that the time of an exponentiation does not tell the length.
        self._exponent: Final = int.from_bytes(rng(octets), "big") | 1 << (8 * octets - 1)
        self._power: Final[Power] = power_for(group)
        public = self._power(group, 2, self._exponent)
        super().__init__(group, public.to_bytes(public_length(group), "big"))

    def seed(self) -> bytes:
        return self._exponent.to_bytes(EXPONENT_OCTETS[self.group])

    def shared(self, peer_public: bytes) -> bytes:
        size = public_length(self.group)
        if len(peer_public) != size:
            raise _malformed(self.group, f"{len(peer_public)} octets instead of {size}")
        peer = int.from_bytes(peer_public, "big")
        if not 1 < peer < PRIMES[self.group] - 1:
            raise _malformed(self.group, "the public value is out of range")
        return self._power(self.group, peer, self._exponent).to_bytes(size, "big")


_KINDS: Final[dict[int, type[_X25519 | _X448 | _Ecp | _Modp]]] = {
    Group.CURVE25519: _X25519,
    Group.CURVE448: _X448,
    **dict.fromkeys(_CURVES, _Ecp),
    **dict.fromkeys(PRIMES, _Modp),
}

_LENGTHS: Final[dict[int, int]] = {
    Group.CURVE25519: 32,
    Group.CURVE448: 56,
    **{group: 2 * size for group, (_, size, _) in _CURVES.items()},
    **{group: -(-prime.bit_length() // 8) for group, prime in PRIMES.items()},
}


def is_supported(group: int) -> bool:
    """Whether ``generate`` knows the group. It says nothing about whether it is safe."""
    return group in _KINDS


def public_length(group: int) -> int:
    """Octets of Key Exchange Data in this group. Raises LocalMisuse for an unknown one."""
    length = _LENGTHS.get(group)
    if length is None:
        raise LocalMisuse(f"no key exchange with transform ID {group}")
    return length


def generate(group: int, rng: Rng) -> KeyExchange:
    """Our half of a key exchange, its private value drawn from ``rng``.

    Raises LocalMisuse for an unknown group.
    """
    kind = _KINDS.get(group)
    if kind is None:
        raise LocalMisuse(f"no key exchange with transform ID {group}")
    return kind(group, rng)
