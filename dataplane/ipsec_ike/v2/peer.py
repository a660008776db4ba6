"""One configured peer: keeps up the IKE SA and the children that the configuration wants.

`maintain` compares what is wanted with what is there and starts what is missing; it may be called
at any time. Everything that fails is tried again, later each time; everything that works resets
that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ipsec_ike.config import ChildConfig, IdentityConfig, PeerConfig, Start
from ipsec_ike.events import IkeSaConnecting, Reason, Warned
from ipsec_ike.identity import Identity
from ipsec_ike.inputs import Endpoint
from ipsec_ike.sa.child_sa import ChildSa
from ipsec_ike.sa.lifetimes import share
from ipsec_ike.sa.nat import IKE_PORT, NATT_PORT
from ipsec_ike.sa.timers import NEVER, Timed
from ipsec_ike.secret import Secret
from ipsec_ike.v2 import children, crowd, init, revise, templates, unique
from ipsec_ike.v2.create_child import CreateChild, Packet
from ipsec_ike.v2.ike_sa import IkeSa
from ipsec_ike.v2.init import Handshake
from ipsec_ike.v2.negotiate import NONCE_OCTETS
from ipsec_ike.v2.states import State

if TYPE_CHECKING:
    from ipsec_ike.v2.host import Host

#: As responder we leave it to the initiator for so many seconds to ask for the children.
_COURTESY: Final = 3.0
#: Seconds until a child that met a temporary obstacle is tried again, and a random share more.
_SOON: Final = 1.0
#: Seconds that an IKE SA lasts at least before it is authenticated anew, whatever the peer asks.
_SHORTEST: Final = 10.0
_NO_PACKET: Final[Packet] = (None, None)


class Backoff:
    """When something that failed is tried again."""

    __slots__ = ("at", "failures")

    def __init__(self) -> None:
        self.at = 0.0
        self.failures = 0

    def fail(self, host: Host, config: PeerConfig) -> None:
        """Double the wait, up to the limit, and let a random part of a quarter come on top."""
        wait = min(config.retry_interval * 2.0**self.failures, config.retry_limit)
        self.failures = min(self.failures + 1, 16)
        self.at = host.now + wait * (1 + share(host.rng) / 4)


class Peer(Timed):
    """``wanted`` are children, by name, that were asked for by packets or by command."""

    __slots__ = (
        "attempts",
        "backoff",
        "by_identity",
        "child_backoff",
        "config",
        "doomed",
        "held",
        "host",
        "leaving",
        "old_secret",
        "sas",
        "wake_at",
        "wanted",
    )

    def __init__(self, host: Host, config: PeerConfig) -> None:
        super().__init__()
        self.host = host
        self.config = config
        #: All IKE SAs but those that are being deleted, in the order of their creation.
        self.sas: dict[IkeSa, None] = {}
        self.by_identity = crowd.ByIdentity()
        #: Those that were authenticated and are over, but still answer what is repeated.
        self.leaving = crowd.ByIdentity()
        #: IKE SAs that go when others have their children.
        self.doomed: set[IkeSa] = set()
        self.backoff = Backoff()
        self.child_backoff: dict[str, Backoff] = {}
        self.wanted: dict[str, Packet] = {}
        self.attempts = 0
        #: Terminated by command, or gone from the configuration: nothing is started.
        self.held = False
        #: The next attempt uses the previous secret.
        self.old_secret = False
        self.wake_at = NEVER

    # -- what there is -------------------------------------------------------------------------

    def add(self, sa: IkeSa) -> None:
        """A new IKE SA of this peer."""
        self.sas[sa] = None

    def hand_over(self, sa: IkeSa, peer: Peer) -> None:
        """The initiator turned out to be another peer that may come from the same address."""
        if peer is not self:
            self.sas.pop(sa, None)
            sa.peer = peer
            peer.add(sa)

    def remember(self, sa: IkeSa) -> None:
        """It is authenticated: it can be found by the peer's identity."""
        self.by_identity.add(sa)
        self.leaving.discard(sa)
        self.backoff = Backoff()

    def known(self, remote_id: Identity) -> tuple[IkeSa, ...]:
        """The IKE SAs of that identity."""
        return self.by_identity.of(remote_id)

    def forget(self, sa: IkeSa) -> None:
        """It does not count any more, but for the memory that it takes while it can be found."""
        self.sas.pop(sa, None)
        self.doomed.discard(sa)
        self.by_identity.discard(sa)
        self.leaving.discard(sa)
        if sa.remote_id is not None and self.host.sas.get(sa.our_spi) is sa:
            self.leaving.add(sa)

    def replaced(self, old: IkeSa, new: IkeSa) -> None:
        """Rekeyed: ``new`` stands where ``old`` stood, which only waits to be deleted."""
        self.forget(old)
        self.add(new)
        if new.doomed_at != NEVER:
            self.doomed.add(new)
        self.remember(new)
        crowd.thin(new, keep=old)

    def has_other(self, sa: IkeSa) -> bool:
        """Whether the traffic of ``sa`` has somewhere else to go."""
        if sa.remote_id is None:
            return False
        return any(other is not sa and other.up for other in self.known(sa.remote_id))

    def live_children(self, sa: IkeSa, name: str) -> list[ChildSa]:
        """The children of that name with the same remote identity, in whatever IKE SA."""
        if sa.remote_id is None:
            return []
        return [
            child
            for other in self.known(sa.remote_id) or (sa,)
            for child in other.children
            if child.live and child.config.name == name
        ]

    def heir(self, sa: IkeSa, child: ChildSa) -> ChildSa | None:
        """Another child for the same traffic, in an IKE SA that is up; rather one that we send on
        already. One that has to go itself is none, so that successors never go round in a circle.
        """
        best: ChildSa | None = None
        for other in self.live_children(sa, child.config.name):
            fits = other is not child and other.config == child.config and other.owner.up
            if fits and other.successor is None and (best is None or other.outbound):
                best = other
        return best

    def current(self) -> IkeSa | None:
        """The IKE SA to use for new children: the newest that is up, doomed ones last."""
        best: IkeSa | None = None
        for sa in self.sas:
            if sa.up and (best is None or sa.doomed_at == NEVER or best.doomed_at != NEVER):
                best = sa
        return best

    def allowed(self, sa: IkeSa) -> tuple[ChildConfig, ...]:
        """The children that the identity of ``sa`` may have."""
        return self.allowed_to(sa.identity)

    def allowed_to(self, identity: IdentityConfig | None) -> tuple[ChildConfig, ...]:
        """The children of an identity."""
        if identity is None or not identity.children:
            return self.config.children
        return tuple(c for c in self.config.children if c.name in identity.children)

    def configured(self, sa: IkeSa, child: ChildConfig) -> ChildConfig | None:
        """What ``child`` is in the configuration of now, for the identity of ``sa``."""
        if child.template:
            return templates.again(sa, child)
        return next((c for c in self.allowed(sa) if c.name == child.name), None)

    def allows(self, sa: IkeSa, child: ChildConfig) -> bool:
        """Whether this child is still configured, as it is, for the identity of ``sa``."""
        return self.configured(sa, child) == child

    # -- what there should be ------------------------------------------------------------------

    def due(self) -> float:
        return self.wake_at

    def on_timer(self, now: float) -> None:
        self.wake_at = NEVER
        self.maintain()

    def _wake(self, when: float) -> None:
        self.wake_at = when
        self.host.timers.arm(self)

    def maintain(self) -> None:
        """Start what is missing, or see to it that it is started when its time has come.

        Towards those who come from anywhere nothing is started but what a packet wants.
        """
        host, config = self.host, self.config
        if self.held or host.closing or not config.initiate:
            return
        if not config.paths and not self.wanted:
            return
        self.wake_at = NEVER
        sa = self.current()
        if sa is not None:
            self._complete(sa)
        elif self.first_child() is not None and config.paths and not self._connecting():
            if self.backoff.at <= host.now:
                self.connect()
            else:
                self._wake(self.backoff.at)

    def _connecting(self) -> bool:
        return any(sa.initiator and sa.state is State.CONNECTING for sa in self.sas)

    def _initiator_identity(self) -> IdentityConfig | None:
        return next((i for i in self.config.identities if i.psk is not None), None)

    def first_child(self) -> ChildConfig | None:
        """The child that an attempt begins with; None if nothing is to be started."""
        allowed = self.allowed_to(self._initiator_identity())
        for child in allowed:
            if child.name in self.wanted:
                return child
        return next((child for child in allowed if child.start is Start.NOW), None)

    def _complete(self, sa: IkeSa) -> None:
        """Ask for the children that are missing."""
        host = self.host
        polite = 0.0 if sa.initiator else sa.established_at + _COURTESY
        inherited = {
            child.config.name
            for other in self.doomed
            if other is not sa and other.doomed_by_us
            for child in other.children
            if child.live
        }
        next_at = NEVER
        for config in self.allowed(sa):
            name = config.name
            if config.start is not Start.NOW and name not in self.wanted and name not in inherited:
                continue
            packet = self.wanted.get(name, _NO_PACKET)
            if children.has_equal(sa, config, packet):
                self.wanted.pop(name, None)
                continue
            if any(e.config.name == name for e in sa.requests(CreateChild)):
                continue
            backoff = self.child_backoff.get(name)
            at = max(polite, 0.0 if backoff is None else backoff.at)
            if at <= host.now:
                sa.enqueue(CreateChild(config, packet))
            else:
                next_at = min(next_at, at)
        if next_at != NEVER:
            self._wake(next_at)

    def connect(self, replaces: IkeSa | None = None) -> None:
        """Start a new IKE SA by the next path."""
        host, config = self.host, self.config
        identity = self._initiator_identity()
        if not config.paths or identity is None:
            return
        path = config.paths[self.attempts % len(config.paths)]
        port = config.remote_port
        sa = IkeSa(
            host,
            self,
            initiator=True,
            local=Endpoint(path.local, IKE_PORT if port == IKE_PORT else NATT_PORT),
            remote=Endpoint(path.remote, port),
        )
        sa.identity = identity
        handshake = Handshake(host.rng(NONCE_OCTETS))
        handshake.replaces = replaces
        handshake.child = self.first_child()
        if handshake.child is None and replaces is not None:
            live = (c.config for c in replaces.children if c.live)
            handshake.child = next((c for c in live if c in self.config.children), None)
        if handshake.child is not None:
            handshake.packet = self.wanted.get(handshake.child.name, _NO_PACKET)
        self.add(sa)
        host.emit(IkeSaConnecting(peer=config.name, remote=sa.remote))
        init.start(sa, handshake)

    # -- secrets -------------------------------------------------------------------------------

    def secret(self, identity: IdentityConfig) -> Secret:
        """What we authenticate ourselves with as initiator."""
        secret = identity.psk_previous if self.old_secret else identity.psk
        secret = secret or identity.psk
        assert secret is not None
        return secret

    def other_secret(self, identity: IdentityConfig) -> None:
        """The peer refused us: in a rotation it may have only the other one."""
        self.old_secret = not self.old_secret and identity.psk_previous is not None

    # -- what happens to IKE SAs and children ----------------------------------------------------

    def lost(self, sa: IkeSa, reason: Reason) -> None:
        """An IKE SA ended or was never set up."""
        self.forget(sa)
        host, config = self.host, self.config
        if sa.established_at == NEVER:
            if sa.initiator:
                self.attempts += 1
                another_path = self.attempts % max(1, len(config.paths)) != 0
                if reason is not Reason.TIMEOUT or not another_path:
                    self.backoff.fail(host, config)
        elif reason is Reason.PEER_DELETED:
            self.backoff.fail(host, config)
        elif reason is Reason.PEER_DEAD and sa.initiator:
            self.attempts += 1
        self.maintain()

    def child_up(self, sa: IkeSa, child: ChildSa) -> None:
        """A child carries traffic; perhaps as it was configured when it was asked for."""
        self.child_backoff.pop(child.config.name, None)
        if self.allows(sa, child.config):
            self.wanted.pop(child.config.name, None)
        else:
            revise.child(sa, child)
            self.maintain()
        unique.settle(self)

    def child_confirmed(self) -> None:
        """A child is known to be there at the other end too: what it replaces may go."""
        if self.doomed:
            unique.settle(self)

    def child_later(self, config: ChildConfig, packet: Packet) -> None:
        """The peer is busy with something that is over soon: no failure, but not now."""
        if packet != _NO_PACKET or config.start is not Start.NOW:
            self.wanted.setdefault(config.name, packet)
        backoff = self.child_backoff.setdefault(config.name, Backoff())
        backoff.at = self.host.now + _SOON * (1 + share(self.host.rng))
        self.maintain()

    def child_failed(self, sa: IkeSa, config: ChildConfig) -> None:
        """A child could not be set up. A packet that wanted it has to ask again."""
        if self.wanted.pop(config.name, None) is None or config.start is Start.NOW:
            self.child_backoff.setdefault(config.name, Backoff()).fail(self.host, self.config)
        self.maintain()

    def child_lost(self, sa: IkeSa, child: ChildSa, reason: Reason) -> None:
        """A child ended without a successor."""
        if not sa.up:
            return
        if reason is not Reason.EXPIRED:
            name = child.config.name
            self.child_backoff.setdefault(name, Backoff()).fail(self.host, self.config)
        self.maintain()

    def acquire(self, config: ChildConfig, packet: Packet) -> None:
        """A packet wants this child."""
        self.wanted.setdefault(config.name, packet)
        self.maintain()

    def reauthenticate(self, sa: IkeSa) -> None:
        """Make a new IKE SA in place of ``sa``, which goes when the new one is complete."""
        if any(other.initiator and other.state is State.CONNECTING for other in self.sas):
            return
        self.connect(replaces=sa)

    def auth_lifetime(self, sa: IkeSa, data: bytes) -> None:
        """AUTH_LIFETIME of the responder (RFC 4478): seconds until we must authenticate again."""
        if len(data) != 4:
            return
        host = self.host
        seconds = int.from_bytes(data)
        sa.reauth_at = host.now + max(_SHORTEST, seconds * (0.8 + 0.1 * share(host.rng)))
        host.timers.arm(sa)
        if (not self.config.initiate or not self.config.paths) and host.may_tell():
            text = f"the peer wants a new authentication within {seconds} s and we cannot initiate"
            host.emit(Warned(peer=self.config.name, message=text))

    # -- commands ------------------------------------------------------------------------------

    def initiate(self) -> None:
        """Bring up everything now."""
        self.held = False
        self.backoff = Backoff()
        self.child_backoff.clear()
        for config in self.config.children:
            self.wanted.setdefault(config.name, _NO_PACKET)
        if not self.config.children and self.config.initiate and not self.sas:
            self.connect()  # an IKE SA alone (RFC 6023)
        self.maintain()

    def terminate(self, reason: Reason, message: str) -> None:
        """Delete everything and start nothing until told to."""
        self.held = True
        self.wanted.clear()
        self._wake(NEVER)
        for sa in tuple(self.sas):
            sa.close(reason, message, notify=True)
