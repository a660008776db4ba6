"""Rekeying of a CHILD_SA, make-before-break, and its collisions (RFC 7296 1.3.3, 2.8, 2.25.1).

    initiator: CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, [KEi,] TSi, TSr }  -->
               new SAs in both directions; then INFORMATIONAL { D(old) }  -->
    responder: new inbound SA with the answer, new outbound SA with the Delete of the old one

The responder switches that late because only the Delete shows that the initiator has the new SA.

Both sides may ask at once. Both answer; each then knows four nonces, and the exchange with the
lowest one was in vain: its initiator deletes what it created, the other one deletes the old SA. If
one side's exchange is already complete when the other's request arrives, the old SA is being
deleted and the answer is TEMPORARY_FAILURE, or CHILD_SA_NOT_FOUND when it is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ipsec_ike.errors import ChildSaNotFound, IkeError, TemporaryFailure
from ipsec_ike.events import Reason, Warned
from ipsec_ike.numbers import ExchangeType, NotifyType
from ipsec_ike.sa.child_sa import ChildSa, ChildState
from ipsec_ike.sa.lifetimes import share
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.v2 import children, create_child, deletes, negotiate
from ipsec_ike.v2.create_child import CreateChild, Rival, give_time, other_group
from ipsec_ike.v2.exchange import Exchange, error_in, name_of, need
from ipsec_ike.v2.negotiate import Offer
from ipsec_ike.wire.payloads import NoncePayload, NotifyPayload, Payload

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa

#: Seconds until a rekey that met a temporary obstacle is tried again, and a random share more.
RETRY_SOON: Final = 2.0

_IN_PLACE: Final = (ChildState.INSTALLED, ChildState.REKEYING, ChildState.REKEYED)


class RekeyChild(Exchange):
    """Replace ``old``. If the peer replaces it too, its child is the ``rival`` of ours."""

    __slots__ = ("group", "offer", "old", "rival", "tried", "unborn")

    type = ExchangeType.CREATE_CHILD_SA

    def __init__(self, old: ChildSa) -> None:
        self.old = old
        self.offer: Offer | None = None
        self.group: int | None = None
        self.tried: tuple[int, ...] = ()
        self.rival: Rival | None = None
        self.unborn: tuple[int, ...] = ()

    def request(self, sa: IkeSa) -> list[Payload] | None:
        old = self.old
        if old.state is not ChildState.INSTALLED or old.successor is not None:
            return None
        if old.waiting is not None:
            # It is itself the successor of one that the peer is about to delete.
            old.soft_at = sa.host.now + RETRY_SOON
            sa.host.timers.arm(old)
            return None
        old.become(ChildState.REKEYING)
        old.soft_at = NEVER
        selected = old.local_ts, old.remote_ts
        self.offer = offer = Offer(sa, old.config, selected, group=self.group)
        spi = old.spi_in.to_bytes(4)
        rekey = NotifyPayload(NotifyType.REKEY_SA, b"", old.suite.protocol, spi)
        return [rekey, *offer.payloads()]

    def finish(self, sa: IkeSa, payloads: Sequence[Payload]) -> None:
        offer, old = self.offer, self.old
        assert offer is not None
        error = error_in(payloads)
        if error is not None:
            self._refused(sa, error)
            return
        try:
            agreed = offer.accept(sa, payloads)
        except IkeError as exc:
            sa.enqueue(deletes.DeleteUnused(old.suite.protocol, offer.spi))
            self._not_yet(sa, f"its answer is unusable: {exc}")
            return
        if agreed.spi_out in self.unborn:
            self._not_yet(sa, "the peer deleted the new child at once", soon=True)
            return
        rival = self.rival
        if rival is not None and rival.beats((offer.nonce, need(payloads, NoncePayload).data)):
            unused = deletes.DeleteUnused(agreed.suite.protocol, agreed.spi_in)
            sa.enqueue(unused, first=True)
            self._yield_to(sa, rival.child)
            return
        new = children.install(sa, agreed, outbound=True)
        if rival is not None and rival.alive:
            give_time(sa, rival.child, new)
        if old.state is ChildState.REKEYING:
            children.take_over(sa, old, new)
            deletes.delete_child(sa, old, Reason.REKEYED, "rekeyed")
        else:
            # The peer has deleted it, or its time was over, before the answer came.
            children.announce(sa, new)

    def failed(self, sa: IkeSa, reason: Reason, message: str) -> None:
        """The IKE SA ends, and the old child with it."""

    def _yield_to(self, sa: IkeSa, winner: ChildSa) -> None:
        """The peer's child stays; its Delete of the old one shows us that it has the new one."""
        old = self.old
        if old.state is ChildState.REKEYING:
            wait_for_delete(sa, old, winner)

    def _refused(self, sa: IkeSa, error: NotifyPayload) -> None:
        old, rival = self.old, self.rival
        if rival is not None and rival.alive:
            # The peer did not see our request in time: its own rekey is complete.
            self._yield_to(sa, rival.child)
            return
        if old.state is not ChildState.REKEYING:
            gone(sa, old)
            return
        if error.notify == NotifyType.INVALID_KE_PAYLOAD:
            group = other_group(old.config, error, self.tried)
            if group is not None:
                self.group, self.tried = group, (*self.tried, group)
                old.become(ChildState.INSTALLED)
                sa.enqueue(self, first=True)
                return
        if error.notify == NotifyType.CHILD_SA_NOT_FOUND:
            children.remove(sa, old, grace=False)
            children.report_down(sa, old, Reason.PEER_DELETED, "the peer does not have it any more")
            if not old.config.template:
                sa.enqueue(CreateChild(old.config))
            return
        soon = error.notify == NotifyType.TEMPORARY_FAILURE
        self._not_yet(sa, f"the peer answers {name_of(error)}", soon=soon)
        if error.notify == NotifyType.NO_ADDITIONAL_SAS:
            # It has only what IKE_AUTH gives (RFC 7296 1.3, 4): begin anew, make-before-break.
            sa.peer.reauthenticate(sa)

    def _not_yet(self, sa: IkeSa, why: str, *, soon: bool = False) -> None:
        """The old child goes on until its hard limit; the next try comes before."""
        old, host = self.old, sa.host
        if old.state is not ChildState.REKEYING:
            gone(sa, old)
            return
        old.become(ChildState.INSTALLED)
        wait = RETRY_SOON if soon else sa.peer.config.retry_interval * 2
        old.soft_at = host.now + wait * (1 + share(host.rng))
        host.timers.arm(old)
        if not soon:
            host.emit(
                Warned(
                    peer=sa.peer.config.name,
                    message=f"child {old.config.name} cannot be rekeyed yet: {why}",
                )
            )


def gone(sa: IkeSa, old: ChildSa) -> None:
    """The peer deleted the old child while our request was under way, and there is no new one."""
    if old.successor is None:
        children.report_down(sa, old, Reason.PEER_DELETED, "the peer deleted it")
        sa.peer.child_lost(sa, old, Reason.PEER_DELETED)


def wait_for_delete(sa: IkeSa, old: ChildSa, new: ChildSa) -> None:
    """The peer made ``new`` in place of ``old`` and has to delete the latter."""
    old.successor = new
    old.become(ChildState.REKEYED)
    old.soft_at = NEVER
    old.hard_at = min(old.hard_at, sa.host.now + create_child.PATIENCE)
    sa.host.timers.arm(old)


def respond(sa: IkeSa, payloads: Sequence[Payload], rekey: NotifyPayload) -> list[Payload]:
    """The peer rekeys a child. Raises an IkeError to refuse with."""
    spi = int.from_bytes(rekey.spi)
    old = children.by_peer_spi(sa, rekey.protocol, spi)
    if old is None:
        deleted = any(child.spi_out == spi for child in sa.children)
        if not deleted and isinstance(sa.current, (CreateChild, RekeyChild)):
            raise TemporaryFailure("it may be the child whose creation we have no answer to yet")
        raise ChildSaNotFound(f"no child with SPI {spi:08x}")
    if not old.live:
        raise TemporaryFailure("the child is being deleted")
    agreed, answer, nonces = negotiate.answer(sa, payloads, (old.config,), rekey=True)
    new = children.install(sa, agreed, outbound=False)
    exchange = rekeying(sa, old)
    if exchange is not None:
        exchange.rival = Rival(new, nonces)
    else:
        wait_for_delete(sa, old, new)
    return answer


def rekeying(sa: IkeSa, old: ChildSa) -> RekeyChild | None:
    """Our request to rekey ``old``, if the answer to it is still to come."""
    current = sa.current
    return current if isinstance(current, RekeyChild) and current.old is old else None


def not_found(rekey: NotifyPayload) -> NotifyPayload:
    """CHILD_SA_NOT_FOUND with the SPI of the request (RFC 7296 2.25)."""
    return NotifyPayload(NotifyType.CHILD_SA_NOT_FOUND, b"", rekey.protocol, rekey.spi)


def deleted_by_peer(sa: IkeSa, child: ChildSa) -> None:
    """The peer deletes a child; what that means depends on what we know about rekeys of it."""
    if child.state is ChildState.DELETING:
        children.remove(sa, child, grace=True)
        return
    exchange = rekeying(sa, child)
    new = child.successor
    if exchange is not None and exchange.rival is not None and exchange.rival.alive:
        new = exchange.rival.child
    if new is not None and new.state in _IN_PLACE:
        if new.waiting is not None or exchange is not None:
            children.take_over(sa, child, new)
        children.remove(sa, child, grace=True)
        return
    if exchange is not None:
        # The answer to our request may still bring a successor.
        children.remove(sa, child, grace=True)
        return
    before = next((c for c in sa.children if c.successor is child), None)
    if before is not None and before.state is ChildState.REKEYED:
        # The peer takes back the successor that it created; the old child is in use again.
        before.successor = None
        before.become(ChildState.INSTALLED)
        before.soft_at = sa.host.now + RETRY_SOON * (1 + share(sa.host.rng))
        before.hard_at = _hard_limit(before)
        sa.host.timers.arm(before)
        children.remove(sa, child, grace=True)
        return
    if create_child.outlived(sa, child):
        return
    children.lose(sa, child, Reason.PEER_DELETED, "the peer deleted it", grace=True)


def _hard_limit(child: ChildSa) -> float:
    seconds = child.config.lifetime.seconds
    return child.created_at + seconds if seconds else NEVER
