"""A bound on how often something may happen."""

from __future__ import annotations

from collections import deque


class RateLimit:
    """At most ``most`` times in any ``seconds``."""

    __slots__ = ("_seconds", "_times")

    def __init__(self, most: int, seconds: float) -> None:
        self._times: deque[float] = deque(maxlen=most)
        self._seconds = seconds

    def allows(self, now: float) -> bool:
        """Whether it may happen now; if so, that is counted."""
        times = self._times
        if len(times) == times.maxlen and 0 <= now - times[0] < self._seconds:
            return False
        times.append(now)
        return True
