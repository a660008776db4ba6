"""Routes and rules, their parsing, and differences."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from ipsec_gateway import plan
from ipsec_gateway.ipsec.base import PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.marks import DEFAULT, RULE_LAST, Numbers
from ipsec_gateway.routing import (
    Route,
    Routing,
    Rule,
    Way,
    Wishes,
    kernel_routing,
    last_rule,
    parse_routes,
    parse_rules,
    routing,
    source_rule,
    steer_rule,
)
from ipsec_ike.selectors import TrafficSelector

TABLE, TABLE_SOURCE = DEFAULT.tables
LOCAL, REMOTE = ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")


def made(*remotes: str, mtu: int | None = None, metric: int | None = None) -> Routing:
    networks = [ip_network(r) for r in remotes]
    return routing(
        [(ip_network("::/0") if n.version == 6 else LOCAL, n) for n in networks],
        device="tun0",
        addresses=(ip_address("192.0.2.1"), ip_address("10.1.0.1"), ip_address("2001:db8::1")),
        wishes=Wishes(
            dict.fromkeys(networks, mtu) if mtu else {},
            dict.fromkeys(networks, metric) if metric else {},
        ),
    )


def test_a_remote_subnet_has_a_way_a_hint_and_a_refusal() -> None:
    assert made("10.2.0.0/16").routes == {
        Route(TABLE, "10.2.0.0/16", "tun0"),
        Route(TABLE, "10.2.0.0/16", ""),
        Route(TABLE_SOURCE, "10.2.0.0/16", "tun0", "10.1.0.1"),
        Route(TABLE_SOURCE, "10.2.0.0/16", ""),
    }
    assert made("10.2.0.0/16").rules == {
        make(4, DEFAULT) for make in (steer_rule, source_rule, last_rule)
    }


def test_a_default_route_is_never_the_gateways_own() -> None:
    tables = {route.table for route in made("0.0.0.0/0", "::/0").routes}
    assert tables == {TABLE}


def test_no_subnet_no_rule() -> None:
    assert made() == Routing()


def test_what_is_shown_is_what_was_made() -> None:
    wanted = made("10.2.0.0/16", "10.9.9.9/32", "0.0.0.0/0", mtu=1300)
    shown = {
        TABLE: [
            {"dst": "default", "dev": "tun0", "protocol": "79", "metrics": [{"mtu": 1300}]},
            {"type": "unreachable", "dst": "default", "metric": 4294967295, "flags": []},
            {"dst": "10.2.0.0/16", "dev": "tun0", "metrics": [{"mtu": 1300}]},
            {"type": "unreachable", "dst": "10.2.0.0/16", "dev": "lo"},
            {"dst": "10.9.9.9", "dev": "tun0", "metrics": [{"mtu": 1300}]},
            {"type": "unreachable", "dst": "10.9.9.9"},
        ],
        TABLE_SOURCE: [
            {
                "dst": "10.2.0.0/16",
                "dev": "tun0",
                "prefsrc": "10.1.0.1",
                "metrics": [{"mtu": 1300}],
            },
            {"type": "unreachable", "dst": "10.2.0.0/16"},
            {"dst": "10.9.9.9", "dev": "tun0", "prefsrc": "10.1.0.1", "metrics": [{"mtu": 1300}]},
            {"type": "unreachable", "dst": "10.9.9.9"},
        ],
    }
    found = set().union(*(parse_routes(entries, table, 4) for table, entries in shown.items()))
    assert found == wanted.routes
    rules = [
        {"priority": 0, "src": "all", "table": "local"},
        shown_rule(TABLE, "0x10", "0x10", TABLE),
        shown_rule(TABLE_SOURCE, "0", "0x70", TABLE_SOURCE, src="0.0.0.0", iif="lo"),
        shown_rule(RULE_LAST, "0", "0x70", TABLE),
        # Others', one of them with a number of ours.
        {"priority": TABLE, "src": "all", "fwmark": "0x10", "table": "9", "protocol": "3"},
        {"priority": 32766, "src": "all", "table": "254"},
    ]
    assert parse_rules(rules, 4) == wanted.rules


def shown_rule(priority: int, mark: str, mask: str, table: int, **more: str) -> dict[str, object]:
    return {
        "priority": priority,
        "src": "all",
        "fwmark": mark,
        "fwmask": mask,
        "table": str(table),
        "protocol": "79",
        **more,
    }


def test_detours_are_found_again() -> None:
    shown = [
        shown_rule(4499, "0x40", "0x40", 77, dst="203.0.113.9"),
        {
            "priority": 9,
            "src": "all",
            "fwmark": "0x47",
            "table": "78",
            "protocol": "79",
        },
    ]
    assert parse_rules(shown, 4) == {
        Rule(4, 4499, 0x40, 0x40, 77, "203.0.113.9"),
        Rule(4, 9, 0x47, 0xFFFFFFFF, 78),
    }


def test_what_had_other_numbers_goes() -> None:
    before = routing([(LOCAL, REMOTE)], device="tun0", numbers=Numbers(0x0E, 300))
    changes = plan.routing(made("10.2.0.0/16"), before)
    assert (
        sum("rule delete pref 300 fwmark 0x2/0x2 lookup 300" in c for c in changes.delete[4]) == 1
    )
    assert sum(line.startswith("rule delete") for line in changes.delete[4]) == 3
    assert sum(line.startswith("route delete") for line in changes.delete[4]) == 4


def test_another_metric_is_another_route_and_the_old_one_goes_after() -> None:
    changes = plan.routing(made("10.2.0.0/16", metric=50), made("10.2.0.0/16"))
    assert len(changes.add[4]) == len(changes.delete[4]) == 2
    assert all("metric 50" in line for line in changes.add[4])
    assert all("metric" not in line for line in changes.delete[4])
    shown = [{"dst": "fd00:2::/64", "dev": "tun0", "metric": 1024, "protocol": "79"}]
    (route,) = parse_routes(shown, TABLE, 6)
    assert route.metric == 0, "the kernel's own choice"


def test_nothing_to_do_is_nothing() -> None:
    assert not plan.routing(made("10.2.0.0/16"), made("10.2.0.0/16"))


def test_routes_come_before_rules_and_go_after_them() -> None:
    there = plan.routing(made("10.2.0.0/16"), Routing())
    verbs = [line.split()[0] for line in there.add[4]]
    assert verbs == ["route"] * 4 + ["rule"] * 3
    assert there.add[4][0].startswith("route replace unreachable"), "the refusal is first"
    back = plan.routing(Routing(), made("10.2.0.0/16"))
    verbs = [line.split()[0] for line in back.delete[4]]
    assert verbs == ["rule"] * 3 + ["route"] * 4
    assert back.delete[4][-1].startswith("route delete unreachable"), "and last"


def test_a_new_mtu_replaces_the_route_in_place() -> None:
    changes = plan.routing(made("10.2.0.0/16", mtu=1300), made("10.2.0.0/16"))
    assert [line.split()[:2] for line in changes.add[4]] == [["route", "replace"]] * 2
    assert not any(changes.delete.values())


def test_policies_differ_by_what_changed() -> None:
    def spec(dst: str, priority: int) -> PolicySpec:
        return PolicySpec(
            id=PolicyId(
                PolicyDirection.OUT,
                TrafficSelector.network("10.1.0.0/16"),
                TrafficSelector.network(dst),
            ),
            action=PolicyAction.ENCRYPT,
            priority=priority,
            reqid=1,
        )

    kept, moved, gone = spec("10.2.0.0/16", 1), spec("10.3.0.0/16", 2), spec("10.4.0.0/16", 3)
    actual = {s.id: s for s in (kept, moved, gone)}
    changes = plan.policies([kept, spec("10.3.0.0/16", 5), spec("10.5.0.0/16", 4)], actual)
    assert [s.priority for s in changes.put] == [4, 5]
    assert changes.delete == (gone.id,)
    assert not plan.policies(actual.values(), actual)


@pytest.mark.parametrize(
    ("remote", "via", "hop"),
    [
        ("10.2.0.0/24", "192.0.2.254", "192.0.2.254"),
        ("fd00:2::/64", "2001:db8::fe", "2001:db8::fe"),
        # Tunnels of one IP version in the other: the kernel refuses such a next hop for IPv6.
        ("fd00:2::/64", "192.0.2.254", ""),
        ("10.2.0.0/24", "2001:db8::fe", ""),
        ("10.2.0.0/24", "", ""),
    ],
)
def test_a_next_hop_is_of_the_same_ip_version(remote: str, via: str, hop: str) -> None:
    network = ip_network(remote)
    local = ip_network("10.1.0.0/24" if network.version == 4 else "fd00:1::/64")
    found = kernel_routing([(local, network)], ways={network: Way("wan0", via)})
    assert {(route.device, route.via) for route in found.routes} == {("wan0", hop)}
