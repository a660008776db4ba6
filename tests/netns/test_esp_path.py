"""What a tunnel does to and learns from the path: MTU, DSCP, ECN (RFC 4301 8, RFC 6040)."""

import json

import pytest

from ipsec_gateway.ipsec.mtu import inner_mtu
from ipsec_ike.identifiers import Direction
from ipsec_lab.esp_pair import EspPair, Suite
from ipsec_lab.topology import Topology
from ipsec_lab.traffic import ping, ping_until, tcp_transfer


@pytest.fixture
def esp_rig():
    """A fresh one for each test: hosts remember path MTUs for minutes."""
    with Topology() as topology:
        yield topology


CASES = [
    pytest.param(
        Suite.named(name, encap=encap, outer=outer),
        id=f"{name}-{(encap and 'udp') or 'esp'}{outer}",
    )
    for name, encap, outer in (
        ("gcm16-128", True, 4),
        ("gcm16-128", False, 6),
        ("cbc-sha256", True, 6),
        ("cbc-sha512", False, 4),
    )
]


def device_mtu(gateway):
    return json.loads(gateway.namespace.run("ip", "-j", "link", "show", "ipsec0"))[0]["mtu"]


def sees_mtu(pair, address, size):
    """Whether the far LAN's host answers a ping whose packet has ``size`` octets and DF."""
    header = 48 if ":" in address else 28
    result = ping(
        pair.topology.lan_a, address, count=1, size=size - header, wait=1.0, fragment=False
    )
    return result.received == 1


@pytest.mark.parametrize("esp_pair", CASES, indirect=True)
def test_the_largest_packet_fits_the_path_exactly(esp_pair, esp_guard):
    pair = esp_pair
    mtu = inner_mtu(1500, pair.spec("a", Direction.OUT))
    assert device_mtu(pair.a) == device_mtu(pair.b) == mtu == pair.a.backend.mtu
    for address in (pair.topology.b.host(0), pair.topology.b.host(1)):
        ping_until(pair.topology.lan_a, address)
        assert sees_mtu(pair, address, mtu)
        assert not sees_mtu(pair, address, mtu + 1)
    assert esp_guard.counters().fragments == 0


@pytest.mark.parametrize("inner", [0, 1], ids=["ipv4", "ipv6"])
def test_hosts_are_told_when_a_packet_is_too_big(esp_pair, inner):
    pair = esp_pair
    address = pair.topology.b.host(inner)
    ping_until(pair.topology.lan_a, address)
    assert not sees_mtu(pair, address, 1500)
    told = pair.topology.lan_a.run("ip", "route", "get", address)
    assert f"mtu {pair.a.backend.mtu}" in told
    assert tcp_transfer(pair.topology.lan_a, pair.topology.lan_b, address, octets=4 << 20).intact


@pytest.mark.parametrize(
    "esp_pair",
    [
        pytest.param(Suite(encap=e, outer=o), id=f"{(e and 'udp') or 'esp'}{o}")
        for e in (1, 0)
        for o in (4, 6)
    ],
    indirect=True,
)
def test_a_narrower_path_is_learned_and_nothing_is_lost(esp_pair, esp_guard):
    pair = esp_pair
    address = pair.topology.b.host()
    mtu = pair.a.backend.mtu
    ping_until(pair.topology.lan_a, address)
    pair.topology.wan.ip("link set dev to-b mtu 1400")
    pair.topology.gw_b.ip("link set dev wan0 mtu 1400")
    # The first large packet makes the router complain; what follows fits or is fragmented.
    ping(pair.topology.lan_a, address, count=3, size=mtu - 28, wait=0.3)
    assert tcp_transfer(pair.topology.lan_a, pair.topology.lan_b, address, octets=4 << 20).intact
    assert device_mtu(pair.a) == inner_mtu(1400, pair.spec("a", Direction.OUT))
    assert sees_mtu(pair, address, pair.a.backend.mtu)
    assert esp_guard.counters().icmp_error == 0 or pair.a.backend.mtu < mtu


def test_below_the_least_mtu_of_ipv6_packets_are_fragmented_outside(esp_rig, esp_guard):
    esp_rig.gw_a.ip("link set dev wan0 mtu 1300")
    esp_rig.wan.ip("link set dev to-a mtu 1300")
    with EspPair(esp_rig, Suite.named("cbc-sha512")) as pair:
        assert device_mtu(pair.a) == 1280
        for address in (esp_rig.b.host(0), esp_rig.b.host(1)):
            ping_until(esp_rig.lan_a, address)
            sees_mtu(pair, address, 1280)  # b learns from the router, by one lost answer
            assert sees_mtu(pair, address, 1280)
            assert tcp_transfer(esp_rig.lan_a, esp_rig.lan_b, address, octets=1 << 20).intact
        assert pair.a.backend.drops()["out_send_failed"] == 0
    assert esp_guard.counters().fragments > 0


def test_a_configured_mtu_stays(esp_rig, esp_guard):
    with EspPair(esp_rig, mtu=1300) as pair:
        assert device_mtu(pair.a) == pair.a.backend.mtu == 1300


COUNTER = """
table inet esp_marks {
  counter seen {}
  chain forward {
    type filter hook forward priority 10; policy accept;
    %s
  }
}
"""


def counted(namespace, script):
    """Load a table with a counter; returns what reads it."""
    namespace.nft(script)
    return lambda: int(
        namespace.run("nft", "list", "counter", "inet", "esp_marks", "seen")
        .split("packets ")[1]
        .split()[0]
    )


@pytest.mark.parametrize("inner", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("tos", [0xB8, 0x02, 0x29])
def test_dscp_and_ecn_are_copied_outside(esp_pair, inner, tos):
    pair = esp_pair
    address = pair.topology.b.host(inner)
    ping_until(pair.topology.lan_a, address)
    match = f"oifname to-b udp dport 4500 ip dscp {tos >> 2} ip ecn {tos & 3} counter name seen"
    seen = counted(pair.topology.wan, COUNTER % match)
    try:
        pair.topology.lan_a.run("ping", "-c", "3", "-i", "0.05", "-Q", hex(tos), address)
        assert seen() == 3
    finally:
        pair.topology.wan.nft("delete table inet esp_marks")


@pytest.mark.parametrize("inner", [0, 1], ids=["ipv4", "ipv6"])
def test_congestion_outside_is_seen_inside(esp_pair, inner):
    pair = esp_pair
    address = pair.topology.b.host(inner)
    ping_until(pair.topology.lan_a, address)
    family = "ip6" if inner else "ip"
    pair.topology.wan.nft(COUNTER % "oifname to-b udp dport 4500 ip ecn set ce counter name seen")
    seen = counted(pair.topology.gw_b, COUNTER % f"oifname lan0 {family} ecn ce counter name seen")
    try:
        pair.topology.lan_a.run("ping", "-c", "3", "-i", "0.05", "-Q", "0x02", address)
        assert seen() == 3
        result = ping(pair.topology.lan_a, address, count=2, wait=0.2)
        assert result.received == 0, "a sender without ECN cannot be told otherwise"
        assert pair.b.backend.drops()["ecn"] == 2
    finally:
        pair.topology.wan.nft("delete table inet esp_marks")
        pair.topology.gw_b.nft("delete table inet esp_marks")
