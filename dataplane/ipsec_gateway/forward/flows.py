"""What this gateway's tunnels bring onto the forward hook, by peer. Pure: intent in, flows out.

Addresses are those that the hook sees: ahead of source NAT, so that a peer whose addresses are
translated has flows of unknown networks. Transport mode is between hosts and is not forwarded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final, NamedTuple

from ipsec_gateway.classify import Address, Network
from ipsec_gateway.forward.chains import Flow, Side
from ipsec_gateway.intent import Intent
from ipsec_ike.config import ChildConfig, Mode, TemplateConfig
from ipsec_ike.selectors import TrafficSelector

#: Flows of one peer that are looked at.
_MOST: Final = 64


class Wish(NamedTuple):
    """What has to be accepted: packets out of the device or into it, or, without a device, what
    the kernel's IPsec protects."""

    side: Side
    device: str = ""


def flows(
    intent: Intent, device: str | None, addresses: Iterable[Address] = ()
) -> dict[str, tuple[Flow, ...]]:
    """By peer. ``device`` is what packets are routed into, None where the kernel's SPD protects
    them; ``addresses`` are the node's own, whose packets are not forwarded."""
    own = frozenset(addresses)
    names = {each.if_id: each.name for each in intent.interfaces}
    translated = frozenset(t.name for t in intent.translations)
    found: dict[str, tuple[Flow, ...]] = {}
    for peer in intent.peers:
        children: tuple[ChildConfig | TemplateConfig, ...] = (*peer.children, *peer.templates)
        several = (
            flow
            for child in children
            if child.mode is Mode.TUNNEL
            for local, remote in _pairs(child, own)
            for flow in _both(
                None if peer.name in translated else (local, remote),
                local.version,
                device or names.get(child.handling.interface, ""),
                kernel=device is None,
            )
        )
        those = tuple(islice(dict.fromkeys(several), _MOST))
        if those:
            found[peer.name] = those
    return found


def wishes(found: Mapping[str, Iterable[Flow]]) -> frozenset[Wish]:
    """What has to be accepted for all of these."""
    return frozenset(wish_of(flow) for those in found.values() for flow in those)


def wish_of(flow: Flow) -> Wish:
    """What has to be accepted for one."""
    return Wish(flow.side, flow.iif if flow.side == "in" else flow.oif)


def any_of(wish: Wish, version: int, *, kernel: bool) -> Flow:
    """A flow of which nothing is known but this."""
    return _flow(wish.side, version, None, wish.device, kernel=kernel)


def _pairs(
    child: ChildConfig | TemplateConfig, own: frozenset[Address]
) -> Iterator[tuple[Network, Network]]:
    for local in _networks(child.local_ts):
        if local.num_addresses == 1 and local.network_address in own:
            continue
        for remote in _networks(child.remote_ts):
            if remote.version == local.version:
                yield local, remote


def _networks(selectors: Iterable[TrafficSelector]) -> Iterator[Network]:
    for selector in selectors:
        yield from selector.networks


def _both(
    pair: tuple[Network, Network] | None, version: int, device: str, *, kernel: bool
) -> Iterator[Flow]:
    yield _flow("out", version, pair, device, kernel=kernel)
    yield _flow("in", version, (pair[1], pair[0]) if pair else None, device, kernel=kernel)


def _flow(
    side: Side, version: int, pair: tuple[Network, Network] | None, device: str, *, kernel: bool
) -> Flow:
    source, destination = pair or (None, None)
    return Flow(
        version,
        side,
        source,
        destination,
        iif=device if side == "in" else "",
        oif=device if side == "out" else "",
        # What is routed into an interface meets its SA behind the hook.
        ipsec=kernel and (side == "in" or not device),
    )
