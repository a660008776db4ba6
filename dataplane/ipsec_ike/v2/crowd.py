"""How many IKE SAs one remote identity may cost us, those that are over included.

An IKE SA that was rekeyed, replaced or deleted is kept for a while, so that requests which are
repeated find their answer. Who authenticates or rekeys without pause would fill the memory with
them. Above ``Limits.ike_sas_per_identity`` those that are leaving are forgotten, the oldest first,
and after them those that a newer one has doomed. The peer of one that is forgotten too early sees
no answer to its last Delete, and gives up in its own time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ipsec_ike.events import Reason
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.v2 import children

if TYPE_CHECKING:
    from ipsec_ike.identity import Identity
    from ipsec_ike.v2.ike_sa import IkeSa


class ByIdentity:
    """IKE SAs by the remote identity, the oldest entry first."""

    __slots__ = ("_table",)

    def __init__(self) -> None:
        self._table: Final[dict[Identity, tuple[IkeSa, ...]]] = {}

    def of(self, remote_id: Identity) -> tuple[IkeSa, ...]:
        """Those of one identity."""
        return self._table.get(remote_id, ())

    def add(self, sa: IkeSa) -> None:
        """Only what is authenticated has an identity."""
        assert sa.remote_id is not None
        self._table[sa.remote_id] = (*self.of(sa.remote_id), sa)

    def discard(self, sa: IkeSa) -> None:
        """No error if it is not there."""
        if sa.remote_id is None or sa not in self.of(sa.remote_id):
            return
        left = tuple(each for each in self.of(sa.remote_id) if each is not sa)
        if left:
            self._table[sa.remote_id] = left
        else:
            del self._table[sa.remote_id]


def thin(new: IkeSa, *, keep: IkeSa) -> None:
    """``new`` is one more of its identity. ``keep`` is being worked with."""
    host, peer, remote_id = new.host, new.peer, new.remote_id
    assert remote_id is not None
    while True:
        alive, over = peer.known(remote_id), peer.leaving.of(remote_id)
        if len(alive) + len(over) <= host.limits.ike_sas_per_identity:
            return
        doomed = (sa for sa in alive if sa.doomed_at != NEVER)
        victim = next((sa for sa in (*over, *doomed) if sa is not keep), None)
        if victim is None:
            return
        host.counters["ike_sas_over_limit"] += 1
        _drop(victim)


def _drop(sa: IkeSa) -> None:
    """Gone at once, after one Delete if the peer has not been told yet."""
    if sa.up:
        sa.close(Reason.REPLACED, "too many IKE SAs of the same peer", notify=True)
    for child in tuple(sa.children):
        children.discard(sa, child)
    sa.forget()
