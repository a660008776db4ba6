"""Every rule of the CRDs accepts what it should and refuses what it should, in Python.

Each case is one change to a good object. A refused one must break exactly the rule that it is for,
and the error must name the field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipsec_api.documents import InvalidObject, parse_object
from ipsec_lab.crd_cases import ACCEPTED, REFUSED, Refused

CRDS = Path(__file__).parents[3] / "crds"
Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: f"{c.field}-{c.message}")
def test_refused(case: Refused, make: Make) -> None:
    with pytest.raises(InvalidObject) as caught:
        parse_object(make(case.kind, **case.change))
    faults = caught.value.faults
    assert [field for field, _ in faults] == [case.field]
    assert case.message in faults[0][1]


@pytest.mark.parametrize(("kind", "change"), ACCEPTED)
def test_accepted(kind: str, change: dict[str, Any], make: Make) -> None:
    parse_object(make(kind, **change))


def test_several_faults_are_all_told(make: Make) -> None:
    with pytest.raises(InvalidObject) as caught:
        parse_object(make("IPsecPeer", address=None, authentication=None, mtu=12, port=0))
    # What a field says alone comes first; what fields say together needs good fields.
    assert [f for f, _ in caught.value.faults] == ["spec.port", "spec.mtu"]
    with pytest.raises(InvalidObject) as caught:
        parse_object(make("IPsecPeer", address=None, authentication=None))
    assert [f for f, _ in caught.value.faults] == ["spec.authentication", "spec.address"]


def _messages(node: dict[str, Any]) -> Iterator[str]:
    for rule in node.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"]:
            yield rule["message"]
    for child in node.get("properties", {}).values():
        yield from _messages(child)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from _messages(node[key])


def test_every_rule_has_a_case() -> None:
    """Against a rule that is added and never tried."""
    told = [case.message for case in REFUSED]
    for path in sorted(CRDS.glob("*.yaml")):
        schema = yaml.safe_load(path.read_text())["spec"]["versions"][0]["schema"]
        for message in _messages(schema["openAPIV3Schema"]["properties"]["spec"]):
            assert any(part in message for part in told), f"{path.name}: {message}"


def test_transition_rules_are_the_two_of_the_design() -> None:
    found = []
    for path in sorted(CRDS.glob("*.yaml")):
        text = path.read_text()
        found += [(path.stem, n) for n in ("template", "responder") if f"oldSelf.{n}" in text]
        assert text.count("oldSelf") == len([f for f in found if f[0] == path.stem])
    assert found == [("ipsecpolicies", "template"), ("modeconfigs", "responder")]
