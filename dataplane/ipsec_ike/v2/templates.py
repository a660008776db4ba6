"""Children that a peer asks for and no configuration names, within templates (RFC 7296 2.9).

A responder whose identity has templates takes from the offered selectors what lies within one of
them. That becomes a child of its own, a *generated* one: its name and its reqid follow from the
template, the remote identity and the selectors, so that the same peer that comes back has the same
child, and replaces its own.

Nobody gets what another one has. A pair of selectors is refused

- if a generated child of another remote identity, or of another peer, shares traffic with it;
- if configured traffic comes first and covers it, or is the very same (``TemplateConfig.taken``);
- if it is a remote default route, and the template does not say that it may be;
- if the identity would have more than ``Limits.generated`` pairs.

The refusal is TS_UNACCEPTABLE, after an event with the reason. In transport mode the selectors are
those of the two hosts alone, whatever the template allows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, cast

from ipsec_ike.config import GENERATED, ChildConfig, Mode, TemplateConfig
from ipsec_ike.errors import NoAdditionalSas
from ipsec_ike.events import SelectorsRefused
from ipsec_ike.sa.child_sa import ChildSa, ChildState
from ipsec_ike.sa.narrowing import Match, Selectors, covers
from ipsec_ike.selectors import TrafficSelector, narrow

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa

#: What one range of ports may come to in a data plane that knows masks only.
_MASKS: Final = 16
#: Reqids that are tried before there are too many children.
_PROBES: Final = 4096
_OVER: Final = (ChildState.DELETING, ChildState.DELETED)


def allowed(sa: IkeSa) -> Iterator[TemplateConfig]:
    """The templates of the identity of ``sa``."""
    names = () if sa.identity is None else sa.identity.templates
    return (t for t in sa.peer.config.templates if t.name in names)


def generate(sa: IkeSa, local: Selectors, remote: Selectors) -> tuple[list[Match], bool]:
    """What the templates give of an offer, the best first, and whether something was refused.

    Raises NoAdditionalSas."""
    found: list[Match] = []
    refused = False
    for template in allowed(sa):
        ours = narrow(local, _bounds(template, template.local_ts, sa.local.address))
        theirs = narrow(remote, _bounds(template, template.remote_ts, sa.remote.address))
        if not ours or not theirs:
            continue
        child = _child(sa, template, ours, theirs)
        why = _objection(sa, template, child)
        if why:
            refused = True
            sa.host.counters["refused_generated"] += 1
            sa.host.emit(
                SelectorsRefused(
                    peer=sa.peer.config.name,
                    template=template.name,
                    remote_id=str(sa.remote_id),
                    wanted=(ours, theirs),
                    message=why,
                )
            )
            continue
        partial = not (covers(ours, local) and covers(theirs, remote))
        found.append(Match(child, ours, theirs, partial))
    found.sort(key=lambda m: (m.partial, not covers(m.remote, remote[:1])))
    return found, refused


def complete(
    sa: IkeSa, matches: list[Match], local: Selectors, remote: Selectors
) -> tuple[list[Match], bool]:
    """``matches`` of configured children, and what the templates give where none of those takes
    the whole offer."""
    if any(not match.partial for match in matches):
        return matches, False
    found, refused = generate(sa, local, remote)
    whole = [match for match in found if not match.partial]
    return [*whole, *matches, *(match for match in found if match.partial)], refused


def again(sa: IkeSa, child: ChildConfig) -> ChildConfig | None:
    """A generated child as the templates of now would make it; None if they would not."""
    template = next((t for t in allowed(sa) if t.name == child.template), None)
    if template is None:
        return None
    local, remote = child.local_ts, child.remote_ts
    if not (covers(template.local_ts, local) and covers(template.remote_ts, remote)):
        return None
    made = _made(sa, template, local, remote, child.name, child.reqid)
    return None if _taken(template, made) or _too_wide(template, made) else made


def _bounds(template: TemplateConfig, selectors: Selectors, address: str) -> Selectors:
    if template.mode is Mode.TUNNEL:
        return selectors
    return narrow((TrafficSelector.network(address),), selectors)


def _child(sa: IkeSa, template: TemplateConfig, local: Selectors, remote: Selectors) -> ChildConfig:
    """Raises NoAdditionalSas."""
    assert sa.remote_id is not None
    who = sa.remote_id
    key = f"{sa.peer.config.name}\0{template.name}\0{int(who.type)}:{who.data.hex()}"
    for selectors in (local, remote):
        key += "\0" + ",".join(map(str, selectors))
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    name = f"{template.name}{GENERATED}{digest.hex()[:8]}"
    taken = {c.config.reqid: c.config.name for c in sa.host.children.values() if c.config.template}
    first, last = template.reqids
    size = last - first + 1
    for step in range(min(size, _PROBES)):
        reqid = first + (int.from_bytes(digest) + step) % size
        if reqid not in sa.host.peers.by_reqid and taken.get(reqid, name) == name:
            return _made(sa, template, local, remote, name, reqid)
    raise NoAdditionalSas("no reqid is left")


def _made(
    sa: IkeSa,
    template: TemplateConfig,
    local: Selectors,
    remote: Selectors,
    name: str,
    reqid: int,
) -> ChildConfig:
    installed: tuple[Selectors, Selectors] | None = None
    if sa.identity is not None and sa.identity.any_port:
        wide = _widened(local, template.local_ts), _widened(remote, template.remote_ts)
        installed = None if wide == (local, remote) else wide
    return ChildConfig(
        name=name,
        local_ts=local,
        remote_ts=remote,
        proposals=template.proposals,
        reqid=reqid,
        mode=template.mode,
        lifetime=template.lifetime,
        replay_window=template.replay_window,
        handling=template.handling,
        template=template.name,
        installed=installed,
    )


def _widened(selectors: Selectors, limits: Selectors) -> Selectors:
    """The same addresses and protocols, with the ports of the template."""
    wide = (
        common
        for each in selectors
        for limit in limits
        if limit.narrow(each) == each
        and (common := each._replace(start_port=0, end_port=65535).narrow(limit)) is not None
    )
    return tuple(dict.fromkeys(wide))


# -- objections --------------------------------------------------------------------------------


def _objection(sa: IkeSa, template: TemplateConfig, child: ChildConfig) -> str:
    """Why the peer does not get it; empty if it does."""
    if _too_wide(template, child):
        return (
            "a default route would take all traffic: set allowDefaultRoute: true on the template"
            " if the peer shall have it"
        )
    owner = _taken(template, child)
    if owner:
        return f"this is the traffic of {owner} already"
    mine = _carried(child)
    pairs = _pairs(mine)
    for other in sa.host.children.values():
        if not other.config.template or other.state in _OVER:
            continue
        theirs = other.carries[1]
        if len(theirs) == 1 == len(mine[1]) and _apart(mine[1][0], theirs[0]):
            # As it is with nearly all of many road warriors.
            if other.config.name != child.name and _same_owner(sa, other):
                pairs += _pairs(other.carries)
            continue
        if _same_owner(sa, other):
            if other.config.name != child.name:
                pairs += _pairs(other.carries)
        elif _share(mine, other.carries):
            return f"{_whose(other)} has this traffic already, or part of it"
    if pairs > sa.host.limits.generated:
        return f"that makes {pairs} pairs of prefixes, {sa.host.limits.generated} are allowed"
    return ""


def _carried(child: ChildConfig) -> tuple[Selectors, Selectors]:
    return child.installed or (child.local_ts, child.remote_ts)


def _too_wide(template: TemplateConfig, child: ChildConfig) -> bool:
    return not template.default_route and any(
        not any(ts.start) and ts.end == b"\xff" * len(ts.end) for ts in child.remote_ts
    )


def _taken(template: TemplateConfig, child: ChildConfig) -> str:
    """Whose configured traffic it is."""
    locals_, remotes = _carried(child)
    for local, remote, owner, first in template.taken:
        if first:
            if any(map(local.contains, locals_)) and any(map(remote.contains, remotes)):
                return owner
        elif local in locals_ and remote in remotes:
            return owner
    return ""


def _same_owner(sa: IkeSa, child: ChildSa) -> bool:
    other = cast("IkeSa", child.owner)
    return other.peer.config.name == sa.peer.config.name and other.remote_id == sa.remote_id


def _whose(child: ChildSa) -> str:
    other = cast("IkeSa", child.owner)
    return f"peer {other.peer.config.name} ({other.remote_id} at {other.remote})"


def _apart(one: TrafficSelector, two: TrafficSelector) -> bool:
    """Their addresses alone tell them apart."""
    return len(one.start) != len(two.start) or one.end < two.start or two.end < one.start


def _share(one: tuple[Selectors, Selectors], two: tuple[Selectors, Selectors]) -> bool:
    """Whether a packet exists that both carry."""
    return all(
        any(a.narrow(b) is not None for a in mine for b in theirs)
        for mine, theirs in zip(one, two, strict=True)
    )


def _pairs(selectors: tuple[Selectors, Selectors]) -> int:
    """How many entries of an SPD of prefixes and masks this comes to, at the most."""
    local, remote = (sum(map(_size, side)) for side in selectors)
    return local * remote


def _size(ts: TrafficSelector) -> int:
    plain = ts.any_port or ts.is_opaque or ts.start_port == ts.end_port
    return len(ts.networks) * (1 if plain else _MASKS)
