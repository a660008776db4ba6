"""Inner packets: flows, selectors, checksums; DSCP and ECN (RFC 4301 4.4.1.1, RFC 6040)."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gateway.ipsec import ecn
from ipsec_gateway.ipsec.packet import OPAQUE, checksum, covers, ones_sum, parse, reverse
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.esp_packets import tcp, tcp_ok, udp4, udp6

A4, B4 = bytes([10, 1, 0, 2]), bytes([10, 2, 0, 2])
A6 = bytes.fromhex("fd000001000000000000000000000002")
B6 = bytes.fromhex("fd000002000000000000000000000002")


def view(packet: bytes) -> memoryview:
    return memoryview(packet)


def test_flows() -> None:
    assert parse(view(udp4())) == ((A4, B4, 17, 1111, 2222), 60)
    assert parse(view(udp6())) == ((A6, B6, 17, 1111, 2222), 80)
    assert parse(view(tcp(b"", version=6))) == ((A6, B6, 6, 40000, 5001), 72)


def test_padding_behind_the_packet_is_not_part_of_it() -> None:
    assert parse(view(udp4() + bytes(50))) == ((A4, B4, 17, 1111, 2222), 60)
    assert parse(view(udp6() + bytes(50))) == ((A6, B6, 17, 1111, 2222), 80)


def test_icmp_has_type_and_code_for_ports() -> None:
    packet = bytearray(udp4(protocol=1))
    packet[20:22] = b"\x08\x00"
    flow = (A4, B4, 1, 0x0800, 0x0800)
    assert parse(view(packet)) == (flow, 60)
    assert reverse(flow) == (B4, A4, 1, 0x0800, 0x0800)


def test_a_protocol_without_ports() -> None:
    assert parse(view(udp4(protocol=47))) == ((A4, B4, 47, 0, 0), 60)


def test_fragments_but_the_first_hide_their_ports() -> None:
    assert parse(view(udp4(fragment=0x2000))) == ((A4, B4, 17, 1111, 2222), 60)
    assert parse(view(udp4(fragment=0x0010))) == ((A4, B4, 17, OPAQUE, OPAQUE), 60)


def v6_with(headers: bytes, first: int) -> bytes:
    packet = bytearray(udp6())
    packet[6] = first
    packet[40:40] = headers
    struct.pack_into("!H", packet, 4, len(packet) - 40)
    return bytes(packet)


@pytest.mark.parametrize(
    ("headers", "first", "flow"),
    [
        (bytes([17, 0]) + bytes(6), 0, (A6, B6, 17, 1111, 2222)),
        (bytes([60, 0]) + bytes(6) + bytes([17, 1]) + bytes(14), 43, (A6, B6, 17, 1111, 2222)),
        (bytes([17, 0, 0, 1]) + bytes(4), 44, (A6, B6, 17, 1111, 2222)),
        (bytes([17, 0, 0, 0x79]) + bytes(4), 44, (A6, B6, 17, OPAQUE, OPAQUE)),
        (bytes([17, 4]) + bytes(22), 51, (A6, B6, 17, 1111, 2222)),
    ],
)
def test_ipv6_extension_headers(headers: bytes, first: int, flow: tuple[object, ...]) -> None:
    packet = v6_with(headers, first)
    assert parse(view(packet)) == (flow, len(packet))


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        bytes(19),
        bytes(60),
        udp4()[:59],
        udp6()[:79],
        udp6()[:39],
        b"\x44" + udp4()[1:],  # header shorter than a header
        b"\x4f" + udp4()[1:20],  # options that are not there
        b"\x75" + udp4()[1:],  # version 7
        udp4()[:2] + b"\x00\x10" + udp4()[4:],  # total length below the header
        v6_with(b"", 0)[:40] + bytes([0, 255]) + bytes(6),
    ],
)
def test_malformed_packets(packet: bytes) -> None:
    assert parse(view(packet)) is None


@given(st.binary(max_size=120))
def test_no_octets_make_it_fail(data: bytes) -> None:
    for version in (b"\x45", b"\x60", b"\x4f"):
        parse(view(version + data))


NET = "10.1.0.0/24"


@pytest.mark.parametrize(
    ("ts", "protocol", "port", "inside"),
    [
        (TrafficSelector.network(NET), 17, 99, True),
        (TrafficSelector.network(NET), 17, OPAQUE, True),
        (TrafficSelector.network("10.1.1.0/24"), 17, 99, False),
        (TrafficSelector.network("::/0"), 17, 99, False),
        (TrafficSelector.network(NET, protocol=6), 17, 99, False),
        (TrafficSelector.network(NET, protocol=17, start_port=90, end_port=99), 17, 99, True),
        (TrafficSelector.network(NET, protocol=17, start_port=90, end_port=98), 17, 99, False),
        (TrafficSelector.network(NET, protocol=17, start_port=90, end_port=99), 17, OPAQUE, False),
        (TrafficSelector(A4, A4, 17, 65535, 0), 17, OPAQUE, True),
        (TrafficSelector(A4, A4, 17, 65535, 0), 17, 99, False),
        (
            TrafficSelector.network(NET, protocol=1, start_port=0x0800, end_port=0x08FF),
            1,
            0x800,
            True,
        ),
    ],
)
def test_selectors(ts: TrafficSelector, protocol: int, port: int, inside: bool) -> None:
    assert covers(ts, A4, protocol, port) is inside


@given(st.binary(max_size=80))
def test_checksums_are_those_of_rfc_1071(data: bytes) -> None:
    padded = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    assert ones_sum(data) in (total, total % 65535)
    assert (checksum(data) + total) % 65535 == 0


#: RFC 6040 figure 4: rows inner, columns outer, both in the order Not-ECT, ECT(0), ECT(1), CE.
FIGURE_4 = """
Not-ECT  Not-ECT  Not-ECT  drop
ECT(0)   ECT(0)   ECT(1)   CE
ECT(1)   ECT(1)   ECT(1)   CE
CE       CE       CE       CE
"""
CODES = {"Not-ECT": 0, "ECT(0)": 2, "ECT(1)": 1, "CE": 3, "drop": ecn.DROP}


def test_rfc_6040_figure_4() -> None:
    order = ("Not-ECT", "ECT(0)", "ECT(1)", "CE")
    for inner, row in zip(order, FIGURE_4.strip().splitlines(), strict=True):
        for outer, result in zip(order, row.split(), strict=True):
            assert ecn.combine(CODES[inner], CODES[outer] | 0xB8) == CODES[result]


@given(st.integers(0, 255), st.integers(0, 3), st.booleans())
def test_the_ecn_field_is_rewritten_and_nothing_else(tos: int, new: int, v6: bool) -> None:
    packet = tcp(b"data", version=6 if v6 else 4, tos=tos)
    ecn.set_ecn(packet, new)
    assert ecn.tos_of(memoryview(packet)) == tos & 0xFC | new
    assert tcp_ok(packet)
