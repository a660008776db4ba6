"""What all IKE SAs of one engine share: time, randomness, tables, timers, the list of actions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from ipsec_ike.actions import AddSa, DeleteSa, SendDatagram, UpdateSa
from ipsec_ike.config import Limits
from ipsec_ike.events import Event
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.sa.child_sa import ChildSa, Owner
from ipsec_ike.sa.cookie import Cookies
from ipsec_ike.sa.half_open import HalfOpen
from ipsec_ike.sa.rate import RateLimit
from ipsec_ike.sa.timers import Timers

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa
    from ipsec_ike.v2.peer import Peer
    from ipsec_ike.v2.peers import Peers
    from ipsec_ike.v2.records import Recorder

Action = SendDatagram | AddSa | UpdateSa | DeleteSa | Event

_ABOUT_SAS: Final = (AddSa, UpdateSa, DeleteSa)

#: RFC 4303 2.1: 1-255 are reserved, 0 is never on the wire.
_FIRST_SPI: Final = 0x100


class Host:
    """``now`` is the time of the input that is being worked on."""

    __slots__ = (
        "_answers",
        "_events",
        "actions",
        "children",
        "closing",
        "cookies",
        "counters",
        "half_open",
        "initial",
        "limits",
        "now",
        "outbound",
        "peers",
        "recorder",
        "rng",
        "sas",
        "timers",
    )

    def __init__(self, rng: Callable[[int], bytes], limits: Limits, peers: Peers) -> None:
        self.rng: Final = rng
        self.limits: Final = limits
        self.peers: Final = peers
        self.now = 0.0
        self.actions: list[Action] = []
        self.counters: Final[Counter[str]] = Counter()
        self.timers: Final = Timers()
        self.half_open: Final = HalfOpen(limits)
        self.cookies: Final = Cookies(rng, limits.cookie_lifetime)
        #: IKE SAs by our SPI, also those that only wait for repeated requests.
        self.sas: Final[dict[bytes, IkeSa]] = {}
        #: Answered IKE_SA_INITs by the initiator's SPI and address: where repetitions belong.
        self.initial: Final[dict[tuple[bytes, str, int], IkeSa]] = {}
        #: Children by inbound SPI.
        self.children: Final[dict[int, ChildSa]] = {}
        #: Children by the peer's SPI, which several peers may have chosen alike.
        self.outbound: Final[dict[int, tuple[ChildSa, ...]]] = {}
        self.closing = False
        #: Keeps records for a later life, if there is to be one.
        self.recorder: Recorder | None = None
        self._events: Final = RateLimit(10, 10.0)
        self._answers: Final = RateLimit(100, 1.0)

    def emit(self, action: Action) -> None:
        """Append to the ordered list that the shell works through."""
        self.actions.append(action)
        if self.recorder is not None and isinstance(action, _ABOUT_SAS):
            for child in self.find(action.spec.id if isinstance(action, AddSa) else action.id):
                self.touch(child.owner)

    def touch(self, sa: IkeSa | Owner) -> None:
        """What ``sa`` needs to go on has changed, or the peer is about to see that it has."""
        if self.recorder is not None:
            self.recorder.touched[cast("IkeSa", sa)] = None

    def may_tell(self) -> bool:
        """Whether there may be an event about what strangers did; a flood is only counted."""
        if self._events.allows(self.now):
            return True
        self.counters["events_suppressed"] += 1
        return False

    def may_answer(self) -> bool:
        """Whether a message that belongs to no IKE SA may be answered."""
        if self._answers.allows(self.now):
            return True
        self.counters["answers_suppressed"] += 1
        return False

    def new_ike_spi(self) -> bytes:
        """Eight octets that no IKE SA of ours has; never zero (RFC 7296 3.1)."""
        while True:
            spi = self.rng(8)
            if spi not in self.sas and any(spi):
                return spi

    def new_child_spi(self) -> int:
        """A free inbound SPI, at least 256."""
        while True:
            spi = int.from_bytes(self.rng(4))
            if spi >= _FIRST_SPI and spi not in self.children:
                return spi

    def register_child(self, child: ChildSa) -> None:
        """The child can be found by its SPIs from now on."""
        self.touch(child.owner)
        self.children[child.spi_in] = child
        self.outbound[child.spi_out] = (*self.outbound.get(child.spi_out, ()), child)

    def forget_child(self, child: ChildSa) -> None:
        """It cannot be found any more and has no timer."""
        self.touch(child.owner)
        self.timers.disarm(child)
        self.children.pop(child.spi_in, None)
        left = tuple(c for c in self.outbound.get(child.spi_out, ()) if c is not child)
        if left:
            self.outbound[child.spi_out] = left
        else:
            self.outbound.pop(child.spi_out, None)

    def find(self, sa_id: SaId) -> tuple[ChildSa, ...]:
        """Whose SA that is. The data plane may know an outbound one by a destination from which
        the peer has moved: then all with its SPI, which is nearly always one."""
        if sa_id.direction is Direction.IN:
            child = self.children.get(sa_id.spi)
            return () if child is None else (child,)
        found = self.outbound.get(sa_id.spi, ())
        if len(found) < 2:
            return found
        return tuple(c for c in found if c.outbound_id(c.owner.remote) == sa_id) or found

    def peer(self, name: str) -> Peer | None:
        """The peer of that configured name."""
        return self.peers.by_name.get(name)
