"""Policies that peers have asked for within templates: they come and go with their CHILD_SAs. Pure.

What the engine has is the truth: each generated child of its snapshot stands for the policies of
its selectors, at the place of its template in the order, with routes, limits and exemptions as if
they were configured. Nothing is remembered anywhere else, so that what is left after a child is
found by comparison, as everything is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ipsec_gateway.classify import Network
from ipsec_gateway.intent import ChildOwner, Intent
from ipsec_gateway.ipsec.base import PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.patterns import Pattern, is_generated
from ipsec_gateway.subnets import collapsed
from ipsec_ike.inputs import Endpoint
from ipsec_ike.sa.info import IkeSaInfo
from ipsec_ike.selectors import TrafficSelector

#: States of children whose policies are on their way out.
_OVER = ("deleting", "deleted")


@dataclass(frozen=True, slots=True, order=True)
class Generated:
    """One generated child, whatever SAs carry it at the moment."""

    peer: str
    template: str
    child: str
    reqid: int
    local: tuple[TrafficSelector, ...]
    remote: tuple[TrafficSelector, ...]
    remote_id: str
    end: Endpoint


def generated(sas: Iterable[IkeSaInfo]) -> tuple[Generated, ...]:
    """The generated children of a snapshot, in a fixed order."""
    found: dict[tuple[str, str], Generated] = {}
    for sa in sas:
        for child in sa.children:
            if child.template and child.state not in _OVER:
                found[sa.peer, child.name] = Generated(
                    sa.peer,
                    child.template,
                    child.name,
                    child.reqid,
                    child.local_ts,
                    child.remote_ts,
                    sa.remote_id,
                    sa.remote,
                )
    return tuple(sorted(found.values()))


def policies(each: Generated, pattern: Pattern) -> Iterator[PolicySpec]:
    """What one child stands for, all three directions."""
    for local in each.local:
        for remote in each.remote:
            if len(local.start) != len(remote.start):
                continue
            if local.protocol and remote.protocol and local.protocol != remote.protocol:
                continue
            for policy in (
                PolicyId(PolicyDirection.OUT, local, remote),
                PolicyId(PolicyDirection.IN, remote, local),
                PolicyId(PolicyDirection.FORWARD, remote, local),
            ):
                yield PolicySpec(
                    id=policy,
                    action=PolicyAction.ENCRYPT,
                    priority=pattern.priority,
                    level=pattern.level,
                    reqid=each.reqid,
                    mode=pattern.mode,
                    protocols=(pattern.protocol,),
                    name=pattern.name,
                )


def extended(intent: Intent, children: Iterable[Generated]) -> Intent:
    """``intent`` with what these children stand for. Those without a template are left out: the
    engine is about to delete them."""
    known = {
        each: pattern
        for each in children
        if (pattern := intent.patterns.get((each.peer, each.template))) is not None
    }
    if not known:
        return intent
    specs = {spec.id: spec for spec in intent.policies}
    pairs: dict[tuple[Network, Network], None] = dict.fromkeys(intent.pairs)
    mtus, ends, metrics = dict(intent.mtus), dict(intent.ends), dict(intent.metrics)
    clamps = {mss: list(nets) for mss, nets in intent.clamps.items()}
    untracked = dict(intent.untracked)
    owners = dict(intent.children)
    for each, pattern in known.items():
        own = 0
        for spec in policies(each, pattern):
            before = specs.get(spec.id)
            if before is not None and before.action is not PolicyAction.DISCARD:
                # The engine gives nothing away that is configured, so that is its own once more.
                continue
            specs[spec.id] = spec
            if spec.id.direction is not PolicyDirection.OUT:
                continue
            own += 1
            local, remote = spec.id.source.networks, spec.id.destination.networks
            pairs.update(dict.fromkeys((a, b) for a in local for b in remote))
            for net in remote:
                ends[net] = each.end.address
                if pattern.mtu is not None:
                    mtus[net] = min(pattern.mtu, mtus.get(net, pattern.mtu))
                if pattern.metric is not None:
                    metrics[net] = min(pattern.metric, metrics.get(net, pattern.metric))
            if pattern.tcp_mss is not None:
                clamps.setdefault(pattern.tcp_mss, []).extend(remote)
            if pattern.untracked is not None and not _shared(local, pattern.services):
                untracked[spec.id] = pattern.untracked
        owners[each.peer, each.child] = ChildOwner(pattern.ref, own)
    return replace(
        intent,
        policies=tuple(sorted(specs.values(), key=lambda spec: spec.priority)),
        pairs=tuple(pairs),
        mtus=mtus,
        clamps={mss: collapsed(nets) for mss, nets in clamps.items()},
        ends=ends,
        metrics=metrics,
        untracked=untracked,
        children=owners,
    )


def kept(intent: Intent, inherited: Iterable[PolicySpec]) -> Intent:
    """``intent`` with what an earlier life of the gateway gave to peers, until it is known which of
    it goes on."""
    specs = {spec.id: spec for spec in intent.policies}
    pairs: dict[tuple[Network, Network], None] = dict.fromkeys(intent.pairs)
    ends = dict(intent.ends)
    for spec in inherited:
        before = specs.get(spec.id)
        if not is_generated(spec.reqid) or (
            before is not None and before.action is not PolicyAction.DISCARD
        ):
            continue
        specs[spec.id] = spec
        if spec.id.direction is PolicyDirection.OUT:
            local, remote = spec.id.source.networks, spec.id.destination.networks
            pairs.update(dict.fromkeys((a, b) for a in local for b in remote))
            ends.update(dict.fromkeys(remote, spec.remote) if spec.remote else ())
    return replace(
        intent,
        policies=tuple(sorted(specs.values(), key=lambda spec: spec.priority)),
        pairs=tuple(pairs),
        ends=ends,
    )


def _shared(networks: Iterable[Network], services: Iterable[Network]) -> bool:
    others = tuple(services)
    return any(n.version == s.version and n.overlaps(s) for n in networks for s in others)
