"""Resources and Secrets to TunnelConfigs: what the resources mean. Pure, and total.

The fault of one object never stops another one: whatever is wrong becomes a Rejection of the object
that has it, and the rest is compiled. Where two objects want the same thing, the older one has it
(``creationTimestamp``, then namespace and name), so that a new object cannot take a running tunnel
down.

The operator compiles only what a change has to do with. Whoever lets one peer or policy look at
another one in a new way tells it so (``ipsec_operator.graph.interests_of``).

==============================  ============================================================
what                            becomes
==============================  ============================================================
IPsecPeer                       one TunnelConfig
its remoteSubnets               one policy of that tunnel, encrypt, priority 0x20000
IPsecPolicy with peerRef        one policy of that tunnel, or several (``traffic.products``)
one with template: true         one template of each tunnel that uses its group (``templates``)
a disabled one                  nothing, and no rejection
a field that is not built yet   Rejection NotYetSupported (``features``)
a peer with a fault             Rejection of the peer; its policies get PeerNotAccepted
a policy with a fault           Rejection of the policy; the tunnel goes on with the others, and
                                goes away if there were policies and none is left
==============================  ============================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from ipsec_api import features, suites
from ipsec_api.acceptance import AcceptedPeer, accept, endpoint_of, unbuilt
from ipsec_api.credentials import Fault, entries
from ipsec_api.gateways import further_endpoints, gateway_fields
from ipsec_api.peer import Dpd, IPsecPeerSpec, Profile
from ipsec_api.policy import IPsecPolicySpec, Proposal
from ipsec_api.rejection import Advice, Rejection
from ipsec_api.routed import InterfaceNames, interface_of
from ipsec_api.scalars import is_cidr, is_ip, seconds
from ipsec_api.services import required
from ipsec_api.snapshot import IPsecPolicy, ObjectMeta, Snapshot
from ipsec_api.templates import Templates, own_faults
from ipsec_api.traffic import Claim, Claims, covers, policy_pairs, products, subnet_pairs
from ipsec_api.tunnel import (
    ObjectRef,
    TunnelConfig,
    TunnelMapping,
    TunnelPolicy,
    TunnelSelector,
    TunnelTemplate,
)

#: The priority of what ``remoteSubnets`` stands for: that of an IPsecPolicy that names none.
IMPLICIT_PRIORITY: int = IPsecPolicySpec.model_fields["priority"].default


@dataclass(frozen=True, slots=True)
class CompileResult:
    """``tunnels`` by key; ``rejections`` are not in force; ``advice`` is, with a remark."""

    tunnels: list[TunnelConfig]
    rejections: list[Rejection]
    advice: list[Advice] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A policy that wants its selectors. ``field`` is where they are written."""

    metadata: ObjectMeta
    source: ObjectRef
    owner: AcceptedPeer
    spec: IPsecPolicySpec | None
    pairs: tuple[TunnelSelector, ...]
    field: str

    @property
    def priority(self) -> int:
        return IMPLICIT_PRIORITY if self.spec is None else self.spec.priority

    @property
    def rank(self) -> int:
        """Lower ones are looked at first: by priority, and what is discarded after the rest."""
        discards = self.spec is not None and self.spec.action == "discard"
        return 2 * self.priority + discards


def compile(  # noqa: A001  # the word of the design, always imported by name
    snapshot: Snapshot, *, discovered_subnets: Sequence[str] | None = None
) -> CompileResult:
    """What the gateways have to do for these resources.

    ``discovered_subnets`` are the local networks (CIDRs) for peers that name none; None where there
    is no cluster to find them in. Never raises for what is in the snapshot.
    """
    result = CompileResult([], [], [])
    for config in snapshot.mode_configs:
        if not features.MODE_CONFIG_BUILT:
            message = "ModeConfig is not built yet: delete the resource"
            result.rejections.append(Rejection(config.ref, "", "NotYetSupported", message))
    peers = accept(snapshot, result.rejections, result.advice)
    templates = Templates()
    candidates = [
        *_implicit(peers.values(), discovered_subnets, result),
        *_explicit(snapshot, peers, templates, result),
    ]
    policies: dict[tuple[str, str], list[TunnelPolicy]] = {}
    refused: set[tuple[str, str]] = set()
    rejected_peers = {(r.namespace, r.name) for r in result.rejections if r.kind == "IPsecPeer"}
    claims = Claims()
    for candidate in sorted(candidates, key=lambda c: (c.metadata.age, c.source.kind)):
        key = candidate.owner.peer.metadata.key
        # What is routed takes nothing from anybody.
        routed = candidate.spec is not None and candidate.spec.mode == "routed"
        if _claim(candidate, Claims() if routed else claims, result):
            policies.setdefault(key, []).extend(_policies(candidate))
        else:
            refused.add(key)
    for key, accepted in sorted(peers.items()):
        if key in policies or (key not in refused and key not in rejected_peers):
            patterns, remarks = templates.of(accepted.peer, partial(_pattern, accepted))
            result.advice.extend(dict.fromkeys(remarks))
            result.tunnels.append(_tunnel(accepted, policies.get(key, []), patterns))
    return result


def _implicit(
    peers: Iterable[AcceptedPeer], discovered: Sequence[str] | None, result: CompileResult
) -> list[_Candidate]:
    """What ``remoteSubnets`` of each peer stands for."""
    candidates = []
    for owner in peers:
        spec, ref = owner.peer.spec, owner.peer.ref
        if spec.remote_subnets is None:
            continue
        local = spec.local_subnets or discovered
        if not local:
            message = (
                "absent, and there is no cluster to discover it from: set localSubnets to the"
                " networks behind this gateway"
            )
            result.rejections.append(Rejection(ref, "spec.localSubnets", "Invalid", message))
            continue
        families = {":" in s for s in local}
        lonely = [r for r in spec.remote_subnets if (":" in r) not in families]
        if lonely:
            message = f"{', '.join(lonely)} has no local network of its family: set localSubnets"
            result.rejections.append(Rejection(ref, "spec.localSubnets", "Invalid", message))
            continue
        pairs = subnet_pairs(local, spec.remote_subnets)
        candidates.append(
            _Candidate(owner.peer.metadata, ref, owner, None, pairs, "spec.remoteSubnets")
        )
    return candidates


def _explicit(
    snapshot: Snapshot,
    peers: dict[tuple[str, str], AcceptedPeer],
    templates: Templates,
    result: CompileResult,
) -> list[_Candidate]:
    """The policies that have no fault of their own and whose peer is in force; templates go to
    ``templates``."""
    known = {p.metadata.key: p for p in snapshot.peers}
    names = InterfaceNames()
    candidates = []
    for policy in sorted(snapshot.policies, key=lambda p: p.metadata.age):
        if policy.spec.disabled:
            continue
        faults = unbuilt("spec", policy.spec, features.POLICY)
        if policy.spec.template:
            faults += own_faults(policy)
            if not faults:
                result.advice.extend(templates.add(policy))
        owner = None
        if policy.spec.peer_ref is not None:
            key = (policy.metadata.namespace, policy.spec.peer_ref.name)
            owner = peers.get(key)
            if key not in known:
                message = f"no IPsecPeer {'/'.join(key)}: create it, or correct the name"
                faults.append(("spec.peerRef", "RefNotFound", message))
            elif owner is None and not known[key].spec.disabled:
                message = f"IPsecPeer {'/'.join(key)} is not accepted: correct it first"
                faults.append(("spec.peerRef", "PeerNotAccepted", message))
        if owner is not None:
            faults += _algorithms(policy, owner, result)
        if owner is not None and not faults:
            faults += names.take(policy.ref, policy.spec)
        result.rejections.extend(Rejection(policy.ref, *fault) for fault in faults)
        if owner is not None and not faults:
            where = "spec.selectors" if policy.spec.selectors else "spec.srcAddress"
            pairs = policy_pairs(policy.spec)
            candidates.append(
                _Candidate(policy.metadata, policy.ref, owner, policy.spec, pairs, where)
            )
    return candidates


def _algorithms(policy: IPsecPolicy, owner: AcceptedPeer, result: CompileResult) -> list[Fault]:
    peer = owner.peer
    faults, warnings = suites.judge(
        suites.proposal_names(policy.spec.proposal or Proposal()),
        allow_insecure=peer.spec.allow_insecure,
        where=str(peer.ref),
    )
    result.advice.extend(
        Advice(policy.ref, f"spec.proposal.{f}", reason, text) for f, reason, text in warnings
    )
    return [(f"spec.proposal.{f}", reason, text) for f, reason, text in faults]


def _claim(candidate: _Candidate, claims: Claims, result: CompileResult) -> bool:
    """Take the selectors of a policy, or reject it if an older one has them.

    Between overlapping policies the priority decides. Where it is the same, what is discarded
    comes last, and between others nothing decides.
    """
    hidden: dict[str, None] = {}
    for pair in candidate.pairs:
        for claim in claims.overlapping(pair):
            ours = f"{pair.src} to {pair.dst}"
            theirs = f"{claim.selector.src} to {claim.selector.dst} of {claim.owner}"
            if claim.selector == pair:
                message = (
                    f"{ours} is the traffic of {claim.owner} already: remove it in one of the two"
                )
            elif claim.priority == candidate.rank:
                message = (
                    f"{ours} overlaps {theirs} and has the same priority: make them disjoint, or"
                    " use an IPsecPolicy with another spec.priority (lower ones are looked at"
                    " first)"
                )
            else:
                if claim.priority < candidate.rank and covers(claim.selector, pair):
                    text = f"{ours} never matches, {theirs} comes first: remove it, or set a lower"
                    hidden[f"{text} spec.priority"] = None
                elif claim.priority > candidate.rank and covers(pair, claim.selector):
                    text = f"{ours} takes all of {theirs}: remove that, or set a higher"
                    hidden[f"{text} spec.priority"] = None
                continue
            result.rejections.append(
                Rejection(candidate.source, candidate.field, "Overlap", message)
            )
            return False
    result.advice.extend(
        Advice(candidate.source, candidate.field, "Overlap", message) for message in hidden
    )
    for pair in candidate.pairs:
        claims.add(Claim(pair, candidate.rank, candidate.source))
    return True


def _policies(candidate: _Candidate) -> list[TunnelPolicy]:
    spec = candidate.spec
    profile = candidate.owner.peer.spec.profile or Profile()
    proposal = (spec.proposal if spec else None) or Proposal()
    action = spec.action if spec else "encrypt"
    level = spec.level if spec else "require"
    per_pair = spec is not None and (spec.selector_mode == "PerPair" or level == "unique")
    ah = spec is not None and "ah" in spec.ipsec_protocols
    groups = [candidate.pairs] if per_pair or action != "encrypt" else products(candidate.pairs)
    return [
        TunnelPolicy(
            source=candidate.source,
            index=index,
            priority=candidate.priority,
            action=action,
            level=level,
            tunnel=spec.tunnel if spec else True,
            protocol="ah" if ah else "esp",
            per_pair=per_pair,
            selectors=group,
            proposals=(
                suites.child_proposals(proposal, profile, ah=ah) if action == "encrypt" else ()
            ),
            lifetime=seconds(proposal.lifetime),
            lifebytes=proposal.lifebytes,
            lifepackets=proposal.lifepackets,
            replay_window=proposal.replay_window,
            interface=interface_of(candidate.source, spec),
            **(spec.model_dump(include={"dscp", "ecn", "df"}) if spec else {}),
        )
        for index, group in enumerate(groups)
    ]


def _pattern(owner: AcceptedPeer, policy: IPsecPolicy) -> list[TunnelPolicy]:
    """A template as if it were a policy of ``owner``."""
    # Each that is made from it has an SA of its own anyway, and its peer says for which selectors.
    level = "require" if policy.spec.level == "unique" else policy.spec.level
    spec = policy.spec.model_copy(update={"selector_mode": "Combined", "level": level})
    pairs = policy_pairs(spec)
    return _policies(_Candidate(policy.metadata, policy.ref, owner, spec, pairs, ""))


def _notrack(spec: IPsecPeerSpec) -> Literal["None", "Pod", "All"]:
    """The widest that any of the identities asks for: they share their policies."""
    asked = {entry.notrack for _, _, entry in entries(spec)}
    return "All" if "All" in asked else "Pod" if "Pod" in asked else "None"


def _tunnel(
    accepted: AcceptedPeer, policies: Sequence[TunnelPolicy], templates: Sequence[TunnelTemplate]
) -> TunnelConfig:
    spec = accepted.peer.spec
    profile = spec.profile or Profile()
    address = spec.address
    if address is None:
        networks: tuple[str, ...] = ("0.0.0.0/0", "::/0")
    else:
        networks = (endpoint_of(spec),) if is_cidr(address) or is_ip(address) else ()
    further = further_endpoints(spec)
    if address is not None and further:
        networks = (endpoint_of(spec), *further)
    dpd = profile.dpd or Dpd()
    return TunnelConfig(
        source=accepted.peer.ref,
        addresses=()
        if spec.passive or address is None
        else (endpoint_of(spec).partition("/")[0], *further),
        remote_networks=networks,
        port=spec.port,
        local_address=spec.local_address,
        passive=spec.passive,
        send_initial_contact=spec.send_initial_contact,
        ike_proposals=suites.ike_proposals(profile),
        ike_lifetime=seconds(profile.lifetime),
        dpd_interval=seconds(dpd.interval),
        dpd_max_failures=dpd.max_failures,
        force_encapsulation=profile.force_encapsulation,
        childless=profile.childless,
        identities=accepted.identities,
        policies=tuple(policies),
        templates=tuple(templates),
        hw_offload=spec.hw_offload,
        mtu=spec.mtu,
        tcp_mss=spec.tcp_mss,
        mappings=tuple(
            TunnelMapping(
                side="local" if m.local else "remote",
                original=m.local or m.remote or "",
                mapped=m.mapped,
            )
            for m in spec.subnet_mapping
        ),
        nat_mode=spec.nat.mode if spec.nat else "Auto",
        snat_address=spec.nat.snat_address if spec.nat else None,
        notrack=_notrack(spec),
        local_interface=spec.local_interface,
        routing_table=spec.routing.table_id if spec.routing else None,
        rule_priority=spec.routing.rule_priority if spec.routing else None,
        **gateway_fields(spec),
        routing_mark=spec.routing.routing_mark if spec.routing else None,
        connection_mark=spec.routing.connection_mark if spec.routing else None,
        metric=spec.routing.metric if spec.routing else None,
        require_ipsec=required(spec.require_ipsec),
    )
