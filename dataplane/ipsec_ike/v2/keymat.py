"""Keys of IKE SAs and CHILD_SAs (RFC 7296 2.13-2.18).

    SKEYSEED = prf(Ni | Nr, g^ir)                      initial
    SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr)   rekeyed
    SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)
    KEYMAT   = prf+(SK_d, [g^ir (new) |] Ni | Nr)

All keys of an IKE SA are one bytes object; the suite says where each one starts.
"""

from __future__ import annotations

from ipsec_ike.crypto.ciphers import SkCipher, sk_cipher
from ipsec_ike.crypto.prf import prf_plus
from ipsec_ike.sa.suite import ChildSuite, IkeSuite


class IkeKeys:
    """The keys of one IKE SA. ``initiator`` arguments mean the original initiator's side."""

    __slots__ = ("_keys", "_suite")

    def __init__(self, suite: IkeSuite, keys: bytes) -> None:
        self._suite = suite
        self._keys = keys

    def reveal(self) -> bytes:
        """All of them, as the constructor takes them."""
        return self._keys

    @property
    def sk_d(self) -> bytes:
        """What new keys are derived from."""
        return self._keys[: self._suite.prf.key_length]

    def sk_p(self, *, initiator: bool) -> bytes:
        """SK_pi or SK_pr, which the AUTH payload of that side is made with."""
        size = self._suite.prf.key_length
        return self._keys[-2 * size : -size] if initiator else self._keys[-size:]

    def cipher(self, *, initiator: bool) -> SkCipher:
        """What protects the messages that this side sends. Made anew on each call: the objects are
        cheap to make and large to keep."""
        suite = self._suite
        at = suite.prf.key_length
        integ, encr = suite.integ_octets, suite.encr_octets
        sk_a = at if initiator else at + integ
        sk_e = at + 2 * integ + (0 if initiator else encr)
        keys = self._keys
        return sk_cipher(
            suite.encr, keys[sk_e : sk_e + encr], suite.integ, keys[sk_a : sk_a + integ]
        )

    def __repr__(self) -> str:
        return "<IKE keys>"


def ike_octets(suite: IkeSuite) -> int:
    """How long all keys of an IKE SA are together (RFC 7296 2.14)."""
    return 3 * suite.prf.key_length + 2 * (suite.integ_octets + suite.encr_octets)


def initial_keys(
    suite: IkeSuite, shared: bytes, nonces: tuple[bytes, bytes], spis: tuple[bytes, bytes]
) -> IkeKeys:
    """Keys out of IKE_SA_INIT; ``nonces`` and ``spis`` are the initiator's and the responder's."""
    seed = suite.prf.mac(suite.prf.nonce_key(*nonces), shared)
    return _expand(suite, seed, nonces, spis)


def rekeyed_keys(
    suite: IkeSuite,
    old: tuple[IkeSuite, IkeKeys],
    shared: bytes,
    nonces: tuple[bytes, bytes],
    spis: tuple[bytes, bytes],
) -> IkeKeys:
    """Keys of an IKE SA that replaces another one, whose PRF makes SKEYSEED (RFC 7296 2.18)."""
    old_suite, old_keys = old
    seed = old_suite.prf.mac(old_keys.sk_d, shared + nonces[0] + nonces[1])
    return _expand(suite, seed, nonces, spis)


def _expand(
    suite: IkeSuite, seed: bytes, nonces: tuple[bytes, bytes], spis: tuple[bytes, bytes]
) -> IkeKeys:
    material = prf_plus(suite.prf, seed, b"".join((*nonces, *spis)), ike_octets(suite))
    return IkeKeys(suite, material)


class ChildKeys:
    """Keys of a CHILD_SA, by direction: those of the exchange's initiator are for what it sends."""

    __slots__ = ("_keys", "_suite")

    def __init__(self, suite: ChildSuite, keys: bytes) -> None:
        self._suite = suite
        self._keys = keys

    def of(self, *, initiator: bool) -> tuple[bytes, bytes]:
        """(encryption key with salt, integrity key) for what that side of the exchange sends."""
        encr = self._suite.encr_octets
        size = encr + self._suite.integ_octets
        keys = self._keys[:size] if initiator else self._keys[size:]
        return keys[:encr], keys[encr:]

    def __repr__(self) -> str:
        return "<child keys>"


def child_keys(
    ike: tuple[IkeSuite, IkeKeys], suite: ChildSuite, shared: bytes, nonces: tuple[bytes, bytes]
) -> ChildKeys:
    """KEYMAT; ``shared`` is g^ir of this exchange's own Diffie-Hellman, or empty."""
    ike_suite, keys = ike
    octets = 2 * (suite.encr_octets + suite.integ_octets)
    seed = b"".join((shared, *nonces))
    return ChildKeys(suite, prf_plus(ike_suite.prf, keys.sk_d, seed, octets))
