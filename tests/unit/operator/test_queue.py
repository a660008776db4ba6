"""The queue: one look for many events, one worker at a time, later after a failure."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from ipsec_operator import queue
from ipsec_operator.queue import Queue, Retry


def run(queue: Queue[str], look: Callable[[str], Awaitable[None]], workers: int = 4) -> None:
    async def body() -> None:
        tasks = [asyncio.ensure_future(queue.work(look)) for _ in range(workers)]
        await queue.idle()
        while queue.failing:
            await asyncio.sleep(0.001)
            await queue.idle()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(body())


def test_many_events_are_one_look() -> None:
    items: Queue[str] = Queue()
    looks: list[str] = []

    async def look(item: str) -> None:
        looks.append(item)

    for _ in range(100):
        items.add("a")
    items.add("b")
    run(items, look)
    assert sorted(looks) == ["a", "b"]


def test_what_turns_up_during_a_look_is_looked_at_again_afterwards() -> None:
    items: Queue[str] = Queue()
    now: list[str] = []
    looks = 0

    async def look(item: str) -> None:
        nonlocal looks
        assert item not in now
        now.append(item)
        looks += 1
        if looks < 4:
            items.add(item)
            items.add(item)
        await asyncio.sleep(0)
        now.remove(item)

    items.add("a")
    run(items, look)
    assert looks == 4


def test_urgent_items_come_first() -> None:
    items: Queue[str] = Queue(urgent=lambda item: item.startswith("!"))
    looks: list[str] = []

    async def look(item: str) -> None:
        looks.append(item)

    for item in ("a", "b", "!c"):
        items.add(item)
    run(items, look, workers=1)
    assert looks == ["!c", "a", "b"]


@pytest.mark.parametrize("error", [Retry("no answer"), ValueError("a fault of ours")])
def test_what_fails_comes_back_and_stops_nothing_else(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "FIRST_DELAY", 0.001)
    items: Queue[str] = Queue(jitter=random.Random(1))
    looks: list[str] = []

    async def look(item: str) -> None:
        looks.append(item)
        if item == "bad" and looks.count("bad") < 4:
            raise error

    items.add("bad")
    items.add("good")
    run(items, look)
    assert looks.count("bad") == 4
    assert looks.count("good") == 1
    assert items.failing == 0
