"""From the TUN device to the wire (``transmit``), with sockets in place of both."""

import struct
import time
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest

from ipsec_gateway.ipsec.base import DataplaneError, PolicyAction
from ipsec_gateway.ipsec.cipher import EspCipher
from ipsec_gateway.ipsec.drops import Drop
from ipsec_gateway.ipsec.esp import strip, unseal
from ipsec_gateway.ipsec.tun import VNET, VNET_NONE
from ipsec_ike.actions import UpdateSa
from ipsec_ike.config import Lifetime
from ipsec_ike.inputs import Acquire, Endpoint, Expire
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.esp_packets import NETS_A, NETS_B, make_spec, policy, tcp, tcp_ok, tso, udp4, udp6
from ipsec_lab.esp_wire import Wire, open_wire


def opened(wire: Wire, suite: str = "gcm16-128") -> list[tuple[int, bytes]]:
    """(sequence number, inner packet) of what is on the wire; no receive offload wanted."""
    cipher = EspCipher(make_spec(suite))
    found = []
    for packet in wire.captured():
        seq = struct.unpack_from("!I", packet, 4)[0]
        found.append((seq, bytes(strip(unseal(cipher, memoryview(packet), seq))[1])))
    return found


def test_packets_are_encrypted_in_order() -> None:
    with open_wire(gro=False) as wire:
        wire.connect()
        sent = [udp4(bytes([n]) * size) for n, size in enumerate([30, 30, 30, 5, 1400, 1400, 0])]
        sent.append(udp6(b"six"))
        for packet in sent:
            wire.send(packet)
        wire.out.drain()
        assert opened(wire) == list(enumerate(sent, 1))
        assert not wire.drops()
        assert not wire.sent


def test_equal_packets_leave_in_one_send(wire: Wire) -> None:
    wire.connect()
    for n in range(5):
        wire.send(udp4(bytes([n]) * 100))
    wire.out.drain()
    assert len(wire.captured()) == 1, "receive offload shows what was one send"


def test_a_checksum_left_to_the_device_is_made() -> None:
    with open_wire(gro=False) as wire:
        wire.connect()
        header, packet = tso(b"only one segment", 1400)
        flags, _, length, _, start, offset = VNET.unpack(header)
        wire.send(packet, VNET.pack(flags, 0, length, 0, start, offset))
        wire.out.drain()
        ((_, inner),) = opened(wire)
        assert tcp_ok(inner)
        assert inner == bytes(tcp(b"only one segment"))


@pytest.mark.parametrize("vector", [True, False], ids=["matrix", "plain"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("count", "rest"), [(47, 0), (47, 11), (9, 1), (3, 5), (100, 3)])
def test_large_packets(vector: bool, version: int, count: int, rest: int) -> None:
    mss = 1386 if count < 90 else 600
    payload = np.random.default_rng(1).bytes(min(count * mss + rest, 65400))
    with open_wire(gro=False, vector=vector) as wire:
        wire.connect()
        header, packet = tso(payload, mss, version=version, flags=0x18)
        wire.send(udp4())
        wire.send(packet, header)
        wire.send(udp4())
        wire.out.drain()
        found = opened(wire)
        assert [seq for seq, _ in found] == list(range(1, len(found) + 1))
        inner = [p for _, p in found]
        assert inner[0] == inner[-1] == udp4()
        assert all(map(tcp_ok, inner[1:-1]))
        start = 72 if version == 4 else 92
        start -= 20
        assert b"".join(p[start:] for p in inner[1:-1]) == payload
        counted = wire.state.words[wire.state.base(0) : wire.state.base(0) + 3].tolist()
        assert counted[1:] == [sum(map(len, inner)), len(inner)]


def test_without_a_policy_or_an_sa_nothing_leaves(wire: Wire) -> None:
    wire.send(udp4())
    wire.out.drain()
    assert wire.drops() == {Drop.OUT_NO_POLICY: 1}
    wire.out.put_policies([policy(NETS_A[0], NETS_B[0], action=PolicyAction.DISCARD)], [])
    wire.send(udp4())
    wire.out.drain()
    assert wire.drops()[Drop.OUT_DISCARDED] == 1
    assert not wire.captured()


def test_an_sa_is_acquired_once_and_the_packet_waits_for_it() -> None:
    with open_wire(gro=False) as wire:
        wire.out.put_policies([policy(NETS_A[0], NETS_B[0])], [])
        for n in range(5):
            wire.send(udp4(bytes([n])))
        wire.out.drain()
        assert not wire.captured()
        local, remote = (ip_address(a).packed for a in ("10.1.0.2", "10.2.0.2"))
        assert wire.sent == [
            Acquire(
                7,
                TrafficSelector(local, local, 17, 1111, 1111),
                TrafficSelector(remote, remote, 17, 2222, 2222),
            )
        ]
        assert wire.drops() == {Drop.OUT_NO_SA: 5}
        wire.out.add_sa(wire.spec(), 0)
        assert opened(wire) == [(1, udp4(b"\x04"))], "the newest was kept"


def test_what_waits_goes_with_its_policy(wire: Wire) -> None:
    entry = policy(NETS_A[0], NETS_B[0])
    wire.out.put_policies([entry], [])
    wire.send(udp4())
    wire.out.drain()
    wire.out.put_policies([], [entry.id])
    wire.out.add_sa(wire.spec(), 0)
    assert not wire.captured()


def test_nobody_waits_for_an_old_packet(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.out.put_policies([policy(NETS_A[0], NETS_B[0])], [])
    wire.send(udp4())
    wire.out.drain()
    later = time.monotonic() + 11
    monkeypatch.setattr("ipsec_gateway.ipsec.transmit.time.monotonic", lambda: later)
    wire.out.add_sa(wire.spec(), 0)
    assert not wire.captured()


def test_a_new_sa_takes_over_and_the_old_one_goes(wire: Wire) -> None:
    wire.connect()
    new = wire.spec(id=replace(wire.spec().id, spi=0x2000))
    wire.out.add_sa(new, 2)
    wire.send(udp4())
    wire.out.drain()
    wire.out.delete_sa(wire.spec().id)
    wire.out.delete_sa(wire.spec().id)
    wire.send(udp4())
    wire.out.drain()
    assert [p[:8].hex() for p in wire.captured()] == ["0000200000000001", "0000200000000002"]


def test_an_sa_added_twice_goes_on_counting(wire: Wire) -> None:
    wire.connect()
    wire.send(udp4())
    wire.out.drain()
    wire.out.add_sa(wire.spec(), 0)
    wire.send(udp4())
    wire.out.drain()
    assert [p[7] for p in wire.captured()] == [1, 2]


def test_a_new_process_never_repeats_a_number(wire: Wire) -> None:
    wire.connect()
    numbers = []
    for _ in range(3):
        for _ in range(2):
            wire.send(udp4())
            wire.out.drain()
        header, packet = tso(bytes(20 * 1000), 1000)
        wire.send(packet, header)
        wire.out.drain()
        for datagram in wire.captured():
            size = 16 + 1056 + 16 if len(datagram) > 2000 else len(datagram)
            numbers += [
                struct.unpack_from("!I", datagram, start + 4)[0]
                for start in range(0, len(datagram), size)
            ]
        wire.new_transmitter()
        wire.connect()
    assert len(numbers) == 3 * 22
    assert numbers == sorted(set(numbers))


def test_a_moved_sa_sends_to_its_new_address(wire: Wire) -> None:
    wire.connect()
    spec = wire.spec()
    with open_wire() as other:
        there = Endpoint(*other.sock_b.getsockname())
        wire.out.update_sa(UpdateSa(spec.id, spec.source, there, True))
        wire.send(udp4())
        wire.out.drain()
        assert len(other.captured()) == 1
    assert not wire.captured()


def test_the_dscp_and_ecn_of_the_inner_packet_are_copied(wire: Wire) -> None:
    wire.connect()
    for packet in (udp4(tos=0xB9), udp4(tos=0), udp6(tos=0x2B)):
        wire.send(packet)
    wire.out.drain()
    found = []
    for _ in range(3):
        _, ancillary, _, _ = wire.sock_b.recvmsg(2048, 256)
        found += [data[0] for level, kind, data in ancillary if (level, kind) == (0, 1)]
    assert found == [0xB9, 0, 0x2B]


def test_limits_end_an_sa(wire: Wire) -> None:
    wire.connect(soft=Lifetime(packets=2), hard=Lifetime(packets=3))
    for _ in range(5):
        wire.send(udp4())
    wire.out.drain()
    assert sum(len(p) for p in wire.captured()) == 3 * (16 + 64 + 16)
    sa = wire.spec().id
    assert wire.sent == [Expire(sa, hard=False), Expire(sa, hard=True)]
    assert wire.drops() == {Drop.OUT_EXPIRED: 2}


@pytest.mark.parametrize(
    ("header", "packet"),
    [
        (VNET_NONE, b""),
        (VNET_NONE, b"\x00" * 40),
        (VNET_NONE, udp4()[:30]),
        (VNET.pack(1, 1, 0, 0, 20, 16), bytes(tcp(b"x" * 100))),
        (VNET.pack(1, 1, 52, 10, 65000, 16), bytes(tcp(b"x" * 100))),
    ],
)
def test_malformed_packets_are_counted(wire: Wire, header: bytes, packet: bytes) -> None:
    wire.connect()
    wire.send(packet, header)
    wire.out.drain()
    assert wire.drops() == {Drop.OUT_MALFORMED: 1}


def test_a_packet_with_odd_checksum_offsets_is_sent_as_it_is() -> None:
    with open_wire(gro=False) as wire:
        wire.connect()
        wire.send(udp4(), VNET.pack(1, 0, 0, 0, 60000, 60000))
        wire.out.drain()
        assert [p for _, p in opened(wire)] == [udp4()]


def test_refusals_name_what_is_missing(wire: Wire) -> None:
    with pytest.raises(DataplaneError, match="no IPv4 socket for UDP port 9"):
        wire.out.add_sa(wire.spec(source=Endpoint("127.0.0.1", 9)), 0)
    with pytest.raises(DataplaneError, match="no IPv4 socket for ESP"):
        wire.out.add_sa(wire.spec(encap=False), 0)
    with pytest.raises(DataplaneError, match="no IPv6 socket"):
        wire.out.add_sa(wire.spec(destination=Endpoint("::1", 4500)), 0)


def test_what_the_kernel_refuses_to_send_is_counted(wire: Wire) -> None:
    wire.connect(source=Endpoint("192.0.2.77", wire.sock_a.getsockname()[1]))
    for _ in range(3):
        wire.send(udp4())
    wire.out.drain()
    assert wire.drops() == {Drop.OUT_SEND_FAILED: 3}
