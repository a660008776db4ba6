"""Ciphers: what they refuse, what they authenticate, what they keep to themselves."""

import random
import sys

import pytest

from ipsec_ike.crypto.ciphers import SkCipher, sk_cipher
from ipsec_ike.crypto.integ import integ_for
from ipsec_ike.crypto.transforms import cipher_spec, encr_key_octets, integ_key_octets
from ipsec_ike.errors import IntegrityFailure, InvalidSyntax, LocalMisuse
from ipsec_ike.numbers import Encr, Integ, TransformType
from ipsec_ike.proposal import AEAD, Transform

RANDOM = random.Random(4303)


def encr(algorithm: Encr, bits: int = 0) -> Transform:
    return Transform(TransformType.ENCR, algorithm, bits)


def integ(algorithm: Integ) -> Transform:
    return Transform(TransformType.INTEG, algorithm)


ENCR = [
    encr(Encr.DES3),
    encr(Encr.NULL),
    encr(Encr.CHACHA20_POLY1305),
    *(
        encr(algorithm, bits)
        for algorithm in (
            Encr.AES_CBC,
            Encr.AES_CTR,
            Encr.AES_CCM_8,
            Encr.AES_CCM_12,
            Encr.AES_CCM_16,
            Encr.AES_GCM_8,
            Encr.AES_GCM_12,
            Encr.AES_GCM_16,
        )
        for bits in (128, 192, 256)
    ),
]
INTEG = [integ(i) for i in Integ if i != Integ.NONE]
SUITES: list[tuple[Transform, Transform | None]] = [
    *((e, None) for e in ENCR if e.id in AEAD),
    *((e, integ(Integ.HMAC_SHA2_256_128)) for e in ENCR if e.id not in AEAD),
    *((encr(Encr.AES_CBC, 128), i) for i in INTEG),
]
suites = pytest.mark.parametrize("suite", SUITES, ids=lambda s: f"{s[0]}-{s[1]}")
Suite = tuple[Transform, Transform | None]


def keys(suite: Suite) -> tuple[bytes, bytes]:
    return RANDOM.randbytes(encr_key_octets(suite[0])), RANDOM.randbytes(integ_key_octets(suite[1]))


def make(suite: Suite) -> SkCipher:
    encr_key, integ_key = keys(suite)
    return sk_cipher(suite[0], encr_key, suite[1], integ_key)


@suites
def test_sealed_opens_again(suite: Suite) -> None:
    cipher = make(suite)
    for blocks in (0, 1, 2, 7, 90):
        aad, iv = RANDOM.randbytes(32), RANDOM.randbytes(cipher.iv_length)
        plaintext = RANDOM.randbytes(16 * blocks if cipher.block_size > 1 else 16 * blocks + 3)
        sealed = cipher.seal(aad, iv, plaintext)
        assert len(sealed) == len(plaintext) + cipher.icv_length
        assert cipher.open(aad, iv, sealed) == plaintext
        view = memoryview(iv + sealed)
        cut = cipher.iv_length
        assert cipher.open(memoryview(aad), view[:cut], view[cut:]) == plaintext


@suites
def test_any_changed_octet_is_an_integrity_failure(suite: Suite) -> None:
    cipher = make(suite)
    aad, iv = RANDOM.randbytes(9), RANDOM.randbytes(cipher.iv_length)
    parts = [aad, iv, cipher.seal(aad, iv, RANDOM.randbytes(48))]
    for number, part in enumerate(parts):
        for position in range(len(part)):
            changed = list(parts)
            octet = part[position] ^ 1 << RANDOM.randrange(8)
            changed[number] = part[:position] + bytes((octet,)) + part[position + 1 :]
            with pytest.raises(IntegrityFailure):
                cipher.open(*changed)
    assert len(cipher.open(*parts)) == 48


@suites
def test_other_lengths_are_integrity_failures(suite: Suite) -> None:
    cipher = make(suite)
    aad, iv = RANDOM.randbytes(9), RANDOM.randbytes(cipher.iv_length)
    sealed = cipher.seal(aad, iv, RANDOM.randbytes(48))
    for cut in range(len(sealed)):
        with pytest.raises(IntegrityFailure):
            cipher.open(aad, iv, sealed[:cut])
    for wrong in (sealed + b"\0", b"\0" + sealed):
        with pytest.raises(IntegrityFailure):
            cipher.open(aad, iv, wrong)
    for wrong_iv in (iv + b"\0", iv[:-1] or b"\0", b"" if iv else b"\0\0"):
        with pytest.raises(IntegrityFailure):
            cipher.open(aad, wrong_iv, sealed)
    # The same octets, divided otherwise: a MAC over aad | IV | ciphertext cannot tell.
    whole, start, end = aad + iv + sealed, len(aad), len(aad) + len(iv)
    for first, last in ((start - 1, end), (start, end + 1), (start + 1, end), (start, end - 1)):
        if first <= last:
            with pytest.raises(IntegrityFailure):
                cipher.open(whole[:first], whole[first:last], whole[last:])


@suites
def test_every_octet_of_the_keys_matters(suite: Suite) -> None:
    encr_key, integ_key = keys(suite)
    iv = RANDOM.randbytes(cipher_spec(suite[0]).iv)
    aad, plaintext = b"aad", RANDOM.randbytes(48)
    sealed = sk_cipher(suite[0], encr_key, suite[1], integ_key).seal(aad, iv, plaintext)
    for position in range(len(encr_key)):
        # Not the lowest bit: it is a parity bit of DES, which has no effect.
        other = bytearray(encr_key)
        other[position] ^= 2
        assert (
            sk_cipher(suite[0], bytes(other), suite[1], integ_key).seal(aad, iv, plaintext)
            != sealed
        )
    for position in range(len(integ_key)):
        other = bytearray(integ_key)
        other[position] ^= 1
        with pytest.raises(IntegrityFailure):
            sk_cipher(suite[0], encr_key, suite[1], bytes(other)).open(aad, iv, sealed)


@suites
def test_dropping_what_was_built_changes_nothing(suite: Suite) -> None:
    cipher = make(suite)
    iv = RANDOM.randbytes(cipher.iv_length)
    cipher.drop()
    sealed = cipher.seal(b"", iv, bytes(16))
    cipher.drop()
    assert cipher.seal(b"", iv, bytes(16)) == sealed
    cipher.drop()
    assert cipher.open(b"", iv, sealed) == bytes(16)


@suites
def test_an_idle_cipher_is_small_and_shows_nothing(suite: Suite) -> None:
    encr_key, integ_key = keys(suite)
    cipher = sk_cipher(suite[0], encr_key, suite[1], integ_key)
    assert not hasattr(cipher, "__dict__")
    assert sys.getsizeof(cipher) <= 128
    text = repr(cipher) + str(cipher)
    for secret in (encr_key, integ_key):
        assert not secret or repr(secret)[2:-1] not in text
        assert not secret or secret.hex() not in text


@suites
def test_misuse_is_told_to_the_caller(suite: Suite) -> None:
    cipher = make(suite)
    for wrong in {0, 4, 8, 12, 16} - {cipher.iv_length}:
        with pytest.raises(LocalMisuse, match="IV"):
            cipher.seal(b"", bytes(wrong), bytes(16))
    if cipher.block_size > 1:
        with pytest.raises(LocalMisuse, match="multiple"):
            cipher.seal(b"", bytes(cipher.iv_length), bytes(cipher.block_size + 1))
    encr_key, integ_key = keys(suite)
    for wrong_key in (encr_key + b"\0", encr_key[:-1] or b"\0"):
        with pytest.raises(LocalMisuse) as misuse:
            sk_cipher(suite[0], wrong_key, suite[1], integ_key)
        assert repr(wrong_key) not in str(misuse.value)
    with pytest.raises(LocalMisuse):
        sk_cipher(suite[0], encr_key, suite[1], integ_key + b"\0")


def test_integrity_goes_with_the_cipher() -> None:
    gcm, cbc = encr(Encr.AES_GCM_16, 128), encr(Encr.AES_CBC, 128)
    sha = integ(Integ.HMAC_SHA2_256_128)
    with pytest.raises(LocalMisuse, match="no integrity"):
        sk_cipher(gcm, bytes(20), sha, bytes(32))
    for none in (None, integ(Integ.NONE)):
        sk_cipher(gcm, bytes(20), none)
        with pytest.raises(LocalMisuse, match="needs an integrity"):
            sk_cipher(cbc, bytes(16), none)
    with pytest.raises(LocalMisuse):
        sk_cipher(cbc, bytes(16), Transform(TransformType.INTEG, 99), b"")
    for unknown in (encr(Encr.CAMELLIA_CBC, 128), encr(Encr.AES_CBC), encr(Encr.AES_GCM_16, 64)):
        with pytest.raises(LocalMisuse):
            sk_cipher(unknown, bytes(16), sha, bytes(32))


def test_the_high_half_of_the_sequence_number_is_authenticated_last() -> None:
    """RFC 4303 2.2.1: SPI | sequence number | payload | ESN, for a separate integrity algorithm."""
    suite = (encr(Encr.AES_CBC, 128), integ(Integ.HMAC_SHA2_512_256))
    encr_key, integ_key = keys(suite)
    cipher = sk_cipher(suite[0], encr_key, suite[1], integ_key)
    iv, header, high = bytes(16), b"\0\0\1\0\0\0\0\5", b"\0\0\0\1"
    sealed = cipher.seal(header, iv, bytes(32), high)
    want = integ_for(Integ.HMAC_SHA2_512_256).icv(integ_key, header + iv + sealed[:32] + high)
    assert sealed[32:] == want
    assert cipher.open(header, iv, sealed, high) == bytes(32)
    for other in (b"", b"\0\0\0\2"):
        with pytest.raises(IntegrityFailure):
            cipher.open(header, iv, sealed, other)
    for combined_mode in (Encr.AES_GCM_16, Encr.AES_GCM_8, Encr.CHACHA20_POLY1305):
        key = bytes(36 if combined_mode == Encr.CHACHA20_POLY1305 else 20)
        bits = 0 if combined_mode == Encr.CHACHA20_POLY1305 else 128
        combined = sk_cipher(encr(combined_mode, bits), key)
        with pytest.raises(LocalMisuse):
            combined.seal(header, bytes(8), b"", high)
        with pytest.raises(LocalMisuse):
            combined.open(header, bytes(8), bytes(16), high)


def test_an_authentic_ciphertext_that_is_no_whole_block_is_bad_syntax() -> None:
    suite = (encr(Encr.AES_CBC, 128), integ(Integ.HMAC_SHA2_256_128))
    encr_key, integ_key = keys(suite)
    cipher = sk_cipher(suite[0], encr_key, suite[1], integ_key)
    icv = integ_for(Integ.HMAC_SHA2_256_128).icv(integ_key, b"aad" + bytes(16) + bytes(17))
    with pytest.raises(InvalidSyntax):
        cipher.open(b"aad", bytes(16), bytes(17) + icv)


def test_null_is_integrity_alone() -> None:
    cipher = sk_cipher(encr(Encr.NULL), b"", integ(Integ.AES_CMAC_96), bytes(16))
    assert (cipher.iv_length, cipher.block_size, cipher.icv_length) == (0, 1, 12)
    assert cipher.seal(b"aad", b"", b"in the clear")[:-12] == b"in the clear"


def test_the_counter_of_ctr_starts_at_one_and_the_nonce_comes_first() -> None:
    """RFC 3686 section 4: an all-zero plaintext shows the key stream of block 1."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes(range(20))
    iv = b"IVIVIVIV"
    cipher = sk_cipher(encr(Encr.AES_CTR, 128), key, integ(Integ.AES_XCBC_96), bytes(16))
    stream = Cipher(algorithms.AES(key[:16]), modes.ECB()).encryptor()
    assert cipher.seal(b"", iv, bytes(16))[:16] == stream.update(key[16:] + iv + b"\0\0\0\1")
