"""Which resources have a say in each other's fate, so that a change compiles those alone. Pure.

A *unit* is what is judged as one: an IPsecPeer with its policies, a ModeConfig, a group of
templates, a policy without a peer. ``compile`` looks across units in few ways only; units that it
could look across to are neighbours here:

- the same address and local address (two peers that could not be told apart);
- selectors that overlap, whether their policies are accepted or not;
- the same name of an interface;
- the same ModeConfig or group of templates;
- marks of their own (few peers have any, so that all of those are neighbours).

Whoever teaches ``compile`` a new way adds it to ``interests``; a test compares the verdicts on
units with those on the whole snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel

from ipsec_api.acceptance import endpoint_of
from ipsec_api.credentials import entries
from ipsec_api.peer import IPsecPeerSpec
from ipsec_api.policy import IPsecPolicySpec
from ipsec_api.routed import interface_of
from ipsec_api.traffic import Claim, Claims, policy_pairs, subnet_pairs
from ipsec_api.tunnel import ObjectRef, TunnelConfig, TunnelSelector

Token = tuple[str, ...]


class Key(NamedTuple):
    """An object, or a unit."""

    kind: str
    namespace: str
    name: str

    @classmethod
    def of(cls, kind: str, raw: Mapping[str, Any]) -> Key:
        """The key of an object, whose kind it need not say."""
        metadata = raw.get("metadata") or {}
        return cls(kind, str(metadata.get("namespace", "")), str(metadata.get("name", "")))

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Interests:
    """What a unit wants: things that one can have, shared things, and traffic."""

    tokens: frozenset[Token] = frozenset()
    selectors: frozenset[TunnelSelector] = frozenset()


@dataclass(slots=True)
class Graph:
    """The units by their interests; neighbours are found without a walk over all of them."""

    _units: dict[Key, Interests] = field(default_factory=dict)
    _tokens: dict[Token, set[Key]] = field(default_factory=dict)
    _claims: Claims = field(default_factory=Claims)

    def update(self, unit: Key, interests: Interests | None) -> set[Key]:
        """The unit has these interests now, or is gone. Returns who is concerned: its neighbours
        before and after, and itself."""
        old = self._units.get(unit)
        if old == interests:
            return set()
        concerned = {unit} | self.neighbours(unit)
        if old is not None:
            for token in old.tokens:
                owners = self._tokens[token]
                owners.discard(unit)
                if not owners:
                    del self._tokens[token]
            for selector in old.selectors:
                self._claims.remove(_claim(selector, unit))
            del self._units[unit]
        if interests is not None:
            self._units[unit] = interests
            for token in interests.tokens:
                self._tokens.setdefault(token, set()).add(unit)
            for selector in interests.selectors:
                self._claims.add(_claim(selector, unit))
            concerned |= self.neighbours(unit)
        return concerned

    def sharing(self, token: Token) -> frozenset[Key]:
        """Units that have this interest."""
        return frozenset(self._tokens.get(token, ()))

    def neighbours(self, unit: Key) -> set[Key]:
        """Units that share an interest with this one, without itself."""
        interests = self._units.get(unit)
        if interests is None:
            return set()
        found: set[Key] = set()
        for token in interests.tokens:
            found |= self._tokens[token]
        for selector in interests.selectors:
            for claim in self._claims.overlapping(selector):
                found.add(key_of(claim.owner))
        found.discard(unit)
        return found

    def component(self, unit: Key) -> set[Key]:
        """All units that are linked to this one, over others too, and itself."""
        found = {unit}
        pending = [unit]
        while pending:
            for other in self.neighbours(pending.pop()) - found:
                found.add(other)
                pending.append(other)
        return found


def _claim(selector: TunnelSelector, unit: Key) -> Claim:
    # The kind of an ObjectRef is one of ours; a unit of another kind has no selectors.
    owner = ObjectRef.model_construct(
        kind=unit.kind,
        namespace=unit.namespace,
        name=unit.name,
        uid="",
        generation=0,
    )
    return Claim(selector, 0, owner)


def key_of(ref: ObjectRef) -> Key:
    """The object that a reference means."""
    return Key(ref.kind, ref.namespace, ref.name)


def endpoint(spec: IPsecPeerSpec) -> Token:
    """Where a peer is and what we are for it, in one spelling."""
    return ("endpoint", endpoint_of(spec), spec.local_address or "")


def compiled_endpoint(config: TunnelConfig) -> Token:
    """The same of a tunnel that was compiled."""
    networks = config.remote_networks
    if len(networks) == 1:
        place = networks[0]
    elif networks:
        place = "anywhere"
    else:
        place = config.addresses[0] if config.addresses else ""
    return ("endpoint", place, config.local_address or "")


def interests_of(
    namespace: str,
    peer: IPsecPeerSpec | None,
    policies: Iterable[tuple[ObjectRef, IPsecPolicySpec]],
    local: Iterable[str],
) -> Interests:
    """Of an IPsecPeer with its policies. ``local`` are the networks of the cluster."""
    tokens: set[Token] = set()
    selectors: set[TunnelSelector] = set()
    if peer is not None:
        tokens.add(endpoint(peer))
        routing = peer.routing
        if routing is not None and (routing.routing_mark or routing.connection_mark):
            tokens.add(("mark",))
        for _, _, entry in entries(peer):
            if entry.mode_config_ref is not None:
                tokens.add(("ModeConfig", namespace, entry.mode_config_ref.name))
            if entry.policy_template_group is not None:
                tokens.add(("group", namespace, entry.policy_template_group))
        selectors |= set(subnet_pairs(peer.local_subnets or local, peer.remote_subnets or ()))
    for ref, spec in policies:
        interface = interface_of(ref, spec)
        if interface is not None:
            # What is routed takes no traffic from anybody, but its interface has a name.
            tokens.add(("interface", interface.name))
        elif not spec.template:
            selectors |= set(policy_pairs(spec))
    return Interests(frozenset(tokens), frozenset(selectors))


def references(namespace: str, part: BaseModel) -> Iterator[Key]:
    """Objects that a spec refers to, at any depth, but for IPsecPeers."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        if name in ("secret_ref", "certificate_ref") and value is not None:
            yield Key("Secret", namespace, value.name)
        elif name == "trust_bundle_ref" and value is not None:
            yield Key(value.kind, namespace, value.name)
        elif name == "mode_config_ref" and value is not None:
            yield Key("ModeConfig", namespace, value.name)
        elif isinstance(value, BaseModel):
            yield from references(namespace, value)
        elif isinstance(value, tuple):
            for entry in value:
                if isinstance(entry, BaseModel):
                    yield from references(namespace, entry)
