"""Resources that have to do with each other, judged together: tunnels and findings. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ipsec_api.compile import compile as compile_snapshot
from ipsec_api.rejection import Finding, Rejection
from ipsec_api.snapshot import IPsecPeer, IPsecPolicy, ModeConfig, Secret, Snapshot
from ipsec_api.tunnel import TunnelConfig
from ipsec_operator.graph import Key, compiled_endpoint, key_of
from ipsec_operator.networks import ClusterNetworks, checked_peer, checked_policy
from ipsec_operator.retain import Taken, retain, source
from ipsec_operator.tunnels import Tunnel, render

Document = IPsecPeer | IPsecPolicy | ModeConfig


@dataclass(frozen=True, slots=True)
class Members:
    """The objects of some units, with what they refer to."""

    documents: tuple[Document, ...] = ()
    #: Objects that exist and do not follow the schema, with what is wrong.
    invalid: Mapping[Key, tuple[Rejection, ...]] = field(default_factory=dict)
    #: Of those, the ones that say ``disabled: true``.
    invalid_disabled: frozenset[Key] = frozenset()
    secrets: tuple[Secret, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What should be in force, and what is to be said about it."""

    tunnels: Mapping[Key, Tunnel] = field(default_factory=dict)
    rejections: Mapping[Key, tuple[Rejection, ...]] = field(default_factory=dict)
    advice: Mapping[Key, tuple[Finding, ...]] = field(default_factory=dict)
    #: Objects of which an earlier version is in force.
    held: frozenset[Key] = frozenset()


def judge(members: Members, networks: ClusterNetworks, in_force: Mapping[Key, Tunnel]) -> Judgement:
    """What should be in force for these objects, which no others have to do with.

    ``in_force`` are the tunnels of the peers among them, as they are in the cluster now.
    """
    rejections: dict[Key, list[Rejection]] = {k: list(v) for k, v in members.invalid.items()}
    snapshot, own = _snapshot(members, networks)
    for rejection in own:
        rejections.setdefault(key_of(rejection.source), []).append(rejection)
    refused = {key_of(r.source) for r in own if r.kind == "IPsecPeer"}
    result = compile_snapshot(snapshot, discovered_subnets=networks.local or None)
    for rejection in result.rejections:
        rejections.setdefault(key_of(rejection.source), []).append(rejection)
    configs = {
        key: tunnel
        for tunnel in result.tunnels
        if (key := key_of(tunnel.source)) not in refused or tunnel.policies
    }
    held = _retain(members, configs, rejections, in_force)
    for key in held:
        # What an earlier version of the peer carries is in force, accepted or not.
        rejections[key] = [r for r in rejections[key] if r.reason != "PeerNotAccepted"]
    advice: dict[Key, list[Finding]] = {}
    for remark in result.advice:
        advice.setdefault(key_of(remark.source), []).append(remark)
    return Judgement(
        tunnels={key: render(config) for key, config in configs.items()}
        | {key: in_force[key] for key in _unreadable(members, configs, in_force)},
        rejections={key: tuple(each) for key, each in rejections.items() if each},
        advice={key: tuple(each) for key, each in advice.items()},
        held=frozenset(held),
    )


def _snapshot(members: Members, networks: ClusterNetworks) -> tuple[Snapshot, list[Rejection]]:
    """The snapshot for ``compile``, without what is wrong in this cluster."""
    rejections: list[Rejection] = []
    peers: list[IPsecPeer] = []
    policies: list[IPsecPolicy] = []
    for item in members.documents:
        if isinstance(item, IPsecPeer):
            peer, fault = checked_peer(item, networks)
            peers.append(peer)
        elif isinstance(item, IPsecPolicy):
            fault = checked_policy(item, networks)
            if fault is None:
                policies.append(item)
        else:
            fault = None
        if fault is not None:
            rejections.append(fault)
    configs = tuple(d for d in members.documents if isinstance(d, ModeConfig))
    return Snapshot(tuple(peers), tuple(policies), configs, members.secrets), rejections


def _retain(
    members: Members,
    configs: dict[Key, TunnelConfig],
    rejections: Mapping[Key, Iterable[Rejection]],
    in_force: Mapping[Key, Tunnel],
) -> set[Key]:
    """Put what stays of running tunnels into ``configs``; the objects that it comes from."""
    present = _present(members)
    taken = Taken.of(configs.values())
    endpoints = {compiled_endpoint(config) for config in configs.values()}
    rejected = {key for key, each in rejections.items() if each}
    held: set[Key] = set()
    for unit, tunnel in sorted(in_force.items()):
        if unit not in present or not rejected:
            continue
        now = configs.get(unit)
        before = tunnel.config()
        if before is None or (now is None and compiled_endpoint(before) in endpoints):
            continue
        kept = retain(
            before,
            now,
            present=present,
            rejected=rejected,
            whole=now is None and unit in rejected,
            taken=taken,
        )
        if kept is None or kept is now:
            continue
        configs[unit] = kept
        fresh = set() if now is None else {source(p) for p in now.policies}
        held |= {source(p) for p in kept.policies} - fresh
        if now is None:
            held.add(unit)
    return held & rejected


def _unreadable(
    members: Members, configs: Mapping[Key, TunnelConfig], in_force: Mapping[Key, Tunnel]
) -> set[Key]:
    """Rejected peers whose Secret nobody can read: it stays as it is."""
    return {
        unit
        for unit in in_force.keys() & _present(members)
        if unit not in configs and in_force[unit].config() is None
    }


def _present(members: Members) -> set[Key]:
    """Objects that exist and are not disabled."""
    good = {
        key_of(d.ref) for d in members.documents if isinstance(d, ModeConfig) or not d.spec.disabled
    }
    return good | (members.invalid.keys() - members.invalid_disabled)
