"""Protected messages of an IKE SA: requests are answered once, answers go to who waits for them.

Nothing that does not verify changes anything but a counter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ipsec_ike.errors import IkeError, IntegrityFailure, InvalidSyntax
from ipsec_ike.events import Reason
from ipsec_ike.inputs import Datagram
from ipsec_ike.numbers import ExchangeType, NotifyType, PayloadType
from ipsec_ike.v2 import auth, children, create, informational, protected, unique
from ipsec_ike.v2.deletes import Discard
from ipsec_ike.v2.exchange import error_in
from ipsec_ike.v2.negotiate import as_notify
from ipsec_ike.v2.states import State
from ipsec_ike.v2.window import Place
from ipsec_ike.wire.message import HEADER_LENGTH, Header
from ipsec_ike.wire.payloads import Payload
from ipsec_ike.wire.rules import check

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa

_HANDLERS: Final[dict[int, Callable[[IkeSa, Sequence[Payload]], list[Payload]]]] = {
    ExchangeType.IKE_AUTH: auth.respond,
    ExchangeType.CREATE_CHILD_SA: create.respond,
    ExchangeType.INFORMATIONAL: informational.respond,
}


def receive(sa: IkeSa, header: Header, datagram: Datagram) -> None:
    """A message whose SPI is that of ``sa``."""
    counters = sa.host.counters
    if header.initiator is sa.initiator or (header.spi_i, header.spi_r) != (sa.spi_i, sa.spi_r):
        counters["dropped_wrong_spi"] += 1
    elif sa.keys is None:
        counters["dropped_too_early"] += 1
    elif header.response:
        _response(sa, header, datagram)
    else:
        _request(sa, header, datagram)


def _open(sa: IkeSa, header: Header, datagram: Datagram) -> list[Payload] | None:
    """The payloads, checked against the rules of the exchange; None if there is nothing to do.

    Raises an IkeError for what the peer itself, and nobody else, sent wrong.
    """
    try:
        payloads = protected.unprotect(sa, datagram.data, header)
    except IntegrityFailure:
        sa.host.counters["dropped_integrity"] += 1
        return None
    if payloads is not None and not isinstance(sa.current, Discard):
        check(header.exchange, header.response, payloads)
    return payloads


def _request(sa: IkeSa, header: Header, datagram: Datagram) -> None:
    host, window = sa.host, sa.window
    place = window.place(header.message_id)
    if place is Place.OUTSIDE:
        host.counters["dropped_outside_window"] += 1
        return
    if place is Place.REPEATED:
        _repeat(sa, header, datagram)
        return
    handler = _HANDLERS.get(header.exchange)
    authenticating = header.exchange == ExchangeType.IKE_AUTH
    connecting = sa.state is State.CONNECTING
    # Only the original initiator sends IKE_AUTH requests. From a responder one could be our own
    # AUTH come back: it would prove to us that somebody has our secret, who has not.
    if (
        handler is None
        or authenticating is not connecting
        or (connecting and sa.initiator)
        or _ended(sa)
    ):
        host.counters["dropped_unexpected_exchange"] += 1
        return
    fatal: InvalidSyntax | None = None
    answer: list[Payload]
    try:
        payloads = _open(sa, header, datagram)
        if payloads is None:
            return
        _heard(sa, datagram, authenticating=authenticating)
        unconfirmed = [child for child in sa.children if not child.confirmed]
        answer = handler(sa, payloads)
        # The peer has seen our last answer, and uses what that created if it does not delete it.
        children.confirm(sa, unconfirmed)
    except IkeError as exc:
        host.counters[f"refused_{exc.notify.name.lower()}"] += 1
        answer = [as_notify(exc)]
        if isinstance(exc, InvalidSyntax):
            fatal = exc
    datagrams = protected.protect(sa, header.exchange, header.message_id, answer, response=True)
    window.respond(datagrams)
    protected.send(sa, datagrams, datagram.local, datagram.remote)
    if sa.peer.doomed:
        unique.settle(sa.peer)
    if fatal is not None:
        # RFC 7296 2.21.3: what the peer says cannot be trusted to mean anything.
        sa.close(Reason.INVALID_MESSAGE, str(fatal), notify=False, linger=True)
    host.timers.arm(sa)


def _ended(sa: IkeSa) -> bool:
    """The peer has deleted it; only its repetitions are still answered."""
    return sa.state is State.DELETING and not sa.window.busy


def _repeat(sa: IkeSa, header: Header, datagram: Datagram) -> None:
    """A request that was answered already: answer it again, from memory (RFC 7296 2.1).

    Of a fragmented request only the first fragment counts (RFC 7383 2.6.1). From another address
    than before, the request must verify: it could be a replay that makes us send elsewhere.
    """
    if header.next_payload == PayloadType.SKF:
        number = datagram.data[HEADER_LENGTH + 4 : HEADER_LENGTH + 6]
        if number != b"\x00\x01":
            return
    if datagram.remote != sa.remote:
        try:
            protected.verify(sa, datagram.data, header)
        except IkeError:
            sa.host.counters["dropped_integrity"] += 1
            return
    sa.host.counters["repeated_requests"] += 1
    protected.send(sa, sa.window.response, datagram.local, datagram.remote)


def _heard(sa: IkeSa, datagram: Datagram, *, authenticating: bool = False) -> None:
    """The peer lives, and perhaps elsewhere than before (RFC 7296 2.23)."""
    sa.heard_at = sa.host.now
    if datagram.remote == sa.remote and datagram.local == sa.local:
        return
    if authenticating:
        # The initiator has moved to port 4500, or a NAT shows it under another one.
        sa.local, sa.remote = datagram.local, datagram.remote
    elif datagram.remote != sa.remote and sa.nat_remote and not sa.nat_local:
        children.move(sa, datagram.remote)


def _response(sa: IkeSa, header: Header, datagram: Datagram) -> None:
    window, current = sa.window, sa.current
    if current is None or not window.awaits(header.message_id):
        sa.host.counters["dropped_unexpected_response"] += 1
        return
    if header.exchange != current.type and not isinstance(current, Discard):
        sa.host.counters["dropped_unexpected_exchange"] += 1
        return
    try:
        payloads = _open(sa, header, datagram)
        if payloads is None:
            return
        sa.heard_at = sa.host.now
        sa.current = None
        window.answered()
        error = error_in(payloads)
        if error is not None and error.notify == NotifyType.INVALID_SYNTAX and sa.up:
            sa.close(Reason.PEER_ERROR, "the peer answers INVALID_SYNTAX", notify=False)
            return
        current.finish(sa, payloads)
    except IkeError as exc:
        if sa.current is current:
            sa.current = None
            window.answered()
        sa.close(Reason.INVALID_MESSAGE, f"unusable answer: {exc}", notify=True)
    sa.pump()
    if sa.peer.doomed:
        unique.settle(sa.peer)
