"""CHILD_SAs of an IKE SA: into the data plane, from one to the next, and out of it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from ipsec_ike.actions import AddSa, DeleteSa, SaSpec, UpdateSa
from ipsec_ike.config import ChildConfig, Lifetime, Mode
from ipsec_ike.events import ChildSaDown, ChildSaRekeyed, ChildSaUp, PeerMoved, Reason
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Endpoint
from ipsec_ike.sa.child_sa import ChildSa, ChildState
from ipsec_ike.sa.lifetimes import soft_limit
from ipsec_ike.sa.narrowing import Selectors, covers
from ipsec_ike.sa.suite import ChildSuite
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.v2.keymat import ChildKeys

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa

#: The selectors, local and remote, of a packet that wants a child.
Packet = tuple[TrafficSelector | None, TrafficSelector | None]

#: Seconds after which we send on a new child beside another one, if nothing decides it before:
#: longer than requests are repeated.
_SWITCH: Final = 45.0

#: Seconds for which the inbound SA of a deleted child stays, for packets that are on their way.
GRACE: Final = 5.0


class Agreed(NamedTuple):
    """What an exchange agreed on. ``initiator``: we sent the request of that exchange."""

    config: ChildConfig
    suite: ChildSuite
    spi_in: int
    spi_out: int
    local_ts: Selectors
    remote_ts: Selectors
    mode: Mode
    keys: ChildKeys
    initiator: bool


def install(sa: IkeSa, agreed: Agreed, *, outbound: bool) -> ChildSa:
    """Put the inbound SA and, if ``outbound``, the outbound SA into the data plane.

    Without ``outbound`` that one waits for ``activate`` or ``take_over``.
    """
    host, config = sa.host, agreed.config
    now = host.now
    child = ChildSa(
        sa,
        config,
        agreed.suite,
        (agreed.spi_in, agreed.spi_out),
        (agreed.local_ts, agreed.remote_ts),
        agreed.mode,
        now,
    )
    child.confirmed = agreed.initiator
    soft = soft_limit(config.lifetime, host.rng)
    if config.lifetime.seconds:
        child.soft_at = now + soft.seconds
        child.hard_at = now + config.lifetime.seconds
    incoming, outgoing = _specs(sa, child, agreed, soft)
    host.emit(AddSa(incoming))
    if outbound:
        host.emit(AddSa(outgoing))
        child.outbound = True
    else:
        child.waiting = outgoing
    sa.children.append(child)
    host.register_child(child)
    host.timers.arm(child)
    return child


def _specs(sa: IkeSa, child: ChildSa, agreed: Agreed, soft: Lifetime) -> tuple[SaSpec, SaSpec]:
    incoming = agreed.keys.of(initiator=not agreed.initiator)
    outgoing = agreed.keys.of(initiator=agreed.initiator)
    return (
        _spec(sa, child, child.inbound_id(sa.local), incoming, soft),
        _spec(sa, child, child.outbound_id(sa.remote), outgoing, soft),
    )


def _spec(
    sa: IkeSa, child: ChildSa, sa_id: SaId, keys: tuple[bytes, bytes], soft: Lifetime
) -> SaSpec:
    config, suite = child.config, child.suite
    local_ts, remote_ts = child.carries
    inbound = sa_id.direction is Direction.IN
    return SaSpec(
        id=sa_id,
        source=sa.remote if inbound else sa.local,
        destination=sa.local if inbound else sa.remote,
        encap=sa.encap,
        reqid=config.reqid,
        mode=child.mode,
        encryption=suite.encr,
        encryption_key=Secret(keys[0]),
        integrity=suite.integ,
        integrity_key=Secret(keys[1]),
        esn=suite.esn,
        replay_window=config.replay_window,
        local_ts=local_ts,
        remote_ts=remote_ts,
        soft=soft,
        hard=config.lifetime,
        handling=config.handling,
        peer=sa.peer.config.name,
        child=config.name,
    )


def answer_with(sa: IkeSa, agreed: Agreed) -> ChildSa:
    """Install a child that the peer asked for.

    If the traffic has another child already, we go on sending on that one until the peer shows that
    it has the new one: by traffic, by its next message, by deleting the old one, or by time.
    """
    others = sa.peer.live_children(sa, agreed.config.name)
    child = install(sa, agreed, outbound=not others)
    if others:
        child.switch_at = sa.host.now + _SWITCH
        sa.host.timers.arm(child)
    return child


def activate(sa: IkeSa, child: ChildSa) -> None:
    """Send on it from now on."""
    child.switch_at = NEVER
    if child.waiting is not None:
        sa.host.emit(AddSa(child.waiting))
        child.waiting = None
        child.outbound = True


def confirm(sa: IkeSa, found: Sequence[ChildSa]) -> None:
    """The peer has these children."""
    sa.host.touch(sa)
    for child in found:
        child.confirmed = True
        if child.switch_at != NEVER:
            activate(sa, child)


def announce(sa: IkeSa, child: ChildSa) -> None:
    """Tell that a new child carries traffic in both directions."""
    sa.host.emit(describe(sa, child, ChildSaUp))
    sa.peer.child_up(sa, child)


def describe(sa: IkeSa, child: ChildSa, kind: type[ChildSaUp]) -> ChildSaUp:
    """The event of this kind about a child that carries traffic."""
    local_ts, remote_ts = child.carries
    return kind(
        peer=sa.peer.config.name,
        child=child.config.name,
        reqid=child.config.reqid,
        spi_in=child.spi_in,
        spi_out=child.spi_out,
        suite=child.suite.name,
        local_ts=local_ts,
        remote_ts=remote_ts,
        encap=sa.encap,
        template=child.config.template,
    )


def take_over(sa: IkeSa, old: ChildSa, new: ChildSa) -> None:
    """``new`` carries the traffic of ``old`` from now on; the outbound SA follows at last."""
    old.successor = new
    activate(sa, new)
    sa.host.emit(
        ChildSaRekeyed(
            peer=sa.peer.config.name,
            child=new.config.name,
            reqid=new.config.reqid,
            old_spi_in=old.spi_in,
            spi_in=new.spi_in,
            spi_out=new.spi_out,
            suite=new.suite.name,
        )
    )
    sa.peer.child_up(sa, new)


def stop_sending(sa: IkeSa, child: ChildSa) -> None:
    """Take out the outbound SA, if it is in. If it was the last one, others wait no longer."""
    child.waiting = None
    child.switch_at = NEVER
    if child.outbound:
        heirs = [c for c in sa.peer.live_children(sa, child.config.name) if c is not child]
        if not any(heir.outbound for heir in heirs):
            for heir in heirs:
                if heir.switch_at != NEVER:
                    heir.owner.child_switch(heir)
        child.outbound = False
        sa.host.emit(DeleteSa(child.outbound_id(sa.remote)))


def remove(sa: IkeSa, child: ChildSa, *, grace: bool) -> None:
    """Take it out of the data plane; with ``grace`` the inbound SA a little later."""
    if child.state is ChildState.DELETED:
        return
    child.become(ChildState.DELETED)
    stop_sending(sa, child)
    if grace:
        child.hard_at = sa.host.now + GRACE
        sa.host.timers.arm(child)
    else:
        discard(sa, child)


def discard(sa: IkeSa, child: ChildSa) -> None:
    """The end of a DELETED child: its inbound SA goes too."""
    child.hard_at = NEVER
    sa.host.emit(DeleteSa(child.inbound_id(sa.local)))
    sa.host.forget_child(child)
    sa.children.remove(child)


def report_down(sa: IkeSa, child: ChildSa, reason: Reason, message: str) -> None:
    """Tell that the child carries no traffic any more, unless a successor does."""
    if child.successor is not None:
        return
    sa.host.emit(
        ChildSaDown(
            peer=sa.peer.config.name,
            child=child.config.name,
            reqid=child.config.reqid,
            spi_in=child.spi_in,
            reason=reason,
            message=message,
            template=child.config.template,
        )
    )


def lose(sa: IkeSa, child: ChildSa, reason: Reason, message: str, *, grace: bool) -> None:
    """It is gone, together with the other side's: take it out, tell, and let the peer object
    decide about a new one. If there is an equal one, that is its successor."""
    live = child.live
    remove(sa, child, grace=grace)
    if not live:
        return
    heir = sa.peer.heir(sa, child)
    if heir is not None:
        take_over(sa, child, heir)
    else:
        report_down(sa, child, reason, message)
        sa.peer.child_lost(sa, child, reason)


def move(sa: IkeSa, remote: Endpoint) -> None:
    """The peer has a new address or port: IKE SA and children follow, keys stay (RFC 7296 2.23)."""
    host, old = sa.host, sa.remote
    for child in sa.children:
        host.emit(UpdateSa(child.inbound_id(sa.local), remote, sa.local, sa.encap))
        if child.outbound:
            host.emit(UpdateSa(child.outbound_id(old), sa.local, remote, sa.encap))
        if child.waiting is not None:
            child.waiting = replace(child.waiting, id=child.outbound_id(remote), destination=remote)
    sa.remote = remote
    host.emit(PeerMoved(peer=sa.peer.config.name, old=old, new=remote))


def by_peer_spi(sa: IkeSa, protocol: int, spi: int) -> ChildSa | None:
    """The child whose outbound SPI this is; protocol 0 is any."""
    for child in sa.children:
        if (
            child.spi_out == spi
            and protocol in (0, child.suite.protocol)
            and child.state is not ChildState.DELETED
        ):
            return child
    return None


def has_equal(sa: IkeSa, config: ChildConfig, packet: Packet) -> bool:
    """Whether there is a child that carries what a new one for ``packet`` would."""
    local, remote = packet
    return any(
        child.live
        and child.config == config
        and (local is None or covers(child.local_ts, (local,)))
        and (remote is None or covers(child.remote_ts, (remote,)))
        for child in sa.children
    )
