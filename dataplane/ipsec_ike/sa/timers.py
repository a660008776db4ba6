"""One heap of deadlines for the whole engine.

An object has at most one live entry. Moving its deadline to a later time costs nothing: the old
entry fires, the object looks at its own deadlines and arms itself again. Entries that were
overtaken by an earlier one, or whose object is gone, stay in the heap until they come up or until
they are too many.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf
from typing import Final

NEVER: Final = inf

_SLACK: Final = 256


class Timed:
    """Something with deadlines. ``armed`` is the time of its entry in the heap."""

    __slots__ = ("armed",)

    def __init__(self) -> None:
        self.armed = NEVER

    def due(self) -> float:
        """The earliest deadline, or NEVER."""
        raise NotImplementedError

    def on_timer(self, now: float) -> None:
        """A deadline may have passed: act, so that ``due`` gives a later time than before."""
        raise NotImplementedError


class Timers:
    """The heap. Times are those of the ``now`` arguments of the engine."""

    __slots__ = ("_heap", "_most", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timed]] = []
        self._most = _SLACK
        self._sequence = 0

    def arm(self, item: Timed) -> None:
        """Look at the deadlines of ``item``; call it whenever one may have become earlier."""
        when = item.due()
        if when < item.armed:
            item.armed = when
            self._sequence += 1
            heappush(self._heap, (when, self._sequence, item))
            if len(self._heap) > self._most:
                self._sweep()

    def disarm(self, item: Timed) -> None:
        """``item`` is gone; its entry means nothing any more."""
        item.armed = NEVER

    def _sweep(self) -> None:
        """Drop the dead entries: the heap has doubled since that was done last."""
        self._heap = [entry for entry in self._heap if entry[2].armed == entry[0]]
        heapify(self._heap)
        self._most = 2 * len(self._heap) + _SLACK

    def next(self) -> float | None:
        """When ``take_due`` will have something next."""
        heap = self._heap
        while heap and heap[0][2].armed != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def take_due(self, now: float) -> list[Timed]:
        """The objects whose time has come, earliest first; they have to be armed again."""
        heap = self._heap
        items: list[Timed] = []
        while heap and heap[0][0] <= now:
            when, _, item = heappop(heap)
            if item.armed == when:
                item.armed = NEVER
                items.append(item)
        return items
