"""What happened to each peer so far: a pure fold of the engine's events.

Causes outlive attempts: while a peer is tried again and again, its status says why the last attempt
failed, and not "connecting", until an attempt succeeds.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from ipsec_ike import events
from ipsec_ike.config import GENERATED, Responder
from ipsec_ike.events import Event, Reason
from ipsec_ike.inputs import Endpoint
from ipsec_ike.selectors import TrafficSelector

#: The stage of what concerns no child.
_IKE: Final = "IKE"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something is not up. ``reason`` is CamelCase, ``message`` has cause and remedy."""

    reason: str
    message: str


@dataclass(slots=True)
class ChildState:
    """One configured child: the inbound SPIs of its live SAs, and why there is none.

    ``remote_ts`` is what was agreed on last."""

    spis: set[int] = field(default_factory=set)
    cause: Cause | None = None
    remote_ts: tuple[TrafficSelector, ...] = ()


@dataclass(slots=True)
class PeerState:
    """One peer. ``up`` is the newest IKE SA while there is one."""

    up: events.IkeSaUp | None = None
    #: IKE SAs; more than one while both sides initiate at once, or for a peer with many clients.
    count: int = 0
    suite: str = ""
    #: Wall-clock time, RFC 3339, of the first of the IKE SAs that followed each other.
    since: str = ""
    remote: Endpoint | None = None
    cause: Cause | None = None
    #: What the messages of the peer said in detail, by stage ("IKE" or the child).
    details: dict[str, Cause] = field(default_factory=dict)
    children: dict[str, ChildState] = field(default_factory=dict)
    #: Why the peer did not get what it asked for last, if it has nothing from a template since.
    refused: Cause | None = None
    #: What the peer has told of itself with its newest IKE SA, kept until the next one.
    told: Responder | None = None

    @property
    def responder(self) -> Responder | None:
        """Of what the peer has told, what lies within the selectors that were agreed on."""
        if self.told is None:
            return None
        agreed = [ts for child in self.children.values() for ts in child.remote_ts]
        inside = tuple(a for a in self.told.addresses if _within(a, agreed))
        return Responder(self.told.port, inside) if inside else None

    def child(self, name: str) -> ChildState:
        """The state of a child, made where there is none yet."""
        return self.children.setdefault(name, ChildState())

    @property
    def installed(self) -> int:
        """Children with a live SA."""
        return sum(1 for child in self.children.values() if child.spis)

    @property
    def generated(self) -> int:
        """Children from templates."""
        return sum(1 for name in self.children if GENERATED in name)


def fold(state: PeerState, event: Event, now: str) -> bool:
    """Take one event of this peer in. Returns whether anything changed.

    ``now`` is the wall-clock time in RFC 3339.
    """
    match event:
        case events.IkeSaConnecting():
            state.remote = event.remote
        case events.IkeSaUp():
            state.count += 1
            state.up = event
            state.remote = event.remote
            state.told = event.responder
            state.suite = event.suite
            state.since = state.since or now
            state.cause = None
            state.details.pop(_IKE, None)
        case events.IkeSaRekeyed():
            state.suite = event.suite
        case events.IkeSaDown():
            _down(state, event)
        case events.ChildSaUp():
            child = state.child(event.child)
            child.spis.add(event.spi_in)
            child.cause = None
            child.remote_ts = event.remote_ts
            state.details.pop(event.child, None)
            if event.template:
                state.refused = None
        case events.ChildSaRekeyed():
            child = state.child(event.child)
            child.spis.discard(event.old_spi_in)
            child.spis.add(event.spi_in)
        case events.ChildSaDown():
            child = state.child(event.child)
            child.spis.discard(event.spi_in)
            if event.template and not child.spis:
                # What is made from a template is gone with its SA.
                del state.children[event.child]
            detail = state.details.get(event.child)
            child.cause = _cause(event.reason, event.message, detail)
        case events.PeerMoved():
            state.remote = event.new
        case events.ProposalMismatch():
            _refused(state, event.stage, _proposals(event))
        case events.SelectorsMismatch():
            _refused(state, event.child, _selectors(event))
        case events.SelectorsRefused():
            state.refused = _not_given(event)
        case events.AuthFailed():
            text = event.message
            if event.remote.address not in text:
                text = f"{event.remote}: {text}"
            _refused(state, _IKE, Cause(Reason.AUTH_FAILED.value, text))
        case _:
            return False
    return True


def _within(address: str, selectors: Iterable[TrafficSelector]) -> bool:
    packed = ipaddress.ip_address(address).packed
    return any(len(ts.start) == len(packed) and ts.start <= packed <= ts.end for ts in selectors)


def _refused(state: PeerState, stage: str, cause: Cause) -> None:
    """One side refused the other. As responder that is all that we hear of it."""
    state.details[stage] = cause
    if stage == _IKE:
        if not state.count:
            state.cause = cause
    elif not state.child(stage).spis:
        state.child(stage).cause = cause


def _down(state: PeerState, event: events.IkeSaDown) -> None:
    detail = state.details.get(_IKE)
    if event.established:
        state.count = max(0, state.count - 1)
    if state.count:
        return
    state.cause = _cause(event.reason, event.message, detail)
    state.remote = event.remote
    if event.established:
        state.up = None
        state.since = ""
        for name, child in tuple(state.children.items()):
            child.spis.clear()
            if GENERATED in name:
                del state.children[name]


def _cause(reason: Reason, message: str, detail: Cause | None) -> Cause:
    """The cause, with what an earlier event told in detail about the same reason."""
    if detail is None or detail.reason != reason.value or detail.message in message:
        return Cause(reason.value, message)
    return Cause(reason.value, f"{message}: {detail.message}" if message else detail.message)


def _not_given(event: events.SelectorsRefused) -> Cause:
    local, remote = (", ".join(map(str, side)) for side in event.wanted)
    return Cause(
        Reason.TS_UNACCEPTABLE.value,
        f"{event.remote_id} does not get {local} to {remote} of template {event.template}:"
        f" {event.message}",
    )


def _proposals(event: events.ProposalMismatch) -> Cause:
    text = "; ".join(event.differences)
    if not text:
        text = f"ours: {', '.join(event.ours)}"
        if event.theirs:
            text += f"; theirs: {', '.join(event.theirs)}"
    return Cause(
        Reason.NO_PROPOSAL_CHOSEN.value,
        f"no common proposal for {event.stage} ({text}): allow one of them on both sides",
    )


def _selectors(event: events.SelectorsMismatch) -> Cause:
    def sides(pair: tuple[tuple[object, ...], tuple[object, ...]]) -> str:
        local, remote = (", ".join(map(str, side)) or "none" for side in pair)
        return f"{local} to {remote}"

    text = f"ours: {sides(event.ours)}"
    if any(event.theirs):
        text += f"; theirs: {sides(event.theirs)}"
    return Cause(
        Reason.TS_UNACCEPTABLE.value,
        f"no common traffic selectors ({text}): make the networks of both sides mirror each other",
    )
