"""Interfaces of routed policies: what is wanted, what is refused, and how to get there."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ipsec_gateway import links, nftables
from ipsec_gateway.classify import classify
from ipsec_gateway.facts import Facts
from ipsec_gateway.intent import Intent, intent
from ipsec_gateway.interfaces import (
    IF_ID_BASE,
    Interface,
    Link,
    Way,
    allocate_if_ids,
    if_id_of,
    ours,
    parse_links,
    parse_ways,
    plan_links,
    plan_ways,
    ways,
)
from ipsec_gateway.ipsec.abilities import USERSPACE
from ipsec_gateway.ipsec.base import PolicyDirection
from ipsec_gateway.ipsec.mtu import INITIAL
from ipsec_gateway.lastgood import LastGood
from ipsec_gateway.marks import DEFAULT, REQID_BASE
from ipsec_gateway.tools import ToolError
from ipsec_ike.config import Handling, Offload

FACTS = Facts(
    addresses=(ip_address("192.0.2.1"),),
    resolved={"203.0.113.9": ("203.0.113.9",), "203.0.113.10": ("203.0.113.10",)},
    sources={"203.0.113.9": "192.0.2.1", "203.0.113.10": "192.0.2.1"},
)
ALL = [{"src": "0.0.0.0/0", "dst": "0.0.0.0/0"}, {"src": "::/0", "dst": "::/0"}]


@pytest.fixture
def build(make) -> Any:
    def run(*policies: dict[str, Any], facts: Facts = FACTS, **peer: Any) -> Intent:
        peers = make.peer(remoteSubnets=None, localSubnets=None, **peer)
        found = LastGood().take(make.files(a=[make.secret(), peers, *policies]))
        assert not found.rejections
        assert not found.errors
        return intent(found.tunnels, facts)

    return run


def office(make, name: str = "office", /, **interface: Any) -> dict[str, Any]:
    spec = {"mode": "routed", "selectors": ALL}
    return make.policy(name, **spec, **({"interface": interface} if interface else {}))


# --- what is wanted ---------------------------------------------------------------------------


def test_a_routed_policy_is_an_interface_and_takes_nothing_else(make, build) -> None:
    interface = {"name": "office0", "addresses": ["169.254.1.1/30"], "routes": ["10.7.0.0/16"]}
    found = build(office(make, **interface), mtu=1380, tcpMSS=1300)
    assert not found.problems
    (wanted,) = found.interfaces
    (child,) = found.peers[0].children
    assert wanted == Interface(
        name="office0",
        if_id=if_id_of("default/office"),
        owner="default/office",
        addresses=("169.254.1.1/30",),
        routes=("10.7.0.0/16",),
        mtu=1380,
        mss=1300,
        reqids=frozenset({child.reqid}),
    )
    assert child.handling.interface == wanted.if_id
    assert {p.id.interface for p in found.policies} == {wanted.if_id}
    assert {p.id.direction for p in found.policies} == set(PolicyDirection)
    # Nothing is steered, guarded, clamped or routed by its selectors.
    assert found.pairs == ()
    assert not found.clamps
    assert not found.mtus
    assert not found.ends
    assert [str(a) for a, _ in found.routed] == ["0.0.0.0/0", "::/0"]


def test_two_of_them_have_the_same_selectors_and_nothing_in_common(make, build) -> None:
    found = build(office(make, "one"), office(make, "two"))
    assert not found.problems
    one, two = found.interfaces
    assert one.if_id != two.if_id
    assert one.name != two.name
    assert len(found.policies) == 12
    assert len({p.id for p in found.policies}) == 12
    assert not one.reqids & two.reqids


def test_an_interface_carries_all_children_of_its_policy(make, build) -> None:
    selectors = [{"src": f"10.{n}.0.0/16", "dst": f"10.{n + 10}.0.0/16"} for n in (1, 2)]
    per_pair = make.policy("p", mode="routed", selectors=selectors, selectorMode="PerPair")
    found = build(per_pair)
    (wanted,) = found.interfaces
    assert wanted.reqids == {c.reqid for c in found.peers[0].children}
    assert len(wanted.reqids) == 2


def test_outer_headers_and_cards_are_said_to_the_data_plane(make, build) -> None:
    policy = make.policy(
        "p", selectors=[ALL[0]], allowDefaultRoute=True, dscp="CopyBoth", ecn="Clear", df="Clear"
    )
    (child,) = build(policy, hwOffload="Off").peers[0].children
    assert child.handling == Handling(
        copy_dscp=True, keep_outer_dscp=True, ecn=False, copy_df=False, offload=Offload.OFF
    )
    policy["spec"].update(dscp="Clear", ecn="Copy", df="Copy")
    (child,) = build(policy, hwOffload="Crypto").peers[0].children
    assert child.handling == Handling(copy_dscp=False, offload=Offload.CRYPTO)


def test_an_mtu_of_its_own_wins_over_what_is_measured() -> None:
    it = Interface(name="x", if_id=1, owner="a/b", reqids=frozenset({7, 8}))
    assert it.octets({}) == INITIAL
    assert it.octets({7: 1438, 8: 1422, 9: 600}) == 1422
    assert it.octets({7: 900}) == 900
    assert replace(it, addresses=("fd00::1/64",)).octets({7: 900}) == 1280
    assert replace(it, mtu=1400).octets({7: 900}) == 1400
    # Without an SA it stays as it is, over a restart for instance.
    assert it.octets({}, 1446) == 1446
    bare = replace(OFFICE, mtu=0, reqids=frozenset({7}))
    assert plan_links([bare], [THERE], {}).first == ()
    assert "mtu 1422" in plan_links([bare], [THERE], {7: 1422}).first[0]


# --- what is refused --------------------------------------------------------------------------


def test_the_userspace_data_plane_says_what_it_has_not(make, build) -> None:
    facts = replace(FACTS, abilities=USERSPACE)
    found = build(office(make), facts=facts)
    (problem,) = found.problems
    assert problem.reason == "UnsupportedByDataplane"
    assert problem.message.startswith("spec.mode: the userspace data plane of this gateway has no")
    assert not found.policies, "a policy for everything would block everything"
    assert not found.interfaces
    assert found.peers[0].children == ()


@pytest.mark.parametrize("field", ["dscp", "ecn", "df"])
def test_the_userspace_data_plane_has_one_way_with_outer_headers(make, build, field) -> None:
    pair = {"src": "10.1.0.0/16", "dst": "10.2.0.0/16"}
    policy = make.policy("p", selectors=[pair], **{field: "Clear"})
    found = build(policy, facts=replace(FACTS, abilities=USERSPACE))
    (problem,) = found.problems
    assert problem.message.startswith(f"spec.{field}: the userspace data plane")
    assert len(found.policies) == 3, "what cannot be protected as asked is blocked"


def test_a_card_that_must_compute_is_not_for_userspace(make, build) -> None:
    policy = make.policy("p", selectors=[{"src": "10.1.0.0/16", "dst": "10.2.0.0/16"}])
    facts = replace(FACTS, abilities=USERSPACE)
    assert (
        "spec.hwOffload of the peer"
        in build(policy, facts=facts, hwOffload="Crypto").problems[0].message
    )
    assert not build(policy, facts=facts, hwOffload="Auto").problems


def test_an_interface_of_somebody_else_is_left_alone(make, build) -> None:
    policies = office(make), office(make, "branch")
    mine = build(*policies).interfaces
    taken = next(i.name for i in mine if i.owner == "default/branch")
    found = build(*policies, facts=replace(FACTS, foreign=frozenset({taken, "eth0"})))
    (problem,) = found.problems
    assert (problem.reason, problem.ref.name) == ("InterfaceExists", "branch")
    assert taken in problem.message
    assert [i.owner for i in found.interfaces] == ["default/office"]
    assert len(found.policies) == 6


@pytest.mark.parametrize(
    ("route", "refused"),
    [
        ("203.0.113.0/24", True),
        ("203.0.113.9/32", True),
        ("203.0.113.0/29", False),
        ("0.0.0.0/0", False),
        ("0.0.0.0/1", False),
        ("128.0.0.0/1", True),
        ("::/0", False),
    ],
)
def test_the_way_to_the_peer_is_not_into_its_own_tunnel(make, build, route, refused) -> None:
    found = build(office(make, routes=[route, "10.7.0.0/16"]))
    (wanted,) = found.interfaces
    assert bool(found.problems) is refused
    assert wanted.routes == (("10.7.0.0/16",) if refused else (route, "10.7.0.0/16"))


def test_a_route_has_one_interface(make, build) -> None:
    policies = (office(make, n, routes=["10.7.0.0/16"]) for n in ("one", "two"))
    found = build(*policies)
    (problem,) = found.problems
    assert (problem.ref.name, problem.reason) == ("two", "Overlap")
    assert [i.routes for i in found.interfaces] == [("10.7.0.0/16",), ()]


def test_what_the_kernel_refuses_is_told_and_the_rest_stays(make, build) -> None:
    facts = replace(FACTS, broken={"default/office": "office0 cannot be set up: EACCES"})
    found = build(office(make), office(make, "branch"), facts=facts)
    (problem,) = found.problems
    assert (problem.ref.name, problem.reason) == ("office", "InterfaceError")
    assert "EACCES" in problem.message
    assert len(found.interfaces) == 2
    assert len(found.policies) == 12


class Ip:
    """``ip`` that keeps links and addresses, and has one address that it refuses."""

    def __init__(self, refuses: str) -> None:
        self.refuses = refuses
        self.links: dict[str, dict[str, Any]] = {}
        self.routes: list[str] = []

    async def run_json(self, *command: str) -> Any:
        if "address" in command:
            return list(self.links.values())
        if "route" in command and command[1] == "-4":
            return [{"dst": r.split()[0], "dev": r.split()[2], "flags": []} for r in self.routes]
        return []

    async def run(self, *command: str, script: str = "", check: bool = True) -> str:
        for line in script.splitlines():
            words = line.split()
            if self.refuses in words:
                if check:
                    raise ToolError(f"ip -batch: {self.refuses}: Permission denied")
            elif words[:2] == ["link", "add"]:
                info = {"info_kind": "xfrm", "info_data": {"if_id": words[-1]}}
                self.links[words[2]] = {"ifname": words[2], "mtu": 0, "linkinfo": info}
            elif words[:2] == ["link", "set"]:
                link = self.links[words[3]]
                link |= {"ifalias": words[5], "mtu": words[7], "flags": ["UP", "MULTICAST"]}
            elif words[:3] == ["link", "delete", "dev"]:
                del self.links[words[3]]
            elif words[:2] == ["address", "add"]:
                address, length = words[2].split("/")
                entry = {"local": address, "prefixlen": length, "scope": "global"}
                self.links[words[4]].setdefault("addr_info", []).append(entry)
            elif words[:2] == ["route", "replace"] and words[2] != "unreachable":
                self.routes.append(" ".join(words[2:]))
        return ""


def test_one_bad_interface_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    ip = Ip(refuses="fd00::1/64")
    monkeypatch.setattr(links, "run", ip.run)
    monkeypatch.setattr(links, "run_json", ip.run_json)
    asyncio.run(_one_bad_interface(ip))


async def _one_bad_interface(ip: Ip) -> None:
    bad = replace(OFFICE, name="bad0", if_id=IF_ID_BASE | 1, owner="default/bad", routes=())
    good = replace(OFFICE, addresses=("169.254.2.1/30",), routes=("10.7.0.0/16",))
    it = links.Links()
    await it.apply((bad, good), {}, again=False)
    assert list(it.broken) == ["default/bad"]
    assert "bad0 (address add fd00::1/64" in it.broken["default/bad"]
    assert "Permission denied" in it.broken["default/bad"]
    assert sorted(ip.links) == ["bad0", "office0"]
    assert len(ip.routes) == 1
    # It is tried again, and well then.
    ip.refuses = ""
    await it.apply((bad, good), {}, again=False)
    assert it.broken == {}
    await it.remove()
    assert not ip.links


# --- numbers ----------------------------------------------------------------------------------


def test_numbers_stay_the_same_and_are_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"default/p{n}" for n in range(500)]
    first = allocate_if_ids(names)
    assert first == allocate_if_ids(reversed(names))
    assert len(set(first.values())) == 500
    assert all(ours(n) and n < REQID_BASE for n in first.values())
    monkeypatch.setattr("ipsec_gateway.interfaces._IF_ID_MASK", 0xFF)
    crowded = allocate_if_ids(names[:200])
    assert len(set(crowded.values())) == 200
    assert not ours(IF_ID_BASE - 1)
    assert not ours(2 * IF_ID_BASE)


# --- from what is to what should be -----------------------------------------------------------

OFFICE = Interface(
    name="office0",
    if_id=IF_ID_BASE | 5,
    owner="default/office",
    addresses=("169.254.1.1/30", "fd00::1/64"),
    routes=("10.7.0.0/16", "0.0.0.0/0"),
    mtu=1400,
)
THERE = Link(
    "office0",
    IF_ID_BASE | 5,
    1400,
    up=True,
    multicast=True,
    alias="kube-ipsec:default/office",
    addresses=frozenset(OFFICE.addresses),
)


def test_a_new_interface_is_made_in_this_order() -> None:
    assert plan_links([OFFICE], [], {}).first == (
        "link add office0 type xfrm if_id 0x20000005",
        "link set dev office0 alias kube-ipsec:default/office mtu 1400 multicast on up",
        "address add 169.254.1.1/30 dev office0",
        "address add fd00::1/64 dev office0 nodad",
    )


def test_what_is_there_is_adopted() -> None:
    done = plan_links([OFFICE], [THERE], {})
    assert done.first == ()
    assert done.later == ()


@pytest.mark.parametrize(
    ("link", "lines"),
    [
        (replace(THERE, mtu=1500), ("link set dev office0 alias",)),
        (replace(THERE, up=False), ("link set dev office0 alias",)),
        (
            replace(THERE, addresses=frozenset({"169.254.1.1/30", "10.0.0.1/8"})),
            ("address add fd00::1/64", "address delete 10.0.0.1/8"),
        ),
        (
            replace(THERE, name="old0"),
            ("link delete dev old0", "link add office0", "link set", "address add", "address add"),
        ),
        (
            replace(THERE, if_id=IF_ID_BASE | 6),
            ("link delete dev office0", "link add", "link set", "address add", "address add"),
        ),
    ],
)
def test_what_differs_is_changed(link: Link, lines: tuple[str, ...]) -> None:
    first = plan_links([OFFICE], [link], {}).first
    assert len(first) == len(lines)
    for line, beginning in zip(first, lines, strict=True):
        assert line.startswith(beginning)


def test_addresses_are_others_where_the_policy_names_none() -> None:
    bare = replace(OFFICE, addresses=())
    assert plan_links([bare], [THERE], {}).first == ()


def test_what_nobody_wants_goes_later() -> None:
    stale = replace(THERE, name="old0", if_id=IF_ID_BASE | 9)
    done = plan_links([OFFICE], [THERE, stale], {})
    assert done == type(done)((), ("link delete dev old0",))


def test_links_are_read() -> None:
    shown = [
        {},
        {"ifname": "lo", "flags": ["UP"], "mtu": 65536},
        {
            "ifname": "office0",
            "flags": ["MULTICAST", "NOARP", "UP", "LOWER_UP"],
            "mtu": 1400,
            "ifalias": "kube-ipsec:default/office",
            "linkinfo": {"info_kind": "xfrm", "info_data": {"if_id": "0x20000005"}},
            "addr_info": [
                {"local": "169.254.1.1", "prefixlen": 30, "scope": "global"},
                {"local": "fd00::1", "prefixlen": 64, "scope": "global"},
                {"local": "fe80::1", "prefixlen": 64, "scope": "link"},
            ],
        },
        {
            "ifname": "theirs",
            "mtu": 1500,
            "linkinfo": {"info_kind": "xfrm", "info_data": {"if_id": "0x17"}},
        },
        {"ifname": "v0", "mtu": 1500, "linkinfo": {"info_kind": "vti", "info_data": {}}},
    ]
    found, others = parse_links(shown)
    assert found == [THERE]
    assert others == {"lo", "theirs", "v0"}


def test_routes_have_twins_and_default_routes_a_table_of_their_own() -> None:
    add, delete = plan_ways(ways([OFFICE], DEFAULT), set(), DEFAULT)[4]
    twin = "metric 4294967295 proto 81"
    assert add == (
        f"route replace unreachable 10.7.0.0/16 table 254 {twin}",
        f"route replace unreachable 0.0.0.0/0 table 4502 {twin}",
        "route replace 10.7.0.0/16 dev office0 table 254 proto 81",
        "route replace 0.0.0.0/0 dev office0 table 4502 proto 81",
        "rule add pref 4502 fwmark 0/0x40 lookup 254 suppress_prefixlength 0 proto 81",
        "rule add pref 4503 fwmark 0/0x40 lookup 4502 proto 81",
    )
    assert delete == ()
    assert plan_ways(ways([OFFICE], DEFAULT), set(), DEFAULT)[6] == ((), ())


def test_what_the_kernel_shows_is_what_was_set() -> None:
    routes = [
        {"dst": "default", "dev": "office0", "table": "4502", "scope": "253", "flags": []},
        {"type": "7", "dst": "default", "table": "4502", "metric": 4294967295, "flags": []},
        {"dst": "10.7.0.0/16", "dev": "office0", "scope": "253", "flags": []},
        {"type": "7", "dst": "10.7.0.0/16", "metric": 4294967295, "flags": []},
    ]
    rules = [
        {"priority": 0, "src": "all", "table": "255"},
        {"priority": 4501, "src": "0.0.0.0", "table": "4501", "fwmark": "0", "protocol": "79"},
        {
            "priority": 4502,
            "src": "all",
            "fwmark": "0",
            "fwmask": "0x40",
            "table": "254",
            "suppress_prefixlen": 0,
            "protocol": "81",
        },
        {"priority": 4503, "src": "all", "fwmark": "0", "table": "4502", "protocol": "81"},
    ]
    there = parse_ways(4, routes, rules)
    assert there == ways([OFFICE], DEFAULT)
    add, delete = plan_ways(frozenset(), there, DEFAULT)[4]
    assert add == ()
    assert [line.split(" dev")[0][:24] for line in delete] == [
        "rule delete pref 4502 fw",
        "rule delete pref 4503 fw",
        "route delete 10.7.0.0/16",
        "route delete 0.0.0.0/0",
        "route delete unreachable",
        "route delete unreachable",
    ]
    assert parse_ways(6, [{"dst": "fd00::7", "dev": "x"}], []) == {Way(6, 254, "fd00::7/128", "x")}


def test_what_is_routed_keeps_its_source_and_is_clamped(make, build) -> None:
    found = build(office(make, routes=[]), tcpMSS=1200)
    body = nftables.ruleset(
        classify((p for p in found.policies if not p.id.interface), frozenset()),
        device=None,
        interfaces=found.interfaces,
    ).body
    name = found.interfaces[0].name
    assert f'oifname {{ "{name}" }} goto keep_address' in body
    assert (
        f'oifname "{name}" tcp flags & (syn | rst) == syn tcp option maxseg size set 1200' in body
    )
    assert f'iifname "{name}" tcp option maxseg size set 1200 return' in body
    assert "oifname {" not in nftables.ruleset((), device=None).body
