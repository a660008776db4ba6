"""From one IKE SA to the one that replaces it by rekeying (RFC 7296 2.8, 2.18)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ipsec_ike.events import IkeSaRekeyed
from ipsec_ike.sa.lifetimes import soft_limit
from ipsec_ike.sa.suite import IkeSuite
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.v2 import children
from ipsec_ike.v2.keymat import IkeKeys
from ipsec_ike.v2.states import State

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa

#: Seconds after which we delete an IKE SA that is the peer's to delete. Longer than requests are
#: repeated: before, the peer may not know the successor.
PATIENCE: Final = 45.0


def create(
    old: IkeSa, suite: IkeSuite, keys: IkeKeys, spis: tuple[bytes, bytes], *, initiator: bool
) -> IkeSa:
    """An IKE SA with the identities and addresses of ``old`` and keys of its own.

    ``initiator``: we asked for it, and are its original initiator whatever we were before.
    """
    new = type(old)(old.host, old.peer, initiator=initiator, local=old.local, remote=old.remote)
    new.identity = old.identity
    new.spi_i, new.spi_r = spis
    new.local_id, new.remote_id = old.local_id, old.remote_id
    new.responder = old.responder
    new.suite, new.keys = suite, keys
    new.encap, new.nat_local, new.nat_remote = old.encap, old.nat_local, old.nat_remote
    new.fragmentation, new.childless = old.fragmentation, old.childless
    new.established_at = old.host.now
    new.reauth_at = old.reauth_at
    new.become(State.ESTABLISHED)
    new.predecessor = old
    new.register()
    start_lifetime(new)
    return new


def start_lifetime(sa: IkeSa) -> None:
    """The times at which it has to be rekeyed and deleted count from now on."""
    host, lifetime = sa.host, sa.peer.config.ike_lifetime
    if lifetime.seconds:
        sa.soft_at = host.now + soft_limit(lifetime, host.rng).seconds
        sa.hard_at = host.now + lifetime.seconds


def adopt(old: IkeSa, new: IkeSa) -> None:
    """``new`` takes over children and waiting requests; ``old`` only waits to be deleted.

    Doing it again changes nothing.
    """
    if new.predecessor is None:
        return
    new.predecessor = None
    new.pending = False
    if old.state is not State.REKEYED:
        old.become(State.REKEYED)
    host = old.host
    host.touch(new)
    new.children, old.children = old.children, []
    for child in new.children:
        child.owner = new
    # Each of the two may have seen the peer move; the children are where the old one knew it.
    latest = new.remote if new.heard_at > old.heard_at else old.remote
    new.local, new.remote = old.local, old.remote
    if latest != old.remote:
        children.move(new, latest)
    new.queue, old.queue = [exchange for exchange in old.queue if exchange.moves], []
    new.doomed_at, new.doomed_by_us = old.doomed_at, old.doomed_by_us
    old.doomed_at = old.soft_at = old.reauth_at = NEVER
    old.hard_at = host.now + PATIENCE
    old.peer.replaced(old, new)
    assert new.suite is not None
    host.emit(
        IkeSaRekeyed(
            peer=old.peer.config.name, suite=new.suite.name, spi_i=new.spi_i, spi_r=new.spi_r
        )
    )
    host.timers.arm(old)
    new.pump()


def used(sa: IkeSa) -> None:
    """The peer uses it for something else than to delete it: it knows that this one won."""
    if sa.pending and sa.predecessor is not None:
        adopt(sa.predecessor, sa)


def expect_delete(loser: IkeSa) -> None:
    """The peer created it in vain and has to delete it; if it does not, we do."""
    loser.hard_at = min(loser.hard_at, loser.host.now + PATIENCE)
    loser.peer.forget(loser)
    loser.host.timers.arm(loser)
    loser.host.touch(loser)
