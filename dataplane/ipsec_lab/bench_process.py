"""What a process, with all that it started, has used: from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """``cpu``: user and system time in seconds, in steps of 10 ms; ``rss``: resident memory in
    octets."""

    cpu: float
    rss: int

    def __sub__(self, before: Usage) -> Usage:
        return Usage(self.cpu - before.cpu, self.rss - before.rss)


def usage(pid: int) -> Usage:
    """Of the process and, counted once each, its descendants that are still alive.

    Raises FileNotFoundError if the process is gone.
    """
    cpu, rss = _own(pid)
    for child in _children(pid):
        more = usage(child)
        cpu, rss = cpu + more.cpu, rss + more.rss
    return Usage(cpu, rss)


def _own(pid: int) -> tuple[float, int]:
    # The name, in brackets, may hold spaces: count the fields after it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    status = Path(f"/proc/{pid}/status").read_text()
    kib = next((int(x.split()[1]) for x in status.splitlines() if x.startswith("VmRSS:")), 0)
    return (user + system) / _TICKS, kib * 1024


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found
