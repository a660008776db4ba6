"""The CRDs before a real API server: they are established, and it judges as our models do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client import ApiException

from ipsec_lab.crd_cases import ACCEPTED, REFUSED, Refused, resource

Create = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def create(api: client.ApiClient, namespace: str, crds: dict[str, Any]) -> Create:
    """Have an object admitted, and not kept. Unknown fields are refused."""
    custom = client.CustomObjectsApi(api)

    def run(made: dict[str, Any]) -> dict[str, Any]:
        names = crds[made["kind"]]["spec"]["names"]
        group, _, version = made["apiVersion"].partition("/")
        found: dict[str, Any] = custom.create_namespaced_custom_object(
            group,
            version,
            namespace,
            names["plural"],
            made,
            dry_run="All",
            field_validation="Strict",
        )
        return found

    return run


def test_crds_are_established(api: client.ApiClient, crds: dict[str, Any]) -> None:
    extensions = client.ApiextensionsV1Api(api)
    for definition in crds.values():
        name = definition["metadata"]["name"]
        deadline = time.monotonic() + 30
        while True:
            status = extensions.read_custom_resource_definition(name).status
            true = {c.type for c in status.conditions or () if c.status == "True"}
            if {"Established", "NamesAccepted"} <= true or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        assert {"Established", "NamesAccepted"} <= true
        # A schema that is not structural, or has a rule that costs too much, says so here.
        assert "NonStructuralSchema" not in true


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: f"{c.field}-{c.message}")
def test_refused(case: Refused, create: Create) -> None:
    with pytest.raises(ApiException) as caught:
        create(resource(case.kind, **case.change))
    assert caught.value.status == 422
    causes = json.loads(caught.value.body)["details"]["causes"]
    told = [c for c in causes if case.message in c["message"]]
    assert told, causes
    assert case.field in {c["field"] for c in told}
    # A rule may look at a field that is absent, but not end so.
    assert not [c for c in causes if "evaluating rule" in c["message"]]


@pytest.mark.parametrize(("kind", "change"), ACCEPTED)
def test_accepted(kind: str, change: dict[str, Any], create: Create) -> None:
    create(resource(kind, **change))


def test_defaults_are_those_of_the_models(create: Create) -> None:
    found = create(resource("IPsecPeer"))["spec"]
    assert found["port"] == 500
    assert found["exchangeMode"] == "ike2"


def test_unknown_fields_are_refused(create: Create) -> None:
    with pytest.raises(ApiException) as caught:
        create(resource("IPsecPeer", remoteSubnet=["10.9.0.0/16"]))
    assert caught.value.status == 400
    assert 'unknown field "spec.remoteSubnet"' in json.loads(caught.value.body)["message"]
