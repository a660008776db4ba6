"""Changes of the table on a kernel whose sets miss elements that replace others (before 6.17)."""

from __future__ import annotations

from ipsec_lab.flood import flooded


def test_nothing_passes_while_the_table_changes() -> None:
    it = flooded(12)
    assert it.arrived == 0
    assert it.dropped[0] < it.dropped[-1]
