"""The CRDs are what the models say, and what an API server takes (kopf-kubernetes.md section 5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from ipsec_api import structural
from ipsec_api.kinds import KINDS
from ipsec_api.rules import ListOf, SpecModel

CRDS = Path(__file__).parents[3] / "crds"

REFUSED = {
    "$ref",
    "$defs",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "const",
    "examples",
    "discriminator",
    "title",
    "uniqueItems",
    "prefixItems",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "propertyNames",
    "nullable",
}
REASONS = {
    "FieldValueInvalid",
    "FieldValueForbidden",
    "FieldValueRequired",
    "FieldValueDuplicate",
}


def _crds() -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted(CRDS.glob("*.yaml"))]


def _walk(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from _walk(child, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in node:
            assert isinstance(node[key], dict), f"{path}: {key} is no schema"
            yield from _walk(node[key], path + mark)


def _nodes() -> list[Any]:
    return [
        pytest.param(node, id=path)
        for crd in _crds()
        for part in ("spec", "status")
        for path, node in _walk(
            crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part],
            f"{crd['spec']['names']['kind']}.{part}",
        )
    ]


def test_committed_files_are_what_the_models_say() -> None:
    assert structural.main(["--check"]) == 0
    assert {p.name for p in CRDS.glob("*.yaml")} == set(structural.files())


def test_drift_is_found_and_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(structural, "CRD_DIR", tmp_path)
    assert structural.main([]) == 0
    (tmp_path / "ipsecpeers.yaml").write_text("changed\n")
    capsys.readouterr()
    assert structural.main(["--check"]) == 1
    assert capsys.readouterr().out.startswith("crds/ipsecpeers.yaml: differs")
    assert (tmp_path / "ipsecpeers.yaml").read_text() == "changed\n"
    assert structural.main([]) == 0
    assert structural.main(["--check"]) == 0


def test_names() -> None:
    names = {c["spec"]["names"]["kind"]: c["spec"]["names"] for c in _crds()}
    assert {kind: n["shortNames"] for kind, n in names.items()} == {
        "IPsecPeer": ["ipp"],
        "IPsecPolicy": ["ipsp"],
        "ModeConfig": ["mcfg"],
    }
    for crd in _crds():
        spec = crd["spec"]
        assert crd["metadata"]["name"] == f"{spec['names']['plural']}.kubeipsec.dev"
        assert spec["scope"] == "Namespaced"
        assert spec["names"]["categories"] == ["ipsec"]
        assert spec["versions"][0]["name"] == "v1alpha1"
        assert spec["versions"][0]["subresources"] == {"status": {}}


def test_columns_and_selectable_fields_exist() -> None:
    for crd in _crds():
        version = crd["spec"]["versions"][0]
        paths = {path for path, _ in _walk(version["schema"]["openAPIV3Schema"], "")}
        wanted = [c["jsonPath"] for c in version["additionalPrinterColumns"]]
        wanted += [f["jsonPath"] for f in version.get("selectableFields", [])]
        for path in wanted:
            plain = re.sub(r"\[\?\(@.type==\"\w+\"\)\]", "[]", path)
            assert plain in paths or plain == ".metadata.creationTimestamp", path


@pytest.mark.parametrize("node", _nodes())
def test_node_is_structural(node: dict[str, Any]) -> None:
    assert not REFUSED & set(node)
    assert isinstance(node["type"], str)
    assert node["type"] in ("object", "array", "string", "integer", "boolean")
    match node["type"]:
        case "object":
            assert ("properties" in node) != ("additionalProperties" in node)
            assert "additionalProperties" not in node or "maxProperties" in node
            assert set(node.get("required", [])) <= set(node.get("properties", {}))
        case "array":
            assert node["maxItems"] <= 100
            assert node["x-kubernetes-list-type"] in ("set", "atomic", "map")
            for key in node.get("x-kubernetes-list-map-keys", []):
                assert key in node["items"]["required"]
            # Server-side apply refuses objects in a set.
            assert node["x-kubernetes-list-type"] != "set" or node["items"]["type"] != "object"
        case "string":
            assert "maxLength" in node or "enum" in node
        case "integer":
            assert node["format"] in ("int32", "int64")
            assert "minimum" in node
    default = node.get("default")
    if default is not None:
        expected = {"array": list, "string": str, "integer": int, "boolean": bool}[node["type"]]
        assert type(default) is expected
        if "enum" in node:
            assert default in node["enum"]


@pytest.mark.parametrize("node", [p for p in _nodes() if "x-kubernetes-validations" in p.values[0]])
def test_rules_are_complete(node: dict[str, Any]) -> None:
    for rule in node["x-kubernetes-validations"]:
        assert set(rule) <= {"rule", "message", "reason", "fieldPath"}
        assert rule["reason"] in REASONS
        assert ": " in rule["message"], "a message ends with the fix"
        assert "\n" not in rule["message"]
        assert rule["rule"].count("(") == rule["rule"].count(")")
        if node["type"] == "object":
            fields = set(re.findall(r"(?:self|oldSelf)\.(\w+)", rule["rule"]))
            assert fields <= set(node["properties"])
            assert rule.get("fieldPath", ".").removeprefix(".") in {"", *node["properties"]}
            # An optional field without a default may only be used behind has().
            for name in fields:
                child = node["properties"][name]
                if name not in node.get("required", []) and "default" not in child:
                    assert f"has(self.{name})" in rule["rule"], name


def test_every_field_of_a_spec_is_explained() -> None:
    for param in _nodes():
        node = param.values[0]
        for name, child in node.get("properties", {}).items():
            assert len(child["description"]) > 3, f"{param.id}.{name}"
            assert "\n" not in child["description"]


def test_status_has_no_defaults() -> None:
    assert not [p.id for p in _nodes() if ".status" in p.id and "default" in p.values[0]]


def test_kinds_cover_the_files() -> None:
    assert len(KINDS) == len(_crds()) == 3


class _Union(SpecModel):
    """A union."""

    a: Annotated[int, Field(ge=0)] | Annotated[str, Field(max_length=3)] = 0
    """Either."""


class _Unbounded(SpecModel):
    """A string without end."""

    a: str = ""
    """Text."""


class _UnboundedList(SpecModel):
    """A list without end."""

    a: Annotated[tuple[bool, ...], ListOf("atomic")] = ()
    """Flags."""


class _NoListType(SpecModel):
    """A list that does not say how it is merged."""

    a: Annotated[tuple[bool, ...], Field(max_length=3)] = ()
    """Flags."""


class _Exclusive(SpecModel):
    """A bound that the API server writes in another way."""

    a: Annotated[int, Field(ge=0, lt=9)] = 0
    """Number."""


class _Float(SpecModel):
    """Floats do not belong into resources."""

    a: Annotated[float, Field(ge=0)] = 0
    """Number."""


class _Silent(SpecModel):
    """A field that ``kubectl explain`` could say nothing about."""

    a: bool = False


class _OptionalKey(SpecModel):
    """An entry whose key may be missing."""

    name: Annotated[str, Field(max_length=3)] = ""
    """Name."""


class _SetOfObjects(SpecModel):
    """A set of what is no scalar."""

    a: Annotated[tuple[_OptionalKey, ...], Field(max_length=3), ListOf("set")] = ()
    """Entries."""


class _MapWithOptionalKey(SpecModel):
    """A map-like list of them."""

    a: Annotated[tuple[_OptionalKey, ...], Field(max_length=3), ListOf("map", "name")] = ()
    """Entries."""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Union, "a: a union has no structural form"),
        (_Unbounded, "a: maxLength is missing"),
        (_UnboundedList, "a: maxItems is missing"),
        (_NoListType, "a: x-kubernetes-list-type is missing"),
        (_Exclusive, "a: exclusiveMaximum has no structural form"),
        (_Float, "a: one type is needed, not 'number'"),
        (_Silent, "a: a description is missing"),
        (_SetOfObjects, "a: server-side apply takes no objects in a set"),
        (_MapWithOptionalKey, "a: the list key name must be required"),
    ],
)
def test_what_cannot_be_converted_is_an_error(model: type[SpecModel], message: str) -> None:
    with pytest.raises(structural.NotStructural, match=re.escape(message)):
        structural.structural(model)
