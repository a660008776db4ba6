"""ESP packets one at a time: layout, published examples, every suite (RFC 4303, 4106, 7634)."""

import json
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gateway.ipsec.cipher import EspCipher
from ipsec_gateway.ipsec.drops import Drop
from ipsec_gateway.ipsec.esp import EspError, encapsulate, sealed_length, strip, trailer, unseal
from ipsec_ike.errors import LocalMisuse
from ipsec_lab.esp_packets import SUITES, make_spec, udp4, udp6

VECTORS = Path(__file__).parents[2] / "vectors"
SPI = 0x1000
SEQ = (3 << 32) + 9


def example(file: str, name: str) -> dict[str, bytes]:
    cases = json.loads((VECTORS / file).read_text())["cases"]
    case = next(c for c in cases if c["name"] == name)
    return {k: bytes.fromhex(v) for k, v in case.items() if k not in ("name", "algorithm")}


def test_rfc_7634_appendix_a() -> None:
    case = example("encr_chacha_rfc7634.json", "A, ESP")
    cipher = EspCipher(make_spec("chacha", key=case["key"], esn=False))
    packet = case["aad"] + case["iv"] + case["ciphertext"] + case["icv"]
    plain = unseal(cipher, memoryview(packet), 5)
    assert plain == case["plaintext"]
    next_header, payload = strip(plain)
    assert (next_header, len(payload)) == (4, 84)


def test_gcm_with_extended_sequence_numbers() -> None:
    """draft-mcgrew-gcm-test-01, first case: SPI 0x4321, sequence number 0x8765432100000000."""
    case = example("encr_gcm.json", "esp 1")
    cipher = EspCipher(make_spec(key=case["key"]))
    spi, high, low = case["aad"][:4], case["aad"][4:8], case["aad"][8:]
    packet = memoryview(spi + low + case["iv"] + case["ciphertext"] + case["icv"])
    seq = int.from_bytes(high + low, "big")
    assert unseal(cipher, packet, seq) == case["plaintext"]
    with pytest.raises(EspError, match="INTEGRITY"):
        unseal(cipher, packet, seq + (1 << 32))


@pytest.mark.parametrize("esn", [True, False])
def test_the_octets_of_a_gcm_packet(esn: bool) -> None:
    """RFC 4106 figures 1 and 4-5, made here by hand."""
    key = bytes(range(20))
    inner = udp4(b"abc")  # 31 octets: three of padding
    packet = encapsulate(EspCipher(make_spec(key=key, esn=esn)), SPI, SEQ, inner, 4)
    spi, low, iv = struct.unpack_from("!IIQ", packet)
    assert (spi, low, iv) == (SPI, 9, SEQ)
    aad = struct.pack("!IQ", SPI, SEQ) if esn else struct.pack("!II", SPI, 9)
    nonce = key[16:] + struct.pack("!Q", SEQ)
    opened = AESGCM(key[:16]).decrypt(nonce, bytes(packet[16:]), aad)
    assert opened == inner + bytes([1, 2, 3, 3, 4])


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("esn", [True, False], ids=["esn", "noesn"])
@given(size=st.integers(0, 200))
def test_what_is_sealed_is_opened(suite: str, esn: bool, size: int) -> None:
    cipher = EspCipher(make_spec(suite, esn=esn))
    for inner, header in ((udp4(bytes(size)), 4), (udp6(bytes(size)), 41)):
        packet = encapsulate(cipher, SPI, SEQ, inner, header)
        assert len(packet) == sealed_length(cipher, len(inner))
        body = len(packet) - 8 - cipher.iv_length - cipher.icv_length
        assert body % cipher.alignment == 0
        assert strip(unseal(cipher, memoryview(packet), SEQ)) == (header, inner)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("esn", [True, False], ids=["esn", "noesn"])
def test_no_octet_can_be_changed(suite: str, esn: bool) -> None:
    cipher = EspCipher(make_spec(suite, esn=esn))
    packet = encapsulate(cipher, SPI, SEQ, udp4(), 4)
    for place in range(len(packet)):
        changed = bytearray(packet)
        changed[place] ^= 0x10
        # A receiver takes the low half from the packet.
        seq = SEQ >> 32 << 32 | struct.unpack_from("!I", changed, 4)[0]
        with pytest.raises(EspError) as caught:
            unseal(cipher, memoryview(changed), seq)
        assert caught.value.reason is Drop.INTEGRITY
    if esn:  # the high half is not sent, but authenticated
        with pytest.raises(EspError, match="INTEGRITY"):
            unseal(cipher, memoryview(packet), SEQ + (1 << 32))


@pytest.mark.parametrize("suite", SUITES)
def test_short_packets(suite: str) -> None:
    cipher = EspCipher(make_spec(suite))
    packet = encapsulate(cipher, SPI, SEQ, udp4(), 4)
    for size in range(len(packet)):
        with pytest.raises(EspError) as caught:
            unseal(cipher, memoryview(packet)[:size], SEQ)
        assert caught.value.reason in (Drop.TOO_SHORT, Drop.INTEGRITY)
        assert (size < cipher.overhead) is (caught.value.reason is Drop.TOO_SHORT)


def test_cbc_ivs_do_not_repeat() -> None:
    cipher = EspCipher(make_spec("cbc-sha256"))
    ivs = {bytes(encapsulate(cipher, SPI, 5, udp4(), 4)[8:24]) for _ in range(64)}
    assert len(ivs) == 64


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        (b"", Drop.PADDING),
        (b"\x04", Drop.PADDING),
        (b"inner\x01\x02\x02\x04", None),
        (b"inner\x01\x03\x02\x04", Drop.PADDING),
        (b"\x03\x04", Drop.PADDING),
        (b"\x01\x02\x02\x3b", Drop.DUMMY),
        (b"inner\x00\x06", Drop.NEXT_HEADER),
        (b"inner\x00\x29", None),
    ],
)
def test_trailers(plain: bytes, reason: Drop | None) -> None:
    if reason is None:
        assert strip(memoryview(plain))[1] == b"inner"
        return
    with pytest.raises(EspError) as caught:
        strip(memoryview(plain))
    assert caught.value.reason is reason


@given(st.integers(0, 70000), st.sampled_from([4, 8, 16]))
def test_the_trailer_fills_up_to_the_alignment(length: int, alignment: int) -> None:
    tail = trailer(length, alignment, 41)
    assert (length + len(tail)) % alignment == 0
    assert tail[:-2] == bytes(range(1, len(tail) - 1))
    assert tail[-2:] == bytes([len(tail) - 2, 41])


def test_keys_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(LocalMisuse):
        EspCipher(make_spec(key=bytes(21) + b"x", encryption_key=make_spec("gcm8").encryption_key))
