"""CREATE_CHILD_SA for a new CHILD_SA (RFC 7296 1.3.1), and what follows a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ipsec_ike.config import ChildConfig
from ipsec_ike.errors import IkeError
from ipsec_ike.events import ChildSaDown, ProposalMismatch, Reason, SelectorsMismatch
from ipsec_ike.numbers import ExchangeType, NotifyType
from ipsec_ike.sa import choose
from ipsec_ike.sa.child_sa import ChildSa
from ipsec_ike.sa.narrowing import Selectors, specific_first
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.v2 import children, deletes, negotiate
from ipsec_ike.v2.children import Packet
from ipsec_ike.v2.exchange import Exchange, error_in, name_of, need
from ipsec_ike.v2.negotiate import Offer
from ipsec_ike.wire.payloads import NoncePayload, NotifyPayload, Payload

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa

__all__ = ["CreateChild", "Packet", "Rival"]

#: Seconds for which the loser of a collision may take to delete what it created.
PATIENCE: Final = 45.0

_REASONS: Final = {
    NotifyType.NO_PROPOSAL_CHOSEN: Reason.NO_PROPOSAL_CHOSEN,
    NotifyType.TS_UNACCEPTABLE: Reason.TS_UNACCEPTABLE,
    NotifyType.SINGLE_PAIR_REQUIRED: Reason.TS_UNACCEPTABLE,
}


class Rival:
    """The child that the peer created for the same purpose while our request was under way."""

    __slots__ = ("child", "nonce", "untold")

    def __init__(self, child: ChildSa, nonces: negotiate.Nonces) -> None:
        self.child = child
        #: The peer has deleted it, and our answer decides what there is to tell about that.
        self.untold = False
        #: The lower of the two nonces of the peer's exchange.
        self.nonce = min(nonces)

    @property
    def alive(self) -> bool:
        """Whether the peer has not deleted it meanwhile."""
        return self.child.live

    def follow(self) -> None:
        """If it was rekeyed meanwhile, what replaced it is the rival."""
        while not self.child.live and self.child.successor is not None:
            self.child = self.child.successor

    def beats(self, nonces: negotiate.Nonces) -> bool:
        """The exchange with the lowest of the four nonces loses (RFC 7296 2.8.1)."""
        return self.alive and min(nonces) < self.nonce


class CreateChild(Exchange):
    """Negotiate a child; ``packet`` is the selectors of the packet that needs it."""

    __slots__ = ("config", "group", "offer", "packet", "rival", "single", "tried", "unborn")

    type = ExchangeType.CREATE_CHILD_SA

    def __init__(self, config: ChildConfig, packet: Packet = (None, None)) -> None:
        self.config = config
        self.packet = packet
        self.offer: Offer | None = None
        self.group: int | None = None
        self.tried: tuple[int, ...] = ()
        self.single = False
        self.rival: Rival | None = None
        self.unborn: tuple[int, ...] = ()

    def request(self, sa: IkeSa) -> list[Payload] | None:
        if not sa.peer.allows(sa, self.config) or children.has_equal(sa, self.config, self.packet):
            return None
        self.offer = offer = Offer(sa, self.config, self.wanted, group=self.group)
        return offer.payloads()

    @property
    def wanted(self) -> tuple[Selectors, Selectors]:
        """The selectors to ask for."""
        config, (local, remote) = self.config, self.packet
        if self.single:
            return (local or config.local_ts[0],), (remote or config.remote_ts[0],)
        return specific_first(local, config.local_ts), specific_first(remote, config.remote_ts)

    def finish(self, sa: IkeSa, payloads: Sequence[Payload]) -> None:
        child = self._result(sa, payloads)
        before = self._untold()
        if child is None:
            if before is not None:
                children.report_down(sa, before, Reason.PEER_DELETED, "the peer deleted it")
            return
        if before is None:
            children.announce(sa, child)
        else:
            children.take_over(sa, before, child)
        supersede(sa, child)

    def failed(self, sa: IkeSa, reason: Reason, message: str) -> None:
        before = self._untold()
        if before is not None:
            children.report_down(sa, before, reason, message)

    def _untold(self) -> ChildSa | None:
        """The peer's child that went before our answer came, once."""
        rival = self.rival
        if rival is None or not rival.untold:
            return None
        rival.untold = False
        return rival.child

    def _result(self, sa: IkeSa, payloads: Sequence[Payload]) -> ChildSa | None:
        """The child that the exchange has brought."""
        offer = self.offer
        assert offer is not None
        error = error_in(payloads)
        if error is not None:
            if not self._again(sa, error):
                refused(sa, self.config, offer, error)
            return None
        try:
            agreed = offer.accept(sa, payloads)
        except IkeError as exc:
            unusable(sa, offer, exc)
            return None
        if agreed.spi_out in self.unborn:
            sa.peer.child_later(self.config, self.packet)
            return None
        rival = self.rival
        if rival is not None:
            rival.follow()
        nonces = offer.nonce, need(payloads, NoncePayload).data
        if rival is not None and rival.beats(nonces):
            unused = deletes.DeleteUnused(agreed.suite.protocol, agreed.spi_in)
            sa.enqueue(unused, first=True)
            return None
        child = children.install(sa, agreed, outbound=True)
        if rival is not None and rival.alive:
            # The peer may have seen no collision, because our request came late: we delete it.
            loser = rival.child
            loser.successor = child
            deletes.delete_child(sa, loser, Reason.REPLACED, "created twice")
        return child

    def _again(self, sa: IkeSa, error: NotifyPayload) -> bool:
        """Whether another request is worth while, and its queueing."""
        if error.notify == NotifyType.INVALID_KE_PAYLOAD:
            group = other_group(self.config, error, self.tried)
            if group is None:
                return False
            self.group = group
            self.tried = (*self.tried, group)
        elif error.notify == NotifyType.SINGLE_PAIR_REQUIRED and not self.single:
            self.single = True
        elif error.notify == NotifyType.TEMPORARY_FAILURE:
            # The peer rekeys or deletes the IKE SA (RFC 7296 2.25.2).
            sa.peer.child_later(self.config, self.packet)
            return True
        else:
            return False
        sa.enqueue(self, first=True)
        return True


def outlived(sa: IkeSa, child: ChildSa) -> bool:
    """The peer deletes ``child``, which it made in vain if the answer to our own request brings
    another one: then that is its successor."""
    current = sa.current
    if not isinstance(current, CreateChild) or current.rival is None or not child.live:
        return False
    current.rival.follow()
    if current.rival.child is not child or sa.peer.heir(sa, child) is not None:
        return False
    current.rival.untold = True
    children.remove(sa, child, grace=True)
    return True


def supersede(sa: IkeSa, new: ChildSa) -> None:
    """Children of the same name with an older configuration have served their time."""
    for child in tuple(sa.children):
        same_name = child.live and child.config.name == new.config.name
        if same_name and child.config != new.config:
            child.successor = new
            deletes.delete_child(sa, child, Reason.CONFIGURATION, "replaced")


def other_group(config: ChildConfig, error: NotifyPayload, tried: tuple[int, ...]) -> int | None:
    """The group that INVALID_KE_PAYLOAD asks for, if we offered it and did not try it before."""
    group = int.from_bytes(error.data)
    if len(error.data) != 2 or group in tried or group not in choose.groups(config.proposals):
        return None
    return group


def give_time(sa: IkeSa, loser: ChildSa, winner: ChildSa) -> None:
    """The peer has to delete what it created in vain; if it does not, we do."""
    loser.successor = winner
    loser.soft_at = NEVER
    loser.hard_at = min(loser.hard_at, sa.host.now + PATIENCE)
    sa.host.timers.arm(loser)


def refused(sa: IkeSa, config: ChildConfig, offer: Offer, error: NotifyPayload) -> None:
    """The peer does not want this child: say why, and let the peer object decide when to retry."""
    name = sa.peer.config.name
    if error.notify == NotifyType.NO_PROPOSAL_CHOSEN:
        sa.host.emit(
            ProposalMismatch(
                peer=name,
                stage=config.name,
                ours=tuple(map(str, offer.proposals)),
                theirs=(),
                differences=(),
            )
        )
    elif error.notify == NotifyType.TS_UNACCEPTABLE:
        sa.host.emit(
            SelectorsMismatch(
                peer=name,
                child=config.name,
                ours=(offer.local_ts, offer.remote_ts),
                theirs=((), ()),
            )
        )
    reason = _REASONS.get(NotifyType(error.notify), Reason.PEER_ERROR)
    not_set_up(sa, config, reason, f"the peer answers {name_of(error)}")


def unusable(sa: IkeSa, offer: Offer, error: IkeError) -> None:
    """The peer agreed to something else than we asked for: have it delete that."""
    protocol = offer.proposals[0].protocol
    sa.enqueue(deletes.DeleteUnused(protocol, offer.spi))
    reason = _REASONS.get(error.notify, Reason.INVALID_MESSAGE)
    not_set_up(sa, offer.config, reason, str(error))


def not_set_up(sa: IkeSa, config: ChildConfig, reason: Reason, message: str) -> None:
    """The event of a child that never was, and its next try."""
    sa.host.emit(
        ChildSaDown(
            peer=sa.peer.config.name,
            child=config.name,
            reqid=config.reqid,
            spi_in=0,
            reason=reason,
            message=message,
        )
    )
    sa.peer.child_failed(sa, config)


def respond(sa: IkeSa, payloads: Sequence[Payload]) -> list[Payload]:
    """The peer wants a new child. Raises an IkeError to refuse with."""
    agreed, answer, nonces = negotiate.answer(sa, payloads, sa.peer.allowed(sa))
    child = children.answer_with(sa, agreed)
    current = sa.current
    if (
        isinstance(current, CreateChild)
        and current.rival is None
        and current.config == agreed.config
        and (agreed.local_ts, agreed.remote_ts) == current.wanted
    ):
        current.rival = Rival(child, nonces)
    children.announce(sa, child)
    supersede(sa, child)
    return answer
