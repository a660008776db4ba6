"""Which peers this gateway gives up, because its probe of them fails. Pure: time is an argument.

Giving up lasts: a minute the first time, twice as long each time after it, a quarter of an hour at
most, so that peers do not wander about when the trouble is not the gateway's. It ends early when
the probe works here again, which is only known while the peer is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

#: Seconds of the first and of the longest time.
FIRST: Final = 60.0
LONGEST: Final = 900.0


class GiveUp:
    """``update`` is called with every verdict, and once in a while."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._steps: dict[str, float] = {}

    def update(
        self, verdicts: Mapping[str, bool | None], known: Iterable[str], now: float
    ) -> frozenset[str]:
        """Those that are given up now. ``verdicts`` are of the peers that are ours, ``known`` are
        all that there are."""
        for peer, ok in verdicts.items():
            if ok:
                self._until.pop(peer, None)
                self._steps.pop(peer, None)
            elif ok is False and now >= self._until.get(peer, now):
                step = self._steps.get(peer, FIRST)
                self._until[peer] = now + step
                self._steps[peer] = min(LONGEST, step * 2)
        existing = set(known)
        for peer in [p for p, until in self._until.items() if now >= until or p not in existing]:
            del self._until[peer]
        for peer in self._steps.keys() - existing:
            del self._steps[peer]
        return frozenset(self._until)
