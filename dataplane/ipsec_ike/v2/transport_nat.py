"""Selectors of transport mode where a NAT is between (RFC 7296 2.23.1).

The packets of such an SA have the addresses of the path, which the NAT rewrites: each end knows
another pair of them. Each end puts the addresses that it sees in place of those that it is told, in
an offer and in an answer, and goes on with the result.

::

    initiator 10.0.0.1 --- NAT 192.0.2.9 --- responder 198.51.100.1
    offer:      10.0.0.1  <->  198.51.100.1
    taken for:  192.0.2.9 <->  198.51.100.1, which is also the answer
    taken for:  10.0.0.1  <->  198.51.100.1
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from ipsec_ike.sa.narrowing import Selectors

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa


def seen(sa: IkeSa, local: Selectors, remote: Selectors) -> tuple[Selectors, Selectors]:
    """(local, remote) of transport mode as they are seen from here.

    Selectors of more than one address are not of such an SA: they stay as they are.
    """
    if sa.nat_local:
        local = _moved(local, sa.local.address)
    if sa.nat_remote:
        remote = _moved(remote, sa.remote.address)
    return local, remote


def _moved(selectors: Selectors, text: str) -> Selectors:
    address = ipaddress.ip_address(text).packed
    said = {end for each in selectors for end in (each.start, each.end)}
    if len(said) != 1 or len(said.pop()) != len(address):
        return selectors
    return tuple(each._replace(start=address, end=address) for each in selectors)
