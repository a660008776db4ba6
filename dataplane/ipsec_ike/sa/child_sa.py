"""One CHILD_SA: a pair of SAs, one in each direction.

A child is INSTALLED once its inbound SA is in the data plane. The outbound one may follow later:
who answers a rekey keeps sending on the old SA until the initiator deletes it, because only then is
it known that the initiator has the new one. A soft limit makes it REKEYING, while our request is
under way. When a successor exists it is REKEYED until one side deletes it: DELETING while our
Delete waits for its answer, DELETED while the inbound SA stays for packets that are still on their
way.

    INSTALLED -> REKEYING   our rekey request is sent
    REKEYING  -> INSTALLED  it failed; it is tried again before the hard limit
    INSTALLED, REKEYING -> REKEYED   the peer's rekey was answered
    any of these -> DELETING   we delete it
    any of these -> DELETED    the peer deleted it, or its IKE SA is gone
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Protocol

from ipsec_ike.actions import SaSpec
from ipsec_ike.config import ChildConfig, Mode
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Endpoint
from ipsec_ike.sa.suite import ChildSuite
from ipsec_ike.sa.timers import NEVER, Timed
from ipsec_ike.selectors import TrafficSelector


class ChildState(Enum):
    """See above."""

    INSTALLED = "installed"
    REKEYING = "rekeying"
    REKEYED = "rekeyed"
    DELETING = "deleting"
    DELETED = "deleted"


TRANSITIONS: Final[dict[ChildState, frozenset[ChildState]]] = {
    ChildState.INSTALLED: frozenset(
        {ChildState.REKEYING, ChildState.REKEYED, ChildState.DELETING, ChildState.DELETED}
    ),
    ChildState.REKEYING: frozenset(
        {ChildState.INSTALLED, ChildState.REKEYED, ChildState.DELETING, ChildState.DELETED}
    ),
    ChildState.REKEYED: frozenset({ChildState.DELETING, ChildState.DELETED}),
    ChildState.DELETING: frozenset({ChildState.DELETED}),
    ChildState.DELETED: frozenset(),
}

#: States in which the child carries its policy: no other one has to be negotiated.
LIVE: Final = frozenset({ChildState.INSTALLED, ChildState.REKEYING})


class Owner(Protocol):
    """The IKE SA of a child."""

    @property
    def up(self) -> bool:
        """Authenticated, and the one that carries its children."""

    @property
    def remote(self) -> Endpoint:
        """Where the peer is."""

    def child_soft(self, child: ChildSa) -> None:
        """It is time to rekey."""

    def child_hard(self, child: ChildSa) -> None:
        """It is time to end it."""

    def child_switch(self, child: ChildSa) -> None:
        """It is time to send on it."""

    def child_drained(self, child: ChildSa) -> None:
        """The grace of a deleted child is over."""

    def child_refused(self, child: ChildSa, why: str) -> None:
        """The data plane does not take it."""

    def child_moved(self, child: ChildSa, remote: Endpoint) -> None:
        """Its packets come from a new address or port."""

    def child_alive(self, child: ChildSa) -> None:
        """Its packets arrive: the peer lives and has this SA."""


class ChildSa(Timed):
    """``spi_in`` is ours, ``spi_out`` the peer's; times are absolute, in the engine's seconds.

    ``waiting`` is the outbound SA that is not installed yet, ``switch_at`` when that is done at the
    latest unless a Delete of another child decides it; ``successor`` the child that replaces
    this one. ``confirmed``: the peer has shown that it has this child too; who answers a request
    does not know whether the answer arrives.
    """

    __slots__ = (
        "config",
        "confirmed",
        "created_at",
        "hard_at",
        "local_ts",
        "mode",
        "outbound",
        "owner",
        "remote_ts",
        "soft_at",
        "spi_in",
        "spi_out",
        "state",
        "successor",
        "suite",
        "switch_at",
        "waiting",
    )

    def __init__(
        self,
        owner: Owner,
        config: ChildConfig,
        suite: ChildSuite,
        spis: tuple[int, int],
        selectors: tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]],
        mode: Mode,
        now: float,
    ) -> None:
        super().__init__()
        self.owner = owner
        self.config = config
        self.suite = suite
        self.spi_in, self.spi_out = spis
        self.local_ts, self.remote_ts = selectors
        self.mode = mode
        self.state = ChildState.INSTALLED
        self.created_at = now
        self.soft_at = NEVER
        self.hard_at = NEVER
        self.switch_at = NEVER
        self.confirmed = False
        self.outbound = False
        self.waiting: SaSpec | None = None
        self.successor: ChildSa | None = None

    @property
    def carries(self) -> tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]]:
        """The local and remote selectors of its SAs; agreed on are ``local_ts`` and
        ``remote_ts``."""
        return self.config.installed or (self.local_ts, self.remote_ts)

    def become(self, state: ChildState) -> None:
        """Change the state; the table above says what may follow what."""
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state

    @property
    def live(self) -> bool:
        """Whether it carries its policy now."""
        return self.state in LIVE

    def due(self) -> float:
        if self.state is ChildState.INSTALLED:
            return min(self.soft_at, self.hard_at, self.switch_at)
        return min(self.hard_at, self.switch_at)

    def on_timer(self, now: float) -> None:
        if self.hard_at <= now:
            self.hard_at = NEVER
            if self.state is ChildState.DELETED:
                self.owner.child_drained(self)
            else:
                self.owner.child_hard(self)
            return
        if self.switch_at <= now:
            self.owner.child_switch(self)
        if self.state is ChildState.INSTALLED and self.soft_at <= now:
            self.soft_at = NEVER
            self.owner.child_soft(self)

    def inbound_id(self, local: Endpoint) -> SaId:
        """What finds the inbound SA in the data plane."""
        return SaId(Direction.IN, self.suite.protocol, self.spi_in, local.address)

    def outbound_id(self, remote: Endpoint) -> SaId:
        """What finds the outbound SA in the data plane."""
        return SaId(Direction.OUT, self.suite.protocol, self.spi_out, remote.address)
