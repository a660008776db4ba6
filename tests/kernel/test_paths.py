"""What protected packets meet on their way: links that are smaller, others' NAT, and no tunnel."""

import contextlib
import re
import socket
from collections.abc import Iterator

import pytest

from ipsec_lab.interop import CONNECTION, PEER
from ipsec_lab.kernel_rig import KernelRig
from ipsec_lab.masquerades import FLANNEL, KUBE_PROXY, NFT, TABLES, keeps_sources
from ipsec_lab.topology import Topology
from ipsec_lab.traffic import ping, ping_until

pytestmark = pytest.mark.strongswan


@contextlib.contextmanager
def smaller_link(top: Topology, *, silent: bool = False) -> Iterator[None]:
    """The link to site b carries 1300 octets; ``silent``: and the router does not say so."""
    ends = ((top.wan, "to-b"), (top.gw_b, "wan0"))
    try:
        for namespace, link in ends:
            namespace.ip(f"link set {link} mtu 1300")
        if silent:
            top.wan.nft(
                "table inet lab_silence { chain out { type filter hook output priority 0;"
                " icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }\n"
            )
        yield
    finally:
        for namespace, link in ends:
            namespace.ip(f"link set {link} mtu {top.mtu}")
        top.wan.nft("table inet lab_silence {}\ndelete table inet lab_silence\n")
        # What was learned of the smaller link is forgotten, for the next test.
        for namespace in (top.gw_a, top.lan_a, top.lan_b):
            namespace.ip("route flush cache")


def fragmented(top: Topology) -> int:
    """Answers to two pings that are too large for the smaller link and may be fragmented."""
    argv = ["ping", "-n", "-M", "dont", "-c", "2", "-i", "0.3", "-W", "10", "-s", "1372"]
    said = top.lan_a.run(*argv, top.b.host(), check=False)
    found = re.search(r"(\d) received", said)
    assert found, said
    return int(found[1])


class TestPaths:
    def test_a_smaller_path_is_told(self, rig: KernelRig) -> None:
        """DF probes: what does not fit is answered with the size that does; nothing vanishes."""
        top = rig.topology
        rig.connect("initiator", rig.documents(), rig.connection())
        ping_until(top.lan_a, top.b.host(), timeout=60)
        before = rig.guard.counters()
        # An inner packet of 1438 octets just fits into 1500 with AES-GCM; 1500 does not.
        fits = ping(top.lan_a, top.b.host(), count=2, size=1372, fragment=False, wait=10)
        assert fits.received == 2
        argv = ["ping", "-n", "-M", "do", "-c", "3", "-i", "0.5", "-W", "5", "-s", "1472"]
        told = top.lan_a.run(*argv, top.b.host(), check=False)
        assert "Frag needed" in told or "message too long" in told, told
        assert (rig.guard.counters() - before).fragments == 0

    def test_a_smaller_link_on_the_way(self, rig: KernelRig) -> None:
        """A router of the way says what fits; hosts are told, and TCP goes on at once."""
        top = rig.topology
        rig.connect("initiator", rig.documents(), rig.connection())
        ping_until(top.lan_a, top.b.host(), timeout=60)
        with smaller_link(top):
            before = rig.guard.counters()
            argv = ["ping", "-n", "-M", "do", "-c", "4", "-i", "0.5", "-W", "5", "-s", "1372"]
            told = top.lan_a.run(*argv, top.b.host(), check=False)
            assert re.search(r"Frag needed.*mtu ?= ?12\d\d", told), told
            # What fits goes through, what may be fragmented too, and TCP finds its size.
            fits = ping(top.lan_a, top.b.host(), count=2, size=1200, fragment=False, wait=10)
            assert fits.received == 2
            assert fragmented(top) == 2
            rig.exchange_traffic()
            assert (rig.guard.counters() - before).esp > 50

    def test_a_black_hole(self, rig: KernelRig) -> None:
        """Nobody says that a link is smaller: ``mtu`` of the peer keeps TCP below it, and packets
        that may be fragmented pass."""
        top = rig.topology
        with smaller_link(top, silent=True):
            rig.connect("initiator", rig.documents(mtu=1240), rig.connection())
            ping_until(top.lan_a, top.b.host(), timeout=60)
            probes = ping(top.lan_a, top.b.host(), count=2, size=1372, fragment=False, wait=3)
            assert probes.received == 0, "there is no black hole"
            assert fragmented(top) == 2
            rig.exchange_traffic()

    def test_without_a_tunnel_nothing_leaves(self, rig: KernelRig) -> None:
        """Leaks: a protected packet does not leave in clear before, without and after a tunnel."""
        top = rig.topology
        before = rig.guard.counters()
        rig.start_ours(rig.documents())  # and nobody answers
        rig.gateway.wait_condition(PEER, "Programmed")
        assert ping(top.lan_a, top.b.host(), count=3, wait=2).received == 0
        assert ping(top.gw_a, top.b.host(), count=3, wait=2, source=top.a.gateway()).received == 0
        difference = rig.guard.counters() - before
        assert (difference.clear, difference.encrypted) == (0, 0)
        connection = rig.connection()
        rig.start_theirs(connection)
        rig.wait_up(connection)
        ping_until(top.lan_a, top.b.host(), timeout=60)
        rig.start_theirs()  # it knows us no more, and has closed the tunnel
        (sa,) = rig.charon.established(CONNECTION)
        with rig.charon.vici(timeout=60) as vici:
            vici.request("terminate", {"ike-id": str(sa.unique_id)})
        rig.gateway.wait_condition(PEER, "Established", "False")
        assert ping(top.lan_a, top.b.host(), count=3, wait=2).received == 0
        rig.gateway.kill()
        assert ping(top.lan_a, top.b.host(), count=3, wait=2).received == 0
        assert (rig.guard.counters() - before).clear == 0


@pytest.mark.parametrize("order", ["before", "after"])
def test_others_masquerade_everything(rig: KernelRig, order: str) -> None:
    """kube-proxy, flannel and tables of nftables that masquerade: in the tunnel all hosts keep
    their addresses, both ways. tests/kernel/test_nat_xfrm.py has all of them, one by one."""
    top = rig.topology
    actors = [(KUBE_PROXY, NFT), (FLANNEL, NFT), (TABLES, "")]
    if order == "before":
        for actor, tool in actors:
            actor.set_up(top.gw_a, tool)
    rig.connect("initiator", rig.documents(), rig.connection())
    ping_until(top.lan_a, top.b.host(), timeout=60)
    if order == "after":
        for actor, tool in actors:
            actor.set_up(top.gw_a, tool)
        # Until then what they get hold of is dropped (test_masquerade_that_comes_later).
        rig.gateway.wait(lambda: keeps_sources(top.gw_a), "sources are kept")
    for here, there, ours, theirs in (
        (top.lan_a, top.lan_b, top.a.host(), top.b.host()),
        (top.lan_b, top.lan_a, top.b.host(), top.a.host()),
    ):
        with (
            there.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            here.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind((theirs, 9))
            receiver.settimeout(30)
            sender.sendto(b"x", (theirs, 9))
            assert receiver.recvfrom(9)[1][0] == ours
    rig.exchange_traffic()
