"""Routes, neighbours and packet rules of one node, for every place it can be in."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gateway.routeagent import packets
from ipsec_gateway.routeagent.changes import changes
from ipsec_gateway.routeagent.picture import Carried, networks
from ipsec_gateway.routeagent.plan import (
    Neighbour,
    Node,
    Route,
    Settings,
    Wanted,
    Way,
    link_local,
    mac_of,
    plan,
)

IP = ipaddress.ip_address
GATEWAYS = {
    "g1": (IP("192.0.2.1"), IP("2001:db8::1")),
    "g2": (IP("198.51.100.2"), IP("2001:db8:2::2")),
}
OWN = (IP("192.0.2.3"), IP("2001:db8::3"))
#: g1 is on our link, g2 is behind a router.
WAYS = {
    IP("192.0.2.1"): Way("eth0", True, 1500),
    IP("2001:db8::1"): Way("eth0", True, 1500),
    IP("198.51.100.2"): Way("eth0", False, 1500),
    IP("2001:db8:2::2"): Way("eth0", False, 1500),
}
WORKER = Node("w", OWN, WAYS, frozenset({"flannel.1"}))
G1 = Node("g1", GATEWAYS["g1"], {IP("198.51.100.2"): Way("eth0", False, 9000)})


def by(gateway: str | None, *nets: str, tolerant: bool = False) -> Carried:
    return Carried(networks(nets or ["10.9.0.0/16", "fd00:9::/64"]), gateway, tolerant)


def routes(wanted: Wanted) -> dict[str, Route]:
    return {r.destination: r for r in wanted.routes}


def test_nothing_known_nothing_wanted():
    assert plan({}, {}, WORKER, Settings()) == Wanted()


def test_a_neighbour_is_reached_directly():
    wanted = plan({"ns/hq": by("g1")}, {"g1": GATEWAYS["g1"]}, WORKER, Settings())
    assert routes(wanted) == {
        "10.9.0.0/16": Route("10.9.0.0/16", "unicast", "eth0", "192.0.2.1", "192.0.2.3"),
        "fd00:9::/64": Route("fd00:9::/64", "unicast", "eth0", "2001:db8::1", "2001:db8::3"),
    }
    assert wanted.rules == {4, 6}
    assert wanted.vxlan is None
    assert wanted.neighbours == wanted.forwarding == frozenset()
    assert wanted.links == {"eth0"}
    assert wanted.loose == {"eth0", "flannel.1"}


def test_what_is_no_neighbour_is_reached_by_vxlan():
    wanted = plan({"ns/hq": by("g2")}, GATEWAYS, WORKER, Settings())
    mac = mac_of("g2")
    assert routes(wanted) == {
        "10.9.0.0/16": Route(
            "10.9.0.0/16", "unicast", "kipsec-vx", "198.51.100.2", "192.0.2.3", 1450
        ),
        "fd00:9::/64": Route(
            "fd00:9::/64", "unicast", "kipsec-vx", link_local(mac), "2001:db8::3", 1450
        ),
    }
    assert wanted.vxlan is not None
    assert (wanted.vxlan.local, wanted.vxlan.mtu) == ("192.0.2.3", 1450)
    assert {(f.mac, f.node) for f in wanted.forwarding} == {(mac, "198.51.100.2")}
    assert wanted.neighbours == {Neighbour("198.51.100.2", mac), Neighbour(link_local(mac), mac)}


def test_gateways_that_carry_nothing_are_prepared():
    before = plan({"ns/hq": by("g1")}, GATEWAYS, WORKER, Settings(transport="vxlan"))
    after = plan({"ns/hq": by("g2")}, GATEWAYS, WORKER, Settings(transport="vxlan"))
    assert before.neighbours == after.neighbours
    assert before.forwarding == after.forwarding
    assert before.vxlan == after.vxlan
    todo = changes(after, before.routes, before.rules, Settings())
    assert len(todo.add[4]) == len(todo.add[6]) == 1
    assert not any(todo.delete.values())


def test_vxlan_on_request_takes_no_neighbour_directly():
    wanted = plan({"ns/hq": by("g1")}, GATEWAYS, WORKER, Settings(transport="vxlan"))
    assert {r.device for r in wanted.routes} == {"kipsec-vx"}
    assert not wanted.links


def test_vxlan_over_ipv6_where_that_is_preferred():
    node = Node("w", OWN[::-1], WAYS)
    wanted = plan({"ns/hq": by("g2")}, GATEWAYS, node, Settings())
    assert wanted.vxlan is not None
    assert (wanted.vxlan.local, wanted.vxlan.mtu) == ("2001:db8::3", 1430)
    assert {f.node for f in wanted.forwarding} == {"2001:db8:2::2"}


def test_the_owner_has_no_route_and_takes_in_what_comes():
    wanted = plan({"ns/hq": by("g1")}, GATEWAYS, G1, Settings())
    assert not wanted.routes
    assert not wanted.rules
    assert wanted.own == {"10.9.0.0/16", "fd00:9::/64"}
    assert wanted.vxlan is not None
    assert wanted.vxlan.mtu == 8950
    assert "kipsec-vx" in wanted.loose


def test_another_gateway_sends_to_the_owner():
    wanted = plan({"ns/hq": by("g2")}, GATEWAYS, G1, Settings())
    assert routes(wanted)["10.9.0.0/16"].via == "198.51.100.2"
    assert wanted.foreign == {"10.9.0.0/16", "fd00:9::/64"}


def test_a_wider_subnet_of_another_gateway_does_not_take_what_is_ours():
    carried = {"ns/all": by("g2", "10.0.0.0/8"), "ns/hq": by("g1", "10.9.0.0/16", "172.16.0.0/16")}
    wanted = plan(carried, GATEWAYS, G1, Settings())
    assert routes(wanted)["10.9.0.0/16"].kind == "throw"
    assert "172.16.0.0/16" not in routes(wanted)


def test_the_cluster_keeps_its_networks_and_node_addresses():
    settings = Settings(exclude=networks(["10.244.0.0/16", "172.20.0.0/16"]))
    carried = {"ns/wide": by("g1", "10.0.0.0/8", "192.0.0.0/8")}
    found = routes(plan(carried, GATEWAYS, WORKER, settings))
    throws = {d for d, r in found.items() if r.kind == "throw"}
    assert throws == {"10.244.0.0/16", "192.0.2.1/32", "192.0.2.3/32"}


def test_what_nobody_carries_is_refused_unless_it_tolerates_clear_text():
    carried = {"ns/a": by(None, "10.1.0.0/16"), "ns/b": by(None, "10.2.0.0/16", tolerant=True)}
    found = routes(plan(carried, GATEWAYS, WORKER, Settings()))
    assert found == {"10.1.0.0/16": Route("10.1.0.0/16", "unreachable")}


def test_a_gateway_without_a_known_address_is_nobody():
    wanted = plan({"ns/a": by("g9")}, GATEWAYS, WORKER, Settings())
    assert {r.kind for r in wanted.routes} == {"unreachable"}
    assert not wanted.problems


def test_a_gateway_of_the_other_ip_version_alone_is_told():
    gateways = {"g6": (IP("2001:db8:6::6"),)}
    wanted = plan({"ns/a": by("g6", "10.1.0.0/16")}, gateways, WORKER, Settings())
    assert {r.kind for r in wanted.routes} == {"unreachable"}
    assert "g6 has no address of IPv4" in wanted.problems[0]


def test_two_peers_with_one_subnet_are_told_and_the_first_has_it():
    carried = {"ns/b": by("g2", "10.1.0.0/16"), "ns/a": by("g1", "10.1.0.0/16")}
    wanted = plan(carried, GATEWAYS, WORKER, Settings())
    assert routes(wanted)["10.1.0.0/16"].via == "192.0.2.1"
    assert "behind both ns/a and ns/b" in wanted.problems[0]


def test_everything_is_not_routed_and_told():
    wanted = plan({"ns/a": by("g1", "0.0.0.0/0", "::/0")}, GATEWAYS, WORKER, Settings())
    assert not wanted.routes
    assert len(wanted.problems) == 2


def test_a_node_that_does_not_know_its_address_says_so():
    wanted = plan({"ns/a": by("g2")}, GATEWAYS, Node("w"), Settings())
    assert wanted.vxlan is None
    assert {r.kind for r in wanted.routes} == {"unreachable"}
    assert any("NODE_IP" in p for p in wanted.problems)


def test_macs_are_local_unicast_and_differ():
    macs = {mac_of(f"node-{n}") for n in range(500)}
    assert len(macs) == 500
    assert all(int(m[:2], 16) & 3 == 2 for m in macs)
    # RFC 4291 appendix A, the example of RFC 2464 section 4.
    assert link_local("34:56:78:9a:bc:de") == "fe80::3656:78ff:fe9a:bcde"


def test_a_rule_comes_after_its_routes_and_goes_before_them():
    wanted = plan({"ns/hq": by("g2")}, GATEWAYS, WORKER, Settings(table=99, mask=0xE000))
    todo = changes(wanted, (), (), Settings(table=99, mask=0xE000))
    assert todo.add[4][-1] == "rule add pref 99 fwmark 0/0xe000 lookup 99 protocol 78"
    assert todo.add[4][0].startswith("route replace 10.9.0.0/16 table 99 proto 78 via ")
    gone = changes(Wanted(), wanted.routes, wanted.rules, Settings(table=99))
    assert gone.delete[4][0].startswith("rule delete")
    assert len(gone.delete[4]) == 2
    assert not any(gone.add.values())


def test_refusals_come_before_ways():
    carried = {"ns/a": by(None, "10.200.0.0/16"), "ns/b": by("g1", "10.1.0.0/16")}
    wanted = plan(carried, GATEWAYS, WORKER, Settings())
    assert "unreachable" in changes(wanted, (), (), Settings()).add[4][0]


def test_ipv4_by_an_ipv6_next_hop_is_written_as_iproute2_wants_it():
    route = Route("10.0.0.0/8", "unicast", "kipsec-vx", "fe80::1", "", 1430)
    assert "via inet6 fe80::1 dev kipsec-vx onlink" in route.arguments(1)


SUBNETS = st.sampled_from(
    ["10.0.0.0/8", "10.9.0.0/16", "10.9.1.0/24", "192.0.2.0/24", "fd00::/8", "fd00:9::/64", "::/0"]
)
CARRIED = st.dictionaries(
    st.sampled_from(["ns/a", "ns/b", "ns/c", "ns/d"]),
    st.builds(
        Carried,
        st.lists(SUBNETS, min_size=1, max_size=3, unique=True).map(networks),
        st.sampled_from(["g1", "g2", "g9", None]),
        st.booleans(),
    ),
)


@given(CARRIED, CARRIED, st.sampled_from([WORKER, G1]), st.sampled_from(["auto", "vxlan"]))
def test_from_any_state_to_any_other_in_one_step(before, after, node, transport):
    settings = Settings(transport=transport)
    old, new = (plan(c, GATEWAYS, node, settings) for c in (before, after))
    todo = changes(new, old.routes, old.rules, settings)
    assert len({r.destination for r in new.routes}) == len(new.routes)
    assert not changes(new, new.routes, new.rules, settings)
    for lines in (*todo.add.values(), *todo.delete.values()):
        assert len(lines) == len(set(lines))
    # What a way goes to is prepared.
    hops = {n.address for n in new.neighbours}
    assert {r.via for r in new.routes if r.device == settings.device} <= hops
    assert packets.script(new)


def test_the_packet_table_has_sets_without_overlaps_and_what_is_needed_alone():
    carried = {"ns/a": by("g2", "10.0.0.0/8", "10.9.0.0/16", "fd00::/8")}
    text = packets.script(plan(carried, GATEWAYS, WORKER, Settings()))
    assert "elements = { 10.0.0.0/8 }" in text
    assert "snat ip to ip saddr" in text
    assert "maxseg size set 1410" in text
    assert 'iifname "eth0" oifname "eth0"' in text
    assert packets.script(Wanted()) == packets.remove()


@pytest.mark.parametrize("name", ["g1", "w"])
def test_thousands_of_peers_are_planned_at_once(name):
    node = {"g1": G1, "w": WORKER}[name]
    carried = {
        f"ns/p{n}": by("g1" if n % 2 else "g2", f"10.{n // 256}.{n % 256}.0/24")
        for n in range(4000)
    }
    wanted = plan(carried, GATEWAYS, node, Settings())
    assert len(wanted.foreign) == (2000 if name == "g1" else 4000)
