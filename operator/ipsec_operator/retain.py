"""What of a running tunnel stays when its resources have become wrong. Pure.

A typing error, or a Secret that somebody deletes, takes no tunnel down: what was rendered last
stays in force as long as the peer is there and not disabled, and the status says so. The same goes
for a single policy of a tunnel that goes on. What is deleted or disabled goes, and so does what
another resource, accepted now, has taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ipsec_api.traffic import Claim, Claims
from ipsec_api.tunnel import TunnelConfig, TunnelPolicy
from ipsec_operator.graph import Key


def source(policy: TunnelPolicy) -> Key:
    """The object that a policy of a tunnel comes from."""
    return Key(policy.source.kind, policy.source.namespace, policy.source.name)


def retain(
    before: TunnelConfig,
    now: TunnelConfig | None,
    *,
    present: Collection[Key],
    rejected: Collection[Key],
    claims: Claims,
) -> TunnelConfig | None:
    """The tunnel that should be in force.

    ``before`` is what is in force, ``now`` what ``compile`` made of the peer, which exists and is
    not disabled; None if it was rejected. ``present`` are objects that exist and are not disabled,
    ``rejected`` those with a rejection, ``claims`` the traffic that accepted tunnels have. What is
    retained is added to ``claims``.
    """
    carried = set() if now is None else {source(p) for p in now.policies}
    kept = [
        policy
        for policy in before.policies
        if (key := source(policy)) in present
        and key not in carried
        and (now is None or key in rejected)
        and not _taken(policy, claims)
    ]
    for policy in kept:
        claim(policy, claims)
    if now is not None:
        if not kept:
            return now
        return now.model_copy(update={"policies": (*now.policies, *kept)})
    if not kept and before.policies:
        return None
    if len(kept) == len(before.policies):
        return before
    return before.model_copy(update={"policies": tuple(kept)})


def claims_of(tunnels: Iterable[TunnelConfig]) -> Claims:
    """The traffic that these tunnels take."""
    claims = Claims()
    for tunnel in tunnels:
        for policy in tunnel.policies:
            claim(policy, claims)
    return claims


def claim(policy: TunnelPolicy, claims: Claims) -> None:
    """Note the traffic of a policy."""
    for selector in policy.selectors:
        claims.add(Claim(selector, policy.priority, policy.source))


def _taken(policy: TunnelPolicy, claims: Claims) -> bool:
    """Somebody else has the same traffic, or some of it at the same priority."""
    return any(
        claimed.selector == selector or claimed.priority == policy.priority
        for selector in policy.selectors
        for claimed in claims.overlapping(selector)
        if claimed.owner != policy.source
    )
