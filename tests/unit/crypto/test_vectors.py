"""Every algorithm against the vectors of its own specification (tests/vectors has the sources)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ipsec_ike.crypto.ciphers import sk_cipher
from ipsec_ike.crypto.groups import KeyExchange, generate, public_length
from ipsec_ike.crypto.integ import integ_for
from ipsec_ike.crypto.prf import prf_for, prf_plus
from ipsec_ike.crypto.transforms import cipher_spec
from ipsec_ike.numbers import Encr, Group, Integ, Prf, TransformType
from ipsec_ike.proposal import Transform

VECTORS = Path(__file__).parents[2] / "vectors"
HMAC_SHA256 = Transform(TransformType.INTEG, Integ.HMAC_SHA2_256_128)


def cases(*names: str) -> list[Any]:
    return [
        pytest.param(case, id=f"{name}-{case['name']}".replace(" ", "_"))
        for name in names
        for case in json.loads((VECTORS / f"{name}.json").read_text())["cases"]
    ]


def octets(case: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(case[name]) for name in names]


def encr(case: dict[str, Any], algorithm: Encr | None = None) -> Transform:
    algorithm = algorithm or Encr[case["algorithm"]]
    octets_without_salt = len(case["key"]) // 2 - {
        Encr.AES_CTR: 4,
        Encr.AES_CCM_8: 3,
        Encr.AES_CCM_12: 3,
        Encr.AES_CCM_16: 3,
        Encr.AES_GCM_8: 4,
        Encr.AES_GCM_12: 4,
        Encr.AES_GCM_16: 4,
    }.get(algorithm, 0)
    fixed = algorithm in (Encr.DES3, Encr.CHACHA20_POLY1305)
    return Transform(TransformType.ENCR, algorithm, 0 if fixed else 8 * octets_without_salt)


def test_every_vector_file_is_used_and_cites_its_source() -> None:
    text = Path(__file__).read_text() + (Path(__file__).parent / "test_groups.py").read_text()
    for file in sorted(VECTORS.glob("*.json")):
        assert f'"{file.stem}"' in text, file.name
        assert json.loads(file.read_text())["source"]


@pytest.mark.parametrize(
    "case",
    cases("prf_hmac_rfc2202", "prf_hmac_rfc4231", "prf_xcbc_rfc4434", "prf_cmac_rfc4615"),
)
def test_prf(case: dict[str, Any]) -> None:
    key, data, mac = octets(case, "key", "data", "mac")
    prf = prf_for(Prf[case["algorithm"]])
    # Some cases are published truncated to 16 octets; no PRF is shorter.
    assert len(mac) in (16, prf.output_length)
    assert prf.mac(key, data)[: len(mac)] == mac
    assert prf.keyed(key)(data[:3], memoryview(data)[3:])[: len(mac)] == mac


@pytest.mark.parametrize(
    "case",
    cases("integ_hmac96_rfc2202", "integ_hmac_rfc4868", "integ_xcbc_rfc3566", "integ_cmac_rfc4494"),
)
def test_integrity(case: dict[str, Any]) -> None:
    key, data, icv = octets(case, "key", "data", "icv")
    integ = integ_for(Integ[case["algorithm"]])
    assert (integ.key_length, integ.icv_length) == (len(key), len(icv))
    assert integ.icv(key, data) == icv
    assert integ.verify(key, data, icv)
    assert not integ.verify(key, data + b"\0", icv)
    if "mac" in case:
        assert integ.keyed(key)(data) == bytes.fromhex(case["mac"])


@pytest.mark.parametrize("case", cases("prfplus_sp800_135"))
def test_ike_key_derivation(case: dict[str, Any]) -> None:
    """RFC 7296 2.14, 2.17, 2.18, as NIST tests them."""
    ni, nr, spi_i, spi_r, g_ir, g_ir_new = octets(
        case, "ni", "nr", "spi_i", "spi_r", "g_ir", "g_ir_new"
    )
    prf = prf_for(Prf[case["prf"]])
    skeyseed = prf.mac(prf.nonce_key(ni, nr), g_ir)
    assert skeyseed.hex() == case["skeyseed"]
    length = len(case["dkm"]) // 2
    dkm = prf_plus(prf, skeyseed, ni + nr + spi_i + spi_r, length)
    assert dkm.hex() == case["dkm"]
    sk_d = dkm[: prf.key_length]
    assert prf_plus(prf, sk_d, ni + nr, length).hex() == case["dkm_child"]
    assert prf_plus(prf, sk_d, g_ir_new + ni + nr, length).hex() == case["dkm_child_dh"]
    assert prf.mac(sk_d, g_ir_new + ni + nr).hex() == case["skeyseed_rekey"]


@pytest.mark.parametrize(
    "case",
    cases("encr_cbc_rfc3602", "encr_cbc_sp800_38a", "encr_ctr_rfc3686", "encr_3des_cavp"),
)
def test_cipher_without_icv(case: dict[str, Any]) -> None:
    """The ciphertext of the vector, and an ICV over aad | IV | ciphertext (RFC 7296 3.14)."""
    key, iv, plaintext, ciphertext = octets(case, "key", "iv", "plaintext", "ciphertext")
    mac_key = bytes(range(32))
    cipher = sk_cipher(encr(case), key, HMAC_SHA256, mac_key)
    sealed = cipher.seal(b"header", iv, plaintext)
    assert sealed[:-16] == ciphertext
    integ = integ_for(Integ.HMAC_SHA2_256_128)
    assert sealed[-16:] == integ.icv(mac_key, b"header" + iv + ciphertext)
    assert cipher.open(b"header", iv, sealed) == plaintext


@pytest.mark.parametrize("case", cases("encr_gcm", "encr_ccm_cavp", "encr_chacha_rfc7634"))
def test_aead(case: dict[str, Any]) -> None:
    key, iv, aad, plaintext, ciphertext, icv = octets(
        case, "key", "iv", "aad", "plaintext", "ciphertext", "icv"
    )
    cipher = sk_cipher(encr(case), key)
    assert cipher.icv_length == len(icv)
    assert cipher.seal(aad, iv, plaintext) == ciphertext + icv
    assert cipher.open(aad, iv, ciphertext + icv) == plaintext


@pytest.mark.parametrize(
    ("algorithm", "length"), [(Encr.AES_GCM_8, 8), (Encr.AES_GCM_12, 12)], ids=["8", "12"]
)
@pytest.mark.parametrize("case", cases("encr_gcm"))
def test_gcm_with_a_short_icv(case: dict[str, Any], algorithm: Encr, length: int) -> None:
    """The short ICV is the beginning of the long one (NIST SP 800-38D 7.1)."""
    key, iv, aad, plaintext, ciphertext, icv = octets(
        case, "key", "iv", "aad", "plaintext", "ciphertext", "icv"
    )
    cipher = sk_cipher(encr(case, algorithm), key)
    assert cipher.icv_length == length
    assert cipher.seal(aad, iv, plaintext) == ciphertext + icv[:length]
    assert cipher.open(aad, iv, ciphertext + icv[:length]) == plaintext


def ccm(key: bytes, nonce: bytes, aad: bytes, plaintext: bytes, icv_length: int) -> bytes:
    """CCM from NIST SP 800-38C 6.1 and appendix A, on AES in CBC and CTR; 0 < len(aad) < 65280."""
    width = 15 - len(nonce)
    flags = 0x40 | ((icv_length - 2) // 2) << 3 | (width - 1)
    head = bytes((flags,)) + nonce + len(plaintext).to_bytes(width, "big")
    blocks = head
    for part in (len(aad).to_bytes(2, "big") + aad, plaintext):
        blocks += part + bytes(-len(part) % 16)
    chain = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).encryptor().update(blocks)
    counter = bytes((width - 1,)) + nonce + bytes(width)
    stream = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
    tag = stream.update(chain[-16:])
    return stream.update(plaintext) + tag[:icv_length]


@pytest.mark.parametrize("case", cases("ccm_sp800_38c"))
def test_the_reference_ccm(case: dict[str, Any]) -> None:
    key, nonce, aad, plaintext, sealed = octets(case, "key", "nonce", "aad", "plaintext", "sealed")
    assert ccm(key, nonce, aad, plaintext, case["icv_length"]) == sealed


@pytest.mark.parametrize(
    ("algorithm", "length"),
    [(Encr.AES_CCM_8, 8), (Encr.AES_CCM_12, 12), (Encr.AES_CCM_16, 16)],
    ids=["8", "12", "16"],
)
@pytest.mark.parametrize("bits", [128, 192, 256])
def test_ccm_for_every_icv_and_key_length(algorithm: Encr, length: int, bits: int) -> None:
    """No specification has vectors for the 11-octet nonce with short ICVs, which in CCM are no
    truncation of the long one: compare with the reference, which its own vectors hold."""
    transform = Transform(TransformType.ENCR, algorithm, bits)
    key = bytes(range(bits // 8 + 3))
    iv, aad = b"\x10\x11\x12\x13\x14\x15\x16\x17", bytes(range(32))
    for size in (0, 1, 15, 16, 17, 100):
        plaintext = bytes(range(size))
        want = ccm(key[:-3], key[-3:] + iv, aad, plaintext, length)
        cipher = sk_cipher(transform, key)
        assert cipher.icv_length == length
        assert cipher.seal(aad, iv, plaintext) == want
        assert cipher.open(aad, iv, want) == plaintext


def rng_for(group: Group, private: bytes) -> Callable[[int], bytes]:
    """Randomness from which ``generate`` makes this private value."""

    def rng(size: int) -> bytes:
        if group in (Group.CURVE25519, Group.CURVE448):
            assert size == len(private)
            return private
        return (int.from_bytes(private, "big") - 1).to_bytes(size, "big")

    return rng


@pytest.mark.parametrize(
    "case", cases("group_ecp_rfc5903", "group_brainpool_rfc7027", "group_montgomery")
)
def test_key_exchange(case: dict[str, Any]) -> None:
    group = Group[case["group"]]
    private_i, public_i, private_r, public_r, shared = octets(
        case, "private_i", "public_i", "private_r", "public_r", "shared"
    )
    ours: KeyExchange = generate(group, rng_for(group, private_i))
    theirs: KeyExchange = generate(group, rng_for(group, private_r))
    assert len(public_i) == public_length(group)
    assert (ours.public, theirs.public) == (public_i, public_r)
    assert ours.shared(public_r) == shared == theirs.shared(public_i)


def test_iv_and_icv_lengths_are_those_of_the_specifications() -> None:
    spec = cipher_spec(Transform(TransformType.ENCR, Encr.AES_CTR, 128))
    assert (spec.salt, spec.iv, spec.block) == (4, 8, 1)
