"""The anti-replay window against a model that remembers everything (RFC 4303 3.4.3, A2)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gateway.ipsec.replay import ReplayWindow

SIZES = st.sampled_from([32, 64, 100, 1024, 4096])


class Model:
    """Every number ever accepted, in a set."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen: set[int] = set()

    def accept(self, seq: int) -> bool:
        top = max(self.seen, default=0)
        fresh = seq > 0 and seq > top - self.size and seq not in self.seen
        if fresh:
            self.seen.add(seq)
        return fresh


@st.composite
def walks(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    """(size, start, steps): numbers near the top, mostly, with jumps."""
    size = draw(SIZES)
    start = draw(st.sampled_from([0, 1, 5, 2**32 - 20, 2**32 + 3, 2**33 - 1, 2**40]))
    near = st.integers(-size - 3, size + 3)
    steps = draw(st.lists(st.one_of(st.integers(-3, 3), near), max_size=60))
    return size, start, steps


@given(walks())
def test_it_accepts_what_the_model_accepts(walk: tuple[int, int, list[int]]) -> None:
    size, start, steps = walk
    window, model = ReplayWindow(size, esn=True), Model(size)
    top = start
    for step in [0, *steps]:
        seq = top + step
        expected = model.accept(seq)
        assert window.check(seq) is expected
        if expected:
            assert window.accept(seq)
            top = max(top, seq)
        assert window.top == max(model.seen, default=0)


@given(walks(), st.integers(1, 5000))
def test_a_run_is_the_same_as_its_parts(walk: tuple[int, int, list[int]], count: int) -> None:
    size, start, steps = walk
    one, other = ReplayWindow(size, esn=True), ReplayWindow(size, esn=True)
    for seq in [start + 1, *(start + 1 + abs(s) for s in steps)]:
        one.accept(seq)
        other.accept(seq)
    first = one.top + 1 + abs(steps[0] if steps else 0)
    one.accept_run(first, count)
    for seq in range(first, first + count):
        other.accept(seq)
    probes = range(max(1, one.top - size - 2), one.top + 3)
    assert [one.check(s) for s in probes] == [other.check(s) for s in probes]


@given(walks())
def test_the_high_half_is_inferred_within_the_window(walk: tuple[int, int, list[int]]) -> None:
    """Whatever is less than the window behind the top, or less than 2**32 - size ahead of it."""
    size, start, steps = walk
    window = ReplayWindow(size, esn=True)
    window.accept(start + 1)
    for step in steps:
        seq = window.top + step
        if seq < 1 or step <= -size:
            continue
        assert window.infer(seq & 0xFFFFFFFF) == seq
        window.accept(seq)


def test_numbers_before_the_first_cannot_be() -> None:
    window = ReplayWindow(64, esn=True)
    assert window.infer(2**32 - 1) < 1
    assert not window.check(window.infer(2**32 - 1))
    assert not window.check(0)


def test_without_esn_the_number_is_what_the_packet_says() -> None:
    window = ReplayWindow(64, esn=False)
    window.accept(2**32 - 1)
    assert window.infer(5) == 5
    assert not window.check(5)


def test_a_restored_window_refuses_everything_up_to_its_mark() -> None:
    window = ReplayWindow(128, esn=True, restored=1000)
    assert not any(window.check(seq) for seq in range(1, 1001))
    assert window.accept(1001)
    assert not window.accept(1000)


@pytest.mark.parametrize(("asked", "size"), [(0, 0), (1, 32), (32, 32), (1024, 1024), (9999, 4096)])
def test_sizes(asked: int, size: int) -> None:
    assert ReplayWindow(asked, esn=False).size == size


def test_size_0_checks_nothing() -> None:
    window = ReplayWindow(0, esn=True)
    assert window.accept(100)
    assert window.check(100)
    assert window.accept(100)
    assert window.top == 100
