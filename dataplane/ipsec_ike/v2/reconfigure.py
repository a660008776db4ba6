"""From one configuration to the next, without touching what stays the same.

What changes                                   what happens
peer gone                                      its IKE SAs are deleted
identities, IKE proposals, NAT wishes          a new IKE SA is made, then the old one deleted
addresses                                      the same, for IKE SAs that we initiated elsewhere
child gone                                     its SAs are deleted
child's selectors, proposals, mode, reqid      a new CHILD_SA is made, then the old one deleted
template gone, or gives something else         what was made from it is deleted
lifetimes                                      counted anew from the start of each SA
everything else                                takes effect with the next use
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ipsec_ike.config import IdentityConfig, PeerConfig
from ipsec_ike.errors import LocalMisuse
from ipsec_ike.events import Reason
from ipsec_ike.sa.lifetimes import soft_limit
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.v2 import revise
from ipsec_ike.v2.peer import Backoff, Peer

if TYPE_CHECKING:
    from ipsec_ike.v2.host import Host
    from ipsec_ike.v2.ike_sa import IkeSa


def configure(host: Host, configs: Sequence[PeerConfig]) -> None:
    """Make ``configs`` the whole configuration. Raises LocalMisuse, and changes nothing, if it
    contradicts itself."""
    _check(configs)
    peers = host.peers
    wanted = {config.name: config for config in configs}
    changed: list[tuple[Peer, PeerConfig]] = []
    gone = [peer for name, peer in peers.by_name.items() if name not in wanted]
    new: list[Peer] = []
    for config in configs:
        peer = peers.by_name.get(config.name)
        if peer is None:
            new.append(Peer(host, config))
        elif peer.config != config:
            changed.append((peer, peer.config))
            peer.config = config
    if not gone and not new and not changed:
        return
    for peer in gone:
        del peers.by_name[peer.config.name]
    known = {**peers.by_name, **{peer.config.name: peer for peer in new}}
    peers.by_name.clear()
    peers.by_name.update((config.name, known[config.name]) for config in configs)
    peers.index()
    if host.recorder is not None:
        host.recorder.configured = True
    for peer in gone:
        peer.terminate(Reason.CONFIGURATION, "the peer was removed from the configuration")
    for peer, old in changed:
        _apply(peer, old)
    for peer in new:
        peer.maintain()


def _check(configs: Sequence[PeerConfig]) -> None:
    names: set[str] = set()
    reqids: set[int] = set()
    for config in configs:
        if config.name in names:
            raise LocalMisuse(f"two peers are named {config.name}")
        if not config.ike_proposals:
            raise LocalMisuse(f"peer {config.name} has no IKE proposal")
        names.add(config.name)
        children: set[str] = set()
        for child in config.children:
            if child.name in children:
                raise LocalMisuse(f"peer {config.name} has two children named {child.name}")
            if child.reqid in reqids:
                raise LocalMisuse(f"reqid {child.reqid} is used twice")
            if not (child.proposals and child.local_ts and child.remote_ts):
                raise LocalMisuse(f"child {child.name} needs proposals and selectors")
            children.add(child.name)
            reqids.add(child.reqid)
        templates: set[str] = set()
        for template in config.templates:
            if template.name in templates:
                raise LocalMisuse(f"peer {config.name} has two templates named {template.name}")
            if not (template.proposals and template.local_ts and template.remote_ts):
                raise LocalMisuse(f"template {template.name} needs proposals and selectors")
            templates.add(template.name)


def _apply(peer: Peer, old: PeerConfig) -> None:
    new = peer.config
    peer.held = False
    peer.backoff = Backoff()
    peer.child_backoff.clear()
    for sa in tuple(peer.sas):
        peer.host.touch(sa)
        if not sa.up:
            if sa.handshake is not None and _must_renew(sa, old, new):
                # An attempt with the old settings leads nowhere.
                sa.forget()
            continue
        _keep_identity(sa, new)
        if new.ike_lifetime != old.ike_lifetime:
            _new_lifetime(sa)
        revise.children(sa)
        if _must_renew(sa, old, new):
            _renew(peer, sa)
        peer.host.timers.arm(sa)
    peer.maintain()


def _must_renew(sa: IkeSa, old: PeerConfig, new: PeerConfig) -> bool:
    if sa.identity is not None and not _same_credentials(sa, old, new):
        return True
    if new.ike_proposals != old.ike_proposals:
        return True
    if new.force_encapsulation != old.force_encapsulation or new.remote_port != old.remote_port:
        return True
    if new.local_address not in (None, sa.local.address):
        return True
    if not sa.initiator or not new.paths:
        return False
    here = sa.local.address, sa.remote.address
    return new.paths != old.paths and here not in new.paths


def _same_credentials(sa: IkeSa, old: PeerConfig, new: PeerConfig) -> bool:
    """Whether the identity under which ``sa`` was authenticated would give the same SA again."""
    assert sa.identity is not None
    name = sa.identity.name
    before = next((i for i in old.identities if i.name == name), None)
    after = next((i for i in new.identities if i.name == name), None)
    if before is None or after is None:
        return False
    # Which children it may have is checked child by child, and the previous secret ends nothing.
    return _lasting(before) == _lasting(after)


def _lasting(identity: IdentityConfig) -> IdentityConfig:
    return replace(identity, children=(), templates=(), any_port=False, psk_previous=None)


def _keep_identity(sa: IkeSa, new: PeerConfig) -> None:
    if sa.identity is not None:
        name = sa.identity.name
        sa.identity = next((i for i in new.identities if i.name == name), sa.identity)


def _renew(peer: Peer, sa: IkeSa) -> None:
    """Make-before-break if we can initiate; otherwise the peer has to come back."""
    if peer.config.initiate and peer.config.paths and peer.first_child() is not None:
        peer.reauthenticate(sa)
    else:
        sa.close(Reason.CONFIGURATION, "the configuration of the peer changed", notify=True)


def _new_lifetime(sa: IkeSa) -> None:
    host, lifetime = sa.host, sa.peer.config.ike_lifetime
    sa.soft_at = sa.hard_at = NEVER
    if lifetime.seconds:
        sa.soft_at = sa.established_at + soft_limit(lifetime, host.rng).seconds
        sa.hard_at = sa.established_at + lifetime.seconds
