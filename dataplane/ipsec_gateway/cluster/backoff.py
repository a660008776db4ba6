"""How long to wait before the next try. Pure but for its default dice."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

#: Seconds of the first and of the longest wait.
FIRST: Final = 0.5
LONGEST: Final = 30.0


class Backoff:
    """Waits that grow. ``rng`` gives numbers from 0 to 1."""

    def __init__(
        self, rng: Callable[[], float] = random.random, *, longest: float = LONGEST
    ) -> None:
        self._rng: Final = rng
        self._longest: Final = longest
        self._next = FIRST

    def wait(self, at_least: float = 0.0) -> float:
        """Seconds until the next try: half of the step and up to as much again."""
        step, self._next = self._next, min(self._longest, self._next * 2)
        return max(at_least, step / 2 + self._rng() * step / 2)

    @property
    def fresh(self) -> bool:
        """Whether the last try worked."""
        return self._next == FIRST

    def reset(self) -> None:
        """It worked."""
        self._next = FIRST
