"""The chart installed by Helm, upgraded and uninstalled, in a cluster that has none yet.

Nodes are not needed: nothing here waits for a pod. What each service account may do is asked of the
API server itself.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid

import helm_python
import pytest
from kubernetes import client

from ipsec_api.kinds import GROUP, KINDS
from ipsec_lab import chart

#: Its Job needs a node to run on.
WITHOUT_CLEANUP = {"cleanup": {"enabled": False}}


@pytest.fixture(scope="module")
def release(api, tmp_path_factory):
    """Installs, and at the end uninstalls: (Helm, folder of the chart, namespace)."""
    rbac = client.RbacAuthorizationV1Api(api)
    if any(r.metadata.name.startswith("kube-ipsec") for r in rbac.list_cluster_role().items):
        pytest.skip("this cluster has kube-ipsec already")
    extensions = client.ApiextensionsV1Api(api)
    if any(GROUP in c.metadata.name for c in extensions.list_custom_resource_definition().items):
        pytest.skip("this cluster has our CRDs already, and others may have resources in them")
    folder = tmp_path_factory.mktemp("chart") / "kube-ipsec"
    shutil.copytree(chart.CHART, folder)
    # A control plane built from source does not know its own version.
    file = folder / "Chart.yaml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("kubeVersion:")))
    namespace = f"kube-ipsec-install-{uuid.uuid4().hex[:8]}"
    with helm_python.Config(kubeconfig_path=os.environ["KUBECONFIG"], namespace=namespace) as helm:
        helm.install(str(folder), "kube-ipsec", {}, namespace=namespace, create_namespace=True)
        yield helm, str(folder), namespace
        helm.uninstall("kube-ipsec", ignore_not_found=True)
    for kind in KINDS:
        extensions.delete_custom_resource_definition(f"{kind.plural}.{GROUP}")
    client.CoreV1Api(api).delete_namespace(namespace)


@pytest.fixture
def may(api, release):
    """``may(account, verb, resource, namespace)``, as the API server sees it."""
    reviews = client.AuthorizationV1Api(api)
    _, _, own = release

    def ask(account, verb, resource, namespace=own, group=""):
        resource, _, part = resource.partition("/")
        attributes = {
            "verb": verb,
            "resource": resource,
            "group": group,
            "namespace": namespace,
            **({"subresource": part} if part else {}),
        }
        user = f"system:serviceaccount:{own}:kube-ipsec-{account}"
        body = {"spec": {"user": user, "resourceAttributes": attributes}}
        return reviews.create_subject_access_review(body).status.allowed

    return ask


def until(holds):
    """Whether it holds within 10 s."""
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


def test_accounts_may_what_they_must(may):
    leases = {"group": "coordination.k8s.io"}
    assert until(lambda: may("operator", "list", "secrets", "default"))
    assert may("operator", "patch", "ipsecpeers/status", "default", GROUP)
    assert may("operator", "create", "secrets")
    assert may("gateway", "watch", "secrets")
    assert may("gateway", "patch", "leases", **leases)
    assert may("gateway", "patch", "ipsecpeers/status", "default", GROUP)
    assert may("route-agent", "list", "leases", **leases)


def test_accounts_may_nothing_else(may):
    assert not may("operator", "patch", "secrets", "default")
    assert not may("operator", "patch", "ipsecpeers", "default", GROUP)
    assert not may("gateway", "list", "secrets", "default")
    assert not may("gateway", "patch", "secrets")
    assert not may("gateway", "list", "ipsecpeers", "default", GROUP)
    assert not may("route-agent", "list", "secrets")
    assert not may("route-agent", "patch", "leases", group="coordination.k8s.io")


def test_an_upgrade_to_some_namespaces_takes_the_others_away(release, may):
    helm, folder, namespace = release
    helm.upgrade(folder, "kube-ipsec", {"watchNamespaces": ["kube-public"]}, namespace=namespace)
    # The server's authorizer hears of it by a watch of its own.
    assert until(lambda: not may("operator", "list", "secrets", "default"))
    assert may("operator", "list", "secrets", "kube-public")
    assert may("gateway", "patch", "ipsecpeers/status", "kube-public", GROUP)
    assert not may("gateway", "patch", "ipsecpeers/status", "default", GROUP)
    # No values at all would be those of before.
    helm.upgrade(folder, "kube-ipsec", {"watchNamespaces": []}, namespace=namespace)
    assert until(lambda: may("operator", "list", "secrets", "default"))


def test_uninstalling_leaves_the_resources_and_nothing_else(api, release):
    helm, folder, namespace = release
    custom = client.CustomObjectsApi(api)
    peer = {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "IPsecPeer",
        "metadata": {"name": "hq"},
        "spec": {
            "address": "203.0.113.9",
            "authentication": {"method": "preSharedKey", "secretRef": {"name": "hq"}},
            "remoteSubnets": ["10.20.0.0/16"],
        },
    }
    custom.create_namespaced_custom_object(GROUP, "v1alpha1", namespace, "ipsecpeers", peer)
    helm.upgrade(folder, "kube-ipsec", WITHOUT_CLEANUP, namespace=namespace)
    helm.uninstall("kube-ipsec")
    found = custom.list_namespaced_custom_object(GROUP, "v1alpha1", namespace, "ipsecpeers")
    assert [item["metadata"]["name"] for item in found["items"]] == ["hq"]
    rbac, core = client.RbacAuthorizationV1Api(api), client.CoreV1Api(api)
    left = [
        *rbac.list_cluster_role().items,
        *rbac.list_cluster_role_binding().items,
        *rbac.list_role_for_all_namespaces().items,
        *rbac.list_role_binding_for_all_namespaces().items,
        *client.AppsV1Api(api).list_namespaced_deployment(namespace).items,
        *core.list_namespaced_service_account(namespace).items,
        *core.list_namespaced_config_map(namespace).items,
        *client.NetworkingV1Api(api).list_namespaced_network_policy(namespace).items,
    ]
    assert not [one.metadata.name for one in left if "kube-ipsec" in one.metadata.name]
