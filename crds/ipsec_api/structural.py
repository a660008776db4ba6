"""The models as CustomResourceDefinitions.

``python -m ipsec_api.structural`` writes ``crds/*.yaml``; ``--check`` writes nothing and fails
where a file differs. The API server wants "structural" schemas, a subset of OpenAPI that pydantic's
output is not
in: this converter inlines references, takes the null branch off optional fields (there, absent is
the only null), and raises on everything that it does not know, rather than writing something that
the server would refuse or, worse, drop.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from ipsec_api.kinds import CATEGORY, GROUP, KINDS, VERSION, Kind
from ipsec_api.rules import SpecModel

CRD_DIR: Final = Path(__file__).resolve().parents[1]
HEADER: Final = (
    "# Generated from the models by python -m ipsec_api.structural: edit those instead.\n"
)

_INT32_MAX: Final = 2**31 - 1
#: Keywords that mean the same to both sides, in the order of the files.
_KEPT: Final = (
    "description",
    "type",
    "format",
    "enum",
    "default",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
)
_ORDER: Final = (*_KEPT, "required", "properties", "items", "additionalProperties")
#: Noise of pydantic. ``additionalProperties: false`` beside properties is refused by the API
#: server, which prunes unknown fields or, with strict validation, reports them by itself.
_DROPPED: Final = frozenset({"title"})


class NotStructural(Exception):
    """A model says something that a structural schema cannot; the text names the path."""


def structural(model: type[SpecModel], *, defaults: bool = True) -> dict[str, Any]:
    """The structural schema of a model. Raises NotStructural.

    ``defaults`` False leaves them out: in a status, a value that nobody reported would be a lie.
    """
    raw = model.model_json_schema(by_alias=True, mode="validation")
    definitions = raw.pop("$defs", {})
    result = _convert(raw, definitions, model.__name__)
    return result if defaults else _without_defaults(result)


def _convert(node: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> dict[str, Any]:
    node = _plain(node, definitions, path)
    kind = node.get("type")
    if kind not in ("object", "array", "string", "integer", "boolean"):
        raise NotStructural(f"{path}: one type is needed, not {kind!r}")
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key == "description":
            result[key] = " ".join(value.split())
        elif key in _KEPT:
            result[key] = value
        elif key == "const":
            result["enum"] = [value]
        elif key == "properties":
            result[key] = {
                name: _convert(child, definitions, f"{path}.{name}")
                for name, child in value.items()
            }
        elif key == "required":
            result[key] = sorted(value)
        elif key == "items":
            result[key] = _convert(value, definitions, f"{path}[]")
        elif key == "additionalProperties" and isinstance(value, Mapping):
            result[key] = _convert(value, definitions, f"{path}{{}}")
        elif key == "additionalProperties" and value is False and "properties" in node:
            continue
        elif key not in _DROPPED:
            raise NotStructural(f"{path}: {key} has no structural form")
    # None and empty mean "absent" here: as defaults they would only show up in users' diffs.
    if result.get("default", ...) in (None, [], {}):
        del result["default"]
    _check(result, path)
    return {key: result[key] for key in _ORDER if key in result}


def _plain(node: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Without ``$ref`` and without the null branch of an optional field."""
    while "$ref" in node or "anyOf" in node:
        siblings = {k: v for k, v in node.items() if k not in ("$ref", "anyOf")}
        if "$ref" in node:
            target = definitions[node["$ref"].rpartition("/")[2]]
        else:
            branches = [b for b in node["anyOf"] if b.get("type") != "null"]
            if len(branches) != 1:
                raise NotStructural(f"{path}: a union has no structural form")
            target = branches[0]
        rules = [*target.get("x-kubernetes-validations", [])]
        rules += siblings.pop("x-kubernetes-validations", [])
        node = {**target, **siblings}
        if rules:
            node["x-kubernetes-validations"] = rules
    return node


def _without_defaults(node: dict[str, Any]) -> dict[str, Any]:
    result = {k: v for k, v in node.items() if k != "default"}
    for key in ("items", "additionalProperties"):
        if key in result:
            result[key] = _without_defaults(result[key])
    if "properties" in result:
        children = result["properties"].items()
        result["properties"] = {name: _without_defaults(child) for name, child in children}
    return result


def _check(node: dict[str, Any], path: str) -> None:
    """Bounds for the cost of CEL, and what the API server asks of lists."""
    kind = node["type"]
    if kind == "string" and "maxLength" not in node and "enum" not in node:
        raise NotStructural(f"{path}: maxLength is missing")
    if kind == "integer":
        if "minimum" not in node:
            raise NotStructural(f"{path}: minimum is missing")
        node.setdefault("format", "int64" if node.get("maximum", 0) > _INT32_MAX else "int32")
        if path.rpartition(".")[2] == "observedGeneration":
            node["format"] = "int64"
    if kind == "array":
        if "maxItems" not in node:
            raise NotStructural(f"{path}: maxItems is missing")
        if "x-kubernetes-list-type" not in node:
            raise NotStructural(f"{path}: x-kubernetes-list-type is missing")
        if node["x-kubernetes-list-type"] == "set" and node["items"]["type"] == "object":
            raise NotStructural(f"{path}: server-side apply takes no objects in a set: unique")
        for key in node.get("x-kubernetes-list-map-keys", []):
            if key not in node["items"].get("required", []):
                raise NotStructural(f"{path}: the list key {key} must be required")
    if kind == "object":
        if "properties" not in node and "additionalProperties" not in node:
            raise NotStructural(f"{path}: an object without fields")
        if "additionalProperties" in node and "maxProperties" not in node:
            raise NotStructural(f"{path}: maxProperties is missing")
    if "description" not in node and not path.endswith(("[]", "{}")):
        raise NotStructural(f"{path}: a description is missing")


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    schema = {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(kind.spec),
            "status": structural(kind.status, defaults=False),
        },
    }
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {
                "name": c.name,
                "type": c.type,
                "jsonPath": c.path,
                "description": c.description,
                **({"priority": c.priority} if c.priority else {}),
            }
            for c in kind.columns
        ],
        "schema": {"openAPIV3Schema": schema},
    }
    if kind.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": [kind.short_name],
                "categories": [CATEGORY],
            },
            "versions": [version],
        },
    }


class _Dumper(yaml.SafeDumper):
    """Block style without aliases, texts quoted only where they must be."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render(kind: Kind) -> str:
    """The file of a kind."""
    plain = _jsonable(crd(kind))
    return HEADER + yaml.dump(plain, Dumper=_Dumper, sort_keys=False, width=100)


def _jsonable(value: Any) -> Any:
    """Plain str in place of StrEnum members, which YAML cannot represent."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return value


def files() -> dict[str, str]:
    """File name to text, for ``crds/`` and the chart."""
    return {f"{kind.plural}.yaml": render(kind) for kind in KINDS}


def main(arguments: Iterable[str]) -> int:
    """Write the files, or with ``--check`` say which differ. Returns the exit code."""
    check = list(arguments) == ["--check"]
    stale = []
    for name, text in files().items():
        path = CRD_DIR / name
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text)
    for name in stale:
        verb = "differs from the models: run python -m ipsec_api.structural" if check else "written"
        sys.stdout.write(f"crds/{name}: {verb}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
