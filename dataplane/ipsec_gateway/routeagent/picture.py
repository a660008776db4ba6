"""Which gateway carries which peer, out of what every gateway says of itself. Pure: time comes in.

A gateway names the peers that it owns, with their remote subnets, whenever that changes. An agent
computes no ownership, it follows:

==========================================  ====================================================
what is heard                               who carries the peer
==========================================  ====================================================
one gateway names it                        that one
two name it (they are moving it)            who took it last, of those heard within ``SILENCE``
the one that named it is silent             still that one: the kernel goes on carrying while the
                                            process is replaced, and of a dead node nothing leaks
it was silent while another took it         the other one; the older claim is void
it let go of it while draining              still that one, until another takes it
it let go of it                             nobody: unreachable, and forgotten after ``FORGET``
                                            unless some gateway says that it gave it up
==========================================  ====================================================

So a peer that is deleted goes within half a minute, and at no other time does traffic to its
subnets find the usual way out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ipsec_gateway.classify import Network
from ipsec_gateway.cluster.meshline import Line

#: Seconds after which a gateway that says nothing does not count as live.
SILENCE: Final = 6.0
#: Seconds for which the subnets of a peer that nobody names any more stay unreachable.
FORGET: Final = 30.0


@dataclass(frozen=True, slots=True)
class Carried:
    """One peer: its remote subnets, and who carries it (None: nobody)."""

    remotes: tuple[Network, ...]
    gateway: str | None
    tolerant: bool = False


@dataclass(slots=True)
class _Claim:
    """``since`` is when it was first heard; ``released``: let go of while draining."""

    remotes: tuple[Network, ...]
    since: float
    tolerant: bool = False
    released: bool = False


@dataclass(slots=True)
class _Gateway:
    heard: float
    incarnation: str = ""
    seq: int = -1
    draining: bool = False
    gives_up: frozenset[str] = frozenset()
    claims: dict[str, _Claim] = field(default_factory=dict)


@dataclass(slots=True)
class _Vacant:
    """A peer that nobody names, and since when."""

    remotes: tuple[Network, ...]
    since: float
    tolerant: bool = False


class Picture:
    """All that was heard. Times are seconds of any one clock that only goes forward."""

    def __init__(self) -> None:
        self._gateways: dict[str, _Gateway] = {}
        self._vacant: dict[str, _Vacant] = {}
        #: The newest claim to each peer: who, since when.
        self._taken: dict[str, tuple[str, float]] = {}

    def is_new(self, line: Line) -> bool:
        """Whether it does not stand behind one that was taken in."""
        it = self._gateways.get(line.gateway)
        return it is None or it.incarnation != line.incarnation or line.seq >= it.seq

    def said(self, line: Line, now: float) -> bool:
        """Take a line in. Returns whether it can change who carries what; an old one cannot."""
        if not self.is_new(line):
            return False
        it = self._gateways.setdefault(line.gateway, _Gateway(now))
        same_life = it.incarnation == line.incarnation
        was_silent = now - it.heard > SILENCE
        it.heard, it.seq, it.incarnation = now, line.seq, line.incarnation
        before = (it.draining, it.gives_up)
        it.draining, it.gives_up = line.draining, line.gives_up
        changed = was_silent or before != (it.draining, it.gives_up)
        if line.owned is not None:
            changed |= self._owns(line, it, same_life, now)
        return changed

    def _owns(self, line: Line, it: _Gateway, same_life: bool, now: float) -> bool:
        assert line.owned is not None
        changed = False
        for peer, subnets in line.owned.items():
            remotes = networks(subnets)
            claim, tolerant = it.claims.get(peer), peer in line.use
            if claim is None or claim.released or not same_life:
                since = now - max(line.ages.get(peer, 0.0), 0.0)
                it.claims[peer] = _Claim(remotes, since, tolerant)
                if since >= self._taken.get(peer, ("", since))[1]:
                    self._taken[peer] = (line.gateway, since)
                changed = True
            elif (claim.remotes, claim.tolerant) != (remotes, tolerant):
                claim.remotes, claim.tolerant = remotes, tolerant
                changed = True
        for peer in [p for p in it.claims if p not in line.owned]:
            if line.draining:
                changed |= not it.claims[peer].released
                it.claims[peer].released = True
            else:
                gone = it.claims.pop(peer)
                self._vacant[peer] = _Vacant(gone.remotes, now, gone.tolerant)
                changed = True
        return changed

    def heard(self, gateway: str, now: float) -> bool:
        """Whether it spoke within ``SILENCE``."""
        it = self._gateways.get(gateway)
        return it is not None and now - it.heard <= SILENCE

    def informed(self, gateway: str) -> bool:
        """Whether it ever said what it owns, or was remembered."""
        return gateway in self._gateways

    def carried(self, now: float) -> dict[str, Carried]:
        """Every peer that is known, and who carries it."""
        found: dict[str, Carried] = {}
        for peer in sorted({p for g in self._gateways.values() for p in g.claims}):
            best = self._best(peer, now)
            if best is not None:
                gateway, claim = best
                found[peer] = Carried(claim.remotes, gateway, claim.tolerant)
        kept: dict[str, _Vacant] = {}
        for peer, vacant in self._vacant.items():
            if peer in found:
                continue
            given_up = any(peer in g.gives_up for g in self._gateways.values())
            if given_up or now - vacant.since < FORGET:
                found[peer] = Carried(vacant.remotes, None, vacant.tolerant)
                kept[peer] = vacant
        self._vacant = kept
        return found

    def _best(self, peer: str, now: float) -> tuple[str, _Claim] | None:
        newest, taken = self._taken.get(peer, ("", 0.0))
        ranked: list[tuple[tuple[bool, bool, float, str], str, _Claim]] = []
        for name, gateway in self._gateways.items():
            claim = gateway.claims.get(peer)
            live = now - gateway.heard <= SILENCE
            if claim is None or not (live or name == newest or gateway.heard >= taken):
                continue
            fresh = live and peer not in gateway.gives_up
            ranked.append(((not claim.released, fresh, claim.since, name), name, claim))
        if not ranked:
            return None
        _, name, claim = max(ranked, key=lambda each: each[0])
        return name, claim

    def timed(self, now: float) -> tuple[frozenset[str], frozenset[str]]:
        """What of ``carried`` depends on the time alone: who is heard, and what is forgotten."""
        return (
            frozenset(n for n, g in self._gateways.items() if now - g.heard <= SILENCE),
            frozenset(p for p, v in self._vacant.items() if now - v.since >= FORGET),
        )

    def next_change(self, now: float) -> float | None:
        """Seconds until silence or forgetting can change something, or None."""
        times = [g.heard + SILENCE - now for g in self._gateways.values()]
        times += [v.since + FORGET - now for v in self._vacant.values()]
        return min((t for t in times if t > 0), default=None)

    def record(self, now: float) -> dict[str, Any]:
        """What the next agent on this node begins with, as JSON."""
        return {
            "v": 1,
            "peers": {
                peer: {
                    "gateway": each.gateway,
                    "remotes": [str(n) for n in each.remotes],
                    **({"tolerant": True} if each.tolerant else {}),
                }
                for peer, each in sorted(self.carried(now).items())
            },
        }

    def remember(self, record: object, now: float) -> None:
        """Begin with what ``record`` gave. What is not understood is left out."""
        peers = record.get("peers") if isinstance(record, Mapping) else None
        if not isinstance(peers, Mapping):
            return
        for peer, each in peers.items():
            if not isinstance(each, Mapping) or not isinstance(peer, str):
                continue
            remotes = networks(each.get("remotes"))
            gateway, tolerant = each.get("gateway"), each.get("tolerant") is True
            if isinstance(gateway, str):
                # Not heard yet: any gateway that names the peer wins over it.
                it = self._gateways.setdefault(gateway, _Gateway(now - 2 * SILENCE))
                it.claims[peer] = _Claim(remotes, now - 2 * SILENCE, tolerant)
                self._taken[peer] = (gateway, now - 2 * SILENCE)
            else:
                self._vacant[peer] = _Vacant(remotes, now, tolerant)


def networks(values: object) -> tuple[Network, ...]:
    """Networks in CIDR notation, those that are none left out."""
    found: list[Network] = []
    for value in values if isinstance(values, Iterable) else ():
        try:
            found.append(ipaddress.ip_network(str(value)))
        except ValueError:
            continue
    return tuple(found)
