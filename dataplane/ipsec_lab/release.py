"""The chart of this tree installed in a cluster by Helm, and its operator as a process here.

For clusters that cannot run our pods: a control plane without nodes is one. The operator then runs
on this machine, with the settings and the rights that the chart has made for it.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import helm_python
import yaml

from ipsec_api.kinds import GROUP, KINDS
from ipsec_lab import chart
from ipsec_lab.cluster import Cluster, until
from ipsec_lab.netns import LabError
from ipsec_lab.operator_process import NOWHERE, OperatorProcess

#: No pod is ever started: no replica of the operator in the cluster, and no node for a DaemonSet.
WITHOUT_PODS: Final[Mapping[str, Any]] = {
    "gateway": {"nodeSelector": NOWHERE},
    "routeAgent": {"nodeSelector": NOWHERE},
    "clusterSubnets": {"pods": ["10.244.0.0/16"], "services": ["10.96.0.0/16"]},
    "operator": {"nodeSelector": NOWHERE, "logFormat": "text"},
    # Its Job needs a node to run on.
    "cleanup": {"enabled": False},
}


@dataclass(frozen=True)
class Release:
    """The chart in a namespace of its own; users' resources are in another."""

    cluster: Cluster
    helm: helm_python.Config
    folder: Path
    namespace: str
    users: str

    def upgrade(self, **values: Any) -> None:
        """To the chart of this tree, with other values."""
        copy = copied(self.folder / f"chart-{uuid.uuid4().hex[:6]}")
        chosen = {**WITHOUT_PODS, **values}
        self.helm.upgrade(copy, chart.NAME, chosen, namespace=self.namespace)

    def settings(self) -> dict[str, Any]:
        """Those that the chart has made for the operator."""
        found = self.cluster.get("ConfigMap", self.namespace, "kube-ipsec-operator")
        if found is None:
            raise LabError("the chart has made no ConfigMap kube-ipsec-operator")
        return {**yaml.safe_load(found["data"]["operator.yaml"]), "namespace": self.namespace}

    def operator(self, name: str = "operator-0", **settings: Any) -> OperatorProcess:
        """A replica with the rights of its service account, not started yet."""
        folder = self.folder / uuid.uuid4().hex[:6]
        folder.mkdir()
        own = self.cluster.kubeconfig_of(
            self.namespace, "kube-ipsec-operator", folder / "kubeconfig"
        )
        return OperatorProcess(folder, own, {**self.settings(), **settings}, name)


def occupied(cluster: Cluster) -> str | None:
    """Why the chart is not to be installed into this cluster, or None."""
    roles = [item["metadata"]["name"] for item in cluster.list("ClusterRole")]
    if any(name.startswith(chart.NAME) for name in roles):
        return "this cluster has kube-ipsec already"
    if _definitions(cluster):
        return "this cluster has our CRDs already, and others may have resources in them"
    return None


@contextmanager
def installed(cluster: Cluster, folder: Path, version: str = "") -> Iterator[Release]:
    """The chart, which goes afterwards with all that it has brought. ``version`` is what it says
    it is. Raises LabError where the cluster is ``occupied``."""
    if problem := occupied(cluster):
        raise LabError(problem)
    namespace = f"kube-ipsec-run-{uuid.uuid4().hex[:8]}"
    users = f"{namespace}-users"
    copy = copied(folder / "chart", version)
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": users}})
    with helm_python.Config(kubeconfig_path=str(cluster.kubeconfig), namespace=namespace) as helm:
        try:
            helm.install(
                copy, chart.NAME, dict(WITHOUT_PODS), namespace=namespace, create_namespace=True
            )
            yield Release(cluster, helm, folder, namespace, users)
        finally:
            helm.uninstall(chart.NAME, ignore_not_found=True)
            for kind in KINDS:
                cluster.delete("CustomResourceDefinition", "", f"{kind.plural}.{GROUP}")
            for name in (namespace, users):
                cluster.delete("Namespace", "", name)
            until(lambda: not _definitions(cluster), "our CRDs are gone")


def copied(folder: Path, version: str = "") -> str:
    """The chart without its bound on the cluster's version: a control plane that somebody has
    built does not always know its own. ``version`` is what it says it is."""
    shutil.copytree(chart.CHART, folder)
    file = folder / "Chart.yaml"
    metadata = yaml.safe_load(file.read_text())
    metadata.pop("kubeVersion", None)
    if version:
        metadata |= {"version": version, "appVersion": version}
    file.write_text(yaml.safe_dump(metadata))
    return str(folder)


def _definitions(cluster: Cluster) -> list[str]:
    found = cluster.list("CustomResourceDefinition")
    return [each["metadata"]["name"] for each in found if each["metadata"]["name"].endswith(GROUP)]
