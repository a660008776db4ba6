"""Rendezvous ownership: all agree, as little as possible moves."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ipsec_api.ownership import Wish, assign, ranking, weight

NAMES = st.sets(st.text("abcdefghij-.0123456789", min_size=1, max_size=12), min_size=1, max_size=8)
PEER = st.text("abc/xyz0123", min_size=1, max_size=20)


def test_weights_are_what_all_releases_compute() -> None:
    """Gateways of two releases live side by side during an upgrade."""
    assert weight("default/hq", "node-1").hex() == "faa405ccffd87699cef2ac0c72373a1c"
    assert ranking("default/hq", ["node-1", "node-2", "node-3"]) == ("node-1", "node-2", "node-3")


@given(PEER, NAMES, st.randoms())
def test_order_of_the_gateways_does_not_matter(peer: str, names: set[str], rng: object) -> None:
    shuffled = list(names)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]  # random.Random, which st.randoms hides
    assert assign(peer, shuffled) == assign(peer, sorted(names))
    assert set(ranking(peer, shuffled)) == names


@given(st.sets(PEER, min_size=1, max_size=30), NAMES, st.data())
def test_only_the_peers_of_a_gateway_that_goes_move(
    peers: set[str], names: set[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(names)))
    for peer in peers:
        before = assign(peer, names)
        after = assign(peer, names - {gone})
        if before.owner != gone:
            assert after.owner == before.owner
        else:
            assert after.owner == (before.standbys[0] if before.standbys else None)
        assert after.standbys == tuple(g for g in before.standbys if g not in (gone, after.owner))


@given(PEER, NAMES, st.data())
def test_whoever_holds_a_peer_keeps_it_unless_asked_to_preempt(
    peer: str, names: set[str], data: st.DataObject
) -> None:
    holders = data.draw(st.sets(st.sampled_from(sorted(names))))
    kept = assign(peer, names, holders=holders)
    assert kept.owner == next(iter(ranking(peer, holders)), ranking(peer, names)[0])
    assert assign(peer, names, holders=holders, preempt=True).owner == ranking(peer, names)[0]


@given(PEER, NAMES, st.data())
def test_who_gave_up_owns_only_where_all_have(
    peer: str, names: set[str], data: st.DataObject
) -> None:
    tired = data.draw(st.sets(st.sampled_from(sorted(names))))
    holders = data.draw(st.sets(st.sampled_from(sorted(names))))
    owner = assign(peer, names, holders=holders, gave_up=tired).owner
    assert owner is not None
    assert (owner in tired) == (tired == names)


def test_peers_are_spread() -> None:
    owners = Counter(assign(f"ns/p{n}", ["a", "b", "c"]).owner for n in range(3000))
    assert all(850 < count < 1150 for count in owners.values())


def test_nobody_is_able() -> None:
    assert assign("a/b", []).owner is None


def test_a_wish_is_for_a_group_and_labels() -> None:
    assert Wish().accepts("", {})
    assert Wish().accepts("default", {"zone": "a"})
    assert not Wish("edge").accepts("default", {})
    assert Wish("edge", {"zone": "a"}).accepts("edge", {"zone": "a", "disk": "ssd"})
    assert not Wish("edge", {"zone": "a"}).accepts("edge", {"zone": "b"})
    assert not Wish("edge", {"zone": "a"}).accepts("edge", {})
