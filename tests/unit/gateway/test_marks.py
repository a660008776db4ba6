"""Numbers of the gateway, marks of peers, and what of them clashes."""

from __future__ import annotations

import ipaddress

import pytest

from ipsec_gateway import clashes
from ipsec_gateway.classify import Verdict
from ipsec_gateway.facts import Facts
from ipsec_gateway.intent import Intent, intent
from ipsec_gateway.lastgood import LastGood
from ipsec_gateway.marks import BadNumbers, Numbers
from ipsec_gateway.outermarks import OuterMarks
from ipsec_gateway.protected import ProtectedService
from ipsec_gateway.routing import Rule

FACTS = Facts(
    resolved={"203.0.113.9": ("203.0.113.9",)},
    sources={"203.0.113.9": "192.0.2.1"},
)
PASSIVE = {"address": None, "passive": True}


def made(make, facts: Facts = FACTS, *more, **spec) -> Intent:
    found = LastGood().take(make.files(a=[make.secret(), make.peer(**spec), *more]))
    assert not found.rejections, [str(r) for r in found.rejections]
    return intent(found.tunnels, facts)


def test_three_bits_in_their_order() -> None:
    it = Numbers(0x1A)
    assert (it.steer, it.guard, it.bypass) == (0x02, 0x08, 0x10)
    assert it.keep == 0xFFFFFFE5
    assert Verdict.REQUIRE.bits(it) == 0x0A
    assert (it.tables, it.rule_detour) == ((4500, 4501), 4499)


@pytest.mark.parametrize(
    ("mask", "table", "said"),
    [
        (0, 4500, "exactly three bits"),
        (0x30, 4500, "exactly three bits"),
        (0xF0, 4500, "exactly three bits"),
        (0x700000000, 4500, "exactly three bits"),
        (0x4030, 4500, "kube-proxy (0xc000)"),
        (0x70000, 4500, "Calico"),
        (0x700, 4500, "Cilium (0xf00)"),
        (0x70, 254, "253 to 255"),
        (0x70, 251, "253 to 255"),
        (0x70, 1, "2 to 32762"),
        (0x70, 32763, "2 to 32762"),
    ],
)
def test_numbers_that_cannot_be(mask: int, table: int, said: str) -> None:
    with pytest.raises(BadNumbers) as refused:
        Numbers(mask, table)
    assert said in str(refused.value)


def test_where_others_do_not_run_their_bits_are_free() -> None:
    assert Numbers(0x7000, shared=True).bypass == 0x4000


def test_rules_with_our_numbers_are_named() -> None:
    shown = [
        {"priority": 4500, "src": "all", "table": "9", "protocol": "80"},
        {"priority": 9, "src": "all", "table": "4501"},
    ]
    one, two = clashes.of_rules(shown)
    assert "priority 4500 of protocol 80 (Calico) has a number of the gateway" in one
    assert "looks in table 4501" in two
    assert clashes.of_rules(shown, Numbers(table=300)) == []


def test_a_routing_mark_is_on_everything_to_the_peer(make) -> None:
    it = made(make, routing={"routingMark": 7})
    assert it.outer.of("203.0.113.9") == 0x47
    assert it.outer.of("203.0.113.10") == 0
    assert [c.handling.mark for p in it.peers for c in p.children] == [0x47]
    assert it.detours == ()
    assert made(make).outer == OuterMarks()


def test_a_routing_mark_leads_into_its_table(make) -> None:
    it = made(make, routing={"routingMark": 7, "tableID": 9})
    assert it.detours == (Rule(4, 4499, 0x47, 0xFFFFFFFF, 9, "203.0.113.9"),)
    it = made(make, routing={"routingMark": 7, "tableID": 9}, **PASSIVE)
    assert it.detours == tuple(Rule(v, 4499, 0x47, 0xFFFFFFFF, 9) for v in (4, 6))


def test_a_peer_that_comes_is_followed(make) -> None:
    assert made(make, routing={"tableID": 9}, **PASSIVE).detours == ()
    there = Facts(live={"default/hq": "198.51.100.7"})
    it = made(make, there, routing={"tableID": 9}, **PASSIVE)
    assert it.detours == (Rule(4, 4499, 0x40, 0x40, 9, "198.51.100.7"),)
    assert set(it.ends.values()) == {"198.51.100.7"}


def test_the_nearest_network_decides(make) -> None:
    other = make.peer(name="other", remoteSubnets=["10.9.0.0/16"])
    it = made(make, FACTS, other, routing={"routingMark": 7}, **PASSIVE)
    assert it.outer.of("203.0.113.9") == 0, "another peer's, which has none"
    assert it.outer.of("203.0.113.10") == 0x47
    assert it.outer.of("2001:db8::9") == 0x47


def test_a_mark_with_bits_of_the_gateway_is_refused(make) -> None:
    it = made(make, routing={"routingMark": 0x11})
    (problem,) = it.problems
    assert problem.reason == "MarkConflict"
    assert "0x70" in problem.message
    assert it.peers[0].paths == ()
    assert it.pairs, "guarded all the same"
    moved = Facts(resolved=FACTS.resolved, sources=FACTS.sources, numbers=Numbers(0x0E))
    assert made(make, moved, routing={"routingMark": 0x11}).outer.of("203.0.113.9") == 0x19


def test_a_metric_is_of_the_remote_subnets(make) -> None:
    it = made(make, routing={"metric": 50})
    assert {str(n): m for n, m in it.metrics.items()} == {"10.2.0.0/16": 50}


def test_a_connection_mark_chooses_what_is_translated(make) -> None:
    nat = {"mode": "SNAT", "snatAddress": "10.200.0.5"}
    it = made(make, nat=nat, routing={"connectionMark": 3})
    assert [t.mark for t in it.translations] == [(3, 0xFFFFFFFF)]
    assert [t.mark for t in made(make, nat=nat).translations] == [None]


def test_services_for_tunnels_only(make) -> None:
    services = [{"protocol": "udp", "port": 1701}, {"protocol": "gre"}]
    it = made(make, requireIPsec=services)
    assert [(s.match, [str(n) for n in s.networks], s.name) for s in it.services] == [
        ("meta l4proto 17 th dport 1701", ["10.1.0.0/16"], "default/hq"),
        ("meta l4proto 47", ["10.1.0.0/16"], "default/hq"),
    ]
    assert ProtectedService(6, (1, 9)).match == "meta l4proto 6 th dport 1-9"


@pytest.mark.parametrize(
    ("remote", "mapping", "blocked"),
    [
        # The peer's network seen under another prefix; larger than what is mapped, so it is bad.
        ("10.0.0.0/8", {"remote": "10.1.0.0/16", "mapped": "10.99.0.0/16"}, "10.99.0.9"),
        ("10.0.0.0/8", {"remote": "10.1.0.0/16", "mapped": "10.99.0.0/16"}, "10.3.0.9"),
        ("10.8.0.0/15", {"local": "10.1.2.0/24", "mapped": "10.99.0.0/24"}, "10.8.0.9"),
    ],
)
def test_what_a_bad_mapping_leaves_is_blocked(make, remote, mapping, blocked) -> None:
    it = made(make, remoteSubnets=[remote], subnetMapping=[mapping])
    assert it.peers == ()
    assert it.problems
    covered = [n for _, n in it.pairs]
    assert any(ipaddress.ip_address(blocked) in n for n in covered)
    if "remote" in mapping:
        own = ipaddress.ip_address("10.1.0.9")
        assert not any(own in n for n in covered), "our own network stays reachable"
