"""Protected traffic keeps its source behind everybody's masquerade, whoever was there first.

Each case sets up the rules that one actor on a node is known for, proves on unprotected traffic
that they bite, and then looks at what goes into the tunnel and what comes out of it.
"""

from __future__ import annotations

import socket
import sys

import pytest

from ipsec_lab.masquerades import CASES, FLANNEL, ROUTER, TABLES, Actor
from ipsec_lab.netns import missing_programs
from ipsec_lab.steering_rig import (
    PROTECT4,
    PROTECT6,
    Rig,
    addresses,
    ipv4,
    reaches,
)


def source_seen(rig: Rig, destination: str) -> str:
    """The source that ``wan`` sees of a datagram from the LAN."""
    with rig.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((destination, 9))
        receiver.settimeout(5)
        send = f"import socket;socket.socket(2,2).sendto(b'x',('{destination}',9))"
        rig.lan.run(sys.executable, "-c", send)
        return str(receiver.recvfrom(9)[1][0])


def from_tunnel(rig: Rig, source: str) -> str:
    """The source that the LAN sees of a datagram that came out of the tunnel from ``source``."""
    with rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("10.1.0.2", 9))
        receiver.settimeout(5)
        rig.inject(ipv4(source, "10.1.0.2", 17, bytes.fromhex("0007000900090000") + b"x"))
        return str(receiver.recvfrom(9)[1][0])


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(("actor", "tool"), CASES, ids=[f"{a.name}{t[8:]}" for a, t in CASES])
def test_protected_traffic_keeps_its_source(rig: Rig, actor: Actor, tool: str, order: str) -> None:
    if order == "before":
        actor.set_up(rig.gw, tool)
        assert source_seen(rig, "10.2.0.9") == "192.0.2.1", "the rules bite without ours"
    rig.apply(PROTECT4)
    if order == "after":
        actor.set_up(rig.gw, tool)
    connect = "import socket;s=socket.socket();s.settimeout(0.2);s.connect_ex(('10.2.0.9',80))"
    rig.lan.run(sys.executable, "-c", connect)
    rig.lan.run(
        sys.executable, "-c", "import socket;socket.socket(2,2).sendto(b'x',('10.2.0.9',10))"
    )
    assert not reaches(rig.lan, "10.2.0.9")
    rig.gw.run(sys.executable, "-c", connect)
    seen = [(p[9], addresses(p)[0]) for p in rig.tunnelled()]
    assert set(seen) == {(6, "10.1.0.2"), (17, "10.1.0.2"), (1, "10.1.0.2"), (6, "10.1.0.1")}
    assert from_tunnel(rig, "10.2.0.9") == "10.2.0.9"
    # All other traffic is masqueraded as before.
    assert source_seen(rig, "10.3.0.9") == "192.0.2.1"
    if actor in (FLANNEL, ROUTER, TABLES):
        assert from_tunnel(rig, "10.3.0.9") == "10.1.0.1"


def test_ipv6_too(rig: Rig) -> None:
    rig.apply(PROTECT6)
    if missing_programs("ip6tables-legacy"):
        pytest.skip("ip6tables-legacy not installed: apt-get install iptables")
    rig.gw.run("ip6tables-legacy", "-w", "-t", "nat", "-I", "POSTROUTING", "-j", "MASQUERADE")
    assert not reaches(rig.lan, "fd00:2::9")
    assert {addresses(p)[0] for p in rig.tunnelled()} == {"fd00:1::2"}


def test_our_own_ike_keeps_its_source(rig: Rig) -> None:
    """Several addresses on the interface, masquerade on it: the first one must not take over."""
    rig.gw.ip("addr add 192.0.2.7/24 dev wan0")
    rig.gw.nft("table ip r { chain post { type nat hook postrouting priority 100; masquerade; }; }")

    def seen(port: int) -> str:
        with (
            rig.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            rig.gw.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("192.0.2.2", port))
            receiver.settimeout(5)
            sender.bind(("192.0.2.7", port))
            sender.sendto(b"ike", ("192.0.2.2", port))
            return str(receiver.recvfrom(9)[1][0])

    assert seen(501) == "192.0.2.1", "the rule bites"
    rig.apply(PROTECT4)
    assert seen(500) == "192.0.2.7"
    assert seen(4500) == "192.0.2.7"
    assert seen(502) == "192.0.2.1"
    with (
        rig.wan.socket(socket.AF_INET, socket.SOCK_RAW, 50) as receiver,
        rig.gw.socket(socket.AF_INET, socket.SOCK_RAW, 50) as sender,
    ):
        receiver.settimeout(5)
        sender.bind(("192.0.2.7", 0))
        sender.sendto(bytes(16), ("192.0.2.2", 0))
        assert receiver.recvfrom(64)[1][0] == "192.0.2.7"
