"""What of a running tunnel stays when its resources have become wrong. Pure.

A typing error, or a Secret that somebody deletes, takes no tunnel down: what was rendered last
stays in force as long as the peer is there and not disabled, and the status says so. The same goes
for a single policy of a tunnel that goes on. What is deleted or disabled goes, and so does what
another resource, accepted now, has taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from ipsec_api.traffic import Claim, Claims
from ipsec_api.tunnel import TunnelConfig, TunnelPolicy, TunnelSelector
from ipsec_operator.graph import Key, key_of


def source(policy: TunnelPolicy) -> Key:
    """The object that a policy of a tunnel comes from."""
    return key_of(policy.source)


def retain(
    before: TunnelConfig,
    now: TunnelConfig | None,
    *,
    present: Collection[Key],
    rejected: Collection[Key],
    whole: bool,
    taken: Taken,
) -> TunnelConfig | None:
    """The tunnel that should be in force.

    ``before`` is what is in force, ``now`` what ``compile`` made of the peer, which exists and is
    not disabled; None if nothing of it is accepted. ``present`` are objects that exist and are not
    disabled, ``rejected`` those with a rejection. ``whole``: the peer itself is rejected, so that
    nothing can be said of its policies either. ``taken`` is the traffic that accepted tunnels
    have; what is retained is added to it.
    """
    carried = set() if now is None else {source(p) for p in now.policies}
    kept = [
        policy
        for policy in before.policies
        if (key := source(policy)) in present
        and key not in carried
        and (whole or key in rejected)
        and not taken.clash(policy)
    ]
    for policy in kept:
        taken.add(policy)
    if now is not None:
        if not kept:
            return now
        return now.model_copy(update={"policies": (*now.policies, *kept)})
    if not kept and before.policies:
        return None
    if len(kept) == len(before.policies):
        return before
    return before.model_copy(update={"policies": tuple(kept)})


@dataclass(slots=True)
class Taken:
    """The traffic that tunnels have. What two policies have at one rank, nothing decides."""

    _claims: Claims = field(default_factory=Claims)
    _ranks: dict[tuple[TunnelSelector, Key], int] = field(default_factory=dict)

    @classmethod
    def of(cls, tunnels: Iterable[TunnelConfig]) -> Taken:
        """By these tunnels."""
        taken = cls()
        for tunnel in tunnels:
            for policy in tunnel.policies:
                taken.add(policy)
        return taken

    def add(self, policy: TunnelPolicy) -> None:
        """Note the traffic of a policy; what is routed takes none."""
        if policy.interface is not None:
            return
        for selector in policy.selectors:
            self._claims.add(Claim(selector, _rank(policy), policy.source))
            self._ranks[selector, source(policy)] = _rank(policy)

    def clash(self, policy: TunnelPolicy) -> bool:
        """Somebody else has the same traffic, or some of it at the same rank."""
        return policy.interface is None and any(
            held.selector == selector
            or self._ranks[held.selector, key_of(held.owner)] == _rank(policy)
            for selector in policy.selectors
            for held in self._claims.overlapping(selector)
            if key_of(held.owner) != source(policy)
        )


def _rank(policy: TunnelPolicy) -> int:
    # What is discarded is looked at after the rest of its priority.
    return 2 * policy.priority + (policy.action == "discard")
