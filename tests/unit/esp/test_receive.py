"""From the wire to the TUN device (``receive``, ``coalesce``), with sockets in place of both."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipsec_gateway.ipsec.base import IkeFromDataplane
from ipsec_gateway.ipsec.cipher import EspCipher
from ipsec_gateway.ipsec.drops import Drop
from ipsec_gateway.ipsec.esp import encapsulate
from ipsec_gateway.ipsec.linux import UDP_SEGMENT
from ipsec_gateway.ipsec.shared import Word
from ipsec_gateway.ipsec.tun import VNET, VNET_NONE
from ipsec_ike.actions import UpdateSa
from ipsec_ike.config import Lifetime
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Endpoint, Expire, Mapping, UnknownSpi
from ipsec_ike.numbers import Protocol
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.esp_packets import SUITES, make_spec, tcp, tcp_ok, tso, udp4, udp6
from ipsec_lab.esp_wire import Wire, open_wire

CIPHER = EspCipher(make_spec())
MSS = 1000


def esp(inner: bytes, seq: int, *, spi: int = 0x1000, header: int = 4) -> bytes:
    return bytes(encapsulate(CIPHER, spi, seq, inner, header))


def burst(wire: Wire, packets: list[bytes], tos: int = 0) -> None:
    """Send equal packets (the last may be shorter) in one go, so that they arrive joined."""
    ancillary = [(17, UDP_SEGMENT, struct.pack("=H", len(packets[0])))]
    if tos:
        ancillary.append((0, 1, struct.pack("=i", tos)))
    wire.sock_a.sendmsg([b"".join(packets)], ancillary, 0, wire.sock_b.getsockname())


def stream(count: int, size: int = MSS, **changes: Any) -> list[bytes]:
    """TCP packets that follow each other."""
    return [
        bytes(tcp(bytes([n]) * size, seq=1000 + n * size, ident=500 + n, **changes))
        for n in range(count)
    ]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("esn", [True, False], ids=["esn", "noesn"])
@pytest.mark.parametrize("vector", [True, False], ids=["matrix", "plain"])
def test_everything_arrives(suite: str, esn: bool, vector: bool) -> None:
    with open_wire(vector=vector) as wire:
        wire.connect(suite, esn=esn)
        payload = np.random.default_rng(3).bytes(30 * 1386 + 7)
        header, packet = tso(payload, 1386)
        header6, packet6 = tso(payload, 1366, version=6)
        sent = [udp4(b"a"), udp6(b"b"), udp4(b"c" * 1000)]
        for one in sent:
            wire.send(one)
        wire.send(packet, header)
        wire.send(packet6, header6)
        wire.carry()
        found = wire.received()
        assert [p for _, p in found[:3]] == sent
        data = {4: b"", 6: b""}
        for vnet, inner in found[3:]:
            kind = VNET.unpack(vnet)[1]
            assert kind or tcp_ok(inner)
            version = inner[0] >> 4
            data[version] += inner[52 if version == 4 else 72 :]
        assert data == {4: payload, 6: payload}
        assert (len(found) < 15) is vector
        assert not wire.drops()
        for slot in (0, 1):
            base = wire.state.base(slot)
            counted = wire.state.words[base + Word.PACKETS]
            assert counted == 3 + 31 + 31


@pytest.mark.parametrize("version", [4, 6])
def test_a_stream_is_joined_as_the_kernel_would(wire: Wire, version: int) -> None:
    wire.connect()
    packets = stream(20, version=version)
    burst(wire, [esp(p, n, header=4 if version == 4 else 41) for n, p in enumerate(packets, 1)])
    wire.into.drain_udp(wire.sock_b)
    ((vnet, joined),) = wire.received()
    l4 = 20 if version == 4 else 40
    assert VNET.unpack(vnet) == (1, 1 if version == 4 else 4, l4 + 32, MSS, l4, 16)
    whole = tcp(b"".join(p[l4 + 32 :] for p in packets), seq=1000, ident=500, version=version)
    # The checksum field holds the sum of the pseudo-header, for the device to finish.
    _, expected = tso(b"".join(p[l4 + 32 :] for p in packets), MSS, seq=1000, version=version)
    assert joined == expected
    assert len(joined) == len(whole)


@pytest.mark.parametrize("version", [4, 6])
def test_two_bursts_are_joined_up_to_what_a_packet_can_hold(wire: Wire, version: int) -> None:
    wire.connect()
    packets = stream(90, 1200, version=version)
    header = 4 if version == 4 else 41
    sealed = [esp(p, n, header=header) for n, p in enumerate(packets, 1)]
    for start in (0, 45):
        burst(wire, sealed[start : start + 45])
    wire.into.drain_udp(wire.sock_b)
    found = wire.packets()
    start = 52 if version == 4 else 72
    assert b"".join(p[start:] for p in found) == b"".join(p[start:] for p in packets)
    assert len(found) == 2
    assert max(map(len, found)) <= 65535


def spoil(index: int, place: int, value: int) -> Callable[[list[bytes]], None]:
    """A changed header octet with checksums that fit it."""

    def change(packets: list[bytes]) -> None:
        changed = bytearray(packets[index])
        before = struct.unpack_from("!H", changed, place & ~1)[0]
        changed[place] = value
        after = struct.unpack_from("!H", changed, place & ~1)[0]
        where = 10 if place < 20 else 36
        old = struct.unpack_from("!H", changed, where)[0]
        total = ((~old & 0xFFFF) + (~before & 0xFFFF) + after) % 65535
        struct.pack_into("!H", changed, where, ~total & 0xFFFF)
        packets[index] = bytes(changed)

    return change


def wrong_sum(packets: list[bytes]) -> None:
    changed = bytearray(packets[7])
    changed[60] ^= 1
    packets[7] = bytes(changed)


def swap(packets: list[bytes]) -> None:
    packets[5], packets[6] = packets[6], packets[5]


@pytest.mark.parametrize(
    ("change", "lengths"),
    [
        (spoil(7, 8, 63), [7, 1, 12]),  # TTL
        (spoil(7, 1, 0x20), [7, 1, 12]),  # TOS
        (spoil(7, 6, 0), [7, 1, 12]),  # DF
        (spoil(7, 16, 11), [7, 1, 12]),  # destination
        (spoil(7, 20, 1), [7, 1, 12]),  # source port
        (spoil(7, 31, 200), [7, 1, 12]),  # acknowledgement
        (spoil(7, 35, 9), [7, 1, 12]),  # window
        (spoil(7, 47, 9), [7, 1, 12]),  # timestamp
        (spoil(7, 33, 0x18), [8, 12]),  # PSH ends a run
        (spoil(7, 33, 0x11), [8, 12]),  # FIN
        (spoil(7, 33, 0x14), [7, 1, 12]),  # RST
        (spoil(7, 33, 0x12), [7, 1, 12]),  # SYN
        (spoil(7, 33, 0x90), [7, 1, 12]),  # CWR
        (spoil(7, 33, 0x30), [7, 1, 12]),  # URG
        (wrong_sum, [7, 1, 12]),
        (swap, [5, 1, 1, 13]),
    ],
)
def test_what_differs_is_not_joined(
    wire: Wire, change: Callable[[list[bytes]], None], lengths: list[int]
) -> None:
    everything = (TrafficSelector.network("0.0.0.0/0"),)
    wire.connect(remote_ts=everything, local_ts=everything)
    packets = stream(20)
    change(packets)
    burst(wire, [esp(p, n) for n, p in enumerate(packets, 1)])
    wire.into.drain_udp(wire.sock_b)
    found = wire.received()
    assert [(len(p) - 52) // MSS for _, p in found] == lengths
    assert b"".join(p[52:] for _, p in found) == b"".join(p[52:] for p in packets)
    for vnet, inner in found:
        if len(inner) == 52 + MSS:
            assert vnet == VNET_NONE
            assert inner in packets, "single packets are given as they came"


def test_replays_are_refused(wire: Wire) -> None:
    wire.connect()
    one, two = esp(udp4(b"1"), 1), esp(udp4(b"2"), 2)
    for packet in (two, one, one, two, two):
        wire.inject(packet)
    wire.into.drain_udp(wire.sock_b)
    assert wire.packets() == [udp4(b"2"), udp4(b"1")]
    assert wire.drops() == {Drop.REPLAYED: 3}
    assert wire.state.words[wire.state.base(1) + Word.REPLAYED] == 3


def test_a_replayed_burst_is_refused_but_for_what_is_new(wire: Wire) -> None:
    wire.connect()
    packets = [esp(p, n) for n, p in enumerate(stream(20), 1)]
    burst(wire, packets[:15])
    wire.into.drain_udp(wire.sock_b)
    assert len(wire.packets()) == 1
    burst(wire, packets)
    wire.into.drain_udp(wire.sock_b)
    assert len(wire.packets()) == 5
    assert wire.drops() == {Drop.REPLAYED: 15}


def test_a_burst_with_losses_and_one_out_of_order(wire: Wire) -> None:
    wire.connect()
    numbers = [1, 2, 3, 5, 6, 7, 8, 9, 12, 13]
    burst(wire, [esp(p, n) for n, p in zip(numbers, stream(10), strict=True)])
    wire.into.drain_udp(wire.sock_b)
    assert len(wire.packets()) == 1
    burst(
        wire, [esp(p, n) for n, p in zip([4, 10, 11, 14, 15, 16, 17, 18], stream(8), strict=True)]
    )
    wire.into.drain_udp(wire.sock_b)
    assert len(wire.packets()) == 8
    burst(wire, [esp(p, n) for n, p in enumerate(stream(18), 1)])
    wire.into.drain_udp(wire.sock_b)
    assert wire.drops() == {Drop.REPLAYED: 18}


def test_the_number_goes_on_beyond_32_bits(wire: Wire) -> None:
    wire.connect()
    start = 2**32 - 12
    wire.into.delete_sa(wire.spec(direction=Direction.IN).id)
    wire.state.words[wire.state.base(1)] = start - 1
    wire.into.add_sa(wire.spec(direction=Direction.IN), 1)
    burst(wire, [esp(p, n) for n, p in enumerate(stream(10), start)])
    wire.into.drain_udp(wire.sock_b)
    burst(wire, [esp(p, n) for n, p in enumerate(stream(10), start + 10)])  # crosses
    wire.into.drain_udp(wire.sock_b)
    burst(wire, [esp(p, n) for n, p in enumerate(stream(10), start + 20)])
    wire.into.drain_udp(wire.sock_b)
    assert sum((len(p) - 52) // MSS for p in wire.packets()) == 30
    assert not wire.drops()
    assert wire.state.words[wire.state.base(1)] == start + 29


@pytest.mark.parametrize("count", [1, 20])
def test_tampered_packets_are_refused_and_nothing_else(wire: Wire, count: int) -> None:
    wire.connect()
    packets = [esp(p, n) for n, p in enumerate(stream(count), 1)]
    bad = bytearray(packets[count // 2])
    bad[40] ^= 1
    good = packets[count // 2]
    packets[count // 2] = bytes(bad)
    burst(wire, packets) if count > 1 else wire.inject(packets[0])
    wire.into.drain_udp(wire.sock_b)
    assert len(wire.packets()) == count - 1
    assert wire.drops() == {Drop.INTEGRITY: 1}
    assert wire.state.words[wire.state.base(1) + Word.INTEGRITY] == 1
    wire.inject(good)  # the window did not move over it
    wire.into.drain_udp(wire.sock_b)
    assert len(wire.packets()) == 1


def test_a_forged_high_number_does_not_move_the_window(wire: Wire) -> None:
    wire.connect()
    forged = bytearray(esp(udp4(), 5000))
    forged[-1] ^= 1
    wire.inject(bytes(forged))
    wire.inject(esp(udp4(), 1))
    wire.into.drain_udp(wire.sock_b)
    assert wire.packets() == [udp4()]


def test_a_new_process_refuses_what_an_earlier_one_accepted(wire: Wire) -> None:
    wire.connect()
    packets = [esp(p, n) for n, p in enumerate(stream(20), 1)]
    burst(wire, packets)
    wire.into.drain_udp(wire.sock_b)
    assert len(wire.packets()) == 1
    wire.new_receiver()
    wire.into.add_sa(wire.spec(direction=Direction.IN), 1)
    burst(wire, packets)
    wire.inject(packets[3])
    wire.into.drain_udp(wire.sock_b)
    assert not wire.packets()
    wire.inject(esp(udp4(), 21))
    wire.into.drain_udp(wire.sock_b)
    assert wire.packets() == [udp4()]


def test_the_mark_is_published_before_a_packet_is_delivered(wire: Wire) -> None:
    wire.connect()
    marks = []
    real = wire.into._write
    base = wire.state.base(1)

    def write(parts: object) -> None:
        marks.append(wire.state.words[base])
        real(parts)  # type: ignore[arg-type]

    wire.into._write = write  # type: ignore[method-assign]
    wire.inject(esp(udp4(), 1))
    wire.into.drain_udp(wire.sock_b)
    burst(wire, [esp(p, n) for n, p in enumerate(stream(20), 2)])
    wire.into.drain_udp(wire.sock_b)
    assert marks == [1, 21]


def test_inner_packets_outside_the_selectors_are_refused(wire: Wire) -> None:
    wire.connect()
    wire.inject(esp(udp4(src="10.9.0.2"), 1))
    wire.inject(esp(udp4(dst="10.9.0.2"), 2))
    strangers = stream(10, source="10.9.0.2")
    burst(wire, [esp(p, n) for n, p in enumerate(strangers, 3)])
    wire.into.drain_udp(wire.sock_b)
    assert not wire.received()
    assert wire.drops() == {Drop.SELECTORS: 12}


@pytest.mark.parametrize(
    ("inner", "header", "reason"),
    [
        (b"", 59, Drop.DUMMY),
        (b"x" * 50, 59, Drop.DUMMY),
        (b"x" * 50, 4, Drop.INNER_MALFORMED),
        (udp6(), 4, Drop.INNER_MALFORMED),
        (udp4(), 41, Drop.INNER_MALFORMED),
        (udp4()[:40], 4, Drop.INNER_MALFORMED),
    ],
)
@pytest.mark.parametrize("count", [1, 12])
def test_odd_contents(wire: Wire, inner: bytes, header: int, reason: Drop, count: int) -> None:
    wire.connect()
    packets = [esp(inner, n, header=header) for n in range(1, count + 1)]
    burst(wire, packets) if count > 1 else wire.inject(packets[0])
    wire.into.drain_udp(wire.sock_b)
    assert wire.drops() == {reason: count}
    assert not wire.received()


def test_traffic_flow_padding_is_removed(wire: Wire) -> None:
    wire.connect()
    wire.inject(esp(udp4() + bytes(100), 1))
    padded = [bytes(p) + bytes(20) for p in stream(12)]
    burst(wire, [esp(p, n) for n, p in enumerate(padded, 2)])
    wire.into.drain_udp(wire.sock_b)
    assert wire.packets() == [udp4(), *stream(12)]


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize(
    ("inner", "outer", "result"),
    [(2, 3, 3), (2, 1, 1), (1, 3, 3), (3, 0, 3), (0, 1, 0), (0, 3, None)],
)
def test_ecn_is_combined(
    wire: Wire, count: int, inner: int, outer: int, result: int | None
) -> None:
    wire.connect()
    packets = [esp(p, n) for n, p in enumerate(stream(count, tos=0xB8 | inner), 1)]
    burst(wire, packets, tos=0x20 | outer)
    wire.into.drain_udp(wire.sock_b)
    if result is None:
        assert wire.drops() == {Drop.ECN: count}
        return
    ((vnet, packet),) = wire.received()
    assert packet[1] == 0xB8 | result
    assert struct.unpack_from("!H", packet, 2)[0] == len(packet)
    assert sum(struct.unpack("!10H", packet[:20])) % 65535 == 0
    assert vnet == VNET_NONE or count > 1


def test_each_read_is_judged_by_what_came_with_it(wire: Wire) -> None:
    wire.connect()
    seq = 1
    for count, outer in ((12, 0), (12, 3), (12, 0), (1, 3), (1, 0), (1, 3), (12, 3)):
        packets = [esp(p, n) for n, p in enumerate(stream(count, tos=2), seq)]
        seq += count
        burst(wire, packets, tos=outer)
        wire.into.drain_udp(wire.sock_b)
        ((_, packet),) = wire.received()
        assert packet[1] == (3 if outer == 3 else 2)
    for size in (30, 31, 30):
        wire.inject(esp(udp4(b"x" * size), seq))
        wire.into.drain_udp(wire.sock_b)
        seq += 1
        assert wire.packets() == [udp4(b"x" * size)]


def test_two_sas_in_one_burst(wire: Wire) -> None:
    wire.connect()
    wire.into.add_sa(
        wire.spec(direction=Direction.IN, id=SaId(Direction.IN, Protocol.ESP, 0x1001, "127.0.0.1")),
        2,
    )
    packets = [esp(p, n, spi=0x1000 + (4 <= n < 9)) for n, p in enumerate(stream(14), 1)]
    burst(wire, packets)
    wire.into.drain_udp(wire.sock_b)
    assert len(wire.packets()) == 14
    counted = [wire.state.words[wire.state.base(slot) + Word.PACKETS] for slot in (1, 2)]
    assert counted == [9, 5]


def test_unknown_spis_are_reported_sparingly(wire: Wire) -> None:
    wire.connect()
    for _ in range(3):
        wire.inject(esp(udp4(), 1, spi=0x99))
    for spi in range(100):
        wire.inject(esp(udp4(), 1, spi=0x5000 + spi))
    for _ in range(8):
        wire.into.drain_udp(wire.sock_b)
    sender = Endpoint(*wire.sock_a.getsockname())
    assert wire.reported[0] == UnknownSpi(0x99, sender)
    assert len(wire.reported) == 10
    assert len(set(wire.reported)) == 10
    assert wire.drops() == {Drop.UNKNOWN_SPI: 103}


def test_a_new_address_of_the_peer_is_reported_once_authentic(wire: Wire) -> None:
    elsewhere = Endpoint("192.0.2.9", 777)
    wire.into.add_sa(wire.spec(direction=Direction.IN, source=elsewhere), 1)
    sender = Endpoint(*wire.sock_a.getsockname())
    forged = bytearray(esp(udp4(), 1))
    forged[-1] ^= 1
    wire.inject(bytes(forged))
    wire.into.drain_udp(wire.sock_b)
    assert not wire.reported
    for seq in (2, 3):
        wire.inject(esp(udp4(), seq))
    wire.inject(esp(udp4(), 1))  # late: says nothing about where the peer is now
    wire.into.drain_udp(wire.sock_b)
    assert wire.reported == [Mapping(0x1000, sender)]
    spec = wire.spec(direction=Direction.IN)
    wire.into.update_sa(UpdateSa(spec.id, sender, spec.destination, True))
    burst(wire, [esp(p, n) for n, p in enumerate(stream(10), 4)])
    wire.into.drain_udp(wire.sock_b)
    assert wire.reported == [Mapping(0x1000, sender)]
    assert len(wire.packets()) == 4


def test_ike_in_a_burst_is_handed_over(wire: Wire) -> None:
    wire.connect()
    packets = [esp(p, n) for n, p in enumerate(stream(12), 1)]
    ike = bytes(4) + b"i" * (len(packets[0]) - 4)
    burst(wire, [*packets[:6], ike, *packets[6:], b"\xff"])
    wire.into.drain_udp(wire.sock_b)
    (event,) = wire.reported
    assert isinstance(event, IkeFromDataplane)
    assert event.data == ike[4:]
    assert event.remote == Endpoint(*wire.sock_a.getsockname())
    assert event.local.port == wire.sock_b.getsockname()[1]
    assert len(wire.packets()) == 12
    assert not wire.drops()


def test_esp_from_an_ike_socket(wire: Wire) -> None:
    wire.connect()
    wire.into.deliver(esp(udp4(), 1), Endpoint(*wire.sock_a.getsockname()))
    assert wire.packets() == [udp4()]
    wire.into.deliver(b"short", Endpoint("192.0.2.1", 1))
    assert wire.drops() == {Drop.TOO_SHORT: 1}


def test_limits_end_an_sa(wire: Wire) -> None:
    wire.connect(soft=Lifetime(packets=5), hard=Lifetime(packets=12))
    burst(wire, [esp(p, n) for n, p in enumerate(stream(12), 1)])
    wire.into.drain_udp(wire.sock_b)
    wire.inject(esp(udp4(), 13))
    wire.into.drain_udp(wire.sock_b)
    sa = wire.spec(direction=Direction.IN).id
    assert wire.reported == [Expire(sa, hard=False), Expire(sa, hard=True)]
    assert wire.drops() == {Drop.EXPIRED: 1}


def test_a_device_that_is_gone_is_counted(wire: Wire) -> None:
    wire.connect()
    wire.inner_b.close()
    wire.inject(esp(udp4(), 1))
    burst(wire, [esp(p, n) for n, p in enumerate(stream(12), 2)])
    wire.into.drain_udp(wire.sock_b)
    assert wire.drops() == {Drop.DEVICE: 13}


@given(st.lists(st.binary(max_size=150), max_size=8), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_datagram_makes_it_fail(wire: Wire, datagrams: list[bytes], known: bool) -> None:
    if not wire.into._by_spi:
        wire.connect()
    for data in datagrams:
        wire.inject((b"\x00\x00\x10\x00" if known else b"") + data)
    if datagrams and datagrams[0]:
        burst(wire, [datagrams[0]] * 20)
    wire.into.drain_udp(wire.sock_b)
    assert not wire.received()
