"""Two engines on a bad network whose processes end without a word and go on from their records, by
seed. See ``ipsec_lab.simnet_crash`` for what happens and what must hold.

`python -m ipsec_lab.simnet_crash --seed N --trace` replays a seed.
"""

from __future__ import annotations

from collections import Counter

import pytest

from ipsec_ike.v2 import restore
from ipsec_lab.simnet import simulate
from ipsec_lab.simnet_crash import MortalWorld
from ipsec_lab.simnet_dataplane import Broken

SEEDS = 400
CHUNK = 50


@pytest.mark.parametrize(
    "seeds",
    [range(first, first + CHUNK) for first in range(0, SEEDS, CHUNK)],
    ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}",
)
def test_both_ends_agree_whoever_died(seeds: range) -> None:
    found: list[str] = []
    stats: Counter[str] = Counter()
    for seed in seeds:
        try:
            world = simulate(seed, None, MortalWorld)
        except Exception as error:
            found.append(f"seed {seed}: {type(error).__name__}: {error}")
            continue
        stats += world.stats
        if world.profile.gentle:
            stats["gentle"] += world.stats["resumed"]
    assert not found, "\n" + "\n".join(found)
    # There was enough of everything to find something.
    assert stats["deaths"] > CHUNK
    assert stats["resumed"] > CHUNK // 2
    assert stats["gentle"] > CHUNK // 5
    assert stats["ESP while down"] > CHUNK


def test_without_the_generation_an_iv_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the IVs can fail."""
    load = restore.Loader.sa

    def counts_on(loader, plain):  # type: ignore[no-untyped-def]
        load(loader, plain)
        for sa, _ in loader._sas.values():
            sa.sealed = 0

    monkeypatch.setattr(restore.Loader, "sa", counts_on)
    with pytest.raises(Broken, match="IV"):
        _some_seeds()


def _some_seeds() -> None:
    for seed in range(20):
        simulate(seed, None, MortalWorld)
