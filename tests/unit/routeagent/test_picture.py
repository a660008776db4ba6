"""Who carries what, for everything that gateways can say, and when."""

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gateway.cluster.meshline import Line
from ipsec_gateway.routeagent.picture import FORGET, SILENCE, Picture, networks

PEER = "ns/hq"
NETS = networks(["10.9.0.0/16", "fd00:9::/64"])


class Gateway:
    """Says lines in one life."""

    def __init__(self, name: str, life: str = "a1") -> None:
        self.name = name
        self.life = life
        self.seq = 0

    def says(self, *peers: str, silent: bool = False, ages=None, nets=NETS, **more) -> Line:
        self.seq += 1
        owned = None if silent else dict.fromkeys(peers, tuple(map(str, nets)))
        return Line(self.name, self.life, self.seq, owned=owned, ages=ages or {}, **more)


def carrier(picture: Picture, now: float, peer: str = PEER) -> str | None:
    return picture.carried(now)[peer].gateway


def test_the_one_that_names_it_carries_it():
    picture, g1 = Picture(), Gateway("g1")
    assert picture.said(g1.says(PEER), 0)
    it = picture.carried(0)[PEER]
    assert (it.gateway, it.remotes, it.tolerant) == ("g1", NETS, False)


def test_the_same_again_changes_nothing():
    picture, g1 = Picture(), Gateway("g1")
    picture.said(g1.says(PEER), 0)
    assert not picture.said(g1.says(silent=True), 1)
    assert not picture.said(g1.says(PEER), 2)
    assert picture.said(g1.says(PEER, nets=NETS[:1]), 3)
    assert picture.carried(3)[PEER].remotes == NETS[:1]


def test_of_two_that_name_it_the_later_one_carries_it():
    picture, g1, g2 = Picture(), Gateway("g1"), Gateway("g2")
    picture.said(g2.says(PEER), 0)
    picture.said(g1.says(PEER), 1)
    assert carrier(picture, 1) == "g1"
    picture.said(g2.says(), 2)
    assert carrier(picture, 2) == "g1"


def test_ages_say_who_is_later_to_an_agent_that_has_just_started():
    picture, g1, g2 = Picture(), Gateway("g1"), Gateway("g2")
    picture.said(g2.says(PEER, ages={PEER: 3.0}), 100)
    picture.said(g1.says(PEER, ages={PEER: 900.0}), 100)
    assert carrier(picture, 100) == "g2"


def test_a_silent_gateway_goes_on_carrying_until_another_takes_over():
    picture, g1, g2 = Picture(), Gateway("g1"), Gateway("g2")
    picture.said(g1.says(PEER), 0)
    picture.said(g2.says(), 0)
    assert carrier(picture, 1000) == "g1"
    picture.said(g2.says(PEER), 1000)
    assert carrier(picture, 1000) == "g2"


def test_a_claim_from_before_a_takeover_is_void():
    picture, g1, g2 = Picture(), Gateway("g1"), Gateway("g2")
    picture.said(g1.says(PEER), 0)
    picture.said(g2.says(PEER), 10)
    # Deleted meanwhile: the dead g1 must not get it back.
    picture.said(g2.says(), 20)
    assert carrier(picture, 20) is None
    assert PEER not in picture.carried(20 + FORGET)


def test_a_gateway_that_still_names_it_after_the_takeover_ended_carries_it():
    picture, g1, g2 = Picture(), Gateway("g1"), Gateway("g2")
    picture.said(g1.says(PEER), 0)
    picture.said(g2.says(PEER), 10)
    picture.said(g1.says(silent=True), 11)
    picture.said(g2.says(), 12)
    assert carrier(picture, 12) == "g1"


def test_a_peer_that_is_let_go_of_is_refused_and_then_forgotten():
    picture, g1 = Picture(), Gateway("g1")
    picture.said(g1.says(PEER), 0)
    assert picture.said(g1.says(), 5)
    assert carrier(picture, 5) is None
    assert carrier(picture, 5 + FORGET - 0.1) is None
    assert picture.carried(5 + FORGET) == {}
    assert picture.carried(5) == {}, "what is forgotten does not come back"


def test_a_peer_that_is_given_up_is_never_forgotten():
    picture, g1 = Picture(), Gateway("g1")
    picture.said(g1.says(PEER), 0)
    picture.said(g1.says(gives_up=frozenset({PEER})), 5)
    assert carrier(picture, 5 + 100 * FORGET) is None
    picture.said(g1.says(PEER), 9999)
    assert carrier(picture, 9999) == "g1"


def test_a_draining_gateway_carries_until_another_does():
    picture, g1, g2 = Picture(), Gateway("g1"), Gateway("g2")
    picture.said(g1.says(PEER), 0)
    assert picture.said(g1.says(draining=True), 1)
    assert carrier(picture, 1) == "g1"
    assert carrier(picture, 100) == "g1"
    picture.said(g2.says(PEER), 101)
    assert carrier(picture, 101) == "g2"


def test_a_new_life_takes_anew():
    picture, g1, g2 = Picture(), Gateway("g1"), Gateway("g2")
    picture.said(g1.says(PEER), 0)
    picture.said(g2.says(PEER), 10)
    again = Gateway("g1", "b2")
    assert picture.said(again.says(PEER), 20)
    assert carrier(picture, 20) == "g1"


def test_a_new_life_that_has_not_read_its_tunnels_says_nothing_of_them():
    picture, g1 = Picture(), Gateway("g1")
    picture.said(g1.says(PEER), 0)
    picture.said(Gateway("g1", "b2").says(silent=True), 3)
    assert carrier(picture, 1000) == "g1"


def test_an_old_line_counts_for_nothing():
    picture, g1 = Picture(), Gateway("g1")
    old = g1.says()
    picture.said(g1.says(PEER), 0)
    assert not picture.said(old, 1)
    assert carrier(picture, 1) == "g1"


def test_tolerance_is_remembered_while_nobody_carries_it():
    picture, g1 = Picture(), Gateway("g1")
    picture.said(g1.says(PEER, use=frozenset({PEER})), 0)
    picture.said(g1.says(), 1)
    assert picture.carried(1)[PEER].tolerant
    assert picture.said(g1.says(PEER), 2)
    assert not picture.carried(2)[PEER].tolerant


def test_the_next_change_is_the_next_silence_or_forgetting():
    picture, g1 = Picture(), Gateway("g1")
    assert picture.next_change(0) is None
    picture.said(g1.says(PEER), 0)
    assert picture.next_change(1) == SILENCE - 1
    picture.said(g1.says(), 2)
    assert picture.next_change(2 + SILENCE) == FORGET - SILENCE
    assert picture.next_change(2 + FORGET) is None


def test_a_record_brings_the_next_agent_to_the_same_point():
    picture, g1, g2 = Picture(), Gateway("g1"), Gateway("g2")
    picture.said(g1.says(PEER, "ns/gone", use=frozenset({PEER})), 0)
    picture.said(g1.says(PEER, use=frozenset({PEER})), 1)
    after = Picture()
    after.remember(json.loads(json.dumps(picture.record(1))), 500)
    assert after.carried(500) == picture.carried(1)
    # Whoever speaks knows better.
    after.said(g2.says(PEER), 501)
    assert carrier(after, 501) == "g2"
    assert "ns/gone" not in after.carried(500 + FORGET)


@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["peers", "gateway", "remotes", "tolerant", "ns/hq"]), x
            )
        ),
    )
)
def test_any_record_is_survived(record):
    Picture().remember(record, 0)


@pytest.mark.parametrize("value", [None, 7, ["x", "10.0.0.0/8"], "text", [None]])
def test_only_networks_are_networks(value):
    assert all(isinstance(n, ipaddress.IPv4Network) for n in networks(value))


LINES = st.lists(
    st.tuples(
        st.sampled_from(["g1", "g2", "g3"]),
        st.sets(st.sampled_from(["ns/p1", "ns/p2"])) | st.none(),
        st.booleans(),
        st.floats(0.0, 10.0),
    ),
    max_size=30,
)


@given(LINES)
def test_whatever_is_said_a_fresh_claim_wins_and_nothing_is_lost_at_once(lines):
    picture, now, lives = Picture(), 0.0, {}
    last: dict[str, tuple[set[str], float]] = {}
    for name, owned, draining, pause in lines:
        now += pause
        gateway = lives.setdefault(name, Gateway(name))
        if owned is None:
            line = gateway.says(silent=True, draining=draining)
            last[name] = (last.get(name, (set(), 0.0))[0], now)
        else:
            line = gateway.says(*owned, draining=draining)
            last[name] = (owned, now)
        before = picture.carried(now)
        picture.said(line, now)
        after = picture.carried(now)
        assert before.keys() <= after.keys()
        for peer in {p for peers, _ in last.values() for p in peers}:
            fresh = {n for n, (peers, t) in last.items() if peer in peers and now - t <= SILENCE}
            if fresh:
                assert after[peer].gateway in fresh


def test_what_depends_on_time_alone_is_silence_and_forgetting():
    picture, g1, g2 = Picture(), Gateway("g1"), Gateway("g2")
    picture.said(g1.says(PEER), 0)
    picture.said(g2.says(), 0)
    at_first = picture.timed(1)
    picture.said(g1.says(silent=True), 5)
    assert picture.timed(SILENCE) == at_first
    assert picture.timed(SILENCE + 1) != at_first
    picture.said(g1.says(), 10)
    before = picture.timed(10)
    picture.said(g1.says(silent=True), 9 + FORGET)
    assert picture.timed(9 + FORGET) == before
    assert picture.timed(10 + FORGET) != before
