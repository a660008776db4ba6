"""What every exchange has in common, and how payloads are found in a message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

from ipsec_ike.errors import InvalidSyntax
from ipsec_ike.events import Reason
from ipsec_ike.numbers import ExchangeType, NotifyType, PayloadType
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.wire.payloads import (
    IdPayload,
    NotifyPayload,
    Payload,
    TsPayload,
)

if TYPE_CHECKING:
    from ipsec_ike.selectors import TrafficSelector
    from ipsec_ike.v2.ike_sa import IkeSa


class Exchange:
    """A request of ours, from the wish to send it until its answer.

    ``request`` is called when the window is free and may find that nothing is to be done any more;
    then exactly one of ``finish`` and ``failed`` follows. What we do as responder is a function
    beside the class, because it leaves nothing behind.
    """

    __slots__ = ()

    type: ClassVar[ExchangeType]
    #: Seconds after which the request is given up, whatever the peer's retransmission settings.
    cap: ClassVar[float] = NEVER
    #: Whether it still makes sense in the successor of the IKE SA for which it was queued.
    moves: ClassVar[bool] = True

    def request(self, sa: IkeSa) -> list[Payload] | None:
        """The payloads to send, or None if there is no more need."""
        raise NotImplementedError

    def finish(self, sa: IkeSa, payloads: Sequence[Payload]) -> None:
        """The answer is here, verified and with the payloads that the exchange must have.

        An IkeError ends the IKE SA: what the peer did cannot be understood.
        """
        raise NotImplementedError

    def failed(self, sa: IkeSa, reason: Reason, message: str) -> None:
        """There will be no answer: the peer is silent or the IKE SA ends."""


P = TypeVar("P")


def find(payloads: Sequence[Payload], kind: type[P]) -> P | None:
    """The first payload of a class."""
    for payload in payloads:
        if isinstance(payload, kind):
            return payload
    return None


def need(payloads: Sequence[Payload], kind: type[P]) -> P:
    """The first payload of a class. Raises InvalidSyntax if there is none."""
    found = find(payloads, kind)
    if found is None:
        raise InvalidSyntax(f"{kind.__name__} is missing")
    return found


def find_id(payloads: Sequence[Payload], kind: PayloadType) -> IdPayload | None:
    """The IDi or IDr payload."""
    for payload in payloads:
        if isinstance(payload, IdPayload) and payload.type == kind:
            return payload
    return None


def selectors(payloads: Sequence[Payload], kind: PayloadType) -> tuple[TrafficSelector, ...]:
    """What the TSi or TSr payload holds. Raises InvalidSyntax if it is missing."""
    for payload in payloads:
        if isinstance(payload, TsPayload) and payload.type == kind:
            return payload.selectors
    raise InvalidSyntax(f"{kind.name} is missing")


def notifies(payloads: Sequence[Payload]) -> Iterator[NotifyPayload]:
    """All notifications."""
    return (p for p in payloads if isinstance(p, NotifyPayload))


def notification(payloads: Sequence[Payload], kind: NotifyType) -> NotifyPayload | None:
    """The first notification of a type."""
    for payload in payloads:
        if isinstance(payload, NotifyPayload) and payload.notify == kind:
            return payload
    return None


def error_in(payloads: Sequence[Payload]) -> NotifyPayload | None:
    """The first error notification; unknown types below 16384 are errors too (RFC 7296 3.10.1)."""
    for payload in payloads:
        if isinstance(payload, NotifyPayload) and payload.notify < NotifyType.INITIAL_CONTACT:
            return payload
    return None


def name_of(notify: NotifyPayload) -> str:
    """The name of a notification type, for messages."""
    return NotifyType(notify.notify).name
