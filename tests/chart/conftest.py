"""The chart rendered, and a judge of objects: the models of the kubernetes client."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import kubernetes.client as models
import pytest
from pydantic import ValidationError

from ipsec_lab import chart

Object = dict[str, Any]

#: By apiVersion and kind, what the client calls it. Prometheus Operator's and OpenShift's are not
#: in it: the keys below are checked for those.
PREFIXES = {
    "v1": "V1",
    "apps/v1": "V1",
    "batch/v1": "V1",
    "policy/v1": "V1",
    "networking.k8s.io/v1": "V1",
    "rbac.authorization.k8s.io/v1": "V1",
    "apiextensions.k8s.io/v1": "V1",
}
OTHERS = {
    "PodMonitor": {"selector", "podMetricsEndpoints"},
    "ServiceMonitor": {"selector", "endpoints"},
    "PrometheusRule": {"groups"},
}


class Unknown(AssertionError):
    """An object that the API server would refuse."""


def judge(obj: Mapping[str, Any]) -> None:
    """Raises Unknown where a field does not exist or has a wrong type, or a required one lacks."""
    if obj["kind"] in OTHERS:
        assert obj["apiVersion"] == "monitoring.coreos.com/v1"
        assert set(obj["spec"]) == OTHERS[obj["kind"]]
        return
    if obj["kind"] == "SecurityContextConstraints":
        assert obj["apiVersion"] == "security.openshift.io/v1"
        return
    model = PREFIXES[obj["apiVersion"]] + obj["kind"]
    _known(obj, model, obj["kind"])
    try:
        getattr(models, model).model_validate(obj)
    except ValidationError as exc:
        raise Unknown(f"{obj['kind']}: {exc}") from None


def _known(value: Any, kind: str, path: str) -> None:
    """The models take no notice of fields that they do not know; the API server does."""
    if value is None:
        raise Unknown(f"{path} is null")
    if match := re.fullmatch(r"List\[(.+)\]", kind):
        for number, item in enumerate(value):
            _known(item, match[1], f"{path}[{number}]")
    elif match := re.fullmatch(r"Dict\[str, (.+)\]", kind):
        for key, item in value.items():
            _known(item, match[1], f"{path}.{key}")
    elif kind[0].isupper() and isinstance(value, dict):
        model = getattr(models, kind)
        names = {outer: inner for inner, outer in model.attribute_map.items()}
        if unknown := set(value) - set(names):
            raise Unknown(f"{path}: no such field: {sorted(unknown)}")
        for key, item in value.items():
            _known(item, model.openapi_types[names[key]], f"{path}.{key}")


@pytest.fixture
def judged() -> Callable[[Mapping[str, Any]], None]:
    return judge


@cache
def _rendered(values: str) -> tuple[Object, ...]:
    return tuple(chart.objects(chart.render(json.loads(values))))


@pytest.fixture
def install() -> Callable[..., list[Object]]:
    """``install(gateway={...})``: the objects of the chart with these values."""

    def render(**values: Any) -> list[Object]:
        return copy.deepcopy(list(_rendered(json.dumps(values, sort_keys=True))))

    return render


def pick(objects: list[Object], kind: str, name: str, namespace: str | None = None) -> Object:
    (found,) = (
        obj
        for obj in objects
        if obj["kind"] == kind
        and obj["metadata"]["name"] == name
        and (namespace is None or obj["metadata"].get("namespace") == namespace)
    )
    return found


@pytest.fixture
def only() -> Callable[..., Object]:
    """The one object of a kind and name."""
    return pick


@pytest.fixture
def granted() -> Callable[[list[Object], str], Iterator[tuple[str, str, str, str, str]]]:
    """The rights of a service account: (namespace or "*", group, resource, verb, name or "*")."""

    def rights(objects: list[Object], account: str) -> Iterator[tuple[str, str, str, str, str]]:
        for binding in objects:
            if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
                continue
            subjects = [s["name"] for s in binding["subjects"] if s["kind"] == "ServiceAccount"]
            if account not in subjects:
                continue
            where = binding["metadata"].get("namespace", "*")
            ref = binding["roleRef"]
            inside = where if ref["kind"] == "Role" else None
            role = pick(objects, ref["kind"], ref["name"], inside)
            for rule in role["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        for verb in rule["verbs"]:
                            for name in rule.get("resourceNames", ["*"]):
                                yield where, group, resource, verb, name

    return rights
