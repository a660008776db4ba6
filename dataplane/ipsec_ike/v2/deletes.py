"""The requests of INFORMATIONAL exchanges: liveness, deletes, notices (RFC 7296 1.4, 1.5, 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ipsec_ike.events import Reason
from ipsec_ike.numbers import ExchangeType, NotifyType, Protocol
from ipsec_ike.sa.child_sa import ChildSa, ChildState
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.v2 import children
from ipsec_ike.v2.exchange import Exchange
from ipsec_ike.wire.payloads import DeletePayload, NotifyPayload, Payload

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa


class Informational(Exchange):
    """A request whose answer says no more than that it arrived."""

    __slots__ = ()

    type = ExchangeType.INFORMATIONAL

    def finish(self, sa: IkeSa, payloads: Sequence[Payload]) -> None:
        """Nothing in the answer matters."""


class Liveness(Informational):
    """Is the peer there? An empty request (RFC 7296 2.4)."""

    __slots__ = ()

    moves = False

    def request(self, sa: IkeSa) -> list[Payload] | None:
        return []


class Confirm(Liveness):
    """Asked by the responder after IKE_AUTH: who answers has seen the last message of it.

    That says nothing about children that were created later.
    """

    __slots__ = ()

    def finish(self, sa: IkeSa, payloads: Sequence[Payload]) -> None:
        children.confirm(sa, [c for c in sa.children if c.created_at <= sa.established_at])


class Discard(Informational):
    """Stands in for a request whose answer means nothing any more, because the SA is to end."""

    __slots__ = ()


class DeleteIke(Informational):
    """Delete this IKE SA. Afterwards it is gone, whether or not the peer answered."""

    __slots__ = ()

    def request(self, sa: IkeSa) -> list[Payload] | None:
        return [DeletePayload(Protocol.IKE)]

    def finish(self, sa: IkeSa, payloads: Sequence[Payload]) -> None:
        sa.forget()


class SoonDeleteIke(DeleteIke):
    """The same where somebody waits for the end: a silent peer is not waited for for long."""

    __slots__ = ()

    cap: ClassVar[float] = 3.0


class DeleteChild(Informational):
    """Delete a CHILD_SA, of which the peer is told our inbound SPI (RFC 7296 1.4.1)."""

    __slots__ = ("child",)

    def __init__(self, child: ChildSa) -> None:
        self.child = child

    def request(self, sa: IkeSa) -> list[Payload] | None:
        child = self.child
        if child.state is not ChildState.DELETING:
            return None
        return [DeletePayload(child.suite.protocol, (child.spi_in.to_bytes(4),))]

    def finish(self, sa: IkeSa, payloads: Sequence[Payload]) -> None:
        children.remove(sa, self.child, grace=True)


class DeleteUnused(Informational):
    """Delete a CHILD_SA that the peer has set up and we do not want: it never was in our data
    plane."""

    __slots__ = ("protocol", "spi_in")

    def __init__(self, protocol: int, spi_in: int) -> None:
        self.protocol = protocol
        self.spi_in = spi_in

    def request(self, sa: IkeSa) -> list[Payload] | None:
        return [DeletePayload(self.protocol, (self.spi_in.to_bytes(4),))]


class InvalidSpi(Informational):
    """Tell the peer that it sends to an SPI that we do not have (RFC 7296 1.5, 2.21.4)."""

    __slots__ = ("spi",)

    def __init__(self, spi: int) -> None:
        self.spi = spi

    def request(self, sa: IkeSa) -> list[Payload] | None:
        return [NotifyPayload(NotifyType.INVALID_SPI, self.spi.to_bytes(4))]


def delete_child(sa: IkeSa, child: ChildSa, reason: Reason, message: str) -> None:
    """Stop sending on it at once and have the peer delete it; our inbound SA stays until then."""
    if child.state in (ChildState.DELETING, ChildState.DELETED):
        return
    live = child.live
    child.become(ChildState.DELETING)
    child.hard_at = NEVER
    children.stop_sending(sa, child)
    sa.enqueue(DeleteChild(child))
    if live:
        children.report_down(sa, child, reason, message)
        sa.peer.child_lost(sa, child, reason)


def expire(sa: IkeSa, child: ChildSa) -> None:
    """The hard limit of a child, or the end of our patience with a REKEYED one."""
    successor = child.successor
    if child.state is ChildState.REKEYED and successor is not None and successor.live:
        lifetime = child.config.lifetime.seconds
        if lifetime and child.created_at + lifetime <= sa.host.now:
            # The peer may not have the successor, but the old one must not be used any longer.
            child.successor = None
            children.report_down(sa, child, Reason.EXPIRED, "hard lifetime before the rekey ended")
            child.successor = successor
            children.activate(sa, successor)
            children.announce(sa, successor)
        else:
            children.take_over(sa, child, successor)
    delete_child(sa, child, Reason.EXPIRED, "hard lifetime of the CHILD_SA")
