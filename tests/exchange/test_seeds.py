"""Two engines on a bad network, by seed. See ``ipsec_lab.simnet`` for what happens and what must
hold.

A failure names its seeds. `pytest tests/exchange --seed N` or `python -m ipsec_lab.simnet --seed N
--trace` replays one and prints everything that happens.
"""

from __future__ import annotations

from collections import Counter

import pytest

from ipsec_lab.simnet import simulate
from ipsec_lab.simnet_profile import draw

SEEDS = 2000
CHUNK = 50
#: Seeds that have found something; each is rare enough to be kept.
FOUND = (2229, 3559, 3857, 4298, 5772, 5779, 6843, 6903, 7104, 7566, 7569, 8729, 9883, 11094, 11765)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seeds" in metafunc.fixturenames:
        one = metafunc.config.getoption("--seed", None)
        chunks = (
            [range(first, first + CHUNK) for first in range(0, SEEDS, CHUNK)]
            if one is None
            else [range(one, one + 1)]
        )
        metafunc.parametrize("seeds", chunks, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")


def test_both_ends_agree(seeds: range) -> None:
    found: list[str] = []
    for seed in seeds:
        try:
            simulate(seed, print if len(seeds) == 1 else None)
        except Exception as error:
            if len(seeds) == 1:
                raise
            found.append(f"seed {seed}: {type(error).__name__}: {error}")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_found_something(seed: int) -> None:
    simulate(seed)


def test_a_seed_is_the_same_every_time() -> None:
    one: list[str] = []
    other: list[str] = []
    for seed in range(5):
        simulate(seed, one.append)
        simulate(seed, other.append)
    assert one == other


def test_the_seeds_are_of_many_kinds() -> None:
    """Of every kind of trouble there is enough in `make test` to find something."""
    kinds: Counter[str] = Counter()
    for seed in range(SEEDS):
        profile = draw(seed)
        kinds["loss of a half"] += profile.weather.loss == 0.5
        kinds["gentle with loss"] += profile.gentle and profile.weather.loss > 0
        kinds["duplicates"] += profile.weather.duplicate > 0
        kinds["reordering"] += profile.weather.jitter > 0
        kinds["NAT"] += profile.nat
        kinds["rough behind NAT"] += profile.nat and profile.rough
        kinds["both initiate"] += profile.both_initiate and not profile.nat
        kinds["several children"] += profile.children > 1
        kinds["PFS"] += profile.pfs
        kinds["rekeys by time"] += profile.child_lifetime < 100
        kinds["IKE rekeys by time"] += profile.ike_lifetime < 100
        kinds["childless"] += profile.childless
        kinds["cookies"] += profile.cookies
        kinds["fragments"] += profile.small_fragments
        kinds["other group first"] += profile.other_group_first
        kinds["IPv6"] += profile.ipv6
        kinds["on traffic"] += profile.on_traffic
    assert min(kinds.values()) > SEEDS // 20, kinds
