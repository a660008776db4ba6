"""YAML documents to typed objects: the same text that ``kubectl apply`` takes.

Nothing of a value is ever repeated in an error, since any value may be a secret that landed in the
wrong
place: errors name the file, the document, the object and the field, and say what is expected.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import yaml
from pydantic import ValidationError

from ipsec_api.explain import faults
from ipsec_api.kinds import API_VERSION, GROUP
from ipsec_api.modeconfig import ModeConfigSpec
from ipsec_api.peer import IPsecPeerSpec
from ipsec_api.policy import IPsecPolicySpec
from ipsec_api.rejection import Rejection
from ipsec_api.rules import SpecModel
from ipsec_api.snapshot import IPsecPeer, IPsecPolicy, ModeConfig, ObjectMeta, Secret, Snapshot
from ipsec_api.tunnel import ObjectRef

Document = IPsecPeer | IPsecPolicy | ModeConfig | Secret

SPECS: Final[dict[str, type[SpecModel]]] = {
    "IPsecPeer": IPsecPeerSpec,
    "IPsecPolicy": IPsecPolicySpec,
    "ModeConfig": ModeConfigSpec,
}

#: Values in one document: more is an accident or an attack ("billion laughs").
_NODE_LIMIT: Final = 20_000
_DEPTH_LIMIT: Final = 32
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class DocumentIssue:
    """Something about one document. ``document`` counts from 1; 0 where the file as a whole is
    meant."""

    file: str
    document: int
    kind: str
    namespace: str
    name: str
    field: str
    message: str

    def __str__(self) -> str:
        parts = [self.file] if self.file else []
        if self.document:
            parts.append(f"document {self.document}")
        if self.kind:
            parts.append(f"{self.kind} {self.namespace}/{self.name}" if self.name else self.kind)
        if self.field:
            parts.append(self.field)
        return ": ".join([*parts, self.message])

    @property
    def rejection(self) -> Rejection | None:
        """The same for the status of the object, where the object is one of ours and has a name."""
        if self.kind not in SPECS or not self.name:
            return None
        source = ObjectRef.model_validate(
            {"kind": self.kind, "namespace": self.namespace, "name": self.name}
        )
        return Rejection(source, self.field, "Invalid", self.message)


class DocumentError(DocumentIssue):
    """The document, or the object of it, is not used."""


class DocumentWarning(DocumentIssue):
    """The document is ignored on purpose."""


@dataclass(frozen=True, slots=True)
class Documents:
    """What was found in one text."""

    objects: tuple[Document, ...] = ()
    errors: tuple[DocumentError, ...] = ()
    warnings: tuple[DocumentWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class Collected:
    """What was found in a set of files."""

    snapshot: Snapshot
    errors: tuple[DocumentError, ...] = ()
    warnings: tuple[DocumentWarning, ...] = ()


class _Fault(Exception):
    """A document cannot be used; ``field`` and ``message`` go into the error."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class _Strict:
    """YAML as Kubernetes reads it: dates are text, and a key may be there only once."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, "twice", key.start_mark)
                seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)  # type: ignore[misc]  # a loader's
        return found


class _Loader(_Strict, yaml.SafeLoader):
    """In Python, which says best what is wrong."""


#: By libyaml where PyYAML was built with it, as its wheels are: several times as fast.
_LIBYAML: Final[Any] = getattr(yaml, "CSafeLoader", None)
_Fast: Final[Any] = _Loader if _LIBYAML is None else type("_Fast", (_Strict, _LIBYAML), {})
#: Levels that the fast loader is given. It follows each by a call, and ends the process where the
#: stack does.
_MAX_DEPTH: Final = 64


def loader(text: str) -> Any:
    """A safe loader of PyYAML for this text: the fast one for what is well-formed and shallow."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Fast):
            if isinstance(event, yaml.events.CollectionStartEvent):
                depth += 1
                if depth > _MAX_DEPTH:
                    return _Loader
            elif isinstance(event, yaml.events.CollectionEndEvent):
                depth -= 1
    except (yaml.YAMLError, ValueError):
        return _Loader
    return _Fast


def parse(text: str, *, file: str = "") -> Documents:
    """The objects of a multi-document YAML text. Never raises for what is in the text.

    A document that is not YAML ends the text (what follows cannot be told apart); the ones before
    it are used, and so are the good ones beside a document with a fault. ``kind: List`` is
    flattened.
    """
    objects: list[Document] = []
    errors: list[DocumentError] = []
    warnings: list[DocumentWarning] = []
    documents = yaml.load_all(text, Loader=loader(text))  # a safe one
    number = 0
    while True:
        number += 1
        try:
            raw = next(documents)
        except StopIteration:
            break
        except (yaml.YAMLError, RecursionError, ValueError) as exc:
            errors.append(DocumentError(file, number, "", "", "", "", _yaml_message(exc)))
            break
        for item in _flatten(raw):
            _read(item, file, number, objects, errors, warnings)
    return Documents(tuple(objects), tuple(errors), tuple(warnings))


def collect(files: Mapping[str, str]) -> Collected:
    """The snapshot of a set of files (name to text), in the order of their names.

    An object that occurs twice is taken from its first place; the other one is an error.
    """
    found: dict[tuple[str, str, str], Document] = {}
    places: dict[tuple[str, str, str], str] = {}
    errors: list[DocumentError] = []
    warnings: list[DocumentWarning] = []
    for file in sorted(files):
        parsed = parse(files[file], file=file)
        errors += parsed.errors
        warnings += parsed.warnings
        for item in parsed.objects:
            kind, meta = type(item).__name__, item.metadata
            key = (kind, meta.namespace, meta.name)
            if key in found:
                message = f"the same object is in {places[key]} already: remove one of the two"
                errors.append(DocumentError(file, 0, *key, "", message))
            else:
                found[key], places[key] = item, file or "the text"
    return Collected(snapshot_of(found.values()), tuple(errors), tuple(warnings))


def snapshot_of(objects: Iterable[Document]) -> Snapshot:
    """Typed objects, sorted by kind."""
    items = tuple(objects)
    return Snapshot(
        peers=tuple(o for o in items if isinstance(o, IPsecPeer)),
        policies=tuple(o for o in items if isinstance(o, IPsecPolicy)),
        mode_configs=tuple(o for o in items if isinstance(o, ModeConfig)),
        secrets=tuple(o for o in items if isinstance(o, Secret)),
    )


def _yaml_message(exc: Exception) -> str:
    # The text of a YAML error quotes the document, and with it perhaps a secret.
    mark = getattr(exc, "problem_mark", None)
    if mark is None:
        return "not YAML: remove control characters and deep nesting"
    if getattr(exc, "problem", None) == "twice":
        return f"line {mark.line + 1}: a key is there twice: remove one of the two"
    where = f"line {mark.line + 1}, column {mark.column + 1}"
    return f"not YAML at {where}: check indentation and quotes there"


def _flatten(raw: Any) -> Iterator[Any]:
    if isinstance(raw, dict) and raw.get("kind") == "List" and isinstance(raw.get("items"), list):
        yield from raw["items"]
    elif raw is not None:
        yield raw


def _read(
    raw: Any,
    file: str,
    number: int,
    objects: list[Document],
    errors: list[DocumentError],
    warnings: list[DocumentWarning],
) -> None:
    kind, namespace, name = _identify(raw)

    def error(field: str, message: str) -> None:
        errors.append(DocumentError(file, number, kind, namespace, name, field, message))

    try:
        api_version = raw.get("apiVersion") if isinstance(raw, dict) else None
        if not isinstance(raw, dict) or not kind or not isinstance(api_version, str):
            raise _Fault("", "not a Kubernetes object: set apiVersion, kind, metadata and spec")
        ours = kind in SPECS and api_version.partition("/")[0] == GROUP
        if not ours and (kind, api_version) != ("Secret", "v1"):
            if kind in SPECS or api_version.partition("/")[0] == GROUP:
                known = ", ".join(SPECS)
                raise _Fault("apiVersion", f"set apiVersion: {API_VERSION} and a kind of {known}")
            message = f"ignored: only {', '.join(SPECS)} and Secret are read here"
            warnings.append(DocumentWarning(file, number, kind, namespace, name, "", message))
            return
        objects.append(parse_object(raw))
    except _Fault as fault:
        error(fault.field, fault.message)
    except InvalidObject as invalid:
        for field, message in invalid.faults:
            error(field, message)


class InvalidObject(Exception):
    """An object does not follow the schema; ``faults`` are (field, message)."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in faults))
        self.faults = faults


def parse_object(raw: Mapping[str, Any]) -> Document:
    """One object as the API server or a YAML parser gives it. Raises InvalidObject.

    ``status`` is not looked at.
    """
    try:
        seen = {key: value for key, value in raw.items() if key != "status"}
        plain = _plain(seen, [_NODE_LIMIT], _DEPTH_LIMIT)
        kind = plain.get("kind")
        meta = _metadata(plain.get("metadata"))
        if kind == "Secret":
            return Secret(meta, _secret_data(plain))
        if kind not in SPECS:
            raise _Fault("kind", f"unknown: set one of {', '.join(SPECS)}, Secret")
        if plain.get("apiVersion") != API_VERSION:
            raise _Fault("apiVersion", f"this version is not known: set {API_VERSION}")
        for key in plain:
            if key not in ("apiVersion", "kind", "metadata", "spec"):
                raise _Fault(key, "unknown field: remove it, or move it under spec")
        spec_text = json.dumps(plain.get("spec") or {})
    except _Fault as fault:
        raise InvalidObject([(fault.field, fault.message)]) from None
    try:
        match kind:
            case "IPsecPeer":
                peer = IPsecPeerSpec.model_validate_json(spec_text, strict=True)
                return IPsecPeer(meta, peer)
            case "IPsecPolicy":
                policy = IPsecPolicySpec.model_validate_json(spec_text, strict=True)
                return IPsecPolicy(meta, policy)
            case _:
                return ModeConfig(meta, ModeConfigSpec.model_validate_json(spec_text, strict=True))
    except ValidationError as exc:
        raise InvalidObject(faults(SPECS[kind], exc)) from None


def _identify(raw: Any) -> tuple[str, str, str]:
    """kind, namespace and name for errors, as far as they can be read; never anything else."""
    if not isinstance(raw, dict):
        return "", "", ""
    kind = raw.get("kind")
    meta = raw.get("metadata")
    kind = kind if isinstance(kind, str) and re.fullmatch(r"[A-Za-z0-9]{1,63}", kind) else ""
    if not isinstance(meta, dict):
        return kind, "default", ""
    name, namespace = meta.get("name"), meta.get("namespace", "default")
    return (
        kind,
        namespace if isinstance(namespace, str) and _NAMESPACE.fullmatch(namespace) else "default",
        name if isinstance(name, str) and _NAME.fullmatch(name) else "",
    )


def _plain(value: Any, budget: list[int], depth: int) -> Any:
    """JSON values only, bounded: an alias in YAML may stand for a great many nodes."""
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        raise _Fault("", "too large or too deep: split it, and use no YAML aliases")
    if isinstance(value, Mapping):
        return {_key(k): _plain(v, budget, depth - 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, budget, depth - 1) for v in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise _Fault("", "a value is neither text, number, list nor object: remove the YAML tag")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise _Fault("", "a key is not text: put it in quotes")
    return key


def _metadata(raw: Any) -> ObjectMeta:
    if not isinstance(raw, dict):
        raise _Fault("metadata", "missing: set metadata.name")
    name, namespace = raw.get("name"), raw.get("namespace", "default")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 253:
        raise _Fault(
            "metadata.name", "missing or not a name: use lower-case letters, digits, - and ."
        )
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace) or len(namespace) > 63:
        raise _Fault("metadata.namespace", "not a name: use lower-case letters, digits and -")
    uid, created, generation = (raw.get(k) for k in ("uid", "creationTimestamp", "generation"))
    return ObjectMeta(
        name=name,
        namespace=namespace,
        uid=uid if isinstance(uid, str) else "",
        creation_timestamp=created if isinstance(created, str) else "",
        generation=generation if isinstance(generation, int) else 0,
        labels=_texts(raw, "labels"),
        annotations=_texts(raw, "annotations"),
    )


def _texts(metadata: dict[str, Any], key: str) -> dict[str, str]:
    mapping = metadata.get(key) or {}
    if not isinstance(mapping, dict) or not all(isinstance(v, str) for v in mapping.values()):
        raise _Fault(f"metadata.{key}", "not a map of texts: put the values in quotes")
    return mapping


def _secret_data(raw: dict[str, Any]) -> dict[str, bytes]:
    result: dict[str, bytes] = {}
    for part in ("data", "stringData"):
        values = raw.get(part) or {}
        if not isinstance(values, dict):
            raise _Fault(part, "not a map: write KEY: VALUE lines under it")
        for key, value in values.items():
            if not isinstance(value, str):
                raise _Fault(f"{part}.{key}", "not text: put the value in quotes")
            if part == "stringData":
                result[key] = value.encode()
                continue
            try:
                result[key] = base64.b64decode("".join(value.split()), validate=True)
            except (binascii.Error, ValueError):
                message = "not base64: encode it, or move it to stringData"
                raise _Fault(f"data.{key}", message) from None
    return result
