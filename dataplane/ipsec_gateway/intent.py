"""What the accepted tunnels come to on this node. Pure: tunnels and facts in, intent out.

An intent is complete: the engine's peers, the policies of the data plane in order, and what routes
and clamps they need. The shell makes it so; nothing else is decided on the way.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from ipsec_api.tunnel import (
    IdentityType,
    ObjectRef,
    TunnelConfig,
    TunnelIdentity,
    TunnelPolicy,
    TunnelSelector,
    TunnelTemplate,
)
from ipsec_gateway import interfaces
from ipsec_gateway.algorithms import (
    NothingLeft,
    UnknownAlgorithm,
    ah_proposals,
    esp_proposals,
    ike_proposals,
    restricted,
)
from ipsec_gateway.classify import Network
from ipsec_gateway.entries import Entry, Place, numbered, order
from ipsec_gateway.entries import entries as entries_of
from ipsec_gateway.identities import BadIdentity, identity
from ipsec_gateway.interfaces import Interface, Routed
from ipsec_gateway.ipsec.abilities import Abilities
from ipsec_gateway.ipsec.base import Level, PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.marks import DEFAULT, Numbers, allocate_reqids
from ipsec_gateway.nat import (
    Translation,
    Untranslatable,
    blocked,
    on_the_wire,
    wire_selectors,
)
from ipsec_gateway.outermarks import (
    OuterMarks,
    clash,
    detours,
    known_addresses,
    outer_marks,
    outer_word,
)
from ipsec_gateway.pathprobe.targets import own_responder
from ipsec_gateway.patterns import (
    Pattern,
    Reserved,
    allowed_templates,
    closed,
    pattern,
    template_config,
)
from ipsec_gateway.protected import ProtectedService, protected_services
from ipsec_gateway.routing import Rule
from ipsec_gateway.subnets import metrics, sizes
from ipsec_ike.config import (
    ChildConfig,
    Childless,
    IdentityConfig,
    Lifetime,
    Mode,
    Path,
    PeerConfig,
    Retransmission,
    Start,
    TemplateConfig,
)
from ipsec_ike.numbers import Protocol
from ipsec_ike.proposal import Proposal
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: With other addresses to try, 6 s without an answer are enough (30 s otherwise).
_IMPATIENT: Final = Retransmission(tries=3)

_ANY: Final = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


@dataclass(frozen=True, slots=True)
class Facts:
    """What the shell found out about this node.

    ``resolved`` has the addresses of each DNS name and of each address itself; ``sources`` the
    address that the routing table would send from, by destination; ``encapsulate`` says that the
    data plane carries ESP faster in UDP.
    """

    addresses: tuple[Address, ...] = ()
    resolved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    #: Our addresses of global scope by interface, in the kernel's order.
    interfaces: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)
    #: Networks of Services, whose addresses exist only in connection tracking.
    services: tuple[Network, ...] = ()
    encapsulate: bool = False
    #: What the data plane can do; None: everything.
    abilities: Abilities | None = None
    #: Where each peer is that has an SA, by its key.
    live: Mapping[str, str] = field(default_factory=dict)
    numbers: Numbers = DEFAULT
    #: UDP port of our responder to probes, 0 if there is none.
    responder: int = 0
    #: Names of network interfaces that are not ours; asked for only where it matters.
    foreign: frozenset[str] = frozenset()
    #: What could not be set up of the interface of a routed policy, by namespace/name.
    broken: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """Part of an object that cannot be honoured here and now. ``reason`` is CamelCase."""

    ref: ObjectRef
    reason: str
    message: str


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
                child = _child(entry, reqids[entry.key], facts.abilities, mark, if_id)
            except _Unable as exc:
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
            peers.append(_peer(tunnel, child_configs, own, facts, problems))
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
            child = _child(entry, 0, facts.abilities, outer_word(tunnel, facts.numbers))
        except (_Unable, UnknownAlgorithm) as exc:
            reason = "UnsupportedByDataplane" if isinstance(exc, _Unable) else "Invalid"
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
            local, remote = _local(selector), _remote(selector)
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


def _local(selector: TunnelSelector) -> TrafficSelector:
    return TrafficSelector.network(
        selector.src,
        protocol=selector.protocol,
        start_port=selector.src_port[0],
        end_port=selector.src_port[1],
    )


def _remote(selector: TunnelSelector) -> TrafficSelector:
    return TrafficSelector.network(
        selector.dst,
        protocol=selector.protocol,
        start_port=selector.dst_port[0],
        end_port=selector.dst_port[1],
    )


class _Unable(Exception):
    """The data plane of this gateway cannot do what a policy asks for."""


def _child(
    entry: Entry, reqid: int, abilities: Abilities | None, outer_mark: int, if_id: int = 0
) -> ChildConfig:
    """Raises UnknownAlgorithm, _Unable."""
    policy = entry.policy
    proposals = (ah_proposals if policy.protocol == "ah" else esp_proposals)(policy.proposals)
    if abilities is not None:
        if why := interfaces.lacking(entry.tunnel, policy, abilities):
            raise _Unable(why)
        proposals = _possible(policy, proposals, abilities)
    return ChildConfig(
        name=entry.name,
        local_ts=tuple(dict.fromkeys(_local(s) for s in entry.selectors)),
        remote_ts=tuple(dict.fromkeys(_remote(s) for s in entry.selectors)),
        proposals=proposals,
        reqid=reqid,
        mode=Mode.TUNNEL if policy.tunnel else Mode.TRANSPORT,
        lifetime=Lifetime(
            seconds=policy.lifetime, bytes=policy.lifebytes, packets=policy.lifepackets
        ),
        start=Start.NEVER if entry.tunnel.passive else Start.NOW,
        replay_window=policy.replay_window,
        handling=interfaces.handling(entry.tunnel, policy, interface=if_id, mark=outer_mark),
    )


def _possible(
    policy: TunnelPolicy, proposals: tuple[Proposal, ...], abilities: Abilities
) -> tuple[Proposal, ...]:
    plane = f"the {abilities.dataplane} data plane of this gateway"
    kernel = "use a gateway whose kernel has it (its log says what there is)"
    if policy.protocol == "ah" and not abilities.ah_integrity:
        raise _Unable(f"spec.ipsecProtocols: {plane} has no AH: write [esp], or {kernel}")
    if not policy.tunnel and not abilities.transport:
        raise _Unable(f"spec.tunnel: {plane} has no transport mode: set tunnel: true, or {kernel}")
    try:
        return restricted(proposals, abilities)
    except NothingLeft as exc:
        raise _Unable(f"spec.proposal: {exc}") from exc


def _peer(
    tunnel: TunnelConfig,
    children: tuple[ChildConfig, ...],
    templates: tuple[TemplateConfig, ...],
    facts: Facts,
    problems: list[Problem],
) -> PeerConfig:
    return PeerConfig(
        name=tunnel.key,
        identities=tuple(
            _credentials(each, allowed_templates(each, tunnel)) for each in tunnel.identities
        ),
        children=children,
        templates=templates,
        ike_proposals=ike_proposals(tunnel.ike_proposals),
        paths=_paths(tunnel, facts, problems),
        remote_networks=_remote_networks(tunnel, facts),
        remote_port=tunnel.port,
        local_address=tunnel.local_address,
        initiate=not tunnel.passive,
        ike_lifetime=Lifetime(seconds=tunnel.ike_lifetime),
        dpd_interval=float(tunnel.dpd_interval),
        force_encapsulation=facts.encapsulate
        if tunnel.force_encapsulation is None
        else tunnel.force_encapsulation,
        fragmentation=tunnel.fragmentation,
        childless=Childless.PREFER if tunnel.childless else Childless.NEVER,
        send_initial_contact=tunnel.send_initial_contact,
        responder=own_responder(tunnel, facts.addresses, facts.responder),
        retransmission=_IMPATIENT if len(tunnel.addresses) > 1 else Retransmission(),
    )


def _credentials(each: TunnelIdentity, templates: tuple[str, ...]) -> IdentityConfig:
    """``auto`` is our address on our side; of the peer, whoever proves the secret (PSK)."""
    previous = each.psk_previous
    return IdentityConfig(
        name=each.name,
        local_id=identity(IdentityType(each.local_type), each.local_value),
        remote_id=identity(IdentityType(each.remote_type), each.remote_value),
        psk=Secret(each.psk.get_secret_value()),
        psk_previous=None if previous is None else Secret(previous.get_secret_value()),
        templates=templates,
        any_port=each.generate == "port-override",
    )


def _paths(tunnel: TunnelConfig, facts: Facts, problems: list[Problem]) -> tuple[Path, ...]:
    paths: list[Path] = []
    for name in tunnel.addresses:
        remotes = facts.resolved.get(name, ())
        if not remotes:
            problems.append(
                Problem(
                    tunnel.source,
                    "AddressUnresolved",
                    f"address {name} cannot be resolved now; check the name and the DNS servers of "
                    "this node. It is tried again",
                )
            )
        for remote in remotes:
            local = tunnel.local_address or facts.sources.get(remote)
            if local is None:
                problems.append(
                    Problem(
                        tunnel.source,
                        "NoRoute",
                        f"this node has no route to {remote}; check its routing table. "
                        "It is tried again",
                    )
                )
            elif ipaddress.ip_address(local).version == ipaddress.ip_address(remote).version:
                paths.append(Path(local, remote))
    return tuple(dict.fromkeys(paths))


def _remote_networks(tunnel: TunnelConfig, facts: Facts) -> tuple[Network, ...]:
    """Where the peer may come from: as configured, else its addresses, else anywhere."""
    networks: dict[Network, None] = {}
    for name in tunnel.remote_networks or tunnel.addresses:
        try:
            networks[ipaddress.ip_network(name)] = None
        except ValueError:
            networks.update((ipaddress.ip_network(a), None) for a in facts.resolved.get(name, ()))
    if not networks and not tunnel.remote_networks and not tunnel.addresses:
        return _ANY
    return tuple(networks)


def _ends(owners: Mapping[PolicyId, TunnelConfig], facts: Facts) -> dict[Network, str]:
    ends: dict[Network, str] = {}
    for policy, tunnel in owners.items():
        found = known_addresses(tunnel, facts.resolved, facts.live)
        if found:
            ends.update(dict.fromkeys(policy.destination.networks, found[0]))
    return ends
