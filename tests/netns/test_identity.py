"""What is kept about a network namespace is never taken for that of another."""

from __future__ import annotations

import sys

from ipsec_gateway import netns
from ipsec_lab.netns import Namespace

SHOW = "from ipsec_gateway import netns; print(netns.identity())"


def seen(inside: Namespace) -> str:
    return inside.run(sys.executable, "-c", SHOW).strip()


def test_a_later_namespace_has_another_name() -> None:
    names: list[str] = []
    for _ in range(6):
        inside = Namespace("again")
        try:
            names.append(seen(inside))
            assert seen(inside) == names[-1], "the next process finds it again"
        finally:
            inside.delete()
    assert len(set(names)) == len(names)
    assert netns.identity() not in names
