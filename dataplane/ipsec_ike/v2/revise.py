"""What a changed configuration means for the CHILD_SAs that are there or under way."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ipsec_ike.config import ChildConfig
from ipsec_ike.events import Reason
from ipsec_ike.sa.lifetimes import soft_limit
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.v2 import deletes
from ipsec_ike.v2.create_child import CreateChild

if TYPE_CHECKING:
    from ipsec_ike.sa.child_sa import ChildSa
    from ipsec_ike.v2.ike_sa import IkeSa


def children(sa: IkeSa) -> None:
    """Every child of ``sa``; requests for children as they were are not sent any more."""
    peer = sa.peer
    sa.queue = [
        exchange
        for exchange in sa.queue
        if not isinstance(exchange, CreateChild) or peer.allows(sa, exchange.config)
    ]
    for found in tuple(sa.children):
        if found.live:
            child(sa, found)


def child(sa: IkeSa, child: ChildSa) -> None:
    """One child: nothing, new lifetimes, a new child in its place, or its end."""
    before = child.config
    config = sa.peer.configured(sa, before)
    if config is None:
        text = "the child was removed from the configuration"
        if before.template:
            text = f"template {before.template} does not give these selectors any more"
        deletes.delete_child(sa, child, Reason.CONFIGURATION, text)
    elif config != before:
        _changed(sa, child, config)


def _changed(sa: IkeSa, child: ChildSa, config: ChildConfig) -> None:
    before, peer = child.config, sa.peer
    hot = replace(
        config,
        lifetime=before.lifetime,
        start=before.start,
        replay_window=before.replay_window,
    )
    if hot != before:
        if peer.config.initiate and not config.template:
            peer.wanted.setdefault(config.name, (None, None))
        else:
            text = "the configuration of the child changed"
            deletes.delete_child(sa, child, Reason.CONFIGURATION, text)
        return
    child.config = config
    if config.lifetime != before.lifetime:
        host, lifetime = sa.host, config.lifetime
        child.soft_at = child.hard_at = NEVER
        if lifetime.seconds:
            child.soft_at = child.created_at + soft_limit(lifetime, host.rng).seconds
            child.hard_at = child.created_at + lifetime.seconds
        host.timers.arm(child)
