"""IKE and ESP of a peer with a routing table of its own, and the address of an interface."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from ipaddress import ip_network

import pytest

from ipsec_gateway.intent import Intent
from ipsec_gateway.marks import DEFAULT
from ipsec_gateway.resolve import source_address
from ipsec_gateway.routing import Rule
from ipsec_gateway.steering import local_interfaces
from ipsec_gateway.udp import bypass
from ipsec_lab.steering_rig import PROTECT4, Rig

PEER, TABLE = "203.0.113.9", 77
INTENT = Intent(
    policies=(PROTECT4,),
    pairs=((ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")),),
    detours=(Rule(4, 4499, 0x40, 0x40, TABLE, PEER),),
)


@pytest.fixture
def rig(rig: Rig) -> Rig:
    """With a second uplink, which has the table of whoever manages the node."""
    rig.gw.ip(
        f"link add wan1 type veth peer name eth1 netns {rig.wan.name}",
        "link set wan1 up",
        "addr add 198.51.100.1/24 dev wan1",
    )
    rig.wan.ip(
        "link set eth1 up", "addr add 198.51.100.2/24 dev eth1", f"addr add {PEER}/32 dev lo"
    )
    rig.wan.sysctl({"ipv4.conf.all.rp_filter": 0})
    rig.gw.ip(f"route add default via 198.51.100.2 dev wan1 table {TABLE}")
    return rig


def own_source(rig: Rig) -> str | None:
    async def work() -> str | None:
        return source_address(PEER)

    return rig.run(work)


def test_ike_and_esp_take_the_table_of_their_peer(rig: Rig) -> None:
    assert own_source(rig) == "192.0.2.1"
    rig.apply_intent(INTENT)
    assert own_source(rig) == "198.51.100.1"
    with (
        rig.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        rig.gw.socket(socket.AF_INET, socket.SOCK_DGRAM) as ike,
        rig.gw.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        peer.bind((PEER, 500))
        peer.settimeout(5)
        bypass(ike)
        ike.bind(("", 500))
        ike.sendto(b"ike", (PEER, 500))
        assert peer.recvfrom(9)[1][0] == "198.51.100.1"
        other.sendto(b"else", (PEER, 500))
        assert peer.recvfrom(9)[1][0] == "192.0.2.1", "nothing else takes it"
    shown = json.loads(rig.gw.run("ip", "-N", "-j", "rule", "show", "pref", "4499"))
    assert (shown[0]["dst"], shown[0]["table"]) == (PEER, str(TABLE))
    assert int(shown[0]["fwmark"], 16) == DEFAULT.bypass


def test_detours_follow_the_intent_and_go(rig: Rig) -> None:
    pristine = rig.gw.run("ip", "rule")
    rig.apply_intent(INTENT)
    first = rig.gw.run("ip", "rule")
    rig.apply_intent(INTENT)
    assert rig.gw.run("ip", "rule") == first
    rig.apply_intent(replace(INTENT, detours=(Rule(4, 100, 0x40, 0x40, 78, PEER),)))
    rules = rig.gw.run("ip", "rule")
    assert f"100:	from all to {PEER} fwmark 0x40/0x40 lookup 78" in rules
    assert "lookup 77" not in rules
    rig.run(rig.steering.unroute)
    assert rig.gw.run("ip", "rule") == pristine


def test_addresses_by_interface(rig: Rig) -> None:
    rig.gw.ip("addr add 198.51.100.7/24 dev wan1")

    async def work() -> dict[str, list[str]]:
        return {k: [str(a) for a in v] for k, v in (await local_interfaces("lan0")).items()}

    found = rig.run(work)
    assert found["wan1"] == ["198.51.100.1", "198.51.100.7"]
    assert found["wan0"] == ["192.0.2.1", "2001:db8::1"]
    assert "lan0" not in found
