"""The small parts: cookies, lifetimes, rate limits, timers, the window."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ipsec_ike.config import Lifetime, Limits, Retransmission
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Endpoint
from ipsec_ike.numbers import Protocol
from ipsec_ike.sa.cookie import Cookies
from ipsec_ike.sa.lifetimes import soft_limit
from ipsec_ike.sa.rate import RateLimit
from ipsec_ike.sa.timers import NEVER, Timed, Timers
from ipsec_ike.v2.host import Host
from ipsec_ike.v2.peers import Peers
from ipsec_ike.v2.window import Place, Window

HERE = Endpoint("192.0.2.1", 500)
V6 = Endpoint("2001:db8::1", 500)


class TestCookies:
    """RFC 7296 2.6."""

    def make(self) -> Cookies:
        return Cookies(random.Random(1).randbytes, 30.0)

    @pytest.mark.parametrize("remote", [HERE, V6])
    def test_good_for_one_request_of_one_sender(self, remote: Endpoint) -> None:
        cookies = self.make()
        cookie = cookies.make(b"n" * 16, b"initiatr", remote, 100.0)
        assert 1 <= len(cookie) <= 64
        assert cookies.check(cookie, b"n" * 16, b"initiatr", remote, 101.0)
        assert not cookies.check(cookie, b"m" * 16, b"initiatr", remote, 101.0)
        assert not cookies.check(cookie, b"n" * 16, b"somebody", remote, 101.0)
        assert not cookies.check(cookie, b"n" * 16, b"initiatr", remote._replace(port=1), 101.0)
        assert not cookies.check(cookie[:-1], b"n" * 16, b"initiatr", remote, 101.0)
        assert not cookies.check(b"", b"n" * 16, b"initiatr", remote, 101.0)

    @pytest.mark.parametrize(
        ("later", "good"), [(29.0, True), (31.0, True), (59.0, True), (61.0, False), (9e9, False)]
    )
    def test_age(self, later: float, good: bool) -> None:
        cookies = self.make()
        cookie = cookies.make(b"n" * 16, b"initiatr", HERE, 0.0)
        cookies.make(b"x" * 16, b"initiatr", HERE, 31.0 if later > 31.0 else 0.0)
        assert cookies.check(cookie, b"n" * 16, b"initiatr", HERE, later) is good


def test_soft_limits_differ_and_stay_within_margin_and_jitter() -> None:
    hard = Lifetime(seconds=1000.0, bytes=1_000_000, packets=500, margin=0.2, jitter=0.3)
    rng = random.Random(7).randbytes
    found = [soft_limit(hard, rng) for _ in range(200)]
    assert all(500.0 <= soft.seconds <= 800.0 for soft in found)
    assert all(500_000 <= soft.bytes <= 800_000 for soft in found)
    assert all(250 <= soft.packets <= 400 for soft in found)
    assert len({soft.seconds for soft in found}) > 150
    assert min(soft.seconds for soft in found) < 550.0 < 750.0 < max(s.seconds for s in found)


def test_no_limit_has_no_soft_limit() -> None:
    soft = soft_limit(Lifetime(packets=1), random.Random(7).randbytes)
    assert (soft.seconds, soft.bytes, soft.packets) == (0, 0, 1)


def test_rate_limit_survives_a_clock_that_jumps() -> None:
    rate = RateLimit(2, 10.0)
    assert [rate.allows(t) for t in (0.0, 1.0, 2.0, 10.5, 10.6, 11.5)] == [
        True, True, False, True, False, True,
    ]  # fmt: skip
    assert rate.allows(5000.0)
    assert rate.allows(1.0)  # backwards: better once too often than never again


class Item(Timed):
    __slots__ = ("when",)

    def __init__(self, when: float) -> None:
        super().__init__()
        self.when = when

    def due(self) -> float:
        return self.when


class TestTimers:
    def test_earliest_first_and_moved_deadlines(self) -> None:
        timers = Timers()
        one, two = Item(5.0), Item(3.0)
        timers.arm(one)
        timers.arm(two)
        assert timers.next() == 3.0
        one.when = 1.0
        timers.arm(one)
        assert timers.next() == 1.0
        assert timers.take_due(9.0) == [one, two]
        assert timers.next() is None

    def test_never_and_disarmed(self) -> None:
        timers = Timers()
        item = Item(NEVER)
        timers.arm(item)
        assert timers.next() is None
        item.when = 1.0
        timers.arm(item)
        timers.disarm(item)
        assert timers.next() is None
        assert timers.take_due(9.0) == []

    def test_overtaken_entries_do_not_pile_up(self) -> None:
        timers = Timers()
        item = Item(1e9)
        for _ in range(100_000):
            item.when -= 1.0
            timers.arm(item)
        assert len(timers._heap) < 1000
        assert timers.next() == item.when


class TestWindow:
    def test_one_request_at_a_time_and_the_last_one_repeated(self) -> None:
        window = Window()
        assert window.place(0) is Place.NEW
        assert window.place(1) is Place.OUTSIDE
        window.respond((b"answer",))
        assert window.place(0) is Place.REPEATED
        assert window.place(1) is Place.NEW
        window.respond((b"next",))
        assert window.place(0) is Place.OUTSIDE
        assert window.place(2**32 - 1) is Place.OUTSIDE

    def test_back_off_with_a_limit_and_a_cap(self) -> None:
        pace = Retransmission(base=1.0, factor=2.0, limit=5.0, tries=4)
        window = Window()
        window.sent((b"request",), 0.0, pace)
        waits: list[float] = []
        now = window.deadline
        while window.retry(now, pace):
            waits.append(window.deadline - now)
            now = window.deadline
        assert waits == [2.0, 4.0, 5.0, 5.0]
        window.answered()
        assert window.next_request == 1
        window.sent((b"request",), 100.0, pace, 2.5)
        assert window.deadline == 101.0
        assert window.retry(101.0, pace)
        assert window.deadline == 102.5
        assert not window.retry(102.5, pace)

    def test_a_clock_that_jumps_repeats_once_and_does_not_give_up(self) -> None:
        pace = Retransmission()
        window = Window()
        window.sent((b"request",), 0.0, pace)
        assert window.retry(5000.0, pace)
        assert window.deadline > 5000.0


class TestWhoseSaIsIt:
    """Peers choose our outbound SPIs, and several may choose alike."""

    class Child:
        """As much of one as the tables need."""

        def __init__(self, spi_in: int, address: str) -> None:
            self.spi_in, self.spi_out, self.owner = spi_in, 0x1000, self
            self.remote = Endpoint(address, 500)

        def outbound_id(self, remote: Endpoint) -> SaId:
            return SaId(Direction.OUT, Protocol.ESP, self.spi_out, remote.address)

    def test_the_destination_tells_peers_apart(self) -> None:
        host = Host(random.Random(1).randbytes, Limits(), Peers())
        one: Any = self.Child(0x2000, "192.0.2.1")
        other: Any = self.Child(0x2001, "192.0.2.2")
        for child in (one, other):
            host.register_child(child)
        assert host.find(one.outbound_id(one.remote)) == (one,)
        assert host.find(other.outbound_id(other.remote)) == (other,)
        # It may be either: one of them has just moved away from there.
        assert host.find(one.outbound_id(Endpoint("192.0.2.3", 500))) == (one, other)
        assert host.find(SaId(Direction.IN, Protocol.ESP, 0x2001, "192.0.2.9")) == (other,)
        assert host.find(SaId(Direction.IN, Protocol.ESP, 0x1000, "192.0.2.1")) == ()
        assert host.find(SaId(Direction.OUT, Protocol.ESP, 0x2000, "192.0.2.1")) == ()
