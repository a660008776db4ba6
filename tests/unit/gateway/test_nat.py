"""What translation makes of a tunnel: selectors as the peer sees them, and both views of each."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from ipsec_gateway.facts import Facts
from ipsec_gateway.intent import Intent, intent
from ipsec_gateway.ipsec.base import PolicyDirection
from ipsec_gateway.lastgood import LastGood
from ipsec_gateway.nat import Translation, source_nat
from ipsec_gateway.routing import Rule

FACTS = Facts(
    addresses=(ip_address("192.0.2.1"),),
    resolved={"203.0.113.9": ("203.0.113.9",)},
    sources={"203.0.113.9": "192.0.2.1"},
    interfaces={"wan1": (ip_address("2001:db8::1"), ip_address("198.51.100.7"))},
)


def made(make, facts: Facts = FACTS, **spec) -> Intent:
    found = LastGood().take(make.files(a=[make.secret(), make.peer(**spec)]))
    assert not found.rejections, [str(r) for r in found.rejections]
    return intent(found.tunnels, facts)


def wire(it: Intent) -> list[tuple[str, str]]:
    return [
        (str(p.id.source.networks[0]), str(p.id.destination.networks[0]))
        for p in it.policies
        if p.id.direction is PolicyDirection.OUT
    ]


def test_nothing_asked_for_nothing_translated(make) -> None:
    it = made(make, nat={"mode": "Exempt"})
    assert it.translations == ()
    assert len(it.pairs) == 1


def test_mapping_of_both_sides(make) -> None:
    it = made(
        make,
        localSubnets=["10.1.2.0/24"],
        remoteSubnets=["10.1.0.0/16"],
        subnetMapping=[
            {"local": "10.1.0.0/16", "mapped": "10.101.0.0/16"},
            {"remote": "10.1.0.0/16", "mapped": "10.102.0.0/16"},
        ],
    )
    net = ip_network
    assert it.translations == (
        Translation(
            "default/hq",
            net("10.1.2.0/24"),
            net("10.102.0.0/16"),
            net("10.101.2.0/24"),
            net("10.1.0.0/16"),
        ),
    )
    assert wire(it) == [("10.101.2.0/24", "10.1.0.0/16")]
    (child,) = it.peers[0].children
    assert [str(n) for ts in child.local_ts for n in ts.networks] == ["10.101.2.0/24"]
    assert it.pairs == (), "these networks may be ours: nothing else may look at them"
    assert it.problems == ()


def test_remote_networks_may_be_written_as_our_side_sees_them(make) -> None:
    mapping = [{"remote": "10.1.0.0/16", "mapped": "10.102.0.0/16"}]
    one = made(make, remoteSubnets=["10.1.7.0/24"], subnetMapping=mapping)
    two = made(make, remoteSubnets=["10.102.7.0/24"], subnetMapping=mapping)
    assert one.translations == two.translations
    assert wire(one) == wire(two) == [("10.1.0.0/16", "10.1.7.0/24")]


def test_source_nat_into_the_tunnel(make) -> None:
    it = made(make, nat={"mode": "SNAT", "snatAddress": "10.200.0.5"})
    assert wire(it) == [("10.200.0.5/32", "10.2.0.0/16")]
    it = made(make, nat={"mode": "Masquerade"}, localSubnets=["10.1.0.0/16", "10.7.0.0/16"])
    assert wire(it) == [("192.0.2.1/32", "10.2.0.0/16")], "one selector for both"
    assert len(it.translations) == 2


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            {"subnetMapping": [{"local": "10.1.1.0/24", "mapped": "10.9.1.0/24"}]},
            "10.1.0.0/16 is larger than 10.1.1.0/24",
        ),
        (
            {"nat": {"mode": "SNAT", "snatAddress": "fd00::1"}},
            "10.1.0.0/16 cannot be sent from fd00::1",
        ),
    ],
)
def test_what_cannot_be_is_a_problem_and_stays_guarded(make, spec, text) -> None:
    it = made(make, **spec)
    (problem,) = it.problems
    assert text in problem.message
    assert it.peers == ()
    assert wire(it) == [("10.1.0.0/16", "10.2.0.0/16")]


def test_masquerade_without_an_address_waits(make) -> None:
    facts = Facts(resolved={}, sources={})
    it = made(make, facts, nat={"mode": "Masquerade"})
    assert "not known yet" in it.problems[0].message
    assert it.peers == ()


def test_source_nat_to_everything_leaves_its_own_networks_alone() -> None:
    lists = [ip_network("10.1.0.0/16"), ip_network("10.5.0.0/16"), ip_network("fd00::/64")]
    found = source_nat("n", "10.200.0.5", [ip_network("0.0.0.0/0")], sources=lists)
    assert [t.local for t in found] == lists[:2]
    assert {t.exempt for t in found} == {tuple(lists[:2])}
    (marked,) = source_nat("n", "10.200.0.5", [ip_network("10.2.0.0/16")], mark=(1, 3))
    assert (marked.mark, str(marked.local)) == ((1, 3), "0.0.0.0/0")


def test_notrack_is_refused_for_services_and_translations(make) -> None:
    auth = {
        "method": "preSharedKey",
        "secretRef": {"name": "psk"},
        "notrack": "All",
    }
    it = made(make, authentication=auth)
    assert list(it.untracked.values()) == [True]
    it = made(make, authentication={**auth, "notrack": "Pod"})
    assert list(it.untracked.values()) == [False]
    facts = Facts(
        resolved=FACTS.resolved, sources=FACTS.sources, services=(ip_network("10.1.9.0/24"),)
    )
    it = made(make, facts, authentication=auth)
    assert it.untracked == {}
    assert "10.1.9.0/24 are Services" in it.problems[0].message
    it = made(make, authentication=auth, nat={"mode": "SNAT", "snatAddress": "10.200.0.5"})
    assert it.untracked == {}
    assert "translated" in it.problems[0].message


def test_the_address_of_an_interface(make) -> None:
    it = made(make, localInterface="wan1")
    assert it.peers[0].local_address == "198.51.100.7"
    assert it.peers[0].paths[0].local == "198.51.100.7"
    it = made(make, localInterface="wan9")
    assert it.peers[0].paths == ()
    assert "wan9" in it.problems[0].message
    assert len(it.pairs) == 1, "guarded all the same"


def test_a_table_of_its_own(make) -> None:
    it = made(make, routing={"tableID": 7})
    assert it.detours == (Rule(4, 4499, 0x40, 0x40, 7, "203.0.113.9"),)
    it = made(make, routing={"tableID": 7, "rulePriority": 100})
    assert it.detours == (Rule(4, 100, 0x40, 0x40, 7, "203.0.113.9"),)
