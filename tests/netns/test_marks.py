"""Marks, tables and metrics of peers, numbers of the gateway, and what happens when ways change."""

from __future__ import annotations

import json
import socket
from ipaddress import ip_network

import pytest

from ipsec_gateway.intent import Intent
from ipsec_gateway.protected import ProtectedService
from ipsec_lab.sites import SECRET, Sites
from ipsec_lab.steering_rig import PROTECT4, Rig, ipv4
from ipsec_lab.traffic import ConstantPing, ping, ping_until

#: A second link of gateway a to the router, as the first but 203.0.113.0/24.
SECOND = "203.0.113.1"


def second_uplink(sites: Sites) -> None:
    top = sites.topology
    top.gw_a.ip(
        f"link add wan1 type veth peer name to-a1 netns {top.wan.name}",
        "link set wan1 up",
        f"addr add {SECOND}/24 dev wan1",
    )
    top.wan.ip("link set to-a1 up", "addr add 203.0.113.254/24 dev to-a1")
    sites.guard.allow(SECOND)


@pytest.mark.parametrize("encap", [True, False])
def test_ike_and_esp_follow_their_routing_mark(sites: Sites, encap: bool) -> None:
    """The main table leads nowhere; a rule of the node's own has the way, by the mark."""
    top = sites.topology
    second_uplink(sites)
    top.gw_a.ip(
        "route add default via 203.0.113.254 dev wan1 table 100",
        "rule add pref 1000 fwmark 0x7/0xf lookup 100",
    )
    top.gw_a.nft(
        "table inet closed { chain o { type filter hook postrouting priority 300;"
        " oifname wan0 meta l4proto { udp, esp } drop; }; }"
    )
    for peer in (sites.peer_b, sites.peer_a):
        peer["spec"]["profile"] = {"forceEncapsulation": encap}
    sites.peer_b["spec"]["routing"] = {"routingMark": 7}
    sites.peer_a["spec"]["address"] = SECOND
    sites.start()
    ping_until(top.lan_a, top.b.host())
    assert ping(top.lan_b, top.a.host(), count=3).received == 3
    assert sites.guard.counters().clear == 0


def test_a_routing_mark_changes_without_loss(sites: Sites) -> None:
    top = sites.topology
    top.gw_a.nft(
        "table inet look { counter seen {};"
        " chain o { type filter hook postrouting priority 300;"
        " udp sport 4500 meta mark & 0xf == 5 counter name seen; }; }"
    )
    sites.start()
    ping_until(top.lan_a, top.b.host())
    with ConstantPing(top.lan_a, top.b.host()) as constant:
        sites.a.apply(SECRET, sites.peer("b", routing={"routingMark": 5}))
        sites.a.wait(
            lambda: (
                "packets 0" not in top.gw_a.run("nft", "list", "counters", "table", "inet", "look")
            ),
            "packets with the mark",
        )
        ping_until(top.lan_a, top.b.host())
        result = constant.stop()
    assert result.lost == ()


def test_numbers_are_options_and_old_ones_go(sites: Sites) -> None:
    top = sites.topology
    pristine = top.gw_a.run("ip", "rule")
    sites.start("--mark-bits", "0x0e", "--tables", "300")
    ping_until(top.lan_a, top.b.host())
    assert ping(top.gw_a, top.b.host(), count=2).received == 2
    rules = top.gw_a.run("ip", "rule")
    assert "fwmark 0x2/0x2 lookup 300" in rules
    assert "fwmark 0/0xe iif lo lookup 301" in rules
    assert "0x70" not in top.gw_a.run("nft", "list", "table", "inet", "kube_ipsec")
    # Killed, so that everything stays, and started with other numbers.
    sites.a.kill()
    sites.a.start()
    sites.a.wait_condition("b", timeout=40)
    ping_until(top.lan_a, top.b.host())
    rules = top.gw_a.run("ip", "rule")
    assert "lookup 300" not in rules
    assert "fwmark 0x10/0x10 lookup 4500" in rules
    assert not top.gw_a.run("sh", "-c", "ip route show table 300 2>/dev/null || true").strip()
    assert sites.a.stop() == 0
    assert top.gw_a.run("ip", "rule") == pristine


def test_a_table_of_somebody_else_is_not_taken(sites: Sites) -> None:
    top = sites.topology
    sites.start()
    top.gw_a.ip("rule add pref 90 to 10.9.0.0/16 lookup 4500 protocol 80")
    sites.a.apply(SECRET, sites.peer("b", mtu=1300))
    said = sites.a.wait_condition("b", "Programmed", "False")
    assert "priority 90 of protocol 80 (Calico) looks in table 4500" in said["message"]
    assert "--tables" in said["message"]
    top.gw_a.ip("rule del pref 90")
    sites.a.wait_condition("b", timeout=20)


def test_only_connections_with_the_mark_enter_the_tunnel(sites: Sites) -> None:
    top = sites.topology
    own = "10.200.0.5"
    # What the node's own rules choose: TCP port 7000 here.
    top.gw_a.nft(
        "table ip choose { chain c { type filter hook prerouting priority -150;"
        " ip protocol icmp icmp type echo-request @th,32,16 7 ct mark set 0x3;"
        " udp dport 7000 ct mark set 0x3; }; }"
    )
    sites.guard.remove()  # what is not chosen goes in clear text here
    sites.peer_b["spec"] |= {
        "nat": {"mode": "SNAT", "snatAddress": own},
        "routing": {"connectionMark": 3},
        "localSubnets": ["10.1.0.0/24"],
        "remoteSubnets": ["10.2.0.0/24"],
    }
    sites.peer_a["spec"] |= {"remoteSubnets": [f"{own}/32"], "localSubnets": ["10.2.0.0/24"]}
    sites.start()
    with (
        top.lan_b.socket(socket.AF_INET, socket.SOCK_DGRAM) as chosen,
        top.lan_b.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        top.lan_a.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        for sock, port in ((chosen, 7000), (other, 7001)):
            sock.bind((top.b.host(), port))
            sock.settimeout(5)
        client.settimeout(5)
        client.sendto(b"x", (top.b.host(), 7000))
        data, seen = chosen.recvfrom(9)
        assert (data, seen[0]) == (b"x", own)
        chosen.sendto(b"y", seen)
        assert client.recv(9) == b"y"
        client.sendto(b"x", (top.b.host(), 7001))
        assert other.recvfrom(9)[1][0] == top.a.host()
    # The port of a host that nobody listens on: the ICMP error comes back through the tunnel.
    with top.lan_a.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((top.b.host(), 7000))
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(9)


def test_a_metric_is_on_the_routes(sites: Sites) -> None:
    top = sites.topology
    sites.peer_b["spec"]["routing"] = {"metric": 77}
    sites.start()
    shown = json.loads(top.gw_a.run("ip", "-j", "route", "show", "table", "4500"))
    metrics = {r["dst"]: r.get("metric") for r in shown if "dev" in r}
    assert metrics == {"10.2.0.0/24": 77}
    ping_until(top.lan_a, top.b.host())
    sites.a.apply(SECRET, sites.peer("b"))
    sites.a.wait(
        lambda: "metric 77" not in top.gw_a.run("ip", "route", "show", "table", "4500"), "gone"
    )
    assert ping(top.lan_a, top.b.host(), count=3).received == 3


def test_a_bad_mapping_leaves_nothing_open(sites: Sites) -> None:
    """The mapping is smaller than the network: there is no tunnel, and no clear text either."""
    top = sites.topology
    assert not sites.answers("10.2.0.130")
    seen = sites.guard.counters().clear
    assert seen, "the rig itself: it would go in clear text"
    sites.a.apply(
        SECRET,
        sites.peer(
            "b",
            localSubnets=["10.1.0.0/24"],
            remoteSubnets=["10.2.0.0/24"],
            subnetMapping=[{"remote": "10.2.0.0/25", "mapped": "10.102.0.0/25"}],
        ),
    )
    sites.a.start()
    sites.a.wait_condition("b", "Programmed", "False")
    assert not sites.answers("10.102.0.2"), "the peer's network as we know it"
    assert not sites.answers("10.2.0.130"), "what is not mapped"
    assert sites.guard.counters().clear == seen
    assert ping(top.lan_a, top.a.gateway(), count=1).received == 1


def test_a_tunnel_moves_with_the_default_route(sites: Sites) -> None:
    top = sites.topology
    second_uplink(sites)
    sites.peer_a["spec"]["address"] = "0.0.0.0/0"
    sites.start()
    ping_until(top.lan_a, top.b.host())
    with ConstantPing(top.lan_a, top.b.host()) as constant:
        top.gw_a.ip("route replace default via 203.0.113.254 dev wan1")
        sites.a.wait(
            lambda: sites.a.status("IPsecPeer", "b").get("localAddress", "").startswith(SECOND),
            "moved",
            timeout=20,
        )
        ping_until(top.lan_a, top.b.host())
        result = constant.stop()
    assert result.lost == ()


def test_a_tunnel_moves_when_its_address_vanishes(sites: Sites) -> None:
    top = sites.topology
    second_uplink(sites)
    top.gw_a.ip("route add default via 203.0.113.254 dev wan1 metric 100")
    sites.peer_a["spec"]["address"] = "0.0.0.0/0"
    sites.start()
    ping_until(top.lan_a, top.b.host())
    top.gw_a.ip(f"addr del {top.a.wan[0]} dev wan0")
    sites.a.wait(
        lambda: sites.a.status("IPsecPeer", "b").get("localAddress", "").startswith(SECOND),
        "moved",
        timeout=30,
    )
    sites.a.wait_condition("b", timeout=20)
    ping_until(top.lan_a, top.b.host())
    assert ping(top.lan_b, top.a.host(), count=3).received == 3


def test_services_for_tunnels_only(rig: Rig) -> None:
    local = (ip_network("10.1.0.0/16"),)
    rig.apply_intent(
        Intent(
            policies=(PROTECT4,),
            pairs=((PROTECT4.id.source.networks[0], PROTECT4.id.destination.networks[0]),),
            services=(
                ProtectedService(17, (1701, 1702), local, "default/hq"),
                ProtectedService(47, None, local, "default/hq"),
            ),
        )
    )
    with (
        rig.gw.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        rig.gw.socket(socket.AF_INET, socket.SOCK_DGRAM) as another,
        rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as inner,
        rig.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
        rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as neighbour,
    ):
        server.bind(("", 1701))
        another.bind(("", 1703))
        inner.bind(("10.1.0.2", 1702))
        for sock in (server, another, inner):
            sock.settimeout(5)
        for sender, address in ((stranger, "192.0.2.1"), (neighbour, "10.1.0.1")):
            sender.sendto(b"no", (address, 1701))
            sender.sendto(b"yes", (address, 1703))
            assert another.recv(9) == b"yes"
        stranger.sendto(b"no", ("10.1.0.2", 1702))
        with rig.wan.socket(socket.AF_INET, socket.SOCK_RAW, 47) as gre:
            gre.sendto(b"no", ("192.0.2.1", 0))
        assert rig.counter("unencrypted_in") == 4
        rig.inject(ipv4("10.2.0.9", "10.1.0.1", 17, bytes.fromhex("000706a5000b0000") + b"in!"))
        assert server.recvfrom(9) == (b"in!", ("10.2.0.9", 7))
        rig.inject(ipv4("10.2.0.9", "10.1.0.2", 17, bytes.fromhex("000706a6000b0000") + b"in!"))
        assert inner.recvfrom(9) == (b"in!", ("10.2.0.9", 7))
        with rig.gw.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.sendto(b"own", ("10.1.0.1", 1701))
            assert server.recv(9) == b"own", "the node itself needs no tunnel to itself"
    listing = rig.gw.run("nft", "list", "table", "inet", "kube_ipsec")
    assert 'comment "only out of an SA: default/hq"' in listing
