"""One queue of what has to be looked at again: level-triggered, coalescing, with backoff.

An item in it says "look", not "this happened", so that a thousand events of one object are one
look. An item is with one worker at a time; if it turns up again meanwhile it is looked at again
afterwards. What fails comes back, later each time, with jitter, so that an API server that comes
back is not met by everything at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

log = logging.getLogger("ipsec_operator")

T = TypeVar("T", bound=Hashable)

#: Seconds.
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 60.0


class Retry(Exception):
    """The item has to be looked at again; the text says why, and goes into the log."""


class Queue(Generic[T]):
    """``urgent`` items are taken before the others."""

    def __init__(
        self, *, urgent: Callable[[T], bool] = lambda _: False, jitter: random.Random | None = None
    ) -> None:
        self._urgent = urgent
        self._jitter = jitter or random.Random()  # noqa: S311 - not for secrets
        self._waiting: dict[T, None] = {}
        self._first: dict[T, None] = {}
        self._busy: set[T] = set()
        self._again: set[T] = set()
        self._failures: dict[T, int] = {}
        self._later: dict[T, asyncio.TimerHandle] = {}
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """What waits or is being looked at."""
        return len(self._waiting) + len(self._first) + len(self._busy)

    @property
    def failing(self) -> int:
        """Items that wait for another attempt, or have it."""
        return len(self._failures)

    def add(self, item: T) -> None:
        """Look at this."""
        timer = self._later.pop(item, None)
        if timer is not None:
            timer.cancel()
        if item in self._busy:
            self._again.add(item)
            return
        (self._first if self._urgent(item) else self._waiting)[item] = None
        self._idle.clear()
        self._news.set()

    def later(self, item: T, delay: float) -> None:
        """Look at this in ``delay`` seconds, unless it turns up before."""
        if item in self._later or item in self._waiting or item in self._first:
            return
        loop = asyncio.get_running_loop()
        self._later[item] = loop.call_later(delay, self.add, item)

    async def work(self, look: Callable[[T], Awaitable[None]]) -> None:
        """Look at items until cancelled. Several may run at once."""
        while True:
            item = await self._take()
            try:
                await look(item)
            except Retry as exc:
                self._failed(item, str(exc))
            except Exception as exc:  # one object's trouble must not end the others' service
                log.exception("%s: %s", item, type(exc).__name__)
                self._failed(item, type(exc).__name__)
            else:
                self._failures.pop(item, None)
            finally:
                self._busy.discard(item)
                if item in self._again:
                    self._again.discard(item)
                    self.add(item)
                if not len(self):
                    self._idle.set()

    async def idle(self) -> None:
        """Until nothing waits and nothing is being looked at; what waits for another attempt does
        not count."""
        await self._idle.wait()

    async def _take(self) -> T:
        while True:
            for items in (self._first, self._waiting):
                if items:
                    item = next(iter(items))
                    del items[item]
                    self._busy.add(item)
                    return item
            self._news.clear()
            await self._news.wait()

    def _failed(self, item: T, why: str) -> None:
        count = self._failures[item] = self._failures.get(item, 0) + 1
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (count - 1))
        delay *= 0.5 + self._jitter.random()
        log.warning("%s: %s; again in %.1f s", item, why, delay)
        if item not in self._again:
            self.later(item, delay)
