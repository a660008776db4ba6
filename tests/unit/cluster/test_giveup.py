"""When a gateway gives a peer up, and for how long."""

from __future__ import annotations

from ipsec_gateway.cluster.giveup import FIRST, LONGEST, GiveUp

P = frozenset({"ns/p"})


def test_it_lasts_and_doubles() -> None:
    it = GiveUp()
    assert not it.update({"ns/p": True}, P, 0.0)
    assert not it.update({"ns/p": None}, P, 0.0)
    now, step = 10.0, FIRST
    for _ in range(8):
        assert it.update({"ns/p": False}, P, now) == P
        # Handed over: there is no verdict any more.
        assert it.update({}, P, now + step - 0.1) == P
        now += step
        assert not it.update({}, P, now)
        step = min(LONGEST, step * 2)
    assert step == LONGEST


def test_it_ends_when_the_probe_works_again() -> None:
    it = GiveUp()
    assert it.update({"ns/p": False}, P, 0.0)
    assert it.update({"ns/p": False}, P, FIRST + 1)  # still ours: nobody else could
    assert not it.update({"ns/p": True}, P, FIRST + 2)
    assert it.update({"ns/p": False}, P, FIRST + 3)
    assert not it.update({}, P, 2 * FIRST + 4)  # as long as the first time


def test_a_peer_that_is_gone_is_forgotten() -> None:
    it = GiveUp()
    it.update({"ns/p": False}, P, 0.0)
    assert not it.update({}, (), 1.0)
