"""Which gateways live, and which peers this one takes and lets go. Pure: time is an argument.

Facts come from two sides: Leases (through the API server) and lines of the mesh (directly). Both
are dated by OUR clock at the moment when something NEW was seen: a Lease counts from when its
renewTime changed before our eyes, whatever time it says, so wrong clocks do no harm. A gateway is
live while one of the two is younger than the patience of the peer in question (6 s by default).

Of one peer, seen from this gateway::

          owner is us, and we may take          owner is another, and it announces the peer
    idle -------------------------------> held ---------------------------------------------> idle
                                           |        or has not within 2 s
                                           |
                                           | nobody is able to: stays held (also when draining)

The owner is ``ownership.assign`` of those that are able to. Rules beside it:

joining      Nothing is taken until each gateway whose Lease there is has been heard once, or the
             patience is over: who has just come cannot know who holds what.
no API       While the API server is away, nothing new is taken by a minority: by a gateway that
             hears less than half of those that it heard last. Cut off from everybody it keeps what
             it has, and takes nothing from those who go on without it.
split brain  Two hold the same peer. Who took it last has the SA that the peer believes in, so the
             other one lets go. If both still hold it after 3 s (times too close to each other), the
             one with the lower rank does.
blind        Of a gateway whose Lease lives and of which no line has ever come, nobody knows what it
             holds. Then rank alone decides, which both sides can compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from ipsec_api.ownership import DEFAULT_GROUP, Assignment, Wish, assign
from ipsec_gateway.cluster.meshline import Line

#: Seconds of silence after which a gateway is dead, for peers that say nothing else.
PATIENCE: Final = 6.0
#: Seconds for which a holder waits for the next one to take a peer.
LETTING_GO: Final = 2.0
#: Seconds after which two that hold the same peer go by rank.
SPLIT: Final = 3.0
#: Seconds for which a gateway that has just come may be silent on the mesh.
BLIND: Final = 10.0
#: Seconds after which a gateway without a Lease, or all of them without the API, is forgotten.
FORGET: Final = 3600.0

_NEVER: Final = float("-inf")


@dataclass(frozen=True, slots=True)
class LeaseFacts:
    """What a Lease says. ``renewed`` is only compared with itself, never with a clock."""

    renewed: str
    addresses: tuple[str, ...] = ()
    group: str = DEFAULT_GROUP
    labels: Mapping[str, str] = field(default_factory=dict)
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What a peer asks of its gateways. ``patience`` in seconds."""

    wish: Wish = field(default_factory=Wish)
    patience: float = PATIENCE
    preempt: bool = False
    #: Whether a gateway that cannot forward for it gives it up.
    by_probe: bool = True


@dataclass(slots=True)
class Other:
    """Another gateway."""

    lease: LeaseFacts | None = None
    #: Our time when the Lease was last seen to change, and when the newest line came.
    lease_at: float = _NEVER
    line_at: float = _NEVER
    first_at: float = 0.0
    #: Our time when its Lease came to life.
    alive_at: float = _NEVER
    incarnation: str = ""
    seq: int = -1
    draining: bool = False
    gives_up: frozenset[str] = frozenset()
    digest: str = ""
    #: Our time when it took each peer.
    owned: dict[str, float] = field(default_factory=dict)

    @property
    def heard(self) -> float:
        """Our time of its newest sign of life."""
        return max(self.lease_at, self.line_at)


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows. ``taken`` and ``dropped`` are the differences to what was held before."""

    held: frozenset[str]
    taken: frozenset[str]
    dropped: frozenset[str]
    assignments: Mapping[str, Assignment]


class Membership:
    """The view of the gateway ``me``. ``held``: what an earlier life of it has left, still warm."""

    def __init__(
        self,
        me: str,
        now: float,
        *,
        group: str = DEFAULT_GROUP,
        labels: Mapping[str, str] | None = None,
        held: Iterable[str] = (),
    ) -> None:
        self.me: Final = me
        self.group = group
        self.labels: Mapping[str, str] = labels or {}
        self.draining = False
        #: Peers that we cannot forward for.
        self.gives_up: frozenset[str] = frozenset()
        #: Our time when we took each peer that we hold.
        self.held: dict[str, float] = dict.fromkeys(held, now)
        self.others: dict[str, Other] = {}
        self._started: Final = now
        self._listed = False
        self._api_at = _NEVER
        self._joined = False
        #: Those among whom a majority is sought.
        self._base: set[str] = {me}
        #: Grows with everything that a decision depends on, but for the passing of time.
        self.epoch = 0
        #: Of the decision under way, by what peers ask for: who is able, which of them gave some
        #: peer up, and whether somebody is blind.
        self._ables: dict[object, tuple[frozenset[str], tuple[str, ...], bool]] = {}
        self._leaving: dict[str, float] = {}
        self._split: dict[str, float] = {}

    # What is seen.

    def heard_api(self, now: float) -> None:
        """The API server answered."""
        self._api_at = now

    def leases(self, found: Mapping[str, LeaseFacts], now: float) -> None:
        """All Leases there are."""
        self._listed = True
        self.heard_api(now)
        for gone in self.others.keys() - found.keys():
            self.others[gone].lease = None
        self.epoch += 1
        for node, facts in found.items():
            self.lease(node, facts, now)

    def lease(self, node: str, facts: LeaseFacts | None, now: float) -> None:
        """One Lease came or changed; None: it was deleted."""
        self.heard_api(now)
        if node == self.me:
            return
        other = self.others.get(node)
        if other is None:
            if facts is None:
                return
            other = self.others[node] = Other(first_at=now)
        elif other.lease is not None and facts is not None and facts.renewed != other.lease.renewed:
            # Only what changes before our eyes proves life.
            if now - other.lease_at >= PATIENCE:
                other.alive_at = now
            other.lease_at = now
        if facts is None or other.lease is None or _lasting(facts) != _lasting(other.lease):
            self.epoch += 1
        other.lease = facts

    def known(self, addresses: Mapping[str, LeaseFacts], now: float) -> None:
        """Gateways of an earlier life's memory, for a start without the API server."""
        for node, facts in addresses.items():
            if node != self.me and node not in self.others:
                self.others[node] = Other(lease=facts, first_at=now)

    def line(self, line: Line, now: float) -> bool:
        """A line came, signed. Returns False for one that is old or our own."""
        if line.gateway == self.me:
            return False
        other = self.others.setdefault(line.gateway, Other(first_at=now))
        if line.incarnation == other.incarnation and line.seq <= other.seq:
            return False
        said = (other.draining, other.gives_up, other.digest, other.incarnation)
        if line.owned is not None:
            before = other.owned if line.incarnation == other.incarnation else {}
            other.owned = {
                peer: before.get(peer, now - max(0.0, line.ages.get(peer, 0.0)))
                for peer in line.owned
            }
            other.digest = line.digest
        elif line.digest != other.digest or line.incarnation != other.incarnation:
            # We have missed what it owns; its next stream tells.
            return False
        other.incarnation, other.seq, other.line_at = line.incarnation, line.seq, now
        other.draining, other.gives_up = line.draining, line.gives_up
        if said != (other.draining, other.gives_up, other.digest, other.incarnation):
            self.epoch += 1
        return True

    # What follows.

    @property
    def unsettled(self) -> bool:
        """Whether the passing of time alone changes the next decision soon."""
        return not self._joined or bool(self._leaving or self._split)

    def live(self, now: float, patience: float = PATIENCE) -> set[str]:
        """The gateways that live, this one among them."""
        return {
            self.me,
            *(node for node, other in self.others.items() if now - other.heard < patience),
        }

    def api(self, now: float) -> bool:
        """Whether the API server was heard lately."""
        return now - self._api_at < PATIENCE

    def joined(self, now: float) -> bool:
        """Whether enough has been heard to take peers. Once true it stays true."""
        if not self._joined:
            leased = [o for o in self.others.values() if o.lease is not None]
            heard = self._listed and all(o.line_at > _NEVER for o in leased)
            self._joined = heard or now - self._started >= PATIENCE
        return self._joined

    def hold(self, peers: Iterable[str], now: float) -> None:
        """Peers that this gateway turns out to have from an earlier life."""
        for peer in peers:
            self.held.setdefault(peer, now)

    def decide(self, claims: Mapping[str, Claim], now: float) -> Decision:
        """Who owns each of these peers, and what this gateway does about it."""
        before = frozenset(self.held)
        may_take = self.joined(now) and self._quorate(now)
        self._tidy(now)
        assignments: dict[str, Assignment] = {}
        self._ables.clear()
        for peer in self.held.keys() - claims.keys():
            del self.held[peer]
        for peer, claim in claims.items():
            assignments[peer] = self._assign(peer, claim, now)
            if assignments[peer].owner == self.me:
                self._leaving.pop(peer, None)
                if may_take or peer in self.held:
                    self.held.setdefault(peer, now)
            elif peer in self.held and self._lets_go(peer, claim, assignments[peer], now):
                del self.held[peer]
                self._leaving.pop(peer, None)
        for state in (self._leaving, self._split):
            for peer in state.keys() - self.held.keys():
                del state[peer]
        held = frozenset(self.held)
        return Decision(held, held - before, before - held, assignments)

    def _assign(self, peer: str, claim: Claim, now: float) -> Assignment:
        wish = claim.wish
        key = (claim.patience, wish.group, frozenset(wish.labels.items()))
        found = self._ables.get(key)
        if found is None:
            able = frozenset(self.able(claim, now))
            tired = tuple(n for n in able if self._view(n).gives_up)
            found = self._ables[key] = able, tired, self._blind(able, now)
        able, tired, blind = found
        return assign(
            peer,
            able,
            holders=() if blind else self._holders(peer, claim, now),
            gave_up=[n for n in tired if claim.by_probe and peer in self._view(n).gives_up],
            preempt=claim.preempt,
        )

    def _blind(self, able: Iterable[str], now: float) -> bool:
        """Whether somebody may hold peers without our knowing."""
        others = (self.others[node] for node in able if node != self.me)
        return any(o.line_at == _NEVER and now - o.alive_at >= BLIND for o in others)

    def able(self, claim: Claim, now: float) -> set[str]:
        """The gateways that may own a peer with this claim now."""
        return {
            node
            for node in self.live(now, claim.patience)
            if not (view := self._view(node)).draining
            and claim.wish.accepts(view.group, view.labels)
        }

    def _holders(self, peer: str, claim: Claim, now: float) -> set[str]:
        """Who holds it: the last one who took it, or all, once they do not agree on that."""
        times = {
            node: other.owned[peer]
            for node, other in self.others.items()
            if peer in other.owned and now - other.heard < claim.patience
        }
        if peer in self.held:
            times[self.me] = self.held[peer]
        if len(times) < 2 or self.me not in times:
            self._split.pop(peer, None)
            return set(times)
        if now - self._split.setdefault(peer, now) >= SPLIT:
            return set(times)
        newest = max(times.values())
        return {node for node, when in times.items() if when == newest}

    def _lets_go(self, peer: str, claim: Claim, assignment: Assignment, now: float) -> bool:
        if assignment.owner is None:
            # Nobody could take it. Draining we leave it to our next life; but a peer that does not
            # want us does not get us.
            return not claim.wish.accepts(self.group, self.labels)
        owner = self.others.get(assignment.owner)
        if owner is not None and peer in owner.owned:
            return True
        since = self._leaving.setdefault(peer, now)
        return now - since >= LETTING_GO

    def _quorate(self, now: float) -> bool:
        """Whether this is no minority; only without the API server does it matter."""
        live = self.live(now)
        enough = self.api(now) or 2 * len(live & self._base) >= len(self._base)
        if enough:
            self._base = live
        return enough

    def _tidy(self, now: float) -> None:
        for node, other in tuple(self.others.items()):
            latest = max(other.heard, other.first_at)
            gone = other.lease is None and now - latest > PATIENCE
            if gone and (self.api(now) or now - latest > FORGET):
                del self.others[node]

    def _view(self, node: str) -> _View:
        if node == self.me:
            return _View(self.group, self.labels, self.gives_up, self.draining)
        other = self.others[node]
        lease = other.lease or _UNKNOWN
        by_line = other.line_at >= other.lease_at
        draining = other.draining if by_line else other.draining or lease.draining
        return _View(lease.group, lease.labels, other.gives_up, draining)


def _lasting(facts: LeaseFacts) -> LeaseFacts:
    return replace(facts, renewed="")


@dataclass(frozen=True, slots=True)
class _View:
    group: str
    labels: Mapping[str, str]
    gives_up: frozenset[str]
    draining: bool


_UNKNOWN: Final = LeaseFacts("")
