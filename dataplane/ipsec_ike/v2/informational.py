"""What the peer's INFORMATIONAL requests do (RFC 7296 1.4, 1.5, 2.25)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ipsec_ike.events import Warned
from ipsec_ike.numbers import NotifyType, Protocol
from ipsec_ike.sa.child_sa import ChildState
from ipsec_ike.v2 import auth, children, rekey_child, rekey_ike, successor
from ipsec_ike.v2.create_child import CreateChild
from ipsec_ike.v2.exchange import notifies
from ipsec_ike.v2.rekey_child import RekeyChild
from ipsec_ike.v2.states import State
from ipsec_ike.wire.payloads import DeletePayload, NotifyPayload, Payload

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa

_MOST_UNBORN: Final = 64


def respond(sa: IkeSa, payloads: Sequence[Payload]) -> list[Payload]:
    """Answer the peer's request; an empty one is a question for liveness."""
    deletes = [payload for payload in payloads if isinstance(payload, DeletePayload)]
    if any(payload.protocol == Protocol.IKE for payload in deletes):
        rekey_ike.deleted_by_peer(sa)
        return []
    successor.used(sa)
    for notify in notifies(payloads):
        _notified(sa, notify)
    if sa.state is State.DELETING:
        return []
    ours: dict[int, list[bytes]] = {}
    for payload in deletes:
        for spi in payload.spis:
            other = _delete(sa, payload.protocol, int.from_bytes(spi))
            if other is not None:
                ours.setdefault(payload.protocol, []).append(other)
    return [DeletePayload(protocol, tuple(spis)) for protocol, spis in ours.items()]


def _delete(sa: IkeSa, protocol: int, spi_out: int) -> bytes | None:
    """The peer deletes the SA on which it receives; gives the SPI of the other direction.

    None where we have asked for the same ourselves (RFC 7296 1.4.1) or have no such SA.
    """
    child = children.by_peer_spi(sa, protocol, spi_out)
    if child is None:
        _unborn(sa, spi_out)
        return None
    simultaneous = child.state is ChildState.DELETING
    rekey_child.deleted_by_peer(sa, child)
    return None if simultaneous else child.spi_in.to_bytes(4)


def _unborn(sa: IkeSa, spi_out: int) -> None:
    """We do not know it, perhaps because the answer that creates it is still on its way: then it
    must not come to life."""
    current = sa.current
    if isinstance(current, (CreateChild, RekeyChild)) and len(current.unborn) < _MOST_UNBORN:
        current.unborn = (*current.unborn, spi_out)


def _notified(sa: IkeSa, notify: NotifyPayload) -> None:
    if notify.notify == NotifyType.INVALID_SPI:
        child = children.by_peer_spi(sa, 0, int.from_bytes(notify.data[:4]))
        # A young SA may only be unknown because packets overtake messages.
        if child is not None and sa.host.now - child.created_at > children.GRACE:
            sa.child_soft(child)
    elif notify.notify == NotifyType.AUTH_LIFETIME:
        sa.peer.auth_lifetime(sa, notify.data)
    elif notify.notify == NotifyType.AUTHENTICATION_FAILED:
        auth.disowned(sa)
    elif notify.notify < NotifyType.INITIAL_CONTACT and sa.host.may_tell():
        name = NotifyType(notify.notify).name
        sa.host.emit(Warned(peer=sa.peer.config.name, message=f"the peer reports {name}"))
