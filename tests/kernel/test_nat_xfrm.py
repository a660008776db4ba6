"""Guard, NAT exemption, MSS and routes where the kernel's SPD encrypts (``ipsec_lab.spd_rig``)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from ipsec_gateway.marks import DEFAULT
from ipsec_gateway.nat import Translation
from ipsec_gateway.routing import Route
from ipsec_gateway.steering import current
from ipsec_lab.masquerades import CASES, FLANNEL, ROUTER, Actor
from ipsec_lab.spd_rig import SpdRig, intent_mapped, intent_of, lacking, spd_rig
from ipsec_lab.steering_rig import PROTECT4, PROTECT6, reaches

REMOTE = PROTECT4.id.destination.networks[0]
#: Both sides have 10.1.0.0/24: it is 10.101.0.0/24 to them, and theirs is 10.102.0.0/24 to us.
TWIN = Translation(
    "default/twin",
    local=ip_network("10.1.0.0/24"),
    remote=ip_network("10.102.0.0/24"),
    wire_local=ip_network("10.101.0.0/24"),
    wire_remote=ip_network("10.1.0.0/24"),
)


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    if missing := lacking():
        pytest.skip(missing)


@pytest.fixture
def rig() -> Iterator[SpdRig]:
    with spd_rig() as it:
        yield it


def with_the_same_network(rig: SpdRig) -> None:
    """The far side of ``TWIN``."""
    rig.wan.ip("addr add 10.1.0.9/32 dev lo", "route add 10.101.0.0/24 via 192.0.2.1")


def source_seen(rig: SpdRig, destination: str, port: int = 9) -> str | None:
    """The source that the far side sees of a datagram from the LAN; None if none arrives."""
    with rig.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((destination, port))
        receiver.settimeout(1)
        with rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            # The same port each time: a second datagram belongs to the same connection.
            sender.bind(("10.1.0.2", 9999))
            sender.sendto(b"x", (destination, port))
        try:
            return str(receiver.recvfrom(9)[1][0])
        except TimeoutError:
            return None


def seen_from_tunnel(rig: SpdRig, port: int = 9) -> str:
    """The source that the LAN sees of a datagram of the far side."""
    with rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("10.1.0.2", port))
        receiver.settimeout(5)
        with rig.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("10.2.0.9", 7))
            sender.sendto(b"x", ("10.1.0.2", port))
        return str(receiver.recvfrom(9)[1][0])


def keeps_its_source(rig: SpdRig, port: int) -> None:
    """New connections to and from ``port``: in the tunnel as they are, others masqueraded."""
    assert source_seen(rig, "10.2.0.9", port) == "10.1.0.2"
    assert seen_from_tunnel(rig, port) == "10.2.0.9"
    assert source_seen(rig, "10.3.0.9", port) == "192.0.2.1", "all other traffic as before"
    assert rig.counter("unencrypted_out") == 0


@pytest.mark.parametrize(("actor", "tool"), CASES, ids=[f"{a.name}{t[8:]}" for a, t in CASES])
def test_protected_traffic_keeps_its_source(rig: SpdRig, actor: Actor, tool: str) -> None:
    """Their rules are inserted after ours, then ours after theirs."""
    rig.apply(intent_of(PROTECT4))
    rig.secure("10.1.0.0/16", "10.2.0.0/16")
    actor.set_up(rig.gw, tool)
    keeps_its_source(rig, 9)
    rig.run(rig.steering.unguard)
    assert source_seen(rig, "10.2.0.9", 10) == "192.0.2.1", "the rules bite without ours"
    rig.apply(intent_of(PROTECT4))
    keeps_its_source(rig, 11)
    stat = dict(line.split() for line in rig.gw.run("cat", "/proc/net/xfrm_stat").splitlines())
    assert {name for name, count in stat.items() if count != "0"} == set()


def test_without_sa_and_policy_nothing_passes_in_clear_text(rig: SpdRig) -> None:
    assert reaches(rig.lan, "10.2.0.9"), "the rig itself: clear text must pass before the guard"
    assert reaches(rig.lan, "fd00:2::9")
    rig.apply(intent_of(PROTECT4, PROTECT6))
    for address in ("10.2.0.9", "fd00:2::9"):
        assert not reaches(rig.lan, address)
        assert not reaches(rig.gw, address)
    # The first of the gateway's IPv6 packets may be sent twice; nothing else is counted.
    assert rig.counter("unencrypted_out") == 4
    assert not reaches(rig.wan, "10.1.0.2", "-I", "10.2.0.9")
    assert not reaches(rig.wan, "fd00:1::2", "-I", "fd00:2::9")
    assert rig.counter("unencrypted_in") == 2
    assert reaches(rig.lan, "10.3.0.9")
    rig.secure("10.1.0.0/16", "10.2.0.0/16")
    rig.secure("fd00:1::/64", "fd00:2::/64", spi=0x2001, version=6)
    for address in ("10.2.0.9", "fd00:2::9"):
        assert reaches(rig.lan, address, "-W", "2")
        assert reaches(rig.gw, address, "-W", "2"), "with a source that the policy covers"
    assert reaches(rig.wan, "10.1.0.2", "-I", "10.2.0.9", "-W", "2")
    rig.flush()
    assert not reaches(rig.lan, "10.2.0.9")
    assert not reaches(rig.lan, "fd00:2::9")
    assert rig.counter("unencrypted_out") == 6


def test_an_old_translation_takes_no_packet_past_the_guard(rig: SpdRig) -> None:
    """A connection from before is masqueraded by conntrack, whatever the chains say: with another
    source no policy covers it. It is dropped, not sent in clear text."""
    ROUTER.set_up(rig.gw, "iptables-nft")
    assert source_seen(rig, "10.2.0.9", 10) == "192.0.2.1"
    rig.apply(intent_of(PROTECT4), settle=False)
    rig.secure("10.1.0.0/16", "10.2.0.0/16")
    assert source_seen(rig, "10.2.0.9", 10) is None
    assert rig.counter("unencrypted_out") == 1
    rig.apply(intent_of(PROTECT4))
    assert source_seen(rig, "10.2.0.9", 10) == "10.1.0.2", "the old entry is flushed"
    assert source_seen(rig, "10.2.0.9", 11) == "10.1.0.2"


def segments(rig: SpdRig, seen: str, own: str) -> tuple[int, int]:
    """The sizes of segments of both ends of a connection from the LAN to ``seen``, which is ``own``
    at the far side; without the 12 octets of the timestamp option."""
    with rig.wan.socket() as server, rig.lan.socket() as client:
        server.bind((own, 80))
        server.listen()
        server.settimeout(5)
        client.settimeout(5)
        client.connect((seen, 80))
        ours = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        connection, _ = server.accept()
        with connection:
            theirs = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    return ours + 12, theirs + 12


def test_mss_fits_the_real_overhead(rig: SpdRig) -> None:
    # AES-GCM in IPv4: 1446 octets, for which the way back is told by hand here.
    rig.apply(intent_of(PROTECT4), {1406: (REMOTE,)})
    rig.secure("10.1.0.0/16", "10.2.0.0/16")
    assert segments(rig, "10.2.0.9", "10.2.0.9") == (1406, 1406)


def test_mss_of_what_has_another_source_in_its_tunnel(rig: SpdRig) -> None:
    rig.apply(intent_mapped(TWIN), {1300: (TWIN.wire_remote,)})
    with_the_same_network(rig)
    rig.secure("10.101.0.0/24", "10.1.0.0/24")
    assert segments(rig, "10.102.0.9", "10.1.0.9") == (1300, 1300)


def test_tunnels_of_others_are_left_alone(rig: SpdRig) -> None:
    """Beside translated ones: the outer packets of a foreign SA have no mark of ours."""
    rig.apply(intent_mapped(TWIN))
    rig.secure("10.1.0.0/16", "10.3.0.0/16", marked=False)
    assert reaches(rig.lan, "10.3.0.9", "-W", "2")
    assert rig.counter("unencrypted_out") == 0


def test_a_node_without_another_way_gets_one(rig: SpdRig) -> None:
    rig.gw.ip("route del default")
    assert not reaches(rig.lan, "10.2.0.9")
    rig.apply(intent_of(PROTECT4))
    rig.secure("10.1.0.0/16", "10.2.0.0/16")
    assert reaches(rig.lan, "10.2.0.9", "-W", "2")
    assert reaches(rig.gw, "10.2.0.9", "-W", "2")


def test_removal_leaves_nothing(rig: SpdRig) -> None:
    show = "ip rule; ip -6 rule; ip route show table all; nft list ruleset"
    pristine = rig.gw.run("sh", "-c", show)
    rig.apply(intent_of(PROTECT4, PROTECT6))
    first = rig.gw.run("sh", "-c", show)
    hinted = Route(DEFAULT.table_source, "10.2.0.0/16", "wan0", "10.1.0.1")
    assert hinted in rig.run(current).routes
    rig.apply(intent_of(PROTECT4, PROTECT6))
    assert rig.gw.run("sh", "-c", show) == first
    rig.run(rig.steering.unroute)
    rig.run(rig.steering.unguard)
    assert rig.gw.run("sh", "-c", show) == pristine
    assert not rig.run(current).routes


def test_inbound_sources_are_rewritten_without_ours(rig: SpdRig) -> None:
    """The control of the inbound half of the first test."""
    FLANNEL.set_up(rig.gw, "iptables-nft")
    assert seen_from_tunnel(rig) == "10.1.0.1"


def test_both_sides_use_the_same_network(rig: SpdRig) -> None:
    with_the_same_network(rig)
    rig.apply(intent_mapped(TWIN))
    assert not reaches(rig.lan, "10.102.0.9")
    assert rig.counter("unencrypted_out") == 1
    assert not reaches(rig.wan, "10.101.0.2", "-I", "10.1.0.9")
    assert rig.counter("unencrypted_in") == 1
    rig.secure("10.101.0.0/24", "10.1.0.0/24")
    with (
        rig.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as remote,
        rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as local,
    ):
        remote.bind(("10.1.0.9", 9))
        local.bind(("10.1.0.2", 9))
        remote.settimeout(5)
        local.settimeout(5)
        local.sendto(b"x", ("10.102.0.9", 9))
        data, peer = remote.recvfrom(9)
        assert (data, peer) == (b"x", ("10.101.0.2", 9))
        remote.sendto(b"y", peer)
        assert local.recvfrom(9) == (b"y", ("10.102.0.9", 9))
    assert reaches(rig.wan, "10.101.0.2", "-I", "10.1.0.9", "-W", "2"), "the other side begins"
    assert reaches(rig.gw, "10.102.0.9", "-W", "2"), "the gateway takes part"
    assert reaches(rig.gw, "10.1.0.2"), "our own network is still ours"
    rig.flush()
    assert not reaches(rig.lan, "10.102.0.9")
