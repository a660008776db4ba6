"""Which gateway owns a peer: everybody computes it alone and comes to the same result.

Rendezvous hashing: each (peer, gateway) has a weight, and gateways are ranked by it. When one goes,
its peers move to their next one and no other peer moves; when one comes, it takes its share and
nothing else changes hands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Final

#: The group of gateways and peers that name none.
DEFAULT_GROUP: Final = "default"


@dataclass(frozen=True, slots=True)
class Wish:
    """Which gateways a peer accepts: of this group, on nodes with all of these labels."""

    group: str = DEFAULT_GROUP
    labels: Mapping[str, str] = field(default_factory=dict)

    def accepts(self, group: str, labels: Mapping[str, str]) -> bool:
        """Whether a gateway of this group, on a node with these labels, may own the peer."""
        return (group or DEFAULT_GROUP) == (self.group or DEFAULT_GROUP) and all(
            labels.get(name) == value for name, value in self.labels.items()
        )


@dataclass(frozen=True, slots=True)
class Assignment:
    """``owner`` None: nobody can. ``standbys`` would take over, in this order."""

    owner: str | None = None
    standbys: tuple[str, ...] = ()


@lru_cache(maxsize=65536)
def weight(peer: str, gateway: str) -> bytes:
    """The rank of a gateway for a peer (``namespace/name``); the highest is preferred.

    Neither name can contain the separator.
    """
    return blake2b(f"{peer}|{gateway}".encode(), digest_size=16).digest()


def ranking(peer: str, gateways: Iterable[str]) -> tuple[str, ...]:
    """Gateways from the most to the least preferred one."""
    return _ranked(peer, frozenset(gateways))


@lru_cache(maxsize=16384)
def _ranked(peer: str, gateways: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(gateways, key=lambda g: (weight(peer, g), g), reverse=True))


def assign(
    peer: str,
    able: Iterable[str],
    *,
    holders: Iterable[str] = (),
    gave_up: Iterable[str] = (),
    preempt: bool = False,
) -> Assignment:
    """Who owns the peer, of the gateways that are ``able`` to (live, not draining, accepted).

    Those that ``gave_up`` come last, in their order: where all have, one of them goes on trying.
    Without ``preempt`` a gateway that holds the peer keeps it; of several the first does.
    """
    tired = frozenset(gave_up)
    order: Sequence[str] = ranking(peer, able)
    if tired:
        order = sorted(order, key=lambda g: g in tired)
    if not order:
        return Assignment()
    owner = order[0]
    if not preempt:
        held = frozenset(holders)
        peers = [g for g in order if (g in tired) == (owner in tired)]
        owner = next((g for g in peers if g in held), owner)
    return Assignment(owner, tuple(g for g in order if g != owner))
