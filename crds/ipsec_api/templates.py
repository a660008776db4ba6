"""Policy templates: IPsecPolicies with ``template: true``, and what a peer gets of them.

A template belongs to a group of its namespace; an identity with ``generatePolicy`` names the group
whose templates its peers may ask within. A template is compiled for each peer, since its algorithms
may need ``allowInsecure`` there and its PFS groups may be those of the peer's profile: a peer that
cannot have it goes without, and the template says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ipsec_api import suites
from ipsec_api.credentials import Fault, entries
from ipsec_api.peer import IPsecPeerSpec
from ipsec_api.policy import Proposal
from ipsec_api.rejection import Advice
from ipsec_api.scalars import network
from ipsec_api.snapshot import IPsecPeer, IPsecPolicy
from ipsec_api.traffic import policy_pairs
from ipsec_api.tunnel import TunnelPolicy, TunnelTemplate

Build = Callable[[IPsecPolicy], list[TunnelPolicy]]


def own_faults(policy: IPsecPolicy) -> list[Fault]:
    """What is wrong with a template whoever uses it."""
    names = suites.proposal_names(policy.spec.proposal or Proposal())
    faults, _ = suites.judge(names, allow_insecure=True, where="")
    return [(f"spec.proposal.{f}", reason, text) for f, reason, text in faults]


def groups(spec: IPsecPeerSpec) -> frozenset[str]:
    """Groups whose templates the peer may ask within."""
    return frozenset(
        entry.policy_template_group
        for _, _, entry in entries(spec)
        if entry.generate_policy != "no" and entry.policy_template_group is not None
    )


def algorithm_faults(policy: IPsecPolicy, peer: IPsecPeer) -> tuple[list[Fault], list[Fault]]:
    """Why ``peer`` cannot have a template of a group that it uses, and goes without it; and what is
    to be said to who has it."""
    faults, warnings = suites.judge(
        suites.proposal_names(policy.spec.proposal or Proposal()),
        allow_insecure=peer.spec.allow_insecure,
        where=str(peer.ref),
    )
    return (
        [(f"spec.proposal.{f}", reason, text) for f, reason, text in faults],
        [(f"spec.proposal.{f}", reason, text) for f, reason, text in warnings],
    )


def unused(group: str) -> str:
    """Why a template is not in force that nobody may ask within, and what helps."""
    return (
        f"no accepted peer of group {group} has it: set generatePolicy and policyTemplateGroup:"
        f" {group} on an identity of an IPsecPeer; Accepted names those that go without it"
    )


def peer_faults(spec: IPsecPeerSpec) -> list[Fault]:
    """What a peer cannot have along with generated policies."""
    translated = spec.subnet_mapping or (spec.nat and spec.nat.mode in ("SNAT", "Masquerade"))
    if not translated:
        return []
    message = (
        "this is not built yet along with subnetMapping and nat.mode SNAT or Masquerade: remove"
        " those, or name the traffic in a policy"
    )
    return [
        (f"{where}.generatePolicy", "NotYetSupported", message)
        for _, where, entry in entries(spec)
        if entry.generate_policy != "no"
    ]


@dataclass(slots=True)
class Templates:
    """All accepted templates by namespace and group, oldest first."""

    _groups: dict[tuple[str, str], list[IPsecPolicy]] = field(default_factory=dict)

    def add(self, policy: IPsecPolicy) -> list[Advice]:
        """Take a template in; gives what its owner should know."""
        key = policy.metadata.namespace, policy.spec.group
        self._groups.setdefault(key, []).append(policy)
        return _remarks(policy)

    def of(self, peer: IPsecPeer, build: Build) -> tuple[list[TunnelTemplate], list[Advice]]:
        """What the identities of ``peer`` may ask within, and what is to be said about it.

        ``build`` makes policies of a template as if it were one of the peer's.
        """
        found: dict[str, list[TunnelTemplate]] = {}
        advice: list[Advice] = []
        for _, where, entry in entries(peer.spec):
            group = entry.policy_template_group
            if group is None or group in found:
                continue
            members = self._groups.get((peer.metadata.namespace, group), ())
            if not members:
                message = (
                    f"no template of group {group} in namespace {peer.metadata.namespace}: create"
                    f" an IPsecPolicy with template: true and group: {group}"
                )
                advice.append(
                    Advice(peer.ref, f"{where}.policyTemplateGroup", "RefNotFound", message)
                )
            found[group] = []
            for policy in members:
                found[group] += _compiled(policy, peer, build, advice)
        return [each for group in found.values() for each in group], advice


def _remarks(policy: IPsecPolicy) -> list[Advice]:
    remarks = []
    spec = policy.spec
    if any(network(pair.dst).prefixlen == 0 for pair in policy_pairs(spec)):
        message = (
            "whoever has the credentials may claim any remote network that nobody else has: name"
            " the networks that the peers may have"
        )
        where = "spec.selectors" if spec.selectors else "spec.dstAddress"
        remarks.append(Advice(policy.ref, where, "Overlap", message))
    if spec.selector_mode == "PerPair":
        message = "a template leaves it to the peer which selectors share an SA: remove it"
        remarks.append(Advice(policy.ref, "spec.selectorMode", "Ignored", message))
    return remarks


def _compiled(
    policy: IPsecPolicy, peer: IPsecPeer, build: Build, advice: list[Advice]
) -> Iterable[TunnelTemplate]:
    spec = policy.spec
    faults, warnings = algorithm_faults(policy, peer)
    advice += [Advice(policy.ref, *warning) for warning in warnings]
    if faults:
        advice += [
            Advice(policy.ref, where, reason, f"{peer.ref} goes without it: {text}")
            for where, reason, text in faults
        ]
        return []
    return [
        TunnelTemplate(**dict(each), group=spec.group, default_route=spec.allow_default_route)
        for each in build(policy)
    ]
