"""Probes: when they are sent, and what follows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gateway.pathprobe.schedule import LARGE_EVERY, RARE, Health, Scheduler, Shot, Subject
from ipsec_gateway.pathprobe.targets import Way

PEER = Subject("ns/hq", (Way("10.1.0.1", "10.2.0.1"), Way("10.1.0.1", "10.2.0.2")), interval=2.0)


class World:
    """Time that passes in small steps; ``dead`` are targets that do not answer."""

    def __init__(self, *subjects: Subject, rng: float = 0.5) -> None:
        self.now = 100.0
        self.scheduler = Scheduler(lambda: rng)
        self.scheduler.configure(subjects, self.now)
        self.dead: set[str] = set()
        self.swallows = 10**6
        self.shots: list[tuple[float, Shot]] = []

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            for shot in self.scheduler.shots(self.now):
                self.shots.append((self.now, shot))
                if shot.target not in self.dead and shot.size <= self.swallows:
                    assert self.scheduler.answer(shot.token, self.now + 0.01)
            self.now += 0.1

    def health(self, peer: str = "ns/hq") -> Health:
        return self.scheduler.health()[peer]


def test_a_tunnel_that_carries_is_healthy() -> None:
    world = World(PEER)
    assert world.health().ok is None
    world.run(20)
    health = world.health()
    assert (health.ok, health.reason, health.loss) == (True, "Healthy", 0)
    assert health.rtt == pytest.approx(0.01)
    assert 9 <= health.sent <= 11
    assert {shot.target for _, shot in world.shots} == {"10.2.0.1"}


def test_one_target_of_several_is_enough() -> None:
    world = World(PEER)
    world.dead = {"10.2.0.1"}
    world.run(60)
    assert world.health().ok is True
    assert 0 < world.health().loss < 60


def test_rounds_lost_in_a_row_are_a_failure_and_one_answer_ends_it() -> None:
    world = World(PEER)
    world.run(10)
    world.dead = {"10.2.0.1", "10.2.0.2"}
    world.run(8)
    assert world.health().ok is True
    world.run(6)
    health = world.health()
    assert (health.ok, health.reason) == (False, "ProbeLoss")
    assert "10.2.0.1, 10.2.0.2" in health.message
    world.dead = set()
    world.run(4)
    assert world.health().ok is True


def test_guesses_do_not_count_before_they_have_answered() -> None:
    world = World(replace(PEER, asked=False))
    world.dead = {"10.2.0.1", "10.2.0.2"}
    world.run(600)
    assert world.health().ok is None
    assert world.health().lost == 0
    times = [when for when, _ in world.shots]
    assert times[-1] - times[-2] > RARE * 0.9
    assert {shot.target for _, shot in world.shots} == {"10.2.0.1", "10.2.0.2"}
    world.dead = {"10.2.0.1"}
    world.run(200)
    assert world.health().ok is True
    world.dead.add("10.2.0.2")
    world.shots.clear()
    world.run(14)
    assert world.health().ok is False
    assert {shot.target for _, shot in world.shots} == {"10.2.0.2"}


def test_without_an_sa_nothing_is_sent_and_silence_counts() -> None:
    world = World(replace(PEER, up=False))
    world.run(30)
    assert not world.shots
    assert world.health().ok is None
    world.scheduler.configure([replace(PEER, up=False, silent=True)], world.now)
    world.run(14)
    assert world.health().reason == "ProbeLoss"
    assert "IKE" in world.health().message
    world.scheduler.configure([PEER], world.now)
    world.run(1)
    assert world.health().ok is True


def test_a_path_that_swallows_large_packets_is_found() -> None:
    world = World(replace(PEER, mtu=1400))
    world.run(10)
    large = [shot for _, shot in world.shots if shot.large]
    assert [shot.size for shot in large] == [1400]
    world.swallows = 1300
    world.run(LARGE_EVERY + 20)
    assert world.health().reason == "MTUBlackhole"
    assert world.health().loss == 0
    world.swallows = 1400
    world.run(20)
    assert world.health().ok is True
    count = sum(shot.large for _, shot in world.shots)
    world.run(LARGE_EVERY * 3)
    assert 2 <= sum(shot.large for _, shot in world.shots) - count <= 4


def test_what_the_kernel_refuses() -> None:
    world = World(replace(PEER, mtu=1400))
    world.run(3)
    (shot,) = world.scheduler.shots(world.now + 3)
    assert shot.large
    world.scheduler.refused(shot.token)
    assert not world.scheduler.answer(shot.token, world.now + 3)
    assert world.health().ok is True
    (shot,) = world.scheduler.shots(world.now + 6)
    world.scheduler.refused(shot.token)
    assert world.health().lost == 1
    world.scheduler.refused(12345)


def test_ports_are_told_in_shots_and_in_what_is_wrong() -> None:
    ways = (Way("10.1.0.1", "10.2.0.1", 4499), Way("10.1.0.1", "10.2.0.2", 7))
    world = World(replace(PEER, targets=ways))
    world.dead = {"10.2.0.1", "10.2.0.2"}
    world.run(20)
    assert {(shot.target, shot.port) for _, shot in world.shots} == {way[1:] for way in ways}
    assert "echo UDP to port 7, 4499" in world.health().message


def test_answers_that_nobody_waits_for_do_not_count() -> None:
    world = World(PEER)
    (shot,) = world.scheduler.shots(world.now + 2)
    assert world.scheduler.pending(shot.token) == shot
    assert world.scheduler.pending(shot.token + 1) is None
    assert not world.scheduler.answer(shot.token + 1, world.now)
    assert world.scheduler.answer(shot.token, world.now + 2)
    assert not world.scheduler.answer(shot.token, world.now + 2)
    assert world.scheduler.pending(shot.token) is None
    late = world.scheduler.shots(world.now + 4)[0]
    world.scheduler.shots(world.now + 8)
    assert not world.scheduler.answer(late.token, world.now + 8)


def test_what_stays_the_same_keeps_its_past() -> None:
    world = World(PEER)
    world.run(10)
    world.scheduler.configure([replace(PEER, mtu=1300), replace(PEER, peer="ns/b")], world.now)
    assert world.health().ok is True
    world.scheduler.configure([replace(PEER, targets=PEER.targets[1:])], world.now)
    assert set(world.scheduler.health()) == {"ns/hq"}
    world.scheduler.configure([], world.now)
    assert world.scheduler.timer() is None


@given(st.floats(0, 1), st.integers(1, 50))
def test_many_peers_are_spread(rng: float, count: int) -> None:
    values = iter([(n * 0.618 + rng) % 1 for n in range(10000)])
    scheduler = Scheduler(lambda: next(values))
    scheduler.configure([replace(PEER, peer=f"ns/{n}") for n in range(count)], 0.0)
    bursts = [len(scheduler.shots(n / 10)) for n in range(21)]
    assert sum(bursts) >= count
    assert max(bursts) <= 3 + count // 8
