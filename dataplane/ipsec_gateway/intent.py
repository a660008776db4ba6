"""What the accepted tunnels come to on this node. Pure: tunnels and facts in, intent out.

An intent is complete: the engine's peers, the policies of the data plane in order, and what routes
and clamps they need. The shell makes it so; nothing else is decided on the way.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from ipsec_api.tunnel import ObjectRef, TunnelConfig, TunnelTemplate
from ipsec_gateway import interfaces
from ipsec_gateway.algorithms import UnknownAlgorithm
from ipsec_gateway.classify import Network
from ipsec_gateway.engineconfig import (
    Unable,
    child_config,
    peer_config,
    selector_pair,
)
from ipsec_gateway.entries import Entry, Place, numbered, order
from ipsec_gateway.entries import entries as entries_of
from ipsec_gateway.facts import Facts, Problem
from ipsec_gateway.identities import BadIdentity
from ipsec_gateway.interfaces import Interface, Routed
from ipsec_gateway.ipsec.base import Level, PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.marks import allocate_reqids
from ipsec_gateway.nat import Translation, Untranslatable, blocked, on_the_wire, wire_selectors
from ipsec_gateway.outermarks import (
    OuterMarks,
    clash,
    detours,
    known_addresses,
    outer_marks,
    outer_word,
)
from ipsec_gateway.patterns import Pattern, Reserved, closed, pattern, template_config
from ipsec_gateway.protected import ProtectedService, protected_services
from ipsec_gateway.routing import Rule
from ipsec_gateway.subnets import metrics, sizes
from ipsec_ike.config import ChildConfig, Mode, PeerConfig, TemplateConfig
from ipsec_ike.numbers import Protocol
from ipsec_ike.selectors import TrafficSelector


@dataclass(frozen=True, slots=True)
class ChildOwner:
    """The object that a CHILD_SA comes from, and how many of its selector pairs it carries."""

    ref: ObjectRef
    selectors: int


@dataclass(frozen=True, slots=True)
class Intent:
    """The desired state of this gateway."""

    peers: tuple[PeerConfig, ...] = ()
    #: In order of priority, all three directions of each.
    policies: tuple[PolicySpec, ...] = ()
    #: (local, remote) of all pairs to be protected.
    pairs: tuple[tuple[Network, Network], ...] = ()
    #: Route MTU in octets by remote subnet, where a peer sets one.
    mtus: Mapping[Network, int] = field(default_factory=dict)
    #: Remote subnets by the TCP MSS that a peer sets.
    clamps: Mapping[int, tuple[Network, ...]] = field(default_factory=dict)
    #: Where the peer behind each remote subnet is, or may be, if that is known.
    ends: Mapping[Network, str] = field(default_factory=dict)
    #: Pairs whose addresses are other ones inside the tunnel, and their policies.
    translations: tuple[Translation, ...] = ()
    translated: frozenset[PolicyId] = frozenset()
    #: Outbound policies whose traffic skips connection tracking, by whether our own does too.
    untracked: Mapping[PolicyId, bool] = field(default_factory=dict)
    #: Rules for IKE and ESP to peers with a table of their own, and marks of those packets.
    detours: tuple[Rule, ...] = ()
    outer: OuterMarks = field(default_factory=OuterMarks)
    #: Metric of the routes by remote subnet, where a peer sets one.
    metrics: Mapping[Network, int] = field(default_factory=dict)
    #: What is accepted out of SAs only, at this node and in these local networks.
    services: tuple[ProtectedService, ...] = ()
    #: Interfaces of routed policies, and (local, remote) of what may be routed into them.
    interfaces: tuple[Interface, ...] = ()
    routed: tuple[tuple[Network, Network], ...] = ()
    #: Where each CHILD_SA comes from, by (peer, child).
    children: Mapping[tuple[str, str], ChildOwner] = field(default_factory=dict)
    #: The templates of each peer, by (peer, template).
    patterns: Mapping[tuple[str, str], Pattern] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def intent(tunnels: Iterable[TunnelConfig], facts: Facts) -> Intent:
    """The intent. A tunnel that cannot work at all is left out and is a problem; others stay."""
    problems: list[Problem] = []
    translations: list[Translation] = []
    ordered: list[TunnelConfig] = []
    guarded: list[TunnelConfig] = []
    for plain in sorted(tunnels, key=lambda t: t.key):
        tunnel = _placed(plain, facts, problems)
        try:
            tunnel, found = on_the_wire(tunnel, _own_address(tunnel, facts))
        except Untranslatable as exc:
            problems.append(Problem(plain.source, "Invalid", str(exc)))
            # No tunnel, and no clear text either.
            guarded.append(blocked(tunnel))
            continue
        ordered.append(tunnel)
        guarded.append(tunnel)
        translations.extend(found)
    translated = frozenset(PolicyId(PolicyDirection.OUT, *wire_selectors(t)) for t in translations)
    carriers = interfaces.routed(guarded, facts)
    problems += [Problem(*each) for each in carriers.problems]
    entries = [
        entry
        for tunnel in guarded
        for policy in tunnel.policies
        if carriers.carries(policy)
        for entry in entries_of(tunnel, policy)
    ]
    entries.sort(key=order)
    reqids = allocate_reqids(e.key for e in entries if e.policy.action == "encrypt")
    asked = [
        entry
        for tunnel in ordered
        for template in tunnel.templates
        for entry in entries_of(tunnel, template)
    ]
    ranked, places = numbered(entries, asked)
    policies, owners = _policies(ranked, reqids, carriers, facts, problems)
    patterns, templates = _patterns(asked, places, policies, facts, problems)
    policies += closed(
        ((patterns[key], template) for key, template in templates.items()),
        {spec.id: spec for spec in policies},
        len(ranked) + len(places) + 1,
    )
    children: dict[str, list[ChildConfig]] = {}
    for entry in entries:
        if entry.policy.action == "encrypt":
            try:
                mark = outer_word(entry.tunnel, facts.numbers)
                if_id = carriers.if_id(entry.policy)
                child = child_config(entry, reqids[entry.key], facts.abilities, mark, if_id)
            except Unable as exc:
                problems.append(Problem(entry.policy.source, "UnsupportedByDataplane", str(exc)))
                continue
            except UnknownAlgorithm as exc:
                problems.append(Problem(entry.policy.source, "Invalid", str(exc)))
                continue
            children.setdefault(entry.tunnel.key, []).append(child)
    peers: list[PeerConfig] = []
    for tunnel in ordered:
        try:
            own = tuple(t for (peer, _), t in templates.items() if peer == tunnel.key)
            child_configs = tuple(children.get(tunnel.key, ()))
            peers.append(peer_config(tunnel, child_configs, own, facts, problems))
        except (UnknownAlgorithm, BadIdentity) as exc:
            problems.append(Problem(tunnel.source, "Invalid", str(exc)))
    mtus, clamps = sizes(owners)
    return Intent(
        peers=tuple(peers),
        policies=tuple(policies),
        pairs=tuple(
            (local, remote)
            for spec in policies
            if spec.id.direction is PolicyDirection.OUT
            and spec.action is PolicyAction.ENCRYPT
            and spec.id in owners
            and spec.id not in translated
            for local in spec.id.source.networks
            for remote in spec.id.destination.networks
        ),
        mtus=mtus,
        clamps=clamps,
        ends=_ends(owners, facts),
        translations=tuple(translations),
        translated=translated,
        untracked=_untracked(owners, translated, facts, problems),
        detours=detours(ordered, facts.resolved, facts.live, facts.numbers),
        outer=outer_marks(ordered, facts.resolved, facts.live, facts.numbers),
        metrics=metrics(owners),
        services=protected_services(guarded, responder=facts.responder),
        interfaces=carriers.interfaces(
            (e.policy, reqids[e.key]) for e in entries if e.key in reqids
        ),
        routed=interfaces.pairs(e.policy for e in entries),
        children={
            (e.tunnel.key, e.name): ChildOwner(e.policy.source, len(e.selectors))
            for e in entries
            if e.key in reqids
        },
        patterns=patterns,
        problems=tuple(problems),
    )


def _placed(tunnel: TunnelConfig, facts: Facts, problems: list[Problem]) -> TunnelConfig:
    """With the address of its interface, if it names one."""
    if why := clash(tunnel, facts.numbers):
        problems.append(Problem(tunnel.source, "MarkConflict", why))
        return _nowhere(tunnel)
    if tunnel.local_interface is None or tunnel.local_address is not None:
        return tunnel
    remotes = [a for name in tunnel.addresses for a in facts.resolved.get(name, ())]
    versions = {ipaddress.ip_address(a).version for a in remotes} or {4, 6}
    own = facts.interfaces.get(tunnel.local_interface, ())
    found = next((str(a) for a in own if a.version in versions), None)
    if found is None:
        problems.append(
            Problem(
                tunnel.source,
                "NoRoute",
                f"interface {tunnel.local_interface} has no address for this peer on this node;"
                " correct localInterface, or give it one. It is tried again",
            )
        )
        # Better no tunnel than one from an address that was not meant.
        return _nowhere(tunnel)
    return tunnel.model_copy(update={"local_address": found})


def _nowhere(tunnel: TunnelConfig) -> TunnelConfig:
    """With nobody to reach or to answer; its traffic is guarded all the same."""
    return tunnel.model_copy(
        update={"addresses": (), "remote_networks": ("192.0.2.0/32",), "routing_mark": None}
    )


def _own_address(tunnel: TunnelConfig, facts: Facts) -> str | None:
    if tunnel.local_address is not None:
        return tunnel.local_address
    remotes = (a for name in tunnel.addresses for a in facts.resolved.get(name, ()))
    return next((facts.sources[a] for a in remotes if a in facts.sources), None)


def _untracked(
    owners: Mapping[PolicyId, TunnelConfig],
    translated: frozenset[PolicyId],
    facts: Facts,
    problems: list[Problem],
) -> dict[PolicyId, bool]:
    untracked: dict[PolicyId, bool] = {}
    for policy, tunnel in owners.items():
        if tunnel.notrack == "None":
            continue
        service = next(
            (s for s in facts.services for n in policy.source.networks if _share(s, n)), None
        )
        if policy in translated or service is not None:
            why = f"{service} are Services" if service else "it is translated"
            problems.append(
                Problem(
                    tunnel.source,
                    "NotTracked",
                    f"{policy.source} to {policy.destination} needs connection tracking, since"
                    f" {why}: it is tracked all the same; take it out of this peer, or set"
                    " notrack: None",
                )
            )
            continue
        untracked[policy] = tunnel.notrack == "All"
    return untracked


def _share(one: Network, two: Network) -> bool:
    return one.version == two.version and one.overlaps(two)


def _patterns(
    asked: Iterable[Entry],
    places: Mapping[Place, int],
    policies: Iterable[PolicySpec],
    facts: Facts,
    problems: list[Problem],
) -> tuple[dict[tuple[str, str], Pattern], dict[tuple[str, str], TemplateConfig]]:
    """The templates of each peer, and what the engine is told of them."""
    reserved = Reserved(spec for spec in policies if not spec.id.interface)
    patterns: dict[tuple[str, str], Pattern] = {}
    templates: dict[tuple[str, str], TemplateConfig] = {}
    for entry in asked:
        tunnel, template, key = entry.tunnel, entry.policy, (entry.tunnel.key, entry.name)
        assert isinstance(template, TunnelTemplate)
        try:
            child = child_config(entry, 0, facts.abilities, outer_word(tunnel, facts.numbers))
        except (Unable, UnknownAlgorithm) as exc:
            reason = "UnsupportedByDataplane" if isinstance(exc, Unable) else "Invalid"
            problems.append(Problem(template.source, reason, str(exc)))
            continue
        patterns[key] = pattern(tunnel, template, places[entry.place], facts.services)
        taken = reserved.within(child.local_ts, child.remote_ts, places[entry.place])
        templates[key] = template_config(child, template, taken)
    return patterns, templates


def _policies(
    ranked: Iterable[tuple[int, Entry]],
    reqids: Mapping[str, int],
    carriers: Routed,
    facts: Facts,
    problems: list[Problem],
) -> tuple[list[PolicySpec], dict[PolicyId, TunnelConfig]]:
    """SPD entries in order, and whose each outbound one is that is found by its addresses. The
    first of two equal pairs stays."""
    specs: dict[PolicyId, PolicySpec] = {}
    owners: dict[PolicyId, TunnelConfig] = {}
    for priority, entry in ranked:
        policy = entry.policy
        if_id = carriers.if_id(policy)
        action = PolicyAction(policy.action)
        blank = PolicySpec(
            id=PolicyId(PolicyDirection.OUT, _NOTHING, _NOTHING),
            action=action,
            priority=priority,
            level=Level(policy.level),
            reqid=reqids[entry.key] if action is PolicyAction.ENCRYPT else 0,
            mode=Mode.TUNNEL if policy.tunnel else Mode.TRANSPORT,
            protocols=(Protocol.AH if policy.protocol == "ah" else Protocol.ESP,),
            name=f"{policy.source.namespace}/{policy.source.name}",
        )
        ends = "", ""
        if action is PolicyAction.ENCRYPT and policy.tunnel:
            ends = _first_ends(entry.tunnel, facts)
        for selector in entry.selectors:
            local, remote = selector_pair(selector)
            out = PolicyId(PolicyDirection.OUT, local, remote, if_id)
            if out in specs:
                problems.append(
                    Problem(
                        policy.source,
                        "Overlap",
                        f"{selector.src} to {selector.dst} is also in {specs[out].name}, which "
                        "comes first and wins; take it out of one of them, or set priority",
                    )
                )
                continue
            specs[out] = replace(blank, id=out, local=ends[0], remote=ends[1])
            if not if_id:
                owners[out] = entry.tunnel
            for direction in (PolicyDirection.IN, PolicyDirection.FORWARD):
                inward = PolicyId(direction, remote, local, if_id)
                specs[inward] = replace(blank, id=inward)
    return list(specs.values()), owners


_NOTHING: Final = TrafficSelector.network("0.0.0.0/32")


def _first_ends(tunnel: TunnelConfig, facts: Facts) -> tuple[str, str]:
    """The outer addresses with which an attempt to reach the peer begins; empty if unknown."""
    for name in tunnel.addresses:
        for remote in facts.resolved.get(name, ()):
            local = tunnel.local_address or facts.sources.get(remote)
            if local is not None and (":" in local) == (":" in remote):
                return local, remote
    return "", ""


def _ends(owners: Mapping[PolicyId, TunnelConfig], facts: Facts) -> dict[Network, str]:
    ends: dict[Network, str] = {}
    for policy, tunnel in owners.items():
        found = known_addresses(tunnel, facts.resolved, facts.live)
        if found:
            ends.update(dict.fromkeys(policy.destination.networks, found[0]))
    return ends
