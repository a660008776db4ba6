"""The chart's objects before a real API server: every field, and Pod Security.

Nothing is installed: the server tries each object (dry run) and says what it thinks of it.
"""

from __future__ import annotations

import uuid

import pytest
from kubernetes import client, dynamic

from ipsec_lab import chart

#: Kinds of others, which a cluster need not have.
FOREIGN = ("monitoring.coreos.com/v1", "security.openshift.io/v1")
VALUES = {
    "defaults": {},
    "everything": {
        "commonLabels": {"team": "network"},
        "operator": {"replicas": 2, "networkPolicy": {"restrictEgress": True}},
        "monitoring": {"serviceMonitor": {"enabled": True}, "dashboard": {"enabled": True}},
        "gateway": {"privileged": False},
        "tests": {"targets": ["10.20.0.1"]},
    },
}


@pytest.fixture(scope="module")
def server(api):
    return dynamic.DynamicClient(api)


def tried(server, obj):
    """What the server makes of it. Raises where it refuses, unknown fields included."""
    kind = server.resources.get(api_version=obj["apiVersion"], kind=obj["kind"])
    return server.server_side_apply(
        kind,
        body=obj,
        name=obj["metadata"]["name"],
        namespace=obj["metadata"].get("namespace"),
        field_manager="kube-ipsec-tests",
        force_conflicts=True,
        dry_run="All",
        field_validation="Strict",
    )


def of_pods(objects):
    for obj in objects:
        if obj["kind"] == "Pod":
            yield obj
        elif obj["kind"] in ("Deployment", "Job"):
            spec = obj["spec"]["template"]["spec"]
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": obj["metadata"], "spec": spec}


@pytest.mark.parametrize("name", VALUES)
def test_every_object_is_taken(name, server, namespace):
    objects = chart.objects(chart.render(VALUES[name], namespace=namespace))
    accounts = [obj for obj in objects if obj["kind"] == "ServiceAccount"]
    core = client.CoreV1Api(server.client)
    for account in accounts:
        # Pods are only looked at where their account is.
        core.create_namespaced_service_account(namespace, account)
    try:
        for obj in objects:
            if obj["apiVersion"] not in FOREIGN:
                assert tried(server, obj)
    finally:
        for account in accounts:
            core.delete_namespaced_service_account(account["metadata"]["name"], namespace)


def test_the_server_would_see_a_mistake(server, namespace):
    objects = chart.objects(chart.render(namespace=namespace))
    (deployment,) = (obj for obj in objects if obj["kind"] == "Deployment")
    deployment["spec"]["tpyo"] = 1
    with pytest.raises(Exception, match="tpyo"):
        tried(server, deployment)


@pytest.fixture
def restricted(api):
    """A namespace that enforces the profile "restricted"."""
    core = client.CoreV1Api(api)
    name = f"kube-ipsec-strict-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.create_namespace({"metadata": {"name": name, "labels": labels}})
    yield name
    core.delete_namespace(name)


def test_pods_of_the_chart_are_admitted_where_pod_security_is_restricted(server, restricted):
    objects = chart.objects(chart.render(namespace=restricted))
    core = client.CoreV1Api(server.client)
    for obj in objects:
        if obj["kind"] == "ServiceAccount":
            core.create_namespaced_service_account(restricted, obj)
    pods = list(of_pods(objects))
    assert len(pods) == 7
    for pod in pods:
        assert tried(server, pod)
    pods[0]["spec"]["hostNetwork"] = True
    with pytest.raises(Exception, match="restricted"):
        tried(server, pods[0])
