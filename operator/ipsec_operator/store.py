"""All that the operator knows, and what of it has to be looked at again. Pure: no clock, no I/O.

What the watches see goes in; ``mark`` is told what there is to do: judge, sync a tunnel, sync a
status, fetch the data of a Secret. A change is judged with what it has to do with (``graph``) and
with nothing else, so that one change among thousands costs as much as one among ten.

Of Secrets a digest is kept, and the data of those alone that a resource refers to; those of the
last seconds besides, since a Secret often comes just before what refers to it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ipsec_api.documents import InvalidObject, parse_object
from ipsec_api.kinds import KINDS
from ipsec_api.rejection import Finding, Rejection
from ipsec_api.snapshot import IPsecPeer, IPsecPolicy, ModeConfig, ObjectMeta, Secret
from ipsec_api.templates import algorithm_faults, groups
from ipsec_api.tunnel import ObjectRef
from ipsec_operator.graph import Graph, Interests, Key, compiled_endpoint, interests_of, references
from ipsec_operator.judge import Document, Judgement, Members, judge
from ipsec_operator.networks import ClusterNetworks
from ipsec_operator.tunnels import Tunnel

#: ``template``: a status that can wait for what more gateways say.
Work = Literal["judge", "tunnel", "status", "template", "fetch"]
Mark = Callable[[Work, Key], None]

#: The one key of the work "judge".
EVERYTHING: Final = Key("", "", "")
_KINDS: Final = frozenset(kind.name for kind in KINDS)


@dataclass(frozen=True, slots=True)
class Resource:
    """An IPsecPeer, IPsecPolicy or ModeConfig as it is in the cluster."""

    key: Key
    ref: ObjectRef
    version: str
    #: None where it does not follow the schema.
    document: Document | None
    faults: tuple[Rejection, ...]
    disabled: bool
    #: ``status`` as it is, with the fields of other writers.
    status: Mapping[str, Any]
    #: What it is judged with.
    unit: Key


@dataclass(slots=True)
class _Data:
    """A Secret or ConfigMap. ``data`` is None as long as nobody has asked for it."""

    version: str
    digest: bytes
    data: dict[str, bytes] | None = field(default=None, repr=False)


#: Secrets of the last seconds that are kept besides, octets and number.
_WARM_SIZE: Final = 4096
_WARM: Final = 4096


class Store:
    """The state. ``mark`` is called with what has to be done, as often as it turns up."""

    def __init__(self, mark: Mark) -> None:
        self._mark = mark
        self.resources: dict[Key, Resource] = {}
        #: Tunnel Secrets in the cluster, by the peer, and those that should be there.
        self.present: dict[Key, Tunnel] = {}
        self.wanted: dict[Key, Tunnel] = {}
        self.rejections: dict[Key, tuple[Rejection, ...]] = {}
        self.advice: dict[Key, tuple[Finding, ...]] = {}
        self.held: set[Key] = set()
        #: Objects that have been judged at least once.
        self.judged: set[Key] = set()
        self.networks = ClusterNetworks()
        self._names: dict[str, Key] = {}
        self._graph = Graph()
        self._members: dict[Key, set[Key]] = {}
        self._data: dict[Key, _Data] = {}
        #: Data that nobody refers to: new since the last ``cool``, and before that.
        self._warm: tuple[set[Key], set[Key]] = (set(), set())
        self._refers: dict[Key, frozenset[Key]] = {}
        self._users: dict[Key, set[Key]] = {}
        self._dirty: dict[Key, None] = {}

    # -- what the watches see

    def put_resource(self, raw: Mapping[str, Any]) -> None:
        """An object of ours is new, or has changed."""
        if self._knows(raw):
            return
        new = _resource(raw, self.resources)
        if new is None:
            return
        old = self.resources.get(new.key)
        if old is not None and older(new.version, old.version):
            return
        self.resources[new.key] = new
        if old is not None and old.document is new.document and old.faults == new.faults:
            self._mark("status", new.key)
            self._mark_templates(new)
            return
        if old is not None and old.unit != new.unit:
            self._leave(old)
        self._members.setdefault(new.unit, set()).add(new.key)
        self._soil(new.unit)
        self._reindex(new.unit)
        self._mark("status", new.key)

    def users(self, template: Key) -> tuple[Resource, ...]:
        """Peers that are in force, as they are or as they were, and have this template, by name."""
        document = self.resources[template].document
        if not isinstance(document, IPsecPolicy):
            return ()
        group = document.spec.group
        units = self._graph.sharing(("group", template.namespace, group))
        return tuple(
            found
            for unit in sorted(units)
            if (found := self.resources.get(unit)) is not None
            and isinstance(found.document, IPsecPeer)
            and not found.disabled
            and (unit in self.held or not self.rejections.get(unit))
            and group in groups(found.document.spec)
            and not algorithm_faults(document, found.document)[0]
        )

    def _mark_templates(self, peer: Resource) -> None:
        """What gateways say of a peer is part of what there is to say of its templates."""
        if isinstance(peer.document, IPsecPeer):
            for group in groups(peer.document.spec):
                unit = Key("TemplateGroup", peer.key.namespace, group)
                for key in self._members.get(unit, ()):
                    self._mark("template", key)

    def _knows(self, raw: Mapping[str, Any]) -> bool:
        """Whether this very version was seen before: each of our own writes comes back."""
        held = self.resources.get(Key.of(str(raw.get("kind")), raw))
        version = (raw.get("metadata") or {}).get("resourceVersion")
        return held is not None and bool(held.version) and held.version == version

    def drop_resource(self, key: Key) -> None:
        """An object of ours is gone."""
        old = self.resources.pop(key, None)
        if old is not None:
            self._leave(old)
            for known in (self.rejections, self.advice):
                known.pop(key, None)
            self.held.discard(key)
            self.judged.discard(key)

    def put_data(self, kind: Literal["Secret", "ConfigMap"], raw: Mapping[str, Any]) -> None:
        """A Secret or ConfigMap is new, or has changed, or was fetched."""
        metadata = raw.get("metadata") or {}
        key = Key.of(kind, raw)
        version = str(metadata.get("resourceVersion", ""))
        old = self._data.get(key)
        if old is not None and older(version, old.version):
            return
        data = _octets(raw)
        found = _digest(data)
        users = self._users.get(key)
        same = old is not None and old.digest == found and (old.data is not None or not users)
        warm = sum(map(len, data.values())) <= _WARM_SIZE and len(self._warm[0]) < _WARM
        self._data[key] = _Data(version, found, data if users or warm else None)
        if warm and not users:
            self._warm[0].add(key)
        if not same:
            for unit in users or ():
                self._soil(unit)

    def cool(self) -> None:
        """Some time has passed: let go of data that nobody has referred to since the last call."""
        for key in self._warm[1] - self._warm[0]:
            held = self._data.get(key)
            if held is not None and key not in self._users:
                held.data = None
        self._warm = (set(), self._warm[0])

    def drop_data(self, key: Key) -> None:
        """A Secret or ConfigMap is gone."""
        if self._data.pop(key, None) is not None:
            for unit in self._users.get(key, ()):
                self._soil(unit)

    def put_tunnel(self, tunnel: Tunnel) -> None:
        """A tunnel Secret is in the cluster, as we have written it or otherwise."""
        old = self.present.get(tunnel.unit)
        if old is not None and older(tunnel.version, old.version):
            return
        self.present[tunnel.unit] = tunnel
        self._names[tunnel.name] = tunnel.unit
        wanted = self.wanted.get(tunnel.unit)
        if wanted is None or wanted.digest != tunnel.digest:
            # What is in force may have to stay, so it counts as an interest.
            self._reindex(tunnel.unit)
            self._mark("tunnel", tunnel.unit)

    def drop_tunnel(self, name: str) -> None:
        """A tunnel Secret of this name is gone."""
        unit = self._names.pop(name, None)
        if unit is not None:
            del self.present[unit]
            self._mark("tunnel", unit)
            self._reindex(unit)

    def set_networks(self, networks: ClusterNetworks) -> None:
        """The networks of the cluster are these."""
        if networks == self.networks:
            return
        self.networks = networks
        for unit in list(self._members):
            self._reindex(unit)
            self._soil(unit)

    # -- judging

    @property
    def clean(self) -> bool:
        """Nothing waits to be judged."""
        return not self._dirty

    def judge_some(self, limit: int) -> None:
        """Judge what has changed, up to about this many units; the rest stays to be done."""
        done = 0
        while self._dirty and done < limit:
            unit = next(iter(self._dirty))
            component = self._graph.component(unit)
            for each in component:
                self._dirty.pop(each, None)
            done += len(component)
            lacking = {r for u in component for r in self._lacking(u)}
            for key in lacking:
                self._mark("fetch", key)
            if not lacking:
                self._judge(component)

    def lacks(self, key: Key) -> bool:
        """Whether the data of a Secret that is there has to be fetched."""
        held = self._data.get(key)
        return held is not None and held.data is None and bool(self._users.get(key))

    def _lacking(self, unit: Key) -> list[Key]:
        return [key for key in self._refers.get(unit, ()) if self.lacks(key)]

    def _judge(self, component: set[Key]) -> None:
        keys = {key for unit in component for key in self._members.get(unit, ())}
        documents = tuple(
            d for key in sorted(keys) if (d := self.resources[key].document) is not None
        )
        invalid = {k: r.faults for k in keys if (r := self.resources[k]).document is None}
        members = Members(
            documents=documents,
            invalid=invalid,
            invalid_disabled=frozenset(k for k in invalid if self.resources[k].disabled),
            secrets=self._secrets(component),
        )
        in_force = {u: t for u in component if (t := self.present.get(u)) is not None}
        result = judge(members, self.networks, in_force)
        for unit in component:
            self._take(unit, result)
        held = {key for key in keys if key in self.held}
        for key in keys:
            self._note(key, result)
        for unit in {self.resources[key].unit for key in held ^ result.held}:
            # What stays in force against the resources counts as an interest.
            self._reindex(unit)

    def settled(self, unit: Key) -> bool:
        """Whether what is wanted of a unit is the last word."""
        return unit not in self._dirty

    def _take(self, unit: Key, result: Judgement) -> None:
        wanted = result.tunnels.get(unit)
        present = self.present.get(unit)
        if wanted is None:
            self.wanted.pop(unit, None)
        else:
            self.wanted[unit] = wanted
        if (wanted and wanted.digest) != (present and present.digest):
            self._mark("tunnel", unit)

    def _note(self, key: Key, result: Judgement) -> None:
        _set(self.rejections, key, result.rejections.get(key))
        _set(self.advice, key, result.advice.get(key))
        if key in result.held:
            self.held.add(key)
        else:
            self.held.discard(key)
        self.judged.add(key)
        self._mark("status", key)

    def _secrets(self, component: set[Key]) -> tuple[Secret, ...]:
        keys = {key for unit in component for key in self._refers.get(unit, ())}
        return tuple(
            Secret(ObjectMeta(name=key.name, namespace=key.namespace), held.data)
            for key in sorted(keys)
            if key.kind == "Secret"
            and (held := self._data.get(key)) is not None
            and held.data is not None
        )

    # -- indexes

    def _leave(self, resource: Resource) -> None:
        unit = resource.unit
        members = self._members.get(unit)
        if members is not None:
            members.discard(resource.key)
            if not members:
                del self._members[unit]
        self._soil(unit)
        self._reindex(unit)

    def _reindex(self, unit: Key) -> None:
        """Interests and references of a unit, from what it consists of now."""
        members = [self.resources[key] for key in sorted(self._members.get(unit, ()))]
        documents = [r.document for r in members if r.document is not None]
        refers = frozenset(
            key for d in documents for key in references(d.metadata.namespace, d.spec)
        )
        for key in self._refers.get(unit, frozenset()) - refers:
            users = self._users[key]
            users.discard(unit)
            if not users:
                del self._users[key]
                if key in self._data:
                    self._data[key].data = None
        for key in refers:
            self._users.setdefault(key, set()).add(unit)
        _set(self._refers, unit, refers or None)
        concerned = self._graph.update(unit, self._interests(unit, documents))
        for other in concerned:
            self._soil(other)

    def _interests(self, unit: Key, documents: list[Document]) -> Interests | None:
        present, wanted = self.present.get(unit), self.wanted.get(unit)
        if unit.kind == "ModeConfig":
            return Interests(frozenset({("ModeConfig", *unit[1:])})) if documents else None
        if unit.kind == "TemplateGroup":
            return Interests(frozenset({("group", *unit[1:])})) if documents else None
        if not documents and present is None:
            return None
        peer = next((d.spec for d in documents if isinstance(d, IPsecPeer)), None)
        policies = [(d.ref, d.spec) for d in documents if isinstance(d, IPsecPolicy)]
        interests = interests_of(unit.namespace, peer, policies, self.networks.local)
        rendered = present is None or (wanted is not None and wanted.digest == present.digest)
        if rendered and not any(key in self.held for key in self._members.get(unit, ())):
            return interests
        config = present.config() if present is not None else None
        if config is None:
            return interests
        return Interests(
            interests.tokens | {compiled_endpoint(config)},
            interests.selectors | (present.selectors() if present is not None else frozenset()),
        )

    def _soil(self, unit: Key) -> None:
        self._dirty[unit] = None
        self._mark("judge", EVERYTHING)


def _resource(raw: Mapping[str, Any], known: Mapping[Key, Resource]) -> Resource | None:
    kind, metadata = str(raw.get("kind", "")), raw.get("metadata") or {}
    key = Key.of(kind, raw)
    if kind not in _KINDS or not key.name:
        return None
    generation = metadata.get("generation")
    ref = ObjectRef.model_validate(
        {
            "kind": kind,
            "namespace": key.namespace,
            "name": key.name,
            "uid": str(metadata.get("uid", "")),
            "generation": generation if isinstance(generation, int) else 0,
        }
    )
    old = known.get(key)
    document: Document | None = None
    faults: tuple[Rejection, ...] = ()
    if old is not None and old.ref == ref and ref.uid and ref.generation:
        # The API server counts every change of the spec: only the status is another.
        document, faults, disabled = old.document, old.faults, old.disabled
    else:
        disabled = (raw.get("spec") or {}).get("disabled") is True
        try:
            # Half of the object, and nobody here reads it.
            read = {k: v for k, v in metadata.items() if k != "managedFields"}
            parsed = parse_object({**raw, "metadata": read})
        except InvalidObject as exc:
            faults = tuple(Rejection(ref, f, "Invalid", text) for f, text in exc.faults)
        else:
            if isinstance(parsed, IPsecPeer | IPsecPolicy | ModeConfig):
                document = parsed
    status = raw.get("status")
    return Resource(
        key=key,
        ref=ref,
        version=str(metadata.get("resourceVersion", "")),
        document=document,
        faults=faults,
        disabled=disabled,
        status=status if isinstance(status, Mapping) else {},
        unit=_unit(key, raw.get("spec")),
    )


def _unit(key: Key, spec: object) -> Key:
    """From the raw spec: a policy that does not follow the schema is still one of its peer."""
    if key.kind != "IPsecPolicy" or not isinstance(spec, Mapping):
        return key
    if spec.get("template") is True:
        return Key("TemplateGroup", key.namespace, str(spec.get("group", "default")))
    peer = spec.get("peerRef")
    if isinstance(peer, Mapping) and isinstance(peer.get("name"), str):
        return Key("IPsecPeer", key.namespace, peer["name"])
    return key


def older(version: str, than: str) -> bool:
    """Whether an object's resourceVersion is one that we are past already.

    They are compared where they are numbers, as those of every API server on etcd are.
    """
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)


def _octets(raw: Mapping[str, Any]) -> dict[str, bytes]:
    """The data of a Secret or ConfigMap; what cannot be decoded is as good as absent."""
    result: dict[str, bytes] = {}
    encoded = raw.get("kind") != "ConfigMap"
    for part, plain in (("data", not encoded), ("binaryData", False), ("stringData", True)):
        for name, value in (raw.get(part) or {}).items():
            try:
                octets = str(value).encode() if plain else base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError, TypeError):
                continue
            result[name] = octets
    return result


def _digest(data: Mapping[str, bytes]) -> bytes:
    text = json.dumps({k: hashlib.blake2b(v).hexdigest() for k, v in sorted(data.items())})
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _set(mapping: dict[Key, Any], key: Key, value: object) -> None:
    if value is None:
        mapping.pop(key, None)
    else:
        mapping[key] = value
