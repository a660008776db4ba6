"""From one version of the chart to the next, and to none: what stays, and what goes."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import pytest

from ipsec_api.cluster import tunnel_secret_name
from ipsec_api.kinds import API_VERSION
from ipsec_lab import chart
from ipsec_lab.cluster import until
from ipsec_lab.netns import LabError

#: A version that was before.
BEFORE = "0.0.1"
IN_NAMESPACE = (
    *("Secret", "ConfigMap", "ServiceAccount", "Lease", "DaemonSet", "Deployment", "Job"),
    *("Role", "RoleBinding", "NetworkPolicy", "PodDisruptionBudget", "Pod"),
)


@pytest.fixture(scope="module")
def release(install):
    with install(BEFORE) as made:
        yield made


def put_peer(release):
    metadata = {"name": "hq", "namespace": release.users}
    release.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "stringData": {"psk": "a" * 32},
        }
    )
    spec = {
        "address": "203.0.113.9",
        "authentication": {"method": "preSharedKey", "secretRef": {"name": "hq"}},
        "remoteSubnets": ["10.20.0.0/16"],
    }
    release.cluster.apply(
        {"apiVersion": API_VERSION, "kind": "IPsecPeer", "metadata": metadata, "spec": spec}
    )


def tunnel(release):
    name = tunnel_secret_name(release.users, "hq")
    return release.cluster.get("Secret", release.namespace, name)


def test_an_upgrade_keeps_the_tunnel_secrets(release):
    chart_label = {"labelSelector": f"helm.sh/chart=kube-ipsec-{BEFORE}"}
    assert release.cluster.list("Deployment", release.namespace, **chart_label)
    with release.operator() as operator:
        operator.wait_leading()
        put_peer(release)
        before = until(lambda: tunnel(release), "tunnel Secret")
        release.upgrade(gateway={"logLevel": "debug"})
        assert not release.cluster.list("Deployment", release.namespace, **chart_label)
        assert tunnel(release) == before
    # Without an operator, too; and the next one finds nothing to write.
    assert tunnel(release) == before
    with release.operator() as operator:
        operator.wait_leading()
        until(
            lambda: (
                "debug"
                in str(release.cluster.get("DaemonSet", release.namespace, "kube-ipsec-gateway"))
            ),
            "the new value reaches the gateways",
        )
        assert tunnel(release) == before


def test_an_uninstall_leaves_the_users_resources_and_nothing_else(release, tmp_path):
    cluster, namespace = release.cluster, release.namespace
    assert tunnel(release)
    peer = cluster.get("IPsecPeer", release.users, "hq")
    # What Helm's pre-delete hook runs, with the rights that the hook makes for it.
    hooks = [
        o for o in chart.objects(chart.render(namespace=namespace)) if chart.hook(o) == "pre-delete"
    ]
    rights = [o for o in hooks if o["kind"] in ("ServiceAccount", "Role", "RoleBinding")]
    assert len(rights) == 3
    for each in rights:
        cluster.apply(each)
    own = cluster.kubeconfig_of(namespace, "kube-ipsec-uninstall", tmp_path / "kubeconfig")
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from ipsec_cli.main import main; main()", "uninstall"),
            *("--namespace", namespace, "--timeout", "20"),
        ],
        env={**os.environ, "KUBECONFIG": str(own)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Secrets and Leases are deleted" in done.stdout
    for each in rights:
        cluster.delete(each["kind"], namespace, each["metadata"]["name"])
    release.helm.uninstall("kube-ipsec")

    def objects(where):
        return {
            (kind, item["metadata"]["name"])
            for kind in IN_NAMESPACE
            for item in cluster.list(kind, where)
        }

    def left():
        # Some things are in every namespace of a cluster.
        return objects(namespace) - objects(release.users)

    with suppress(LabError):
        until(lambda: not left(), "nothing is left")
    assert not left()
    for kind in ("ClusterRole", "ClusterRoleBinding"):
        names = [item["metadata"]["name"] for item in cluster.list(kind)]
        assert not [name for name in names if "ipsec" in name]
    assert cluster.get("IPsecPeer", release.users, "hq") == peer
    assert "finalizers" not in peer["metadata"]
    assert cluster.get("Secret", release.users, "hq")
