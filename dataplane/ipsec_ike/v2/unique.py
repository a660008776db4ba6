"""One IKE SA for each pair of identities (RFC 7296 2.4), make-before-break.

A new IKE SA of a peer's identity dooms the ones before it: they are deleted once the new one has
their children, or after a while. INITIAL_CONTACT deletes them at once and without a word, because
the peer says that it has forgotten them.

If both sides start at the same moment there are two IKE SAs that are as good as each other. That is
the case if neither existed before the other one was established. The one with the lower SPIs
survives, which both sides know; the other is deleted by the side that initiated it, and only if
that does not happen in time by the other side. An attempt of ours that has not yet come to IKE_AUTH
when the peer's is established is simply given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ipsec_ike.events import Reason
from ipsec_ike.numbers import ExchangeType
from ipsec_ike.sa.child_sa import LIVE
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.v2 import crowd
from ipsec_ike.v2.deletes import Confirm
from ipsec_ike.v2.states import State

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa
    from ipsec_ike.v2.peer import Peer

#: Seconds that a doomed IKE SA gets at most if it is ours to delete, and if it is the peer's.
_OURS: Final = 10.0
_THEIRS: Final = 30.0


def is_first_contact(sa: IkeSa) -> bool:
    """Whether we know of no other IKE SA between the two of us."""
    return not any(other.up for other in sa.peer.sas if other is not sa)


def _others(sa: IkeSa) -> list[IkeSa]:
    """The established IKE SAs of the same peer and identity."""
    assert sa.remote_id is not None
    return [other for other in sa.peer.known(sa.remote_id) if other is not sa and other.up]


def established(sa: IkeSa) -> None:
    """``sa`` has just been authenticated."""
    peer = sa.peer
    peer.remember(sa)
    for other in _others(sa):
        overlap = other.established_at >= sa.created_at and not _replaces(sa, other)
        if not overlap:
            doom(other, ours=_replaces(sa, other) or sa.initiator)
            continue
        loser = other if _spis(sa) < _spis(other) else sa
        doom(loser, ours=loser.initiator)
    if peer.doomed:
        for survivor in (*_others(sa), sa):
            if survivor.doomed_at == NEVER and not survivor.confirmed:
                # The answer will show that the peer has this one, too, so that others may go.
                survivor.enqueue(Confirm())
    if not sa.initiator:
        _abandon_attempts(sa)
    crowd.thin(sa, keep=sa)


def _replaces(sa: IkeSa, other: IkeSa) -> bool:
    return sa.handshake is not None and sa.handshake.replaces is other


def _spis(sa: IkeSa) -> bytes:
    return sa.spi_i + sa.spi_r


def doom(sa: IkeSa, *, ours: bool) -> None:
    """It has to go: soon, or when the peer has had its time to delete it."""
    if sa.doomed_at <= sa.host.now:
        return
    sa.doomed_at = sa.host.now + (_OURS if ours else _THEIRS)
    sa.doomed_by_us = ours
    sa.host.touch(sa)
    sa.peer.doomed.add(sa)
    sa.host.timers.arm(sa)


def initial_contact(sa: IkeSa) -> None:
    """The peer knows of no other IKE SA: what was there before this one is dead."""
    for other in _others(sa):
        if other.established_at < sa.created_at:
            other.close(Reason.REPLACED, "the peer has started anew", notify=False)


def _abandon_attempts(sa: IkeSa) -> None:
    """Our own attempts that are still in IKE_SA_INIT are not needed any more."""
    if not sa.peer.config.paths:
        return
    for other in tuple(sa.peer.sas):
        if (
            other.initiator
            and other.state is State.CONNECTING
            and other.keys is None
            and other.identity is sa.identity
        ):
            other.forget()


def settle(peer: Peer) -> None:
    """Delete the doomed IKE SAs that are ours to delete and whose children live on elsewhere."""
    for old in tuple(peer.doomed):
        if not old.doomed_by_us or not old.up:
            continue
        current = old.current
        if current is not None and current.type == ExchangeType.CREATE_CHILD_SA:
            # The peer may have a child from it already.
            continue
        assert old.remote_id is not None
        survivors = [
            sa
            for sa in peer.known(old.remote_id)
            if sa is not old and sa.up and sa.doomed_at == NEVER and sa.confirmed
        ]
        heirs = {
            child.config.name
            for sa in survivors
            for child in sa.children
            if child.state in LIVE and child.outbound and child.confirmed
        }
        safe = all(child.config.name in heirs for child in old.children if child.state in LIVE)
        if survivors and safe:
            old.close(Reason.REPLACED, "a newer IKE SA of the same peer took over", notify=True)
