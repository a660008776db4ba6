"""Large TCP packets: cut one by one and as a matrix, joined again (RFC 9293 3.7, virtio TSO)."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsec_gateway.ipsec.cipher import EspCipher
from ipsec_gateway.ipsec.esp import strip, unseal
from ipsec_gateway.ipsec.packet import set_v4_checksum
from ipsec_gateway.ipsec.segment import Rows, Super, segments
from ipsec_lab.esp_packets import SUITES, make_spec, tcp, tcp_ok, tso

PSH, FIN, ACK, CWR, ECE = 0x08, 0x01, 0x10, 0x80, 0x40


def whole(payload: bytes, mss: int, version: int = 4, *, df: bool = True, **header: int) -> Super:
    _, made = tso(payload, mss, version=version, **header)
    packet = bytearray(made)
    if version == 4 and not df:
        packet[6] &= ~0x40
        set_v4_checksum(memoryview(packet)[:20])
    found = Super.of(memoryview(packet), 20 if version == 4 else 40, mss)
    assert found is not None
    return found


def pattern(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.mark.parametrize("version", [4, 6])
@given(
    size=st.integers(1, 9000),
    mss=st.integers(1, 1500),
    flags=st.sampled_from([ACK, 0x99, 0xD9]),
    df=st.booleans(),
)
@settings(max_examples=60)
def test_segments_are_whole_packets(
    version: int, size: int, mss: int, flags: int, df: bool
) -> None:
    payload = pattern(size)
    seq, ident = 2**32 - 700, 65530
    big = whole(payload, mss, version, flags=flags, seq=seq, ident=ident, df=df)
    cut = list(segments(big))
    l4 = 20 if version == 4 else 40
    assert len(cut) == big.count
    assert all(map(tcp_ok, cut))
    assert b"".join(bytes(p[l4 + 32 :]) for p in cut) == payload
    assert max(len(p) for p in cut) <= l4 + 32 + mss
    for index, packet in enumerate(cut):
        expected = (seq + index * mss) % 2**32
        assert struct.unpack_from("!I", packet, l4 + 4)[0] == expected
        last = 0 if index == len(cut) - 1 else PSH | FIN
        first = 0 if index == 0 else CWR
        assert packet[l4 + 13] == flags & ~(last | first)
        if version == 4:
            number = ident if df else (ident + index) % 2**16
            assert struct.unpack_from("!H", packet, 4)[0] == number
    assert list(segments(big, len(cut) - 1)) == cut[-1:]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mss", [1386, 1387, 1388, 1389, 536])
@pytest.mark.parametrize("df", [True, False], ids=["df", "nodf"])
def test_the_matrix_makes_the_same_packets(suite: str, version: int, mss: int, df: bool) -> None:
    cipher = EspCipher(make_spec(suite))
    values = {"flags": 0xD9, "seq": 2**32 - 5000, "ident": 65530}
    big = whole(pattern(20 * mss + 100), mss, version, df=df, **values)
    expected = list(segments(big))
    rows = Rows(big.header, big.l4, mss, version, cipher)
    data = np.frombuffer(big.packet, np.uint8)
    first = 2**32 - 7
    for at, count in ((0, 12), (12, 8)):
        rows.seal(big, data, at, count, cipher, 0x1000, first + at)
        for index in range(count):
            packet = rows.out[index * rows.wire : (index + 1) * rows.wire]
            seq = first + at + index
            assert struct.unpack_from("!II", packet) == (0x1000, seq & 0xFFFFFFFF)
            next_header, inner = strip(unseal(cipher, packet, seq))
            assert next_header == (4 if version == 4 else 41)
            assert inner == expected[at + index]


def test_matrices_of_one_shape_serve_several_sas() -> None:
    big = whole(pattern(10 * 1000), 1000)
    rows = Rows(big.header, big.l4, 1000, 4, EspCipher(make_spec()))
    for spi in (1, 2, 3):
        cipher = EspCipher(make_spec(key=bytes([spi]) * 20))
        rows.seal(big, np.frombuffer(big.packet, np.uint8), 0, 10, cipher, spi, 1)
        packet = rows.out[9 * rows.wire : 10 * rows.wire]
        assert struct.unpack_from("!II", packet) == (spi, 10)
        assert strip(unseal(cipher, packet, 10))[1] == list(segments(big))[9]


def test_the_last_full_segment_ends_the_stream() -> None:
    cipher = EspCipher(make_spec())
    big = whole(pattern(10 * 1000), 1000, flags=ACK | PSH | FIN)
    rows = Rows(big.header, big.l4, 1000, 4, cipher)
    rows.seal(big, np.frombuffer(big.packet, np.uint8), 0, 10, cipher, 1, 1)
    inner = [
        strip(unseal(cipher, rows.out[i * rows.wire : (i + 1) * rows.wire], 1 + i))[1]
        for i in range(10)
    ]
    assert [bytes(p) for p in inner] == [bytes(p) for p in segments(big)]


@pytest.mark.parametrize(
    ("packet", "l4", "mss"),
    [
        (bytes(tcp(b"x" * 100)), 20, 0),
        (bytes(tcp(b"x" * 100)), 0, 50),
        (bytes(tcp(b"x" * 100)), 200, 50),
        (bytes(tcp(b"")), 20, 50),
        (bytes(tcp(b"x" * 100)[:20]) + bytes(120), 20, 50),
        (b"\x00" + bytes(tcp(b"x" * 100))[1:], 20, 50),
    ],
)
def test_headers_that_make_no_sense(packet: bytes, l4: int, mss: int) -> None:
    assert Super.of(memoryview(packet), l4, mss) is None
