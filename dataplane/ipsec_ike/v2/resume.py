"""IKE SAs of an earlier life of the gateway, taken back from its records.

First everything is as it was: peers with the configuration of the earlier life, their IKE SAs, the
children, the request under way and those that wait. Then the shell applies the configuration of
today, and what differs is handled as it would be without a restart: a peer that is gone gets a
Delete, a changed one a new IKE SA before the old one goes.

Why nothing repeats that must not, even if the records are older than they should be:

- IVs. Where they count messages (RFC 5282, RFC 5930) this life counts in a range of its own: 24
  bits of the generation, which the shell gives out once, 16 random bits in case it could not keep
  that promise (a copied machine), and 24 bits to count in.
- Message IDs. Records are kept before the datagrams that follow from them go out. The request under
  way is sent again as it was, octet by octet, and so is the last answer.
- Keys of children. They are used where they are, in the data plane, and never installed a second
  time. A child of which an SA is missing there is deleted and negotiated anew.
- Random numbers. What this life makes new, it makes from its own randomness.

Times are those of a clock that goes on over the restart (CLOCK_MONOTONIC: the records do not live
longer than it, both end with the machine). A limit that passed meanwhile takes effect at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ipsec_ike.actions import UpdateSa
from ipsec_ike.config import PeerConfig
from ipsec_ike.errors import LocalMisuse
from ipsec_ike.events import ChildSaResumed, IkeSaResumed, Reason
from ipsec_ike.identifiers import SaId
from ipsec_ike.inputs import InheritedSa
from ipsec_ike.sa.child_sa import ChildSa, ChildState
from ipsec_ike.sa.info import Resumed
from ipsec_ike.sa.lifetimes import share
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.v2 import children, deletes
from ipsec_ike.v2.ike_sa import IkeSa
from ipsec_ike.v2.restore import LIVE, Loader

if TYPE_CHECKING:
    from ipsec_ike.v2.host import Host

#: Generations that fit into an IV.
MOST_GENERATIONS: Final = 2**24

#: Seconds over which the first messages of all resumed IKE SAs are spread.
_SPREAD: Final = 2.0


def resume(
    host: Host,
    records: Mapping[str, Mapping[str, Any]],
    configs: Sequence[PeerConfig],
    installed: Mapping[SaId, InheritedSa],
    generation: int,
) -> Resumed:
    """Take back what ``records`` say, under the configuration that they were made under.

    ``configs`` is that of today, which the caller applies afterwards. ``installed`` are our SAs in
    the data plane. Raises LocalMisuse if the host is not new or the generation does not fit.
    """
    if host.sas or host.peers.by_name:
        raise LocalMisuse("only a new engine can resume")
    if not 0 < generation < MOST_GENERATIONS:
        raise LocalMisuse(f"generation {generation}")
    loader = Loader(host, configs, generation)
    for key, plain in records.items():
        if key.startswith("peer "):
            loader.guard(loader.peer, plain)
    host.peers.index()
    for key, plain in records.items():
        if key.startswith("sa "):
            loader.guard(loader.sa, plain)
    loader.link()
    missing = 0
    for sa in loader.enter():
        missing += _compare(sa, installed)
        _start(sa)
    return Resumed(
        ike_sas=sum(sa.up for sa in host.sas.values()),
        children=sum(child.live for child in host.children.values()),
        unreadable=loader.unreadable,
        missing=missing,
        sas=frozenset(known(host)),
    )


def known(host: Host) -> Iterable[SaId]:
    """What the engine believes to be in the data plane."""
    for child in host.children.values():
        sa = child.owner
        assert isinstance(sa, IkeSa)
        yield child.inbound_id(sa.local)
        if child.outbound:
            yield child.outbound_id(sa.remote)


def _start(sa: IkeSa) -> None:
    """Set the clocks: what is under way is sent again soon, and the peer is soon asked whether it
    lives, all of them spread over a moment."""
    host, window, config = sa.host, sa.window, sa.peer.config
    now, soon = host.now, host.now + _SPREAD * share(host.rng)
    if window.busy and sa.current is not None:
        window.sent_at = now
        window.give_up_at = now + sa.current.cap
        window.deadline = min(soon, window.give_up_at)
    sa.heard_at = sa.sent_at = now
    if sa.state in LIVE and not sa.pending:
        if config.dpd_interval:
            sa.heard_at = soon - config.dpd_interval
        suite, _ = sa.crypto
        host.emit(
            IkeSaResumed(
                peer=config.name,
                local=sa.local,
                remote=sa.remote,
                initiator=sa.initiator,
                spi_i=sa.spi_i,
                spi_r=sa.spi_r,
                suite=suite.name,
                local_id=str(sa.local_id),
                remote_id=str(sa.remote_id),
                nat_local=sa.nat_local,
                nat_remote=sa.nat_remote,
                responder=sa.responder,
                age=now - sa.established_at,
            )
        )
    for child in sa.children:
        if child.live and (child.outbound or child.waiting is not None):
            host.emit(children.describe(sa, child, ChildSaResumed))
        host.timers.arm(child)
    sa.pump()
    host.touch(sa)


def _compare(sa: IkeSa, installed: Mapping[SaId, InheritedSa]) -> int:
    """Hold the children against the data plane; gives the number of those that lack something."""
    missing = 0
    for child in tuple(sa.children):
        outbound = child.outbound_id(sa.remote)
        if child.waiting is not None and outbound in installed:
            # It was installed, and only the record of that is missing.
            child.waiting, child.outbound, child.switch_at = None, True, NEVER
        whole = child.inbound_id(sa.local) in installed
        whole = whole and (not child.outbound or outbound in installed)
        if whole:
            _follow(sa, child, installed)
        elif child.state is ChildState.DELETED:
            children.discard(sa, child)
        else:
            missing += 1
            text = "its SAs are not in the data plane any more"
            deletes.delete_child(sa, child, Reason.DATAPLANE, text)
    return missing


def _follow(sa: IkeSa, child: ChildSa, installed: Mapping[SaId, InheritedSa]) -> None:
    """A move of the peer that was not brought to the data plane before the end."""
    if not sa.encap:
        return
    wanted = {child.inbound_id(sa.local): (sa.remote, sa.local)}
    if child.outbound:
        wanted[child.outbound_id(sa.remote)] = (sa.local, sa.remote)
    for sa_id, (source, destination) in wanted.items():
        there = installed[sa_id]
        if (there.source, there.destination) != (source, destination):
            sa.host.emit(UpdateSa(sa_id, source, destination, sa.encap))
