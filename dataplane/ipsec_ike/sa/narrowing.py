"""Which of our children an offer of selectors means, and what remains of it (RFC 7296 2.9)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ipsec_ike.config import ChildConfig
from ipsec_ike.selectors import TrafficSelector, narrow

Selectors = tuple[TrafficSelector, ...]


class Match(NamedTuple):
    """A child and the selectors agreed on, seen from this gateway.

    ``partial``: the offer had more than this child allows.
    """

    child: ChildConfig
    local: Selectors
    remote: Selectors
    partial: bool


def candidates(
    children: Iterable[ChildConfig], local: Selectors, remote: Selectors, live: Iterable[str]
) -> list[Match]:
    """The children that have something in common with the offer, the best first.

    One that takes the whole offer beats one that narrows it; then one that takes the first
    selectors of the offer, as RFC 7296 2.9 demands because a packet waits for them; then one that
    the offer fills completely; then one that has no SA yet; then the order of configuration.
    """
    taken = set(live)
    found: list[tuple[tuple[bool, bool, bool, bool, int], Match]] = []
    for position, child in enumerate(children):
        if local == child.local_ts and remote == child.remote_ts:
            rank = (False, False, False, child.name in taken, position)
            found.append((rank, Match(child, child.local_ts, child.remote_ts, False)))
            continue
        ours, theirs = narrow(local, child.local_ts), narrow(remote, child.remote_ts)
        if not ours or not theirs:
            continue
        partial = not (covers(ours, local) and covers(theirs, remote))
        unfilled = not (covers(ours, child.local_ts) and covers(theirs, child.remote_ts))
        misses = not (covers(ours, local[:1]) and covers(theirs, remote[:1]))
        rank = (partial, misses, unfilled, child.name in taken, position)
        found.append((rank, Match(child, ours, theirs, partial)))
    found.sort(key=lambda entry: entry[0])
    return [match for _, match in found]


def covers(outer: Sequence[TrafficSelector], inner: Iterable[TrafficSelector]) -> bool:
    """Whether every selector of ``inner`` lies within one of ``outer``."""
    return all(any(o.contains(i) for o in outer) for i in inner)


def specific_first(packet: TrafficSelector | None, selectors: Selectors) -> Selectors:
    """What to offer: the selector of the packet that asks for the SA first (RFC 7296 2.9)."""
    if packet is None or packet in selectors[:1] or not covers(selectors, (packet,)):
        return selectors
    return (packet, *selectors)
