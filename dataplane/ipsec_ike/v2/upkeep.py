"""What time brings to an IKE SA (RFC 7296 2.1, 2.4, 2.8, RFC 3948 2.3, RFC 4478).

In this order: the hard lifetime, the request that waits for its answer, the end of one that another
IKE SA replaces; then authentication anew, rekeying, the check for liveness and the NAT keepalive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipsec_ike.events import Reason
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.v2 import deletes, protected
from ipsec_ike.v2.rekey_ike import RekeyIke
from ipsec_ike.v2.states import State

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa


def on_timer(sa: IkeSa, now: float) -> None:
    """A deadline of the IKE SA may have passed."""
    if sa.hard_at <= now:
        _end_of_life(sa)
        return
    if sa.window.deadline <= now and not _repeat(sa):
        return
    if sa.doomed_at <= now:
        sa.close(Reason.REPLACED, "a newer IKE SA of the same peer took over", notify=True)
        return
    if sa.state is State.ESTABLISHED and not sa.pending:
        _upkeep(sa, now)
    sa.host.timers.arm(sa)


def _upkeep(sa: IkeSa, now: float) -> None:
    config = sa.peer.config
    if sa.reauth_at <= now:
        sa.reauth_at = now + config.retry_limit
        sa.peer.reauthenticate(sa)
    if sa.soft_at <= now:
        sa.soft_at = NEVER
        sa.enqueue(RekeyIke())
    silent = sa.heard_at + config.dpd_interval <= now
    if config.dpd_interval and silent and not sa.window.busy:
        sa.enqueue(deletes.Liveness())
    if config.keepalive_interval and sa.nat_local and sa.sent_at + config.keepalive_interval <= now:
        protected.send(sa, (b"",))


def _repeat(sa: IkeSa) -> bool:
    """Send the request again, or give up; returns whether the SA goes on."""
    window, host = sa.window, sa.host
    if window.retry(host.now, sa.peer.config.retransmission):
        host.counters["retransmissions"] += 1
        protected.send(sa, window.request)
        return True
    message = (
        f"no answer from {sa.remote.address} port {sa.remote.port}"
        f" after {window.tries + 1} tries in {host.now - window.sent_at:.1f} seconds"
    )
    if sa.state is State.DELETING or sa.state is State.REKEYED:
        sa.forget()
    elif sa.state is State.CONNECTING:
        _no_answer(sa, message)
    else:
        sa.close(Reason.PEER_DEAD, message, notify=False)
    return False


def _no_answer(sa: IkeSa, message: str) -> None:
    """An attempt fails: with the refusal that came, if one came."""
    refusal = None if sa.handshake is None else sa.handshake.refusal
    if refusal is None:
        sa.close(Reason.TIMEOUT, message, notify=False)
        return
    if refusal.event is not None:
        sa.host.emit(refusal.event)
    sa.close(refusal.reason, refusal.message, notify=False)


def _end_of_life(sa: IkeSa) -> None:
    sa.hard_at = NEVER
    if sa.state is State.DELETING:
        sa.forget()
    elif sa.state is State.CONNECTING:
        if not sa.initiator:
            sa.host.counters["half_open_timeout"] += 1
        sa.close(Reason.TIMEOUT, "the peer did not authenticate in time", notify=False)
    elif sa.state is State.REKEYED or sa.pending:
        sa.retire()
    else:
        sa.close(Reason.EXPIRED, "hard lifetime of the IKE SA", notify=True)
