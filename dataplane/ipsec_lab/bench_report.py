"""Rows of the benchmark table: medians, ratios, whether the goal is met; and how they are shown."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Final

from cryptography.hazmat.backends.openssl import backend
from rich.table import Table

from ipsec_lab import bench_charon

BEGIN: Final = "<!-- bench: begin, written by `make bench ARGS=--write` -->"
END: Final = "<!-- bench: end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: the samples of our side and those of what it is measured beside, of one run.

    ``ratio`` is the median of ours over the median of theirs. The goal is a ratio of at least
    ``at_least`` or of at most ``at_most``; where nothing is measured beside, our median is at most
    ``limit``, in the same unit. ``note`` says what was measured, and why not if ``ours`` or
    ``theirs`` is empty. ``reference`` names the other side.
    """

    what: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    limit: float | None = None
    reference: str = "charon"
    note: str = ""

    @property
    def ratio(self) -> float | None:
        if not self.ours or not self.theirs or not median(self.theirs):
            return None
        return median(self.ours) / median(self.theirs)

    @property
    def goal(self) -> str:
        if self.limit is not None:
            return f"at most {self.limit:g} {self.unit}".rstrip()
        if self.at_least is not None:
            return f"at least {self.at_least:g}x"
        return f"at most {self.at_most:g}x" if self.at_most is not None else ""

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or ``not measured``; empty for a row without a goal."""
        if self.limit is not None and self.ours:
            return "met" if median(self.ours) <= self.limit else "missed"
        if self.at_least is None and self.at_most is None and self.limit is None:
            return ""
        if self.ratio is None:
            return "not measured"
        above = self.at_least is None or self.ratio >= self.at_least
        below = self.at_most is None or self.ratio <= self.at_most
        return "met" if above and below else "missed"


HEADERS: Final = ("figure", "unit", "ours", "beside", "ratio", "goal", "")


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, in the order of HEADERS; medians, with the range where there are several."""
    theirs = f"{_samples(row.theirs)} ({row.reference})" if row.theirs else "-"
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}x"
    return (row.what, row.unit, _samples(row.ours), theirs, ratio, row.goal, row.verdict)


def table(rows: Sequence[Row]) -> Table:
    """For the terminal."""
    shown = Table(title="Benchmarks: median (min..max) of the runs; ratios within one run")
    for header in HEADERS:
        shown.add_column(header, justify="right" if header == "ratio" else "left")
    for row in rows:
        *first, verdict = cells(row)
        colour = {"met": "green", "missed": "red"}.get(verdict)
        shown.add_row(*first, f"[{colour}]{verdict}[/]" if colour else verdict)
    return shown


def markdown(rows: Sequence[Row], surroundings: Sequence[str]) -> str:
    """The section of docs/benchmarks.md: where it was measured, the table, the notes."""
    lines = [*(f"- {line}" for line in surroundings), ""]
    lines += ["| " + " | ".join(HEADERS) + " |", "|" + "---|" * len(HEADERS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    notes = dict.fromkeys(f"- {row.what}: {row.note}" for row in rows if row.note)
    return "\n".join([*lines, "", *notes])


def write(path: Path, section: str) -> None:
    """Put ``section`` between the marks of the page. Raises ValueError where it has none."""
    page = path.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN!r} and {END!r}")
    path.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}")


def surroundings(command: str) -> list[str]:
    """Date, versions, machine and command: what a figure means nothing without."""
    now = datetime.datetime.now(datetime.UTC)
    return [
        f"{now:%Y-%m-%d %H:%M} UTC, load average at the start {os.getloadavg()[0]:.2f}",
        f"kube-ipsec {metadata.version('kube-ipsec')}, Python {platform.python_version()}, "
        f"cryptography {metadata.version('cryptography')} ({backend.openssl_version_text()})",
        f"strongSwan {bench_charon.version()}, kernel {platform.release()}",
        f"{_processor()}, {os.cpu_count()} processors, {_memory_gib():.1f} GiB",
        f"`{command}`",
    ]


def _samples(values: Sequence[float]) -> str:
    if not values:
        return "-"
    text = _number(median(values))
    return f"{text} ({_number(min(values))}..{_number(max(values))})" if len(values) > 1 else text


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
