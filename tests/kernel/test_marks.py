"""Where the kernel encrypts: source NAT, untracked traffic, services for tunnels only; and our
gateway with marks, metrics and ways that change, strongSwan's kernel back end at the other site."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from ipsec_gateway.nat import source_nat
from ipsec_gateway.protected import ProtectedService
from ipsec_lab.kernel_rig import KernelRig
from ipsec_lab.masquerades import ROUTER
from ipsec_lab.netns import Namespace
from ipsec_lab.spd_rig import SpdRig, intent_mapped, intent_of, lacking, spd_rig
from ipsec_lab.steering_rig import PROTECT4, reaches
from ipsec_lab.traffic import ConstantPing, ping, ping_until

OWN = "10.200.0.5"


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    if missing := lacking():
        pytest.skip(missing)


@pytest.fixture
def spd() -> Iterator[SpdRig]:
    with spd_rig() as it:
        it.wan.ip(f"route add {OWN}/32 via 192.0.2.1")
        yield it


def asked(near: Namespace, far: Namespace, port: int, address: str = "10.2.0.9") -> str | None:
    """The source of a datagram as the far side sees it, whose answer came back; None: lost."""
    with (
        far.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        near.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind((address, port))
        server.settimeout(3)
        client.settimeout(5)
        client.sendto(b"x", (address, port))
        try:
            _, source = server.recvfrom(9)
        except TimeoutError:
            return None
        server.sendto(b"y", source)
        assert client.recvfrom(9) == (b"y", (address, port))
        return str(source[0])


def refused(near: Namespace, port: int, address: str = "10.2.0.9") -> bool:
    """Whether the far side's ICMP error about a datagram finds the socket that sent it."""
    with near.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((address, port))
        client.send(b"x")
        try:
            client.recv(9)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return False


def test_source_nat_of_a_list_of_networks(spd: SpdRig) -> None:
    ROUTER.set_up(spd.gw, "iptables-nft")
    lists = [ip_network("10.1.0.0/24"), ip_network("10.7.0.0/16")]
    spd.apply(
        intent_mapped(
            *source_nat("default/client", OWN, [ip_network("10.2.0.0/16")], sources=lists)
        )
    )
    assert asked(spd.lan, spd.wan, 7000) is None, "no SA, no clear text"
    assert spd.counter("unencrypted_out") == 1
    spd.secure(f"{OWN}/32", "10.2.0.0/16")
    assert asked(spd.lan, spd.wan, 7001) == OWN
    assert refused(spd.lan, 7002)
    assert reaches(spd.lan, "10.2.0.9", "-W", "2")
    assert spd.counter("unencrypted_out") == 1


def test_source_nat_by_connection_mark(spd: SpdRig) -> None:
    spd.gw.nft(
        "table ip choose { chain c { type filter hook prerouting priority -150;"
        " udp dport 7000-7009 ct mark set 0x100; }; }"
    )
    spd.apply(
        intent_mapped(
            *source_nat("default/client", OWN, [ip_network("0.0.0.0/0")], mark=(0x100, 0x100))
        )
    )
    spd.secure(f"{OWN}/32", "0.0.0.0/0")
    assert asked(spd.lan, spd.wan, 7000) == OWN
    assert refused(spd.lan, 7001)
    assert asked(spd.lan, spd.wan, 7010) == "10.1.0.2", "another connection is nobody's"
    assert spd.counter("unencrypted_out") == 0


@pytest.mark.parametrize("everything", [False, True], ids=["Pod", "All"])
def test_untracked_traffic(spd: SpdRig, everything: bool) -> None:
    spd.gw.nft(
        "table inet look { counter through {}; counter own {};"
        " chain f { type filter hook forward priority 0;"
        " ip protocol icmp ct state untracked counter name through; };"
        " chain o { type filter hook output priority 0;"
        " ip protocol icmp ct state untracked counter name own; }; }"
    )
    spd.apply(replace(intent_of(PROTECT4), untracked={PROTECT4.id: everything}))
    assert not reaches(spd.lan, "10.2.0.9"), "guarded all the same"
    assert spd.counter("unencrypted_out") == 1
    spd.secure("10.1.0.0/16", "10.2.0.0/16")
    assert reaches(spd.lan, "10.2.0.9", "-W", "2")
    assert reaches(spd.wan, "10.1.0.2", "-I", "10.2.0.9", "-W", "2")
    assert reaches(spd.gw, "10.2.0.9", "-W", "2")
    assert reaches(spd.lan, "10.3.0.9"), "tracked as ever"
    words = spd.gw.run("nft", "list", "counters", "table", "inet", "look").split()
    counted = [int(words[i + 1]) for i, word in enumerate(words) if word == "packets"]
    # One request in vain, then two requests and two replies; the gateway's own if all is meant.
    assert counted == [5, 1 if everything else 0]
    assert spd.counter("unencrypted_out") == 1


def test_services_for_tunnels_only(spd: SpdRig) -> None:
    services = (ProtectedService(17, (7000, 7005), (ip_network("10.1.0.0/16"),), "default/hq"),)
    spd.apply(replace(intent_of(PROTECT4), services=services))
    spd.secure("10.1.0.0/16", "10.2.0.0/16")
    with (
        spd.gw.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        spd.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
        spd.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        spd.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as inner,
    ):
        server.bind(("10.1.0.1", 7000))
        inner.bind(("10.1.0.2", 7001))
        peer.bind(("10.2.0.9", 7))
        stranger.bind(("192.0.2.2", 7))
        for sock in (server, inner):
            sock.settimeout(5)
        for address in (("10.1.0.1", 7000), ("10.1.0.2", 7001)):
            stranger.sendto(b"no", address)
            peer.sendto(b"yes", address)
        assert server.recv(9) == b"yes"
        assert inner.recv(9) == b"yes"
    assert spd.counter("unencrypted_in") == 2


# Whole gateways.

SECOND = "203.0.113.1"


@pytest.fixture
def second(rig: KernelRig) -> Iterator[KernelRig]:
    """With a second uplink at our site, and what the first one was put back in the end."""
    gw, wan, top = rig.topology.gw_a, rig.topology.wan, rig.topology
    gw.ip(
        f"link add wan1 type veth peer name to-a1 netns {wan.name}",
        "link set wan1 up",
        f"addr add {SECOND}/24 dev wan1",
    )
    wan.ip("link set to-a1 up", "addr add 203.0.113.254/24 dev to-a1")
    gw.run("ethtool", "-K", "wan1", "sg", "off")
    # Answers come in where the main table has no way back, or another one.
    gw.sysctl({"ipv4.conf.wan1.rp_filter": 0})
    rig.guard.allow(SECOND)
    try:
        yield rig
    finally:
        gw.ip("link del wan1", f"route replace default via {top.wan_neighbour('a')} dev wan0")


def roaming(rig: KernelRig, **spec: object) -> list[dict[str, object]]:
    """Our documents with whatever address the routes give us."""
    documents = rig.documents(**spec)
    for each in documents:
        if each["kind"] == "IPsecPeer":
            del each["spec"]["localAddress"]
    return documents


@pytest.mark.strongswan
def test_ike_and_esp_follow_their_routing_mark(second: KernelRig) -> None:
    rig, top = second, second.topology
    top.gw_a.ip(
        "route del default",
        "route add default via 203.0.113.254 dev wan1 table 100",
        "rule add pref 1000 fwmark 0x7/0xf lookup 100",
    )
    rig.connect(
        "initiator",
        roaming(rig, routing={"routingMark": 7}),
        rig.connection(remote_addrs=("%any",)),
    )
    rig.exchange_traffic()
    out = [each for each in rig.states() if each.source == SECOND]
    assert out, rig.states()
    assert "output-mark 0x47/0xffffffff" in out[0].text or "output-mark 0x47" in out[0].text


@pytest.mark.strongswan
def test_a_peer_that_comes_gets_its_routes(rig: KernelRig) -> None:
    documents = rig.documents(passive=True, routing={"metric": 77})
    (peer,) = (each for each in documents if each["kind"] == "IPsecPeer")
    del peer["spec"]["address"]
    rig.connect("responder", documents, rig.connection())
    rig.gateway.wait(
        lambda: "metric 77" in rig.topology.gw_a.run("ip", "route", "show", "table", "4501"),
        "routes",
    )
    shown = rig.topology.gw_a.run("ip", "route", "show", "table", "4501")
    assert "10.2.0.0/24 via 192.0.2.254 dev wan0" in shown
    assert "src 10.1.0.1" in shown
    # Without a source address of its own, the gateway is in its LAN all the same.
    assert ping(rig.topology.gw_a, rig.topology.b.host(), count=3, wait=5).received == 3


@pytest.mark.strongswan
def test_a_tunnel_moves_with_the_default_route(
    second: KernelRig, record_property: Callable[[str, object], None]
) -> None:
    rig, top = second, second.topology
    rig.connect("initiator", roaming(rig), rig.connection(remote_addrs=("%any",)))
    ping_until(top.lan_a, top.b.host(), timeout=60)
    with ConstantPing(top.lan_a, top.b.host(), interval=0.2) as constant:
        top.gw_a.ip("route replace default via 203.0.113.254 dev wan1")
        rig.gateway.wait(
            lambda: (
                rig.gateway.status("IPsecPeer", "west").get("localAddress", "").startswith(SECOND)
            ),
            "moved",
            timeout=20,
        )
        ping_until(top.lan_a, top.b.host(), timeout=60)
        result = constant.stop()
    # What was under way through the old SAs when charon was told of their end.
    record_property("measured", f"{len(result.lost)} of {result.sent} pings lost")
    assert ping(top.lan_a, top.b.host(), count=3, wait=5).received == 3
