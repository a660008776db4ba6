"""Two userspace data planes with fixed keys: every kind of packet inside and outside, every suite,
rekeying, crashes, attacks. Behind the guard: what arrives at all was encrypted."""

import os
import signal
import socket
import struct
from dataclasses import replace

import pytest

from ipsec_gateway.ipsec import linux
from ipsec_gateway.ipsec.base import DataplaneError, PolicyAction, PolicyDirection, WorkerRestarted
from ipsec_gateway.ipsec.userspace import UserspaceBackend
from ipsec_ike.actions import UpdateSa
from ipsec_ike.config import Lifetime, Mode
from ipsec_ike.identifiers import Direction
from ipsec_ike.inputs import Acquire, Endpoint, Expire, Mapping
from ipsec_lab.esp_packets import SUITES
from ipsec_lab.esp_pair import REQID, EspGateway, EspPair, Suite
from ipsec_lab.netns import LabError
from ipsec_lab.traffic import ConstantPing, ping, ping_until, tcp_transfer

WAYS = {
    f"{'udp' if encap else 'esp'}-over-ipv{outer}": Suite(encap=encap, outer=outer)
    for encap in (True, False)
    for outer in (4, 6)
}


def hosts(pair):
    """The far host's IPv4 and IPv6 addresses."""
    return [pair.topology.b.host(0), pair.topology.b.host(1)]


def drops(gateway):
    return {k: v for k, v in gateway.backend.drops().items() if v}


def inbound(pair):
    """The counters of what b received."""
    return pair.b.do(pair.b.backend.counters())[pair.spec("b", Direction.IN).id]


def restarts(gateway):
    return len([e for e in gateway.events if isinstance(e, WorkerRestarted)])


def frames(pair):
    """A packet socket where frames leave the router for b."""
    sock = pair.topology.wan.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind(("to-b", 3))
    sock.settimeout(5)
    return sock


def esp_of(frame):
    """The ESP packet in a frame of UDP 4500 over IPv4, or None."""
    if len(frame) < 60 or frame[12:14] != b"\x08\x00" or frame[23] != 17:
        return None
    payload = frame[42:]
    return (
        payload
        if struct.unpack("!HH", frame[34:38])[1] == 4500 and payload[:4].strip(b"\0")
        else None
    )


def next_frame(wire):
    """The next frame with ESP, fit to be sent again: on a veth the UDP checksum is left open, so
    it goes without."""
    frame = bytearray(next(f for f in iter(lambda: wire.recv(65536), None) if esp_of(f)))
    frame[40:42] = bytes(2)
    return frame


@pytest.mark.parametrize("esp_pair", WAYS.values(), ids=WAYS, indirect=True)
def test_every_way_carries_both_ip_versions(esp_pair, esp_guard):
    pair = esp_pair
    for address in hosts(pair):
        ping_until(pair.topology.lan_a, address)
        assert ping(pair.topology.lan_a, address, count=5).lost == ()
        # In IPv6 both hosts have to learn the path MTU first, each by one lost packet.
        large = ping(pair.topology.lan_a, address, count=5, size=3000)
        assert set(large.lost) <= ({1, 2} if ":" in address else set())
        transfer = tcp_transfer(pair.topology.lan_a, pair.topology.lan_b, address, octets=8 << 20)
        assert transfer.intact
    counted = esp_guard.counters()
    assert (counted.esp_udp if pair.suite.encap else counted.esp) > 100
    assert (counted.esp if pair.suite.encap else counted.esp_udp) == 0
    for gateway in (pair.a, pair.b):
        assert not set(drops(gateway)) - {"out_no_policy"}, drops(gateway)


@pytest.mark.parametrize(
    "esp_pair",
    [pytest.param(Suite.named(n), id=n) for n in SUITES if n != "null-sha256"],
    indirect=True,
)
def test_every_suite(esp_pair):
    pair = esp_pair
    for address in hosts(pair):
        ping_until(pair.topology.lan_a, address)
        transfer = tcp_transfer(pair.topology.lan_a, pair.topology.lan_b, address, octets=2 << 20)
        assert transfer.intact
    assert not set(drops(pair.b)) - {"out_no_policy"}


def test_without_extended_sequence_numbers(esp_rig, esp_guard):
    with EspPair(esp_rig, Suite(esn=False, replay_window=32)):
        assert tcp_transfer(esp_rig.lan_a, esp_rig.lan_b, esp_rig.b.host(), octets=4 << 20).intact


def test_nothing_is_lost_while_keys_change(esp_pair):
    pair = esp_pair
    ping_until(pair.topology.lan_a, pair.topology.b.host())
    with ConstantPing(pair.topology.lan_a, pair.topology.b.host(), interval=0.005) as pings:
        for _ in range(20):
            pair.rekey()
            assert ping(pair.topology.lan_a, pair.topology.b.host(1), count=2).lost == ()
        result = pings.stop()
    assert result.sent > 20
    assert result.lost == ()
    assert pair.generation == 20
    assert set(pair.a.do(pair.a.backend.counters())) == {
        pair.spec("a", direction).id for direction in Direction
    }


def test_counters_are_the_same_at_both_ends(esp_pair):
    pair = esp_pair
    ping_until(pair.topology.lan_a, pair.topology.b.host())
    ping(pair.topology.lan_a, pair.topology.b.host(), count=5)
    sent = pair.a.do(pair.a.backend.counters())[pair.spec("a", Direction.OUT).id]
    received = inbound(pair)
    assert (sent.packets, sent.bytes) == (received.packets, received.bytes)
    assert sent.bytes == sent.packets * 84
    assert received.idle is not None
    assert received.idle < 5


def test_without_an_sa_nothing_passes_and_one_is_acquired(esp_pair):
    pair = esp_pair
    pair.delete(0)
    assert ping(pair.topology.lan_a, pair.topology.b.host(), count=3, wait=0.2).received == 0
    assert pair.a.backend.drops()["out_no_sa"] >= 3
    pair.a.wait_for(lambda e: isinstance(e, Acquire) and e.reqid == REQID)
    pair.add(1)
    ping_until(pair.topology.lan_a, pair.topology.b.host())


def test_discarded_and_unmatched_traffic(esp_pair):
    pair = esp_pair
    backend = pair.a.backend
    discard = [
        type(p)(id=p.id, action=PolicyAction.DISCARD, priority=1) for p in pair.policies("a")
    ]
    pair.a.do(backend.put_policies(discard, []))
    assert ping(pair.topology.lan_a, pair.topology.b.host(), count=2, wait=0.2).received == 0
    assert backend.drops()["out_discarded"] == 2
    pair.a.do(backend.put_policies([], [p.id for p in discard]))
    assert ping(pair.topology.lan_a, pair.topology.b.host(), count=2, wait=0.2).received == 0
    assert backend.drops()["out_no_policy"] >= 2
    assert all(p.id.direction is PolicyDirection.OUT for p in discard)


def test_replayed_and_forged_packets_are_refused(esp_pair):
    pair = esp_pair
    ping_until(pair.topology.lan_a, pair.topology.b.host())
    with frames(pair) as wire:
        ping(pair.topology.lan_a, pair.topology.b.host(), count=1)
        frame = next_frame(wire)
        received = inbound(pair)
        for _ in range(5):
            wire.send(frame)
        forged = bytearray(frame)
        forged[49] += 50  # a sequence number that is still to come
        wire.send(forged)
        stranger = bytearray(forged)
        stranger[42:46] = b"\x99\x99\x99\x99"
        wire.send(stranger)
    assert ping(pair.topology.lan_a, pair.topology.b.host(), count=3).lost == ()
    after = inbound(pair)
    assert after.replayed == 5
    assert after.integrity_failures == 1
    assert after.packets == received.packets + 3
    assert drops(pair.b)["unknown_spi"] == 1
    pair.b.wait_for(lambda e: getattr(e, "spi", None) == 0x99999999)


def captured(wire):
    """The ESP packets that a packet socket has seen so far."""
    found = []
    wire.setblocking(False)
    while True:
        try:
            packet = esp_of(wire.recv(65536))
        except BlockingIOError:
            return found
        if packet:
            found.append(packet)


@pytest.mark.parametrize("victim", Direction, ids=lambda d: d.value)
def test_a_killed_process_comes_back_and_repeats_nothing(esp_pair, victim):
    pair = esp_pair
    ping_until(pair.topology.lan_a, pair.topology.b.host())
    with frames(pair) as wire:
        wire.setsockopt(socket.SOL_SOCKET, linux.SO_RCVBUFFORCE, 1 << 24)
        with ConstantPing(pair.topology.lan_a, pair.topology.b.host(), interval=0.01):
            for _ in range(2):
                before = restarts(pair.a)
                os.kill(pair.a.backend.pids()[victim], signal.SIGKILL)
                pair.a.wait_for(lambda e, n=before: restarts(pair.a) > n)
                ping_until(pair.topology.lan_a, pair.topology.b.host())
                assert ping(pair.topology.lan_a, pair.topology.b.host(), count=5).lost == ()
        numbers = [packet[:8] for packet in captured(wire)]
    assert len(numbers) >= 2 * 2 * 6
    assert len(numbers) == len(set(numbers)), "a sequence number was used twice"
    assert inbound(pair).replayed == 0


def test_a_new_process_refuses_what_the_old_one_accepted(esp_pair):
    pair = esp_pair
    with frames(pair) as wire:
        ping_until(pair.topology.lan_a, pair.topology.b.host())
        frame = next_frame(wire)
        os.kill(pair.b.backend.pids()[Direction.IN], signal.SIGKILL)
        pair.b.wait_for(lambda e: isinstance(e, WorkerRestarted))
        before = inbound(pair)
        wire.send(frame)
    ping_until(pair.topology.lan_a, pair.topology.b.host())
    after = inbound(pair)
    assert after.replayed == before.replayed + 1
    assert after.packets > before.packets


def test_limits_are_reported(esp_pair):
    pair = esp_pair
    pair.add(1, soft=Lifetime(packets=4), hard=Lifetime(packets=8))
    pair.delete(0)
    ping(pair.topology.lan_a, pair.topology.b.host(), count=10, wait=0.2)
    sending, receiving = pair.spec("a", Direction.OUT).id, pair.spec("b", Direction.IN).id
    pair.a.wait_for(lambda e: e == Expire(sending, hard=False))
    pair.a.wait_for(lambda e: e == Expire(sending, hard=True))
    pair.b.wait_for(lambda e: e == Expire(receiving, hard=True))
    assert drops(pair.a)["out_expired"] == 2


def test_a_peer_behind_a_nat_that_rebinds(esp_pair, esp_guard):
    pair = esp_pair
    esp_guard.masquerade("a")
    ping(pair.topology.lan_a, pair.topology.b.host(), count=1, wait=0.2)
    arrived = pair.spec("b", Direction.IN)
    pair.b.wait_for(lambda e: isinstance(e, Mapping) and e.spi == arrived.id.spi)
    event = next(e for e in pair.b.events if isinstance(e, Mapping))
    assert event.remote.port in range(20000, 30000)
    out = pair.spec("b", Direction.OUT)
    for spec, source, destination in (
        (arrived, event.remote, arrived.destination),
        (out, out.source, event.remote),
    ):
        pair.b.do(pair.b.backend.update_sa(UpdateSa(spec.id, source, destination, True)))
    ping_until(pair.topology.lan_a, pair.topology.b.host())
    assert len([e for e in pair.b.events if isinstance(e, Mapping)]) == 1


def test_what_is_missing_or_refused_is_named(esp_pair):
    pair = esp_pair
    backend = pair.a.backend
    spec = pair.spec("a", Direction.OUT, 5)
    pair.add(5)
    with pytest.raises(DataplaneError, match=r"SA 00006061 .out. of lab/pair/lan: exists"):
        pair.a.do(backend.add_sa(spec))
    gone = pair.spec("a", Direction.OUT, 9)
    move = UpdateSa(gone.id, gone.source, gone.destination, True)
    with pytest.raises(DataplaneError, match="no such SA to update"):
        pair.a.do(backend.update_sa(move))
    elsewhere = replace(gone, source=Endpoint("192.0.2.1", 9))
    with pytest.raises(DataplaneError, match="no IPv4 socket for UDP port 9"):
        pair.a.do(backend.add_sa(elsewhere))
    transport = replace(gone, mode=Mode.TRANSPORT)
    with pytest.raises(DataplaneError, match="tunnel mode only"):
        pair.a.do(backend.add_sa(transport))
    with (
        pytest.raises(DataplaneError, match="TUN device ipsec0: Device or resource busy"),
        EspGateway(pair.topology.gw_a),
    ):
        pass
    assert UserspaceBackend().drops() == {}


def test_nothing_stays_behind(esp_rig):
    with EspPair(esp_rig) as pair:
        pids = [pid for gateway in (pair.a, pair.b) for pid in gateway.backend.pids().values()]
        assert len(pids) == 4
        assert "ipsec0" in esp_rig.gw_a.run("ip", "link")
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert "ipsec0" not in esp_rig.gw_a.run("ip", "link")
    assert ":4500" not in esp_rig.gw_a.run("ss", "-Hlun")
    assert "ipsec0" not in esp_rig.gw_a.run("ip", "route")
    with pytest.raises(LabError):
        ping_until(esp_rig.lan_a, "10.99.0.1", timeout=0.1)
