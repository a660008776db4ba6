"""The operator's benchmark runs, with numbers too small to measure anything."""

from __future__ import annotations

from pathlib import Path

from ipsec_lab.bench_operator import operator
from ipsec_lab.bench_pair import Settings


def test_the_operators_figures_come_out(tmp_path: Path) -> None:
    rows = operator(Settings.tiny(tmp_path))
    assert rows
    assert all(row.ours for row in rows)
