"""Key layout, support table, PRF rules and AUTH of the crypto package."""

import hmac

import pytest
from cryptography.exceptions import UnsupportedAlgorithm

from ipsec_ike.crypto import integ as integ_module
from ipsec_ike.crypto import prf as prf_module
from ipsec_ike.crypto.integ import integ_for
from ipsec_ike.crypto.prf import prf_for, prf_plus
from ipsec_ike.crypto.transforms import (
    cipher_spec,
    encr_key_octets,
    esp_transform,
    integ_key_octets,
    is_supported,
    psk_auth,
)
from ipsec_ike.errors import LocalMisuse
from ipsec_ike.numbers import Encr, Esn, Group, Integ, Prf, Protocol, TransformType
from ipsec_ike.proposal import Transform

IKE, AH, ESP = Protocol.IKE, Protocol.AH, Protocol.ESP


def t(kind: TransformType, number: int, bits: int = 0) -> Transform:
    return Transform(kind, number, bits)


def encr(number: int, bits: int = 0) -> Transform:
    return t(TransformType.ENCR, number, bits)


@pytest.mark.parametrize(
    ("transform", "octets"),
    [
        (encr(Encr.DES3), 24),
        (encr(Encr.NULL), 0),
        (encr(Encr.AES_CBC, 128), 16),
        (encr(Encr.AES_CBC, 256), 32),
        (encr(Encr.AES_CTR, 192), 28),  # RFC 3686 5.1
        (encr(Encr.AES_CCM_8, 128), 19),  # RFC 4309 7.1
        (encr(Encr.AES_CCM_16, 256), 35),
        (encr(Encr.AES_GCM_8, 128), 20),  # RFC 4106 8.1
        (encr(Encr.AES_GCM_16, 192), 28),
        (encr(Encr.AES_GCM_16, 256), 36),
        (encr(Encr.CHACHA20_POLY1305), 36),  # RFC 7634 2
    ],
    ids=str,
)
def test_key_octets(transform: Transform, octets: int) -> None:
    assert encr_key_octets(transform) == octets


def test_integrity_key_octets() -> None:
    want = {
        Integ.HMAC_MD5_96: 16,
        Integ.HMAC_SHA1_96: 20,
        Integ.AES_XCBC_96: 16,
        Integ.AES_CMAC_96: 16,
        Integ.HMAC_SHA2_256_128: 32,
        Integ.HMAC_SHA2_384_192: 48,
        Integ.HMAC_SHA2_512_256: 64,
    }
    assert {i: integ_key_octets(t(TransformType.INTEG, i)) for i in want} == want
    assert integ_key_octets(None) == integ_key_octets(t(TransformType.INTEG, Integ.NONE)) == 0
    with pytest.raises(LocalMisuse):
        integ_key_octets(t(TransformType.INTEG, 7))


def test_prf_lengths() -> None:
    want = {
        Prf.HMAC_MD5: 16,
        Prf.HMAC_SHA1: 20,
        Prf.AES128_XCBC: 16,
        Prf.HMAC_SHA2_256: 32,
        Prf.HMAC_SHA2_384: 48,
        Prf.HMAC_SHA2_512: 64,
        Prf.AES128_CMAC: 16,
    }
    assert {i: prf_for(i).key_length for i in want} == want
    assert {i: prf_for(i).output_length for i in want} == want
    assert {i: len(prf_for(i).mac(b"key", b"")) for i in want} == want


@pytest.mark.parametrize(
    ("transform", "protocols"),
    [
        (encr(Encr.AES_GCM_16, 128), {IKE, ESP}),
        (encr(Encr.AES_GCM_16), set()),
        (encr(Encr.AES_GCM_16, 127), set()),
        (encr(Encr.AES_GCM_16, 512), set()),
        (encr(Encr.AES_CTR, 256), {IKE, ESP}),
        (encr(Encr.CHACHA20_POLY1305), {IKE, ESP}),
        (encr(Encr.CHACHA20_POLY1305, 256), set()),  # RFC 7634 section 5: no attribute
        (encr(Encr.DES3), {IKE, ESP}),
        (encr(Encr.DES3, 192), set()),
        (encr(Encr.NULL), {ESP}),
        (encr(Encr.CAMELLIA_CBC, 128), set()),
        (encr(Encr.NULL_AES_GMAC, 128), set()),
        (encr(9999, 128), set()),
        (t(TransformType.PRF, Prf.HMAC_SHA2_256), {IKE}),
        (t(TransformType.PRF, Prf.AES128_CMAC), {IKE}),
        (t(TransformType.PRF, Prf.HMAC_SHA2_256, 128), set()),
        (t(TransformType.PRF, 3), set()),
        (t(TransformType.INTEG, Integ.HMAC_SHA2_256_128), {IKE, AH, ESP}),
        (t(TransformType.INTEG, Integ.NONE), {IKE, ESP}),
        (t(TransformType.INTEG, Integ.AES_XCBC_96, 128), set()),
        (t(TransformType.INTEG, 4), set()),
        (t(TransformType.KE, Group.CURVE25519), {IKE, AH, ESP}),
        (t(TransformType.KE, Group.NONE), {AH, ESP}),
        (t(TransformType.KE, Group.ML_KEM_768), set()),
        (t(TransformType.KE, Group.MODP_2048, 2048), set()),
        (t(TransformType.ESN, Esn.ESN), {AH, ESP}),
        (t(TransformType.ESN, 2), set()),
        (Transform(6, 1), set()),
    ],
    ids=str,
)
def test_what_is_supported(transform: Transform, protocols: set[Protocol]) -> None:
    assert {p for p in (IKE, AH, ESP) if is_supported(p, transform)} == protocols
    assert not is_supported(77, transform)


def test_a_host_that_refuses_an_algorithm_does_not_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FIPS mode takes MD5 away: it must not be offered then, and nothing may break."""

    def refuse(*_: object) -> bytes:
        raise UnsupportedAlgorithm("no MD5 in FIPS mode")

    for module, name in ((prf_module, "HMAC"), (integ_module.Integ, "icv")):
        monkeypatch.setattr(module, name, refuse)
    for function in (prf_module.is_supported, integ_module.is_supported):
        function.cache_clear()
    try:
        assert not is_supported(IKE, t(TransformType.PRF, Prf.HMAC_MD5))
        assert not is_supported(ESP, t(TransformType.INTEG, Integ.HMAC_MD5_96))
    finally:
        for function in (prf_module.is_supported, integ_module.is_supported):
            function.cache_clear()


def test_unknown_algorithms() -> None:
    for wrong in (lambda: prf_for(3), lambda: integ_for(0), lambda: integ_for(6)):
        with pytest.raises(LocalMisuse):
            wrong()
    with pytest.raises(LocalMisuse):
        cipher_spec(t(TransformType.PRF, Encr.AES_CBC, 128))


def test_prf_plus_by_the_definition() -> None:
    """RFC 7296 2.13: T1 = prf(K, S | 0x01), Tn = prf(K, Tn-1 | S | n)."""
    key, seed = b"K" * 32, b"seed"
    stream, block = b"", b""
    for n in range(1, 256):
        block = hmac.digest(key, block + seed + bytes((n,)), "sha256")
        stream += block
    prf = prf_for(Prf.HMAC_SHA2_256)
    for length in (0, 1, 31, 32, 33, 64, 200, 255 * 32):
        assert prf_plus(prf, key, seed, length) == stream[:length]
    for length in (255 * 32 + 1, -1):
        with pytest.raises(LocalMisuse):
            prf_plus(prf, key, seed, length)


def test_the_key_of_skeyseed() -> None:
    """RFC 7296 2.14: the two AES PRFs take the first 64 bits of each nonce."""
    ni, nr = bytes(range(32)), bytes(range(100, 140))
    for prf in (Prf.HMAC_SHA1, Prf.HMAC_SHA2_512):
        assert prf_for(prf).nonce_key(ni, nr) == ni + nr
    for prf in (Prf.AES128_XCBC, Prf.AES128_CMAC):
        assert prf_for(prf).nonce_key(ni, nr) == ni[:8] + nr[:8]


@pytest.mark.parametrize("psk", [b"", b"x", b"secret" * 40])
def test_psk_auth(psk: bytes) -> None:
    """RFC 7296 2.15, with secrets shorter and longer than the block of the hash."""
    inner = hmac.digest(psk, b"Key Pad for IKEv2", "sha384")
    want = hmac.digest(inner, b"octets", "sha384")
    assert psk_auth(prf_for(Prf.HMAC_SHA2_384), psk, b"octets") == want
    for prf in (Prf.AES128_XCBC, Prf.AES128_CMAC):
        assert len(psk_auth(prf_for(prf), psk, b"octets")) == 16


def test_layout_of_an_esp_sa() -> None:
    sha = t(TransformType.INTEG, Integ.HMAC_SHA2_256_128)
    cbc = esp_transform(encr(Encr.AES_CBC, 256), sha)
    assert (cbc.key_octets, cbc.iv_length, cbc.icv_length, cbc.alignment) == (64, 16, 16, 16)
    assert not cbc.aead
    assert cbc.split(bytes(range(64))) == (bytes(range(32)), bytes(range(32, 64)))
    gcm = esp_transform(encr(Encr.AES_GCM_12, 128), t(TransformType.INTEG, Integ.NONE))
    assert (gcm.key_octets, gcm.salt, gcm.iv_length, gcm.icv_length) == (20, 4, 8, 12)
    assert (gcm.aead, gcm.alignment, gcm.integ) == (True, 4, None)
    with pytest.raises(LocalMisuse):
        gcm.split(bytes(19))
    for layout in (cbc, gcm):
        for length in range(70):
            total = length + layout.padding(length) + 2
            assert total % layout.alignment == 0
            assert layout.padding(length) < layout.alignment


def test_esp_needs_integrity_exactly_once() -> None:
    sha = t(TransformType.INTEG, Integ.HMAC_SHA1_96)
    for wrong in (
        (encr(Encr.AES_CBC, 128), None),
        (encr(Encr.NULL), None),
        (encr(Encr.AES_GCM_16, 128), sha),
        (encr(Encr.CHACHA20_POLY1305), sha),
    ):
        with pytest.raises(LocalMisuse):
            esp_transform(*wrong)


def test_no_secret_in_text() -> None:
    secret = b"Correct Horse Battery Staple!!!!"
    prf, integ = prf_for(Prf.HMAC_SHA2_256), integ_for(Integ.HMAC_SHA2_256_128)
    for thing in (prf, integ, prf.keyed(secret), integ.keyed(secret)):
        assert "Horse" not in repr(thing)
    assert repr(prf) == "<prf HMAC_SHA2_256>"
    with pytest.raises(LocalMisuse) as misuse:
        integ.keyed(secret + b"!")
    assert "Horse" not in str(misuse.value)
