"""Selectors of transport mode where a NAT is between (RFC 7296 2.23.1).

The packets of such an SA have the addresses of the path, which the NAT rewrites: each end knows
another pair of them. Who is asked puts the addresses that it sees in place of those in the offer,
looks for a child with these, and answers with what it was offered. Who asks has to do nothing: the
offer has its own address and that of the peer as it is seen from here, and comes back like that.

::

    initiator 10.0.0.1 --- NAT 192.0.2.9 --- responder 198.51.100.1
    offer:     10.0.0.1   <->  198.51.100.1
    looked up: 192.0.2.9  <->  198.51.100.1
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from ipsec_ike.sa.narrowing import Selectors

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa


class BehindNat:
    """An offer for transport mode: ``local`` and ``remote`` are as they are seen from here."""

    __slots__ = ("_offered", "local", "remote")

    def __init__(self, offered: tuple[Selectors, Selectors], here: bytes, there: bytes) -> None:
        """``offered`` are (local, remote), each of one address."""
        self._offered: Final = offered
        self.local: Final = _moved(offered[0], here)
        self.remote: Final = _moved(offered[1], there)

    @classmethod
    def of(cls, sa: IkeSa, local: Selectors, remote: Selectors) -> BehindNat | None:
        """None if there is no NAT, or the offer is for more than one address of an end."""
        if not (sa.nat_local or sa.nat_remote):
            return None
        here, there = (ipaddress.ip_address(end.address).packed for end in (sa.local, sa.remote))
        ends = {(each.start, each.end) for each in local}, {(e.start, e.end) for e in remote}
        if any(len(end) != 1 for end in ends):
            return None
        ((mine,), (theirs,)) = ends
        if mine[0] != mine[1] or theirs[0] != theirs[1] or len(mine[0]) != len(here):
            return None
        return cls(
            (local, remote),
            here if sa.nat_local else mine[0],
            there if sa.nat_remote else theirs[0],
        )

    def said(self, local: Selectors, remote: Selectors) -> tuple[Selectors, Selectors]:
        """What was agreed to, with the addresses that the peer has offered."""
        offered = self._offered
        return _moved(local, offered[0][0].start), _moved(remote, offered[1][0].start)


def _moved(selectors: Selectors, address: bytes) -> Selectors:
    return tuple(each._replace(start=address, end=address) for each in selectors)
