"""Overlapping networks mapped 1:1, source NAT into a tunnel, and traffic that is not tracked."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_network

import pytest

from ipsec_gateway.intent import Intent
from ipsec_gateway.ipsec.base import PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.nat import Translation, source_nat, wire_selectors
from ipsec_lab.masquerades import ROUTER
from ipsec_lab.steering_rig import (
    PROTECT4,
    Rig,
    addresses,
    checksum,
    echo_request,
    ipv4,
    reaches,
    received,
    spec,
    state,
)

#: Both sides use 10.1.0.0/24. We are 10.101.0.0/24 to them, they are 10.102.0.0/24 to us.
BOTH = Translation(
    "default/twin",
    local=ip_network("10.1.0.0/24"),
    remote=ip_network("10.102.0.0/24"),
    wire_local=ip_network("10.101.0.0/24"),
    wire_remote=ip_network("10.1.0.0/24"),
)


def translated(*translations: Translation, others: tuple[PolicySpec, ...] = ()) -> Intent:
    specs = tuple(spec(str(t.wire_local), str(t.wire_remote)) for t in translations)
    return Intent(
        policies=(*specs, *others),
        pairs=tuple((p.id.source.networks[0], p.id.destination.networks[0]) for p in others),
        translations=translations,
        translated=frozenset(
            PolicyId(PolicyDirection.OUT, *wire_selectors(t)) for t in translations
        ),
    )


def udp(source: str, destination: str, sport: int, dport: int, data: bytes = b"x") -> bytes:
    head = b"".join(n.to_bytes(2, "big") for n in (sport, dport, 8 + len(data), 0))
    return ipv4(source, destination, 17, head + data)


def port_unreachable(packet: bytes) -> bytes:
    """The ICMP error about a packet."""
    error = b"\x03\x03" + bytes(6) + packet[:28]
    return error[:2] + checksum(error).to_bytes(2, "big") + error[4:]


def test_both_sides_use_the_same_network(rig: Rig) -> None:
    pristine = state(rig)
    rig.apply_intent(translated(BOTH))
    with rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.bind(("10.1.0.2", 7000))
        client.connect(("10.102.0.9", 9))
        client.send(b"x")
        (packet,) = rig.tunnelled()
        assert addresses(packet) == ("10.101.0.2", "10.1.0.9")
        rig.inject(udp("10.1.0.9", "10.101.0.2", 9, 7000, b"yes"))
        assert client.recv(9) == b"yes", "the answer, from the address that was asked"
        # An ICMP error about the packet as it was on the wire finds the socket.
        rig.inject(ipv4("10.1.0.9", "10.101.0.2", 1, port_unreachable(packet)))
        with pytest.raises(ConnectionRefusedError):
            client.recv(9)
    # The other side begins.
    with rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.settimeout(5)
        server.bind(("10.1.0.2", 9))
        rig.inject(udp("10.1.0.77", "10.101.0.2", 5, 9))
        data, peer = server.recvfrom(9)
        assert (data, peer) == (b"x", ("10.102.0.77", 5))
        server.sendto(b"y", peer)
        assert [addresses(p) for p in rig.tunnelled()] == [("10.101.0.2", "10.1.0.77")]
    before = received(rig.lan)
    rig.inject(echo_request("10.1.0.8", "10.101.0.2"))
    assert [addresses(p) for p in rig.tunnelled()] == [("10.101.0.2", "10.1.0.8")], "the reply"
    assert received(rig.lan) == before + 1
    # The gateway itself, which takes part under its own address; and our own network is still ours.
    assert not reaches(rig.gw, "10.102.0.5")
    assert [addresses(p) for p in rig.tunnelled()] == [("10.101.0.1", "10.1.0.5")]
    assert reaches(rig.gw, "10.1.0.2")
    assert reaches(rig.lan, "10.1.0.1")
    assert rig.tunnelled() == []
    listing = rig.gw.run("nft", "list", "table", "inet", "kube_ipsec")
    assert 'comment "default/twin"' in listing
    rig.run(rig.steering.unroute)
    rig.run(rig.steering.unguard)
    assert state(rig) == pristine


def test_a_mapping_leaks_nothing(rig: Rig) -> None:
    rig.wan.ip("addr add 10.102.0.9/32 dev lo", "addr add 10.1.0.9/32 dev lo")
    assert reaches(rig.lan, "10.102.0.9"), "the rig itself"
    rig.apply_intent(translated(BOTH))
    # Clear text from the other side's network to what we are for it.
    rig.wan.ip("route add 10.101.0.0/24 via 192.0.2.1")
    assert not reaches(rig.wan, "10.101.0.2", "-I", "10.1.0.9")
    assert rig.counter("unencrypted_in") == 1
    os.kill(rig.tun.pid, 9)
    rig.tun.wait()
    rig.gw.run("ip", "route", "flush", "table", "4500")
    assert not reaches(rig.lan, "10.102.0.9")


def test_a_mapping_of_our_side_alone_beside_other_tunnels(rig: Rig) -> None:
    ours = Translation(
        "default/one",
        local=ip_network("10.1.0.0/24"),
        remote=ip_network("10.3.0.0/16"),
        wire_local=ip_network("10.101.0.0/24"),
        wire_remote=ip_network("10.3.0.0/16"),
    )
    rig.apply_intent(translated(ours, others=(PROTECT4,)))
    assert not reaches(rig.lan, "10.3.0.9")
    assert not reaches(rig.lan, "10.2.0.9")
    assert [addresses(p) for p in rig.tunnelled()] == [
        ("10.101.0.2", "10.3.0.9"),
        ("10.1.0.2", "10.2.0.9"),
    ]


def test_source_nat_behind_one_address(rig: Rig) -> None:
    """What an address from ModeConfig needs: many sources, one address, answers find back."""
    ROUTER.set_up(rig.gw, "iptables-nft")
    rig.apply_intent(
        translated(
            *source_nat(
                "default/client",
                "10.200.0.5",
                [ip_network("10.2.0.0/16")],
                sources=[ip_network("10.1.0.0/24")],
            )
        )
    )
    with rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.bind(("10.1.0.2", 7000))
        client.connect(("10.2.0.9", 9))
        client.send(b"x")
        (packet,) = rig.tunnelled()
        assert addresses(packet) == ("10.200.0.5", "10.2.0.9")
        rig.inject(udp("10.2.0.9", "10.200.0.5", 9, int.from_bytes(packet[20:22], "big"), b"yes"))
        assert client.recvfrom(9) == (b"yes", ("10.2.0.9", 9))
        rig.inject(ipv4("10.2.0.9", "10.200.0.5", 1, port_unreachable(packet)))
        with pytest.raises(ConnectionRefusedError):
            client.recv(9)


def test_source_nat_by_connection_mark(rig: Rig) -> None:
    rig.gw.nft(
        "table ip choose { chain c { type filter hook prerouting priority -150;"
        " udp dport 10 ct mark set 0x100; }; }"
    )
    rig.apply_intent(
        translated(
            *source_nat(
                "default/client", "10.200.0.5", [ip_network("0.0.0.0/0")], mark=(0x100, 0x100)
            )
        )
    )
    with (
        rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        rig.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as clear,
    ):
        clear.settimeout(5)
        clear.bind(("10.2.0.9", 9))
        client.sendto(b"x", ("10.2.0.9", 10))
        client.sendto(b"x", ("10.2.0.9", 9))
        assert clear.recvfrom(9)[1][0] == "10.1.0.2", "another connection is nobody's"
    assert [addresses(p) for p in rig.tunnelled()] == [("10.200.0.5", "10.2.0.9")]


@pytest.mark.parametrize("everything", [False, True])
def test_untracked_traffic(rig: Rig, everything: bool) -> None:
    rig.gw.nft(
        "table inet look { counter in {}; counter out {};"
        " chain f { type filter hook forward priority 0;"
        " ip protocol icmp ct state untracked counter name in; };"
        " chain o { type filter hook output priority 0;"
        " ip protocol icmp ct state untracked counter name out; }; }"
    )
    intent = Intent(
        policies=(PROTECT4,),
        pairs=((ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")),),
        untracked={PROTECT4.id: everything},
    )
    rig.apply_intent(intent)
    assert not reaches(rig.lan, "10.2.0.9")
    rig.inject(echo_request("10.2.0.9", "10.1.0.2"))
    assert not reaches(rig.gw, "10.2.0.9")
    assert reaches(rig.lan, "10.3.0.9")
    sources = sorted(addresses(p)[0] for p in rig.tunnelled())
    assert sources == ["10.1.0.1", "10.1.0.2", "10.1.0.2"]
    counters = rig.gw.run("nft", "list", "counters", "table", "inet", "look").split()
    numbers = [int(counters[i + 1]) for i, w in enumerate(counters) if w == "packets"]
    # Request, injected request and its reply; the gateway's own only if everything is meant.
    assert numbers == [3, 1 if everything else 0]
