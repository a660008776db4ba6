"""Membership as a state machine: several gateways, a network that loses, wrong clocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsec_api.ownership import Wish, ranking
from ipsec_gateway.cluster.membership import LETTING_GO, PATIENCE, Claim, LeaseFacts, Membership
from ipsec_gateway.cluster.meshline import Line, digest_of

PEERS = {f"ns/p{n}": Claim() for n in range(6)}


@dataclass
class Cluster:
    """Gateways that tick once a second. ``cut`` has pairs that do not hear each other."""

    names: tuple[str, ...] = ("a", "b", "c")
    claims: Mapping[str, Claim] = field(default_factory=lambda: PEERS)
    now: float = 1000.0
    api: bool = True
    skew: dict[str, float] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    cut: set[frozenset[str]] = field(default_factory=set)
    no_api: set[str] = field(default_factory=set)
    lives: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, Membership] = field(default_factory=dict)
    leases: dict[str, LeaseFacts] = field(default_factory=dict)
    seq: int = 0
    held: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.names:
            self.start(name)

    def start(self, name: str) -> None:
        self.dead.discard(name)
        self.lives[name] = self.lives.get(name, 0) + 1
        self.nodes[name] = Membership(name, self.now)

    def lease_of(self, name: str) -> LeaseFacts:
        mine = self.nodes[name]
        return LeaseFacts(f"{self.now + self.skew.get(name, 0)}", draining=mine.draining)

    def tick(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.now += 1
            live = [n for n in self.names if n not in self.dead]
            for name in live:
                if self.api and name not in self.no_api and int(self.now) % 2 == 0:
                    self.leases[name] = self.lease_of(name)
            for name in live:
                mine = self.nodes[name]
                if self.api and name not in self.no_api:
                    mine.leases(self.leases, self.now)
                for other in live:
                    if other != name and frozenset((name, other)) not in self.cut:
                        mine.line(self.line(other), self.now)
            for name in live:
                self.held[name] = set(self.nodes[name].decide(self.claims, self.now).held)
            for name in self.dead:
                self.held[name] = set()

    def line(self, name: str) -> Line:
        mine = self.nodes[name]
        owned: dict[str, tuple[str, ...]] = dict.fromkeys(mine.held, ())
        self.seq += 1
        return Line(
            name,
            f"{name}{self.lives[name]}",
            self.seq,
            draining=mine.draining,
            gives_up=mine.gives_up,
            digest=digest_of(owned),
            owned=owned,
            ages={peer: self.now - when for peer, when in mine.held.items()},
        )

    def owners(self, peer: str) -> list[str]:
        return [name for name in self.names if peer in self.held.get(name, ())]

    def settled(self) -> bool:
        return all(len(self.owners(peer)) == 1 for peer in self.claims)


def test_every_peer_gets_the_one_that_everybody_prefers() -> None:
    cluster = Cluster()
    cluster.tick(10)
    for peer in PEERS:
        assert cluster.owners(peer) == [ranking(peer, cluster.names)[0]]


@pytest.mark.parametrize("api", [True, False])
def test_a_dead_gateway_is_replaced_within_its_patience(api: bool) -> None:
    cluster = Cluster()
    cluster.tick(10)
    cluster.api = api
    cluster.tick(20)
    before = {peer: cluster.owners(peer)[0] for peer in PEERS}
    cluster.dead.add("a")
    cluster.tick(int(PATIENCE) - 1)
    assert all(not cluster.owners(p) for p, owner in before.items() if owner == "a")
    cluster.tick(2)
    for peer, owner in before.items():
        rest = ranking(peer, ["b", "c"])
        assert cluster.owners(peer) == [rest[0] if owner == "a" else owner]


def test_who_comes_back_takes_nothing_from_anybody() -> None:
    cluster = Cluster()
    cluster.tick(10)
    cluster.dead.add("a")
    cluster.tick(10)
    before = {peer: cluster.owners(peer) for peer in PEERS}
    cluster.start("a")
    cluster.tick(20)
    assert {peer: cluster.owners(peer) for peer in PEERS} == before


def test_preempt_brings_the_preferred_one_back() -> None:
    claims = {peer: Claim(preempt=True) for peer in PEERS}
    cluster = Cluster(claims=claims)
    cluster.tick(10)
    cluster.dead.add("a")
    cluster.tick(10)
    cluster.start("a")
    cluster.tick(20)
    for peer in PEERS:
        assert cluster.owners(peer) == [ranking(peer, cluster.names)[0]]


def test_wrong_clocks_do_no_harm() -> None:
    """Days apart, and one of them jumps; Leases alone, since no mesh ever comes up."""
    cluster = Cluster(skew={"a": 86400.0, "b": -86400.0})
    cluster.cut = {frozenset("ab"), frozenset("ac"), frozenset("bc")}
    cluster.tick(20)
    cluster.skew["a"] = -3600.0
    for _ in range(20):
        before = {peer: cluster.owners(peer) for peer in PEERS}
        cluster.tick()
        assert cluster.settled()
        assert {peer: cluster.owners(peer) for peer in PEERS} == before


def test_an_old_lease_is_no_sign_of_life() -> None:
    """What a list shows may be from a node that is long gone."""
    cluster = Cluster(names=("a",))
    cluster.leases = {"x": LeaseFacts("some time"), "y": LeaseFacts("another time")}
    cluster.tick(int(PATIENCE) - 1)
    assert not cluster.held["a"]
    cluster.tick(2)
    assert cluster.held["a"] == set(PEERS)


def test_alone_there_is_nothing_to_wait_for() -> None:
    cluster = Cluster(names=("a",))
    cluster.tick()
    assert cluster.held["a"] == set(PEERS)


def test_mesh_partition_with_the_api_server_changes_nothing() -> None:
    cluster = Cluster()
    cluster.tick(10)
    before = {peer: cluster.owners(peer) for peer in PEERS}
    cluster.cut = {frozenset("ab"), frozenset("ac"), frozenset("bc")}
    for _ in range(30):
        cluster.tick()
        assert {peer: cluster.owners(peer) for peer in PEERS} == before


def test_who_is_cut_off_takes_nothing_and_lets_go_when_it_is_back() -> None:
    cluster = Cluster()
    cluster.tick(10)
    mine = set(cluster.held["a"])
    assert mine
    cluster.cut = {frozenset("ab"), frozenset("ac")}
    cluster.no_api = {"a"}
    cluster.tick(60)
    assert cluster.held["a"] == mine
    assert cluster.held["b"] | cluster.held["c"] == set(PEERS)
    cluster.cut, cluster.no_api = set(), set()
    cluster.tick(2)
    # The others have the SAs that the peers believe in.
    assert not cluster.held["a"]
    assert cluster.settled()


def test_two_without_an_api_server_take_over_from_each_other() -> None:
    cluster = Cluster(names=("a", "b"))
    cluster.tick(10)
    cluster.api = False
    cluster.tick(30)
    assert cluster.settled()
    cluster.dead.add("a")
    cluster.tick(8)
    assert cluster.held["b"] == set(PEERS)


def test_draining_hands_over_without_a_gap() -> None:
    cluster = Cluster()
    cluster.tick(10)
    cluster.nodes["a"].draining = True
    for _ in range(5):
        cluster.tick()
        assert all(cluster.owners(peer) for peer in PEERS)
    assert not cluster.held["a"]
    assert cluster.settled()


def test_a_peer_is_let_go_when_another_has_it_or_time_is_up() -> None:
    claims = {"ns/p": Claim(), "ns/q": Claim()}
    me = Membership("a", 0.0, held=claims)
    me.leases({}, 0.0)
    assert me.line(Line("b", "1", 1, digest="0", owned={}), 0.0)
    me.decide(claims, 0.0)
    me.draining = True
    assert me.decide(claims, 0.1).held == claims.keys()
    assert me.line(Line("b", "1", 2, digest="1", owned={"ns/p": ()}), 0.5)
    assert me.decide(claims, 0.6).dropped == {"ns/p"}
    assert me.decide(claims, 0.1 + LETTING_GO - 0.1).held == {"ns/q"}
    assert me.decide(claims, 0.1 + LETTING_GO + 0.1).dropped == {"ns/q"}


def test_draining_alone_keeps_everything() -> None:
    cluster = Cluster(names=("a",))
    cluster.tick(3)
    cluster.nodes["a"].draining = True
    cluster.tick(10)
    assert cluster.held["a"] == set(PEERS)


def test_giving_up_moves_one_peer() -> None:
    cluster = Cluster()
    cluster.tick(10)
    peer = next(iter(cluster.held["a"]))
    before = {p: cluster.owners(p) for p in PEERS if p != peer}
    cluster.nodes["a"].gives_up = frozenset({peer})
    cluster.tick(3)
    first = ranking(peer, ["b", "c"])[0]
    assert cluster.owners(peer) == [first]
    assert {p: cluster.owners(p) for p in PEERS if p != peer} == before
    for name in cluster.names:
        cluster.nodes[name].gives_up = frozenset({peer})
    cluster.tick(3)
    assert cluster.owners(peer) == [first]  # nobody can: it stays where it is


def test_a_probe_that_does_not_count_moves_nothing() -> None:
    cluster = Cluster(claims={peer: Claim(by_probe=False) for peer in PEERS})
    cluster.tick(10)
    before = {p: cluster.owners(p) for p in PEERS}
    cluster.nodes["a"].gives_up = frozenset(PEERS)
    cluster.tick(5)
    assert {p: cluster.owners(p) for p in PEERS} == before


def test_groups_and_labels_choose() -> None:
    cluster = Cluster(claims={"ns/p": Claim(wish=Wish("edge", {"zone": "1"}))})
    cluster.tick(8)
    assert not cluster.owners("ns/p")
    for name in "ab":
        cluster.nodes[name].group = "edge"
    cluster.nodes["b"].labels = {"zone": "1"}
    cluster.tick(2)
    assert cluster.owners("ns/p") == ["b"]
    cluster.nodes["b"].labels = {}
    cluster.tick(2)
    assert not cluster.owners("ns/p")


def test_patience_is_the_peers() -> None:
    claims = {"ns/short": Claim(patience=3.0), "ns/long": Claim(patience=20.0)}
    cluster = Cluster(names=("a", "b"), claims=claims)
    cluster.tick(10)
    owner = {peer: cluster.owners(peer)[0] for peer in claims}
    for peer, wait in (("ns/short", 3), ("ns/long", 20)):
        name = owner[peer]
        other = "b" if name == "a" else "a"
        cluster.dead.add(name)
        cluster.tick(wait - 1)
        assert peer not in cluster.held[other]
        cluster.tick(2)
        assert peer in cluster.held[other]
        cluster.start(name)
        cluster.tick(10)


def test_a_life_that_follows_keeps_what_it_had() -> None:
    cluster = Cluster()
    cluster.tick(10)
    mine = set(cluster.held["a"])
    cluster.dead.add("a")
    cluster.tick(3)
    cluster.start("a")
    cluster.nodes["a"].hold(mine, cluster.now)
    for _ in range(10):
        cluster.tick()
        assert cluster.held["a"] == mine
        assert cluster.settled()


def test_lines_that_are_repeated_or_incomplete_do_not_count() -> None:
    me = Membership("a", 0.0)
    line = Line("b", "1", 5, digest="d", owned={"ns/p": ()})
    assert me.line(line, 1.0)
    assert not me.line(line, 2.0)
    assert me.others["b"].line_at == 1.0
    assert not me.line(Line("b", "1", 6, digest="other"), 3.0)
    assert not me.line(Line("b", "2", 1, digest="d"), 3.0)
    assert not me.line(Line("a", "9", 1), 3.0)
    assert me.line(Line("b", "1", 6, digest="d"), 3.0)
    assert me.others["b"].owned == {"ns/p": 1.0}


@settings(max_examples=60)
@given(st.data())
def test_whatever_happened_it_ends_with_one_owner_each(data: st.DataObject) -> None:
    """Deaths, restarts, cuts and outages in any order; then peace, and soon nobody has two."""
    cluster = Cluster(claims={f"ns/p{n}": Claim(preempt=n == 0) for n in range(3)})
    cluster.tick(data.draw(st.integers(0, 8)))
    for _ in range(data.draw(st.integers(1, 6))):
        name = data.draw(st.sampled_from(cluster.names))
        other = data.draw(st.sampled_from(cluster.names))
        match data.draw(
            st.sampled_from(["die", "start", "cut", "heal", "api", "isolate", "tired"])
        ):
            case "die":
                cluster.dead.add(name)
            case "start":
                cluster.start(name)
            case "cut":
                cluster.cut.add(frozenset((name, other)))
            case "heal":
                cluster.cut.clear()
            case "api":
                cluster.api = not cluster.api
            case "isolate":
                cluster.no_api.add(name)
            case _:
                peer = data.draw(st.sampled_from(sorted(cluster.claims)))
                cluster.nodes[name].gives_up ^= {peer}
        cluster.tick(data.draw(st.integers(0, 9)))
    cluster.cut.clear()
    cluster.no_api.clear()
    cluster.api = True
    for name in tuple(cluster.dead):
        cluster.start(name)
    cluster.tick(2 * int(PATIENCE))
    assert cluster.settled()
    before = {peer: cluster.owners(peer) for peer in cluster.claims}
    cluster.tick(10)
    assert {peer: cluster.owners(peer) for peer in cluster.claims} == before
