"""The parts of the lab that judge others: what they take for evidence must be right."""

from __future__ import annotations

import struct

import pytest

from ipsec_lab import vici
from ipsec_lab.sniffer import classify


def ipv4(protocol: int, payload: bytes, *, offset: int = 0) -> bytes:
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, offset, 64, protocol, 0, b"abcd", b"efgh"
    )
    return bytes(12) + b"\x08\x00" + header + payload


def ipv6(protocol: int, payload: bytes) -> bytes:
    header = struct.pack(">IHBB16s16s", 6 << 28, len(payload), protocol, 64, bytes(16), bytes(16))
    return bytes(12) + b"\x86\xdd" + header + payload


def udp(source: int, destination: int, payload: bytes) -> bytes:
    return struct.pack(">HHHH", source, destination, 8 + len(payload), 0) + payload


@pytest.mark.parametrize("wrap", [ipv4, ipv6])
@pytest.mark.parametrize(
    ("protocol", "payload", "expected"),
    [
        (17, udp(500, 500, b"x" * 28), "ike"),
        (17, udp(20001, 500, b"x" * 28), "ike"),
        (17, udp(4500, 4500, bytes(4) + b"x" * 28), "ike"),
        (17, udp(4500, 20001, b"\0\0\0\1" + b"x" * 28), "esp-in-udp"),
        (17, udp(4500, 4500, b"\xff"), "keepalive"),
        (17, udp(4501, 53, bytes(4)), "other"),
        (50, b"\0\0\1\0" + bytes(28), "esp"),
        (6, bytes(20), "other"),
        (17, b"\x11", "other"),
    ],
)
def test_frames_are_told_apart(wrap, protocol, payload, expected):
    assert classify(wrap(protocol, payload)) == expected


def test_a_clear_packet_is_never_taken_for_esp():
    assert classify(ipv4(1, b"\x08\0" + bytes(30))) == "icmp"
    assert classify(ipv6(58, b"\x80\0" + bytes(30))) == "icmp"
    assert classify(ipv6(58, b"\x87\0" + bytes(30))) == "neighbour"
    assert classify(bytes(12) + b"\x08\x06" + bytes(28)) == "neighbour"


def test_fragments_show_no_ports():
    assert classify(ipv4(17, udp(4500, 4500, b"\0\0\0\1"), offset=100)) == "fragment"
    fragment = struct.pack(">BBHI", 17, 0, 8 << 3, 1) + udp(4500, 4500, b"\0\0\0\1")
    assert classify(ipv6(44, fragment)) == "fragment"
    first = struct.pack(">BBHI", 17, 0, 1, 1) + udp(4500, 4500, b"\0\0\0\1")
    assert classify(ipv6(44, first)) == "esp-in-udp"


@pytest.mark.parametrize("size", range(60))
def test_no_frame_is_too_short(size: int):
    assert isinstance(classify(ipv6(0, bytes(40))[:size]), str)


def test_vici_messages_survive_the_way_there_and_back():
    message: vici.Section = {
        "child": "lans",
        "list": ["10.1.0.0/24", "fd00:1::/64", ""],
        "empty": [],
        "section": {"inner": {"deep": "ü"}, "flat": ""},
        "last": "x" * 70,
    }
    assert vici.decode(vici.encode(message)) == message


def test_a_cut_vici_message_is_refused():
    whole = vici.encode({"key": "value"})
    with pytest.raises(vici.ViciError, match="in the middle"):
        vici.decode(whole[:-1])
    with pytest.raises(vici.ViciError, match="type 9"):
        vici.decode(b"\x09")
