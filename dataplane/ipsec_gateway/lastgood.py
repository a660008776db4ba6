"""What is in force when some documents are bad: the good ones, and of the bad ones what was good.

A document that becomes bad keeps its last good version in force, so that a typing error takes no
tunnel down; its status says so. A document that is deleted takes its object away. That needs a
memory: of the objects that were in force, of the files that they came from, and of the tunnels that
they came to. The next life of the gateway can begin with it (``keepsake``), but for a tunnel that
outlived one of its objects: that one ends with the life that saw it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ipsec_api.compile import CompileResult
from ipsec_api.compile import compile as compile_snapshot
from ipsec_api.documents import (
    Document,
    DocumentError,
    Documents,
    DocumentWarning,
    snapshot_of,
)
from ipsec_api.rejection import Advice, Rejection
from ipsec_api.snapshot import IPsecPeer, Secret
from ipsec_api.tunnel import ObjectRef, TunnelConfig


class Key(NamedTuple):
    """What finds an object."""

    kind: str
    namespace: str
    name: str

    @classmethod
    def of(cls, item: Document) -> Key:
        """The key of a document."""
        return cls(type(item).__name__, item.metadata.namespace, item.metadata.name)

    @classmethod
    def ref(cls, ref: ObjectRef) -> Key:
        """The key of a reference."""
        return cls(ref.kind, ref.namespace, ref.name)


@dataclass(frozen=True, slots=True)
class InForce:
    """What this gateway is to do, and what it has to say about the documents."""

    #: Objects in force or not, without Secrets; the newest good version of each.
    objects: Mapping[Key, Document] = field(default_factory=dict)
    tunnels: tuple[TunnelConfig, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    advice: tuple[Advice, ...] = ()
    errors: tuple[DocumentError, ...] = ()
    warnings: tuple[DocumentWarning, ...] = ()
    #: Objects of which an earlier version is in force, because the present one is bad.
    held: frozenset[Key] = frozenset()
    #: Tunnels of other gateways, which this one may have to take over.
    standby: tuple[TunnelConfig, ...] = ()


class LastGood:
    """The memory. One instance follows one source."""

    def __init__(self) -> None:
        self._objects: dict[Key, Document] = {}
        self._files: dict[Key, str] = {}
        self._tunnels: dict[Key, TunnelConfig] = {}

    def remember(self, files: Mapping[str, Documents]) -> None:
        """Begin with what was in force in an earlier life; before the first ``take``."""
        found, places, _ = _merge(files)
        result = _compile(found)
        self._remember(found, places, result, {Key.ref(t.source): t for t in result.tunnels})

    def in_force(self) -> dict[str, list[Document]]:
        """What ``remember`` takes: the objects in force by file, Secrets included."""
        files: dict[str, list[Document]] = {}
        for key, item in self._objects.items():
            files.setdefault(self._files.get(key, ""), []).append(item)
        return files

    def take(self, files: Mapping[str, Documents]) -> InForce:
        """What is in force with these files, given what was before."""
        found, places, errors = _merge(files)
        held = {
            key: item
            for key, item in self._objects.items()
            if key not in found and self._is_broken(key, errors)
        }
        wanted = {**found, **held}
        result = _compile(wanted)
        reported = list(result.rejections)
        # Of objects that were good in another version, take that one.
        older = {
            key: self._objects[key]
            for key in (Key.ref(r.source) for r in result.rejections)
            if key in self._objects and self._objects[key] != wanted.get(key)
        }
        if older:
            held.update(older)
            wanted.update(older)
            result = _compile(wanted)
            known = set(map(str, reported))
            reported += [r for r in result.rejections if str(r) not in known]
        tunnels = {Key.ref(t.source): t for t in result.tunnels}
        for key, tunnel in self._tunnels.items():
            if key not in tunnels and self._stays(key, wanted, result):
                tunnels[key] = tunnel
                held[key] = self._objects.get(key, wanted[key])
        reported = [r for r in reported if not _carried(r, tunnels)]
        self._remember(wanted, places, result, tunnels)
        return InForce(
            objects={k: v for k, v in wanted.items() if not isinstance(v, Secret)},
            tunnels=tuple(tunnels.values()),
            rejections=tuple(reported),
            advice=tuple(result.advice),
            errors=errors,
            warnings=tuple(w for _, d in sorted(files.items()) for w in d.warnings),
            held=frozenset(held),
        )

    def _is_broken(self, key: Key, errors: tuple[DocumentError, ...]) -> bool:
        """Its document is there and bad, or its file as a whole is.

        A document without a name that can be read might be any object of its file; an error
        without a file is one of the folder.
        """
        return any(
            (e.kind, e.namespace, e.name) == key
            or (not e.name and e.file in (self._files.get(key), ""))
            for e in errors
        )

    @staticmethod
    def _stays(key: Key, wanted: Mapping[Key, Document], result: CompileResult) -> bool:
        """A peer that is still wanted, but cannot be compiled even in its last good version, such
        as for a Secret that is gone, keeps what it has."""
        peer = wanted.get(key)
        return (
            isinstance(peer, IPsecPeer)
            and not peer.spec.disabled
            and any(Key.ref(r.source) == key for r in result.rejections)
        )

    def _remember(
        self,
        wanted: Mapping[Key, Document],
        places: Mapping[Key, str],
        result: CompileResult,
        tunnels: Mapping[Key, TunnelConfig],
    ) -> None:
        rejected = {Key.ref(r.source) for r in result.rejections}
        self._objects = {
            key: self._objects[key] if key in rejected else item
            for key, item in wanted.items()
            if key not in rejected or key in self._objects
        }
        self._files = {key: places.get(key, self._files.get(key, "")) for key in wanted}
        self._tunnels = dict(tunnels)


def _merge(
    files: Mapping[str, Documents],
) -> tuple[dict[Key, Document], dict[Key, str], tuple[DocumentError, ...]]:
    """All objects; of one that occurs twice the first, in order of file names."""
    found: dict[Key, Document] = {}
    places: dict[Key, str] = {}
    errors: list[DocumentError] = []
    for file, documents in sorted(files.items()):
        errors += documents.errors
        for item in documents.objects:
            key = Key.of(item)
            if key in found:
                message = f"the same object is in {places[key]} already: remove one of the two"
                errors.append(DocumentError(file, 0, *key, "", message))
            else:
                found[key], places[key] = item, file
    return found, places, tuple(errors)


def _compile(objects: Mapping[Key, Document]) -> CompileResult:
    return compile_snapshot(snapshot_of(objects.values()))


def _carried(rejection: Rejection, tunnels: Mapping[Key, TunnelConfig]) -> bool:
    """A policy whose peer "is not accepted", while a kept tunnel carries it all the same."""
    return rejection.reason == "PeerNotAccepted" and any(
        policy.source == rejection.source
        for tunnel in tunnels.values()
        for policy in tunnel.policies
    )
