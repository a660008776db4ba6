"""Policies of tunnels to entries of one ordered list: which come to an SA, and where they stand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ipsec_api.tunnel import TunnelConfig, TunnelPolicy, TunnelSelector, TunnelTemplate

#: What identifies a template in the list: namespace, name and index of its policy.
Place = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """One CHILD_SA, or one entry that needs none, or one template."""

    tunnel: TunnelConfig
    policy: TunnelPolicy
    selectors: tuple[TunnelSelector, ...]
    name: str

    @property
    def key(self) -> str:
        """Unique on this gateway."""
        return f"{self.tunnel.key}/{self.name}"

    @property
    def place(self) -> Place:
        """That of a template, whichever peer uses it."""
        ref = self.policy.source
        return ref.namespace, ref.name, self.policy.index


def entry_name(policy: TunnelPolicy) -> str:
    """How the children of a policy, and what is made from a template, are named."""
    return f"{policy.source.name}-{policy.index}" if policy.index else policy.source.name


def entries(tunnel: TunnelConfig, policy: TunnelPolicy) -> list[Entry]:
    """One for each CHILD_SA of a policy."""
    name = entry_name(policy)
    if policy.per_pair or policy.level == "unique":
        return [
            Entry(tunnel, policy, (selector,), f"{name}.{number:03}")
            for number, selector in enumerate(policy.selectors)
        ]
    return [Entry(tunnel, policy, policy.selectors, name)]


def order(entry: Entry) -> tuple[int, int, str, str, int, str]:
    """By priority, then what is generated after what is configured, and what is discarded last."""
    policy, ref = entry.policy, entry.policy.source
    rank = 2 if policy.action == "discard" else int(isinstance(policy, TunnelTemplate))
    return policy.priority, rank, ref.namespace, ref.name, policy.index, entry.name


def numbered(
    configured: Iterable[Entry], templates: Iterable[Entry]
) -> tuple[list[tuple[int, Entry]], dict[Place, int]]:
    """The places of all entries, from 1, and those of templates, which peers share."""
    found: list[tuple[int, Entry]] = []
    places: dict[Place, int] = {}
    for entry in sorted((*configured, *templates), key=order):
        number = len(found) + len(places) + 1
        if isinstance(entry.policy, TunnelTemplate):
            places.setdefault(entry.place, number)
        else:
            found.append((number, entry))
    return found, places
