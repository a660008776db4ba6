"""One IKE SA: its requests, its timers and its end. The states are in ``states``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, TypeVar

from ipsec_ike.config import IdentityConfig, Responder
from ipsec_ike.events import IkeSaDown, Reason
from ipsec_ike.identity import Identity
from ipsec_ike.inputs import Endpoint
from ipsec_ike.sa.child_sa import ChildSa
from ipsec_ike.sa.suite import IkeSuite
from ipsec_ike.sa.timers import NEVER, Timed
from ipsec_ike.v2 import children, deletes, protected, upkeep
from ipsec_ike.v2.exchange import Exchange
from ipsec_ike.v2.keymat import IkeKeys
from ipsec_ike.v2.rekey_child import RekeyChild
from ipsec_ike.v2.states import TRANSITIONS, State
from ipsec_ike.v2.window import Window

if TYPE_CHECKING:
    from ipsec_ike.v2.host import Host
    from ipsec_ike.v2.init import Handshake
    from ipsec_ike.v2.peer import Peer


#: Seconds for which a finished IKE SA still answers repetitions of the last request.
LINGER: Final = 12.0

E = TypeVar("E", bound=Exchange)

_NO_SPI: Final = bytes(8)


class IkeSa(Timed):
    """``spi_i`` belongs to the original initiator, who we are if ``initiator``.

    Times are absolute. ``local`` and ``remote`` are where requests go; ``heard_at`` is the last
    sign of life that was authenticated. ``handshake`` exists until the peer is authenticated.
    ``doomed_at`` is when we delete this IKE SA in favour of another one of the same peer at the
    latest.
    """

    __slots__ = (
        "childless",
        "children",
        "created_at",
        "current",
        "doomed_at",
        "doomed_by_us",
        "encap",
        "established_at",
        "fragmentation",
        "half_open",
        "handshake",
        "hard_at",
        "heard_at",
        "host",
        "identity",
        "initiator",
        "keys",
        "local",
        "local_id",
        "nat_local",
        "nat_remote",
        "peer",
        "pending",
        "predecessor",
        "queue",
        "reauth_at",
        "remote",
        "remote_id",
        "responder",
        "sealed",
        "sent_at",
        "soft_at",
        "spi_i",
        "spi_r",
        "state",
        "suite",
        "window",
    )

    def __init__(
        self, host: Host, peer: Peer, *, initiator: bool, local: Endpoint, remote: Endpoint
    ) -> None:
        super().__init__()
        self.host = host
        self.peer = peer
        self.identity: IdentityConfig | None = None
        self.initiator = initiator
        self.spi_i = _NO_SPI
        self.spi_r = _NO_SPI
        self.state = State.CREATED
        self.local = local
        self.remote = remote
        self.local_id: Identity | None = None
        self.remote_id: Identity | None = None
        #: What the peer has told of itself (``kin``).
        self.responder: Responder | None = None
        self.suite: IkeSuite | None = None
        self.keys: IkeKeys | None = None
        #: How many messages we have encrypted: their IVs count them.
        self.sealed = 0
        self.window = Window()
        self.queue: list[Exchange] = []
        self.current: Exchange | None = None
        self.children: list[ChildSa] = []
        #: ESP has to be inside UDP: there is a NAT on the way, or one of us pretends.
        self.encap = False
        self.nat_local = False
        self.nat_remote = False
        self.fragmentation = False
        self.childless = False
        self.handshake: Handshake | None = None
        self.pending = False
        self.predecessor: IkeSa | None = None
        self.half_open: tuple[bytes, str, int] | None = None
        self.created_at = host.now
        self.established_at = NEVER
        self.heard_at = host.now
        self.sent_at = host.now
        self.soft_at = NEVER
        self.hard_at = NEVER
        self.reauth_at = NEVER
        self.doomed_at = NEVER
        self.doomed_by_us = False

    # -- identity of the SA ------------------------------------------------------------------

    @property
    def our_spi(self) -> bytes:
        """By which the peer's messages find this SA."""
        return self.spi_i if self.initiator else self.spi_r

    @property
    def crypto(self) -> tuple[IkeSuite, IkeKeys]:
        """Suite and keys, which exist from the end of IKE_SA_INIT on."""
        assert self.suite is not None
        assert self.keys is not None
        return self.suite, self.keys

    @property
    def up(self) -> bool:
        """Authenticated, and the one that carries the children."""
        return self.state in (State.ESTABLISHED, State.REKEYING) and not self.pending

    @property
    def confirmed(self) -> bool:
        """Whether the peer has shown that it has this IKE SA as well: the initiator has when we
        answered, the responder's answer may still be lost."""
        window = self.window
        return self.initiator or window.expected > 2 or window.next_request > 0

    def become(self, state: State) -> None:
        """Change the state; the table above says what may follow what."""
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state
        self.host.touch(self)

    def register(self) -> None:
        """Messages with our SPI belong here from now on."""
        self.host.sas[self.our_spi] = self

    # -- requests ----------------------------------------------------------------------------

    def enqueue(self, exchange: Exchange, *, first: bool = False) -> None:
        """Send a request as soon as the window is free."""
        self.host.touch(self)
        if self.state in (State.REKEYED, State.DELETING):
            exchange.failed(self, Reason.TERMINATED, "the IKE SA is being deleted")
            return
        if first:
            self.queue.insert(0, exchange)
        else:
            self.queue.append(exchange)
        self.pump()

    def pump(self) -> None:
        """Send the next request if there is one and the peer has answered the last."""
        while self.queue and not self.window.busy and not self.pending:
            exchange = self.queue.pop(0)
            payloads = exchange.request(self)
            if payloads is not None:
                self.transmit(exchange, payloads)
        self.host.timers.arm(self)

    def transmit(self, exchange: Exchange, payloads: list[protected.Payload]) -> None:
        """Protect and send a request now."""
        window = self.window
        datagrams = protected.protect(
            self, exchange.type, window.next_request, payloads, response=False
        )
        self.current = exchange
        window.sent(datagrams, self.host.now, self.peer.config.retransmission, exchange.cap)
        protected.send(self, datagrams)

    def pending_requests(self) -> list[Exchange]:
        """What is under way and what waits."""
        return self.queue if self.current is None else [self.current, *self.queue]

    def requests(self, kind: type[E]) -> Iterator[E]:
        """Those of one kind."""
        return (e for e in self.pending_requests() if isinstance(e, kind))

    # -- timers ------------------------------------------------------------------------------

    def due(self) -> float:
        window = self.window
        when = min(window.deadline, self.hard_at)
        if self.state is not State.ESTABLISHED or self.pending:
            return min(when, self.doomed_at)
        config = self.peer.config
        if config.dpd_interval and not window.busy:
            when = min(when, self.heard_at + config.dpd_interval)
        if config.keepalive_interval and self.nat_local:
            when = min(when, self.sent_at + config.keepalive_interval)
        return min(when, self.soft_at, self.reauth_at, self.doomed_at)

    def on_timer(self, now: float) -> None:
        upkeep.on_timer(self, now)

    # -- the end -----------------------------------------------------------------------------

    def close(self, reason: Reason, message: str, *, notify: bool, linger: bool = False) -> None:
        """End the SA and its children. ``notify``: tell the peer; ``linger``: it told us.

        Nothing happens if that is under way already.
        """
        if self.state is State.DELETING:
            return
        if self.state is State.REKEYED or self.pending:
            self.retire()
            return
        established = self.state is not State.CONNECTING
        self.become(State.DELETING)
        queued, self.queue = self.pending_requests(), []
        for exchange in queued:
            exchange.failed(self, reason, message)
        grace = self.peer.has_other(self)
        for child in tuple(self.children):
            children.lose(self, child, reason, message, grace=grace)
        self.hard_at = self.doomed_at = NEVER
        if established or self.initiator:
            self.host.emit(
                IkeSaDown(
                    peer=self.peer.config.name,
                    reason=reason,
                    message=message,
                    remote=self.remote,
                    established=established,
                )
            )
        # An initiator that waits for the answer to IKE_AUTH may be established on the other side.
        if notify and (established or (self.initiator and self.keys is not None)):
            self.farewell(deletes.SoonDeleteIke())
        elif linger:
            self.linger()
        else:
            self.current = None
            self.forget()
        self.peer.lost(self, reason)

    def deleted(self, message: str) -> None:
        """The peer deleted it."""
        self.close(Reason.PEER_DELETED, message, notify=False, linger=True)

    def farewell(self, delete: Exchange) -> None:
        """Bring a Delete to the peer: after the request that is under way, whose answer means
        nothing any more, or at once."""
        if self.window.busy:
            self.current = deletes.Discard()
            self.window.give_up_at = min(self.window.give_up_at, self.host.now + delete.cap)
            self.window.deadline = min(self.window.deadline, self.window.give_up_at)
            self.queue = [delete]
        else:
            payloads = delete.request(self)
            assert payloads is not None
            self.transmit(delete, payloads)
        self.host.timers.arm(self)

    def retire(self) -> None:
        """Delete an SA that has a successor, or that lost against one: its children live on."""
        if self.state is State.DELETING:
            return
        self.become(State.DELETING)
        self.pending = False
        self.queue = []
        self.hard_at = NEVER
        self.peer.forget(self)
        self.farewell(deletes.DeleteIke())

    def linger(self) -> None:
        """The peer deleted it: keep answering repetitions of that request for a while."""
        if self.state is not State.DELETING:
            self.become(State.DELETING)
        self.current = None
        self.queue = []
        self.window.request = ()
        self.window.deadline = NEVER
        self.doomed_at = NEVER
        self.hard_at = self.host.now + LINGER
        self.peer.forget(self)
        self.handshake = None
        self.host.timers.arm(self)

    def forget(self) -> None:
        """The SA is gone, but for inbound SAs of children that have their grace."""
        if self.children:
            self.linger()
            return
        if self.state is not State.DELETING:
            self.become(State.DELETING)
        self.hard_at = self.doomed_at = self.window.deadline = NEVER
        self.host.timers.disarm(self)
        self.leave_half_open()
        if self.host.sas.get(self.our_spi) is self:
            del self.host.sas[self.our_spi]
            self.host.touch(self)
        self.peer.forget(self)
        self.handshake = None

    def leave_half_open(self) -> None:
        """It is no stranger any more, or gone."""
        key, self.half_open = self.half_open, None
        if key is not None:
            self.host.half_open.remove(key[1])
            if self.host.initial.get(key) is self:
                del self.host.initial[key]

    # -- what the children need (sa.child_sa.Owner) --------------------------------------------

    def child_soft(self, child: ChildSa) -> None:
        if not any(exchange.old is child for exchange in self.requests(RekeyChild)):
            self.enqueue(RekeyChild(child))
        self.host.timers.arm(child)

    def child_hard(self, child: ChildSa) -> None:
        deletes.expire(self, child)

    def child_switch(self, child: ChildSa) -> None:
        children.activate(self, child)

    def child_drained(self, child: ChildSa) -> None:
        children.discard(self, child)

    def child_moved(self, child: ChildSa, remote: Endpoint) -> None:
        if self.nat_remote and not self.nat_local and remote != self.remote:
            children.move(self, remote)

    def child_alive(self, child: ChildSa) -> None:
        self.heard_at = self.host.now
        if not child.confirmed:
            children.confirm(self, (child,))
            self.peer.child_confirmed()

    def child_refused(self, child: ChildSa, why: str) -> None:
        deletes.delete_child(self, child, Reason.DATAPLANE, why)

    def notice_unknown_spi(self, spi: int) -> None:
        """Tell the peer, once at a time, that it uses an SA that we do not have."""
        if self.state is State.ESTABLISHED and not any(self.requests(deletes.InvalidSpi)):
            self.enqueue(deletes.InvalidSpi(spi))
