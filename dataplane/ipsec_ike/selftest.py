"""Known answers of the algorithms that every proposal needs: ``kube-ipsec --self-test``.

One published case each, so that a broken or crippled cryptographic library (a wrong build, a policy
of the machine) is seen before a peer refuses us without saying why. ``tests/vectors`` has them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from ipsec_ike.crypto.ciphers import sk_cipher
from ipsec_ike.crypto.groups import generate
from ipsec_ike.crypto.integ import integ_for
from ipsec_ike.crypto.prf import prf_for
from ipsec_ike.numbers import Encr, Group, Integ, Prf, TransformType
from ipsec_ike.proposal import Transform

_hex = bytes.fromhex


def _aes_gcm() -> bool:
    """McGrew and Viega, The Galois/Counter Mode of Operation, appendix B, test case 4."""
    transform = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
    cipher = sk_cipher(transform, _hex("feffe9928665731c6d6a8f9467308308cafebabe"))
    sealed = cipher.seal(
        _hex("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
        _hex("facedbaddecaf888"),
        _hex(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
        ),
    )
    return sealed[-16:] == _hex("5bc94fbc3221a5db94fae95ae7121a47")


def _hmac() -> bool:
    """RFC 4868 section 2.7.2, test case AUTH256-1."""
    icv = integ_for(Integ.HMAC_SHA2_256_128).icv(b"\x0b" * 32, b"Hi There")
    return icv == _hex("198a607eb44bfbc69903a0f1cf2bbdc5")


def _prf() -> bool:
    """RFC 4231 section 4.2."""
    mac = prf_for(Prf.HMAC_SHA2_256).mac(b"\x0b" * 20, b"Hi There")
    return mac == _hex("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7")


def _x25519() -> bool:
    """RFC 7748 section 6.1."""
    private = _hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    public = _hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    shared = generate(Group.CURVE25519, lambda _: private).shared(public)
    return shared == _hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")


_CASES: Final[tuple[tuple[str, Callable[[], bool]], ...]] = (
    ("AES-GCM", _aes_gcm),
    ("HMAC-SHA-256", _hmac),
    ("PRF HMAC-SHA-256", _prf),
    ("x25519", _x25519),
)


def checks() -> Iterator[tuple[str, str, str]]:
    """What was tried, ``ok`` or ``bad``, and what to do about it."""
    for name, case in _CASES:
        try:
            good, why = case(), "the answer is wrong"
        except Exception as exc:  # whatever the library says, the other algorithms are tried too
            good, why = False, f"{type(exc).__name__}: {exc}"
        remedy = f"{why}: reinstall the package cryptography"
        yield name, "ok" if good else "bad", "" if good else remedy
