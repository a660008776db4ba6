"""What can be seen of the SAs from outside: for status, command line and tests. No keys."""

from __future__ import annotations

from dataclasses import dataclass

from ipsec_ike.identifiers import SaId
from ipsec_ike.inputs import Endpoint
from ipsec_ike.selectors import TrafficSelector


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSaInfo:
    """One CHILD_SA; ``state`` is ChildState's value. ``outbound``: packets are sent on it.
    ``local_ts`` and ``remote_ts`` are those of its SAs.

    Times are in the engine's seconds; ``rekey_at`` and ``expires_at`` are infinite without a limit.
    """

    name: str
    reqid: int
    spi_in: int
    spi_out: int
    state: str
    outbound: bool
    suite: str
    mode: str
    encap: bool
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    created_at: float
    rekey_at: float
    expires_at: float
    #: What it was made from because the peer asked for it; empty for a configured one.
    template: str = ""


@dataclass(frozen=True, slots=True)
class Resumed:
    """What became of the records of an earlier life.

    ``sas`` are those that the engine still counts on in the data plane. ``unreadable``: records
    that made no sense or are of another version; ``missing``: children of which the data plane
    lacked an SA, so that they are negotiated anew.
    """

    ike_sas: int = 0
    children: int = 0
    unreadable: int = 0
    missing: int = 0
    sas: frozenset[SaId] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSaInfo:
    """One IKE SA; ``state`` is State's value. ``established_at`` is infinite before that."""

    peer: str
    spi_i: bytes
    spi_r: bytes
    initiator: bool
    state: str
    local: Endpoint
    remote: Endpoint
    local_id: str
    remote_id: str
    suite: str
    nat_local: bool
    nat_remote: bool
    established_at: float
    rekey_at: float
    expires_at: float
    children: tuple[ChildSaInfo, ...]
