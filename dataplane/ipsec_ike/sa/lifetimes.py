"""Where the soft limit of an SA lies, and small random shares of durations."""

from __future__ import annotations

from collections.abc import Callable

from ipsec_ike.config import Lifetime


def share(rng: Callable[[int], bytes]) -> float:
    """A random number in [0, 1)."""
    return int.from_bytes(rng(2)) / 65536


def soft_limit(hard: Lifetime, rng: Callable[[int], bytes]) -> Lifetime:
    """The absolute soft limits: ``margin`` and a random part of ``jitter`` before the hard ones.

    A dimension without a hard limit has no soft one; one with it has a soft limit of at least 1.
    """
    fraction = 1.0 - hard.margin - hard.jitter * share(rng)
    return Lifetime(
        seconds=hard.seconds * fraction,
        bytes=max(1, int(hard.bytes * fraction)) if hard.bytes else 0,
        packets=max(1, int(hard.packets * fraction)) if hard.packets else 0,
        margin=0,
        jitter=0,
    )
