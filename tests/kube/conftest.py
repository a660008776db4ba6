"""Any cluster: the one that KUBECONFIG names, with its own API server as the judge.

A control plane without nodes is enough. Everything is done in a namespace of its own, which goes
afterwards; CRDs that were there before stay as they were found, and must be those of this tree.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from kubernetes import client, config

from ipsec_api.kinds import GROUP, KINDS
from ipsec_lab import chart
from ipsec_lab.cluster import Cluster, until
from ipsec_lab.operator_process import NOWHERE, OperatorProcess

CRDS = sorted((Path(__file__).parents[2] / "crds").glob("*.yaml"))


@pytest.fixture(scope="session")
def api() -> Iterator[client.ApiClient]:
    """A client with the rights of KUBECONFIG, which have to be those of an administrator."""
    with config.new_client_from_config(os.environ["KUBECONFIG"]) as made:
        yield made


@pytest.fixture(scope="session")
def crds(api: client.ApiClient) -> Iterator[dict[str, Any]]:
    """Our CRDs by kind, established in the cluster."""
    extensions = client.ApiextensionsV1Api(api)
    there = {each.metadata.name for each in extensions.list_custom_resource_definition().items}
    definitions = [yaml.safe_load(path.read_text()) for path in CRDS]
    made = []
    for definition in definitions:
        name = definition["metadata"]["name"]
        if name not in there:
            made.append(name)
        extensions.patch_custom_resource_definition(
            name,
            definition,
            field_manager="kube-ipsec-tests",
            force=True,
            _content_type="application/apply-patch+yaml",
        )
    yield {each["spec"]["names"]["kind"]: each for each in definitions}
    for name in made:
        extensions.delete_custom_resource_definition(name)


@pytest.fixture(scope="session")
def namespace(api: client.ApiClient) -> Iterator[str]:
    """A namespace for this run."""
    core = client.CoreV1Api(api)
    name = f"kube-ipsec-test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


# -- the chart installed, and its operator as a process of this machine

#: No pod is ever started: no replica of the operator in the cluster, and no node for a DaemonSet.
VALUES: dict[str, Any] = {
    "gateway": {"nodeSelector": NOWHERE},
    "routeAgent": {"nodeSelector": NOWHERE},
    "clusterSubnets": {"pods": ["10.244.0.0/16"], "services": ["10.96.0.0/16"]},
    "operator": {"nodeSelector": NOWHERE, "logFormat": "text"},
    # Its Job needs a node to run on.
    "cleanup": {"enabled": False},
}


@dataclass
class Release:
    """The chart in a namespace of its own; users' resources are in another."""

    cluster: Cluster
    helm: Any
    folder: Path
    namespace: str
    users: str

    def upgrade(self, **values: Any) -> None:
        """To this tree's chart."""
        copy = chart_copy(self.folder / f"chart-{uuid.uuid4().hex[:6]}")
        self.helm.upgrade(copy, "kube-ipsec", VALUES | values, namespace=self.namespace)

    def settings(self) -> dict[str, Any]:
        """Those that the chart has made for the operator."""
        found = self.cluster.get("ConfigMap", self.namespace, "kube-ipsec-operator")
        return yaml.safe_load(found["data"]["operator.yaml"]) | {"namespace": self.namespace}

    def operator(self, name: str = "operator-0", **settings: Any) -> OperatorProcess:
        """A replica with the rights of its service account, not started yet."""
        folder = self.folder / uuid.uuid4().hex[:6]
        folder.mkdir()
        own = self.cluster.kubeconfig_of(
            self.namespace, "kube-ipsec-operator", folder / "kubeconfig"
        )
        return OperatorProcess(folder, own, self.settings() | settings, name)


def chart_copy(folder: Path, version: str = "") -> str:
    """The chart without its bound on the cluster's version: a control plane built from source does
    not know its own. ``version`` is what it says it is."""
    shutil.copytree(chart.CHART, folder)
    file = folder / "Chart.yaml"
    metadata = yaml.safe_load(file.read_text())
    metadata.pop("kubeVersion", None)
    if version:
        metadata |= {"version": version, "appVersion": version}
    file.write_text(yaml.safe_dump(metadata))
    return str(folder)


@pytest.fixture(scope="session")
def install(api: client.ApiClient, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``with install() as release``: the chart in a cluster that has none, gone afterwards."""

    @contextmanager
    def installed(version: str = "") -> Iterator[Release]:
        rbac = client.RbacAuthorizationV1Api(api)
        if any(r.metadata.name.startswith("kube-ipsec") for r in rbac.list_cluster_role().items):
            pytest.skip("this cluster has kube-ipsec already")
        extensions = client.ApiextensionsV1Api(api)

        def definitions() -> list[str]:
            found = extensions.list_custom_resource_definition().items
            return [each.metadata.name for each in found if each.metadata.name.endswith(GROUP)]

        if definitions():
            pytest.skip("this cluster has our CRDs already, and others may have resources in them")
        folder = tmp_path_factory.mktemp("release")
        namespace = f"kube-ipsec-run-{uuid.uuid4().hex[:8]}"
        core = client.CoreV1Api(api)
        cluster = Cluster(Path(os.environ["KUBECONFIG"]))
        copy = chart_copy(folder / "chart", version)
        settings = {"kubeconfig_path": os.environ["KUBECONFIG"], "namespace": namespace}
        core.create_namespace({"metadata": {"name": f"{namespace}-users"}})
        with helm_python.Config(**settings) as helm:
            try:
                helm.install(copy, "kube-ipsec", VALUES, namespace=namespace, create_namespace=True)
                yield Release(cluster, helm, folder, namespace, f"{namespace}-users")
            finally:
                helm.uninstall("kube-ipsec", ignore_not_found=True)
                for kind in KINDS:
                    extensions.delete_custom_resource_definition(f"{kind.plural}.{GROUP}")
                for name in (namespace, f"{namespace}-users"):
                    core.delete_namespace(name)
                until(lambda: not definitions(), "our CRDs are gone")
                cluster.close()

    return installed
