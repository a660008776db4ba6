"""What is known of each object once an intent was made of them: for its status. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ipsec_api.rejection import Finding
from ipsec_api.tunnel import TunnelConfig
from ipsec_gateway.entries import entry_name
from ipsec_gateway.facts import Problem
from ipsec_gateway.intent import ChildOwner, Intent
from ipsec_gateway.lastgood import InForce, Key


@dataclass(slots=True)
class View:
    """What is known about the objects as they are now."""

    in_force: InForce = field(default_factory=InForce)
    tunnels: dict[Key, TunnelConfig] = field(default_factory=dict)
    problems: dict[Key, list[Problem]] = field(default_factory=dict)
    #: (peer, child, owner) of an object.
    children: dict[Key, list[tuple[str, str, ChildOwner]]] = field(default_factory=dict)
    expected: dict[str, list[str]] = field(default_factory=dict)
    reqids: dict[tuple[str, str], int] = field(default_factory=dict)
    #: IPsecPolicies whose children belong to a peer.
    policies: dict[str, set[Key]] = field(default_factory=dict)
    #: Objects that are the source of a policy in force.
    carried: set[Key] = field(default_factory=set)
    findings: dict[Key, list[Finding]] = field(default_factory=dict)
    advice: dict[Key, list[Finding]] = field(default_factory=dict)
    #: Templates in force, and the one of each (peer, template).
    templates: dict[Key, set[tuple[str, str]]] = field(default_factory=dict)
    keys: set[Key] = field(default_factory=set)
    #: Of the objects that tunnels were compiled from.
    generations: dict[Key, int] = field(default_factory=dict)


def view_of(in_force: InForce, intent: Intent) -> View:
    """Of all objects."""
    view = View(in_force)
    view.keys |= in_force.objects.keys()
    for tunnel in in_force.tunnels:
        view.tunnels[Key.ref(tunnel.source)] = tunnel
        refs = (tunnel.source, *(each.source for each in (*tunnel.policies, *tunnel.templates)))
        view.generations.update((Key.ref(ref), ref.generation) for ref in refs)
        view.carried |= {Key.ref(policy.source) for policy in tunnel.policies}
        for template in tunnel.templates:
            use = (tunnel.key, entry_name(template))
            view.templates.setdefault(Key.ref(template.source), set()).add(use)
    if not in_force.objects:
        # In a cluster there are only tunnels. A template may be in those of several gateways: the
        # operator says of it what the statuses of its peers say.
        view.keys |= view.generations.keys() - view.templates.keys()
    for problem in dict.fromkeys(intent.problems):
        view.problems.setdefault(Key.ref(problem.ref), []).append(problem)
        for peer, entry in view.templates.get(Key.ref(problem.ref), ()):
            if not in_force.objects:
                told = replace(problem, message=f"template {entry}: {problem.message}")
                namespace, _, name = peer.partition("/")
                view.problems.setdefault(Key("IPsecPeer", namespace, name), []).append(told)
    for (peer, child), owner in intent.children.items():
        key = Key.ref(owner.ref)
        view.children.setdefault(key, []).append((peer, child, owner))
        view.expected.setdefault(peer, []).append(child)
        if key.kind == "IPsecPolicy":
            view.policies.setdefault(peer, set()).add(key)
    for peer_config in intent.peers:
        for each in peer_config.children:
            view.reqids[peer_config.name, each.name] = each.reqid
    rejections = (e.rejection for e in in_force.errors)
    for finding in (*in_force.rejections, *(r for r in rejections if r is not None)):
        view.findings.setdefault(Key.ref(finding.source), []).append(finding)
        view.keys.add(Key.ref(finding.source))
    for advice in in_force.advice:
        view.advice.setdefault(Key.ref(advice.source), []).append(advice)
    return view
