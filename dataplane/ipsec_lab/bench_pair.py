"""What is measured: two IKE daemons of one kind at the two sites of a topology."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar

from ipsec_lab import strongswan
from ipsec_lab.bench_charon import CharonPair
from ipsec_lab.bench_ours import OurPair
from ipsec_lab.bench_process import Usage
from ipsec_lab.topology import Topology


@dataclass(frozen=True)
class Settings:
    """How much is measured; ``folder`` takes configurations."""

    folder: Path
    runs: int = 3
    #: IKE SAs set up before anything counts, and while it counts.
    warm: int = 100
    count: int = 900
    parallel: int = 8
    tunnels: int = 30
    seconds: float = 10.0
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def tiny(cls, folder: Path) -> Settings:
        """The least that runs every line."""
        return cls(folder, runs=1, warm=4, count=8, parallel=4, tunnels=3, seconds=1.0)

    def new_folder(self) -> Path:
        """An empty one for each pair."""
        path = self.folder / str(next(self._numbers))
        path.mkdir()
        return path


class Pair(Protocol):
    """Both implementations start on construction of the context and end with it."""

    def usage(self, name: str) -> Usage:
        """What the daemon of site ``a`` (initiator) or ``b`` has used so far."""

    def initiate(self, count: int, *, parallel: int) -> float:
        """Set up ``count`` more IKE SAs, ``parallel`` at a time; the seconds it took."""

    def one_tunnel(self, count: int) -> list[float]:
        """Up and down ``count`` times: the seconds from the order to the child's SAs."""


T = TypeVar("T")

#: Who is measured, in the order of each turn.
OURS: Final = "ours"
CHARON: Final = "charon"


def sides() -> list[str]:
    """OURS, and CHARON where it is installed."""
    return [OURS] if strongswan.missing() else [OURS, CHARON]


@contextmanager
def pair(side: str, settings: Settings, *, child: bool = True) -> Iterator[tuple[Topology, Pair]]:
    """A fresh topology with two daemons of one side in it."""
    folder = settings.new_folder()
    with Topology() as topology:
        if side == CHARON:
            with CharonPair(topology, folder, child=child) as charons:
                yield topology, charons
        else:
            peers = settings.warm + settings.count
            with OurPair(topology, folder, child=child, peers=peers) as ours:
                yield topology, ours


def turns(settings: Settings, measure: Callable[[str], T]) -> dict[str, list[T]]:
    """``measure(side)`` for each side in turn, ``settings.runs`` times; results by side."""
    results: dict[str, list[T]] = {OURS: [], CHARON: []}
    for _ in range(settings.runs):
        for side in sides():
            results[side].append(measure(side))
    return results
