"""CREATE_CHILD_SA from the peer: which of its three meanings a request has (RFC 7296 1.3).

N(REKEY_SA), SA, Ni, [KEi,] TSi, TSr    rekey a child
SA with an IKE proposal, Ni, KEi        rekey the IKE SA
SA, Ni, [KEi,] TSi, TSr                 a new child
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ipsec_ike.errors import ChildSaNotFound, TemporaryFailure
from ipsec_ike.numbers import NotifyType, Protocol
from ipsec_ike.v2 import create_child, rekey_child, rekey_ike, successor
from ipsec_ike.v2.exchange import need, notification
from ipsec_ike.v2.states import State
from ipsec_ike.wire.payloads import Payload, SaPayload

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa


def respond(sa: IkeSa, payloads: Sequence[Payload]) -> list[Payload]:
    """Answer the request. Raises an IkeError to refuse with."""
    successor.used(sa)
    rekey = notification(payloads, NotifyType.REKEY_SA)
    proposals = need(payloads, SaPayload).proposals
    of_ike = rekey is None and any(p.protocol == Protocol.IKE for p in proposals)
    if sa.state in (State.DELETING, State.REKEYED):
        raise TemporaryFailure("the IKE SA is being deleted")
    if of_ike:
        return rekey_ike.respond(sa, payloads)
    if sa.state is State.REKEYING:
        raise TemporaryFailure("the IKE SA is being rekeyed")
    if rekey is None:
        return create_child.respond(sa, payloads)
    try:
        return rekey_child.respond(sa, payloads, rekey)
    except ChildSaNotFound:
        sa.host.counters["refused_child_sa_not_found"] += 1
        return [rekey_child.not_found(rekey)]
