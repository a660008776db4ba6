"""Templates on this node: their place among policies, what is told to the engine, what peers have
from them, and what is dropped while nobody has it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from ipsec_gateway.dynamic import Generated, extended, generated, kept
from ipsec_gateway.facts import Facts
from ipsec_gateway.inplace import InPlace
from ipsec_gateway.intent import Intent, intent
from ipsec_gateway.ipsec.abilities import USERSPACE
from ipsec_gateway.ipsec.base import (
    DataplaneError,
    Level,
    PolicyAction,
    PolicyDirection,
    PolicyId,
    PolicySpec,
)
from ipsec_gateway.lastgood import LastGood
from ipsec_gateway.marks import allocate_reqids
from ipsec_gateway.patterns import REQIDS, is_generated
from ipsec_gateway.tools import ToolError
from ipsec_ike.config import Mode
from ipsec_ike.inputs import Endpoint
from ipsec_ike.selectors import TrafficSelector

FACTS = Facts(
    addresses=(ip_address("192.0.2.1"),),
    resolved={"203.0.113.9": ("203.0.113.9",)},
    sources={"203.0.113.9": "192.0.2.1"},
)
ASKS = {
    "method": "preSharedKey",
    "secretRef": {"name": "psk"},
    "generatePolicy": "port-strict",
    "policyTemplateGroup": "warriors",
}
OUT = PolicyDirection.OUT


def warrior(make, name: str = "hq", **spec: Any) -> dict[str, Any]:
    plain = {"passive": True, "localSubnets": None, "remoteSubnets": None, "authentication": ASKS}
    return make.peer(name, **{**plain, "address": None, **spec})


def template(make, name: str = "pool", src="10.1.0.0/16", dst="10.99.0.0/24", **spec: Any):
    selector = {"src": src, "dst": dst, **spec.pop("selector", {})}
    return make.policy(name, None, template=True, group="warriors", selectors=[selector], **spec)


def of(make, *documents, facts: Facts = FACTS) -> Intent:
    found = LastGood().take(make.files(a=[make.secret(), *documents]))
    assert not found.rejections
    assert not found.errors
    return intent(found.tunnels, facts)


def child(host: str = "10.99.0.5/32", number: int = 1, **changes: Any) -> Generated:
    plain = Generated(
        peer="default/hq",
        template="pool",
        child=f"pool#{number:08x}",
        reqid=REQIDS[0] + number,
        local=(TrafficSelector.network("10.1.0.0/16"),),
        remote=(TrafficSelector.network(host),),
        remote_id="warrior.example",
        end=Endpoint("198.51.100.7", 4500),
    )
    return replace(plain, **changes)


def outward(found: Intent) -> list[tuple[int, str, str, str]]:
    return [
        (p.priority, str(p.id.source), str(p.id.destination), p.action.value)
        for p in found.policies
        if p.id.direction is OUT
    ]


def test_what_the_engine_is_told(make) -> None:
    found = of(make, warrior(make), template(make, proposal={"lifetime": "1h"}))
    (peer,) = found.peers
    assert (peer.children, peer.initiate) == ((), False)
    (only,) = peer.templates
    assert (only.name, only.mode, only.lifetime.seconds) == ("pool", Mode.TUNNEL, 3600)
    assert [str(t) for t in (*only.local_ts, *only.remote_ts)] == ["10.1.0.0/16", "10.99.0.0/24"]
    assert (only.reqids, only.default_route, only.taken) == (REQIDS, False, ())
    (identity,) = peer.identities
    assert (identity.templates, identity.any_port) == (("pool",), False)
    override = {**ASKS, "generatePolicy": "port-override"}
    (peer,) = of(make, warrior(make, authentication=override), template(make)).peers
    assert peer.identities[0].any_port


def test_configured_reqids_are_none_of_what_peers_ask_for() -> None:
    assert not any(map(is_generated, allocate_reqids(str(n) for n in range(2000)).values()))


@pytest.mark.parametrize(
    ("spec", "blocked"),
    [
        ({}, True),
        ({"level": "unique"}, True),
        ({"level": "use"}, False),
        ({"dst": "0.0.0.0/0"}, False),
        ({"src": "0.0.0.0/0"}, True),
        ({"dst": "0.0.0.0/0", "selector": {"protocol": "udp", "srcPort": 1701}}, True),
        ({"dst": "0.0.0.0/0", "selector": {"protocol": "udp"}}, False),
    ],
)
def test_what_nobody_has_is_dropped_as_the_level_says(make, spec, blocked) -> None:
    found = of(make, warrior(make), template(make, **spec))
    assert [p.action for p in found.policies] == [PolicyAction.DISCARD] * (3 if blocked else 0)
    assert found.pairs == ()


def test_the_place_of_a_template(make) -> None:
    """After configured ones of the same priority, before what is discarded; its own end last."""
    drop = make.policy(
        "drop",
        action="discard",
        selectors=[{"src": "10.0.0.0/8", "dst": "10.0.0.0/8"}],
    )
    site = make.peer("hq2", "203.0.113.9", localSubnets=["10.1.0.0/16"])
    documents = warrior(make), template(make), make.policy("low", **_pair("10.77.0.0/16", 99)), drop
    found = extended(of(make, *documents, site), [child()])
    assert outward(found) == [
        (1, "10.1.0.0/16", "10.77.0.0/16", "encrypt"),
        (2, "10.1.0.0/16", "10.2.0.0/16", "encrypt"),
        (3, "10.1.0.0/16", "10.99.0.5/32", "encrypt"),
        (4, "10.0.0.0/8", "10.0.0.0/8", "discard"),
        (5, "10.1.0.0/16", "10.99.0.0/24", "discard"),
    ]


def _pair(dst: str, priority: int = 0x20000, **more: Any) -> dict[str, Any]:
    return {"selectors": [{"src": "10.1.0.0/16", "dst": dst}], "priority": priority, **more}


def test_what_is_configured_is_taken(make) -> None:
    """Whole where it comes first, else the very same alone; what is discarded later gives way."""
    documents = [
        warrior(make),
        make.policy("first", **_pair("10.99.0.0/28", 5, action="none")),
        make.policy("later", **_pair("10.99.0.64/28", 0x30000)),
        make.policy("drop", **_pair("10.99.0.128/28", 0x30000, action="discard")),
        make.policy("elsewhere", **_pair("10.98.0.0/28", 5)),
    ]
    (peer,) = of(make, *documents, template(make)).peers
    taken = [(str(t.remote), t.owner, t.first) for t in peer.templates[0].taken]
    assert taken == [
        ("10.99.0.0/28", "policy default/first", True),
        ("10.99.0.64/28", "policy default/later", False),
    ]


def test_what_a_peer_has_counts_as_configured(make) -> None:
    static = of(
        make, warrior(make, mtu=1300, tcpMSS=1200, notrack=None), template(make, level="require")
    )
    found = extended(static, [child()])
    assert {p.id.direction for p in found.policies if p.reqid} == set(PolicyDirection)
    out = next(p for p in found.policies if p.reqid and p.id.direction is OUT)
    assert (out.level, out.mode, out.name, out.reqid) == (
        Level.REQUIRE,
        Mode.TUNNEL,
        "default/pool",
        REQIDS[0] + 1,
    )
    net = ip_network("10.99.0.5/32")
    assert found.pairs == ((ip_network("10.1.0.0/16"), net),)
    assert found.ends[net] == "198.51.100.7"
    assert found.mtus == {net: 1300}
    assert found.clamps == {1200: (net,)}
    assert found.children["default/hq", "pool#00000001"].ref.name == "pool"
    # Without it everything is as it was.
    assert extended(static, []) == static
    assert extended(static, [child(template="another")]) == static


def test_several_peers_at_one_place(make) -> None:
    static = of(make, warrior(make), template(make))
    found = extended(static, [child(), child("10.99.0.6/32", 2)])
    assert [p[:3] for p in outward(found)] == [
        (1, "10.1.0.0/16", "10.99.0.5/32"),
        (1, "10.1.0.0/16", "10.99.0.6/32"),
        (2, "10.1.0.0/16", "10.99.0.0/24"),
    ]


def test_all_of_a_template_takes_the_place_of_its_end(make) -> None:
    static = of(make, warrior(make), template(make))
    found = extended(static, [child("10.99.0.0/24")])
    assert [p.action for p in found.policies] == [PolicyAction.ENCRYPT] * 3


def test_connections_are_tracked_where_they_must_be(make) -> None:
    asks = {**ASKS, "notrack": "Pod"}
    services = (ip_network("10.1.7.0/24"),)
    documents = warrior(make, authentication=asks), template(make)
    found = extended(of(make, *documents), [child()])
    assert list(found.untracked.values()) == [False]
    found = extended(of(make, *documents, facts=replace(FACTS, services=services)), [child()])
    assert found.untracked == {}


def test_a_data_plane_that_cannot(make) -> None:
    facts = replace(FACTS, abilities=USERSPACE)
    found = of(make, warrior(make), template(make, ipsecProtocols=["ah"]), facts=facts)
    assert [(p.ref.name, p.reason) for p in found.problems] == [("pool", "UnsupportedByDataplane")]
    assert found.peers[0].templates == ()
    assert found.peers[0].identities[0].templates == ("pool",)


def test_what_an_earlier_life_gave_stays_until_it_is_known(make) -> None:
    static = of(make, warrior(make), template(make))
    before = extended(static, [child()])
    inherited = [replace(p, name="") for p in before.policies]
    found = kept(static, inherited)
    assert [p.id for p in found.policies] == [p.id for p in before.policies]
    assert found.pairs == before.pairs
    foreign = PolicySpec(
        id=PolicyId(OUT, child().local[0], TrafficSelector.network("10.99.0.9/32")),
        action=PolicyAction.ENCRYPT,
        priority=1,
        reqid=REQIDS[0] - 1,
    )
    assert kept(static, [foreign]).policies == static.policies


class Engine:
    """Has the children that the test says."""

    def __init__(self) -> None:
        self.children: list[Any] = []

    def snapshot(self) -> list[Any]:
        return self.children


class Backend:
    """Writes down what it is told. ``meanwhile`` happens while it works."""

    def __init__(self) -> None:
        self.said: list[tuple[str, list[str]]] = []
        self.meanwhile: Any = None

    async def put_policies(self, put, delete) -> None:
        for verb, ids in (("put", [p.id for p in put]), ("delete", list(delete))):
            out = [str(i.destination) for i in ids if i.direction is OUT]
            if out:
                self.said.append((verb, out))
        if self.meanwhile is not None:
            what, self.meanwhile = self.meanwhile, None
            await what()


class Stub:
    """Fields by name."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


def sa_of(*children: Generated, state: str = "installed") -> Stub:
    first = children[0]
    return Stub(
        peer=first.peer,
        remote_id=first.remote_id,
        remote=first.end,
        children=tuple(
            Stub(
                name=c.child,
                reqid=c.reqid,
                template=c.template,
                state=state,
                local_ts=c.local,
                remote_ts=c.remote,
            )
            for c in children
        ),
    )


class Steering:
    """Writes down into the backend's list what it is asked for."""

    def __init__(self, backend: Backend, device: str | None) -> None:
        self.backend = backend
        self.device = device

    async def guard(self, wanted: Intent, **_: Any) -> None:
        self.backend.said.append(("guard", [p[2] for p in outward(wanted)]))

    async def route(self, wanted: Intent, addresses: Any) -> None:
        self.backend.said.append(("route", [str(remote) for _, remote in wanted.pairs]))


def place(
    engine: Engine, backend: Backend, *, first: bool = False, steering: Any = None
) -> InPlace:
    pump = Stub(engine=engine, backend=backend)
    handover = Stub(first=first)
    return InPlace(pump, steering, handover)  # type: ignore[arg-type]  # as much as it needs


def test_generated_children_of_a_snapshot() -> None:
    old, new = child(), child("10.99.0.6/32", 2)
    found = generated(
        [sa_of(new), sa_of(old), sa_of(old), sa_of(child("10.0.0.1/32", 3), state="deleted")]
    )
    assert found == (old, new)


def test_policies_before_the_first_sa(make) -> None:
    static = of(make, warrior(make), template(make))
    engine, backend = Engine(), Backend()
    here = place(engine, backend)
    here.begin(static)
    asyncio.run(here.put(backend))
    engine.children = [sa_of(child())]
    spec = Stub(reqid=child().reqid, peer="default/hq", child="pool#00000001")
    asyncio.run(here.prepare(spec))
    asyncio.run(here.prepare(spec))  # a rekey
    asyncio.run(here.prepare(Stub(reqid=REQIDS[0] - 1)))
    assert backend.said == [("put", ["10.99.0.0/24"]), ("put", ["10.99.0.5/32"])]


@pytest.mark.parametrize("device", ["kipsec0", None])
def test_the_guard_and_routes_come_before_policies(make, device: str | None) -> None:
    engine, backend = Engine(), Backend()
    here = place(engine, backend, steering=Steering(backend, device))
    here.begin(of(make, warrior(make), template(make)))
    engine.children = [sa_of(child())]
    asyncio.run(here.prepare(Stub(reqid=child().reqid, peer="", child="")))
    said = [what for what, _ in backend.said]
    assert said == (["guard", "route", "put"] if device else ["guard", "put"])
    assert backend.said[0][1] == ["10.99.0.5/32", "10.99.0.0/24"]
    assert backend.said[-1][1] == ["10.99.0.5/32"]


def test_a_guard_that_fails_is_the_end_of_the_child(make) -> None:
    class Broken(Steering):
        async def guard(self, wanted: Intent, **_: Any) -> None:
            raise ToolError("nft: no")

    engine, backend = Engine(), Backend()
    here = place(engine, backend, steering=Broken(backend, None))
    here.begin(of(make, warrior(make), template(make)))
    engine.children = [sa_of(child())]
    with pytest.raises(DataplaneError, match="default/hq/pool#1: nft: no"):
        asyncio.run(here.prepare(Stub(reqid=child().reqid, peer="default/hq", child="pool#1")))
    assert backend.said == []


def test_a_child_that_comes_while_policies_go(make) -> None:
    """What is decided is decided on what is there at that moment."""
    static = of(make, warrior(make), template(make))
    engine, backend = Engine(), Backend()
    here = place(engine, backend)
    engine.children = [sa_of(child())]
    here.begin(static)
    asyncio.run(here.put(backend))
    backend.said.clear()
    engine.children = []
    here.begin(static)

    async def back() -> None:
        engine.children = [sa_of(child())]
        await here.prepare(Stub(reqid=child().reqid, peer="", child=""))

    backend.meanwhile = back
    asyncio.run(here.drop(backend))
    assert backend.said == [("delete", ["10.99.0.5/32"]), ("put", ["10.99.0.5/32"])]
    assert child().remote[0] in {i.destination for i in here.policies}


def test_after_a_restart_nothing_goes_before_the_engine_knows(make) -> None:
    static = of(make, warrior(make), template(make))
    engine, backend = Engine(), Backend()
    here = place(engine, backend, first=True)
    here.policies = {p.id: p for p in extended(static, [child()]).policies}
    here.begin(static)
    asyncio.run(here.drop(backend))
    assert backend.said == []
