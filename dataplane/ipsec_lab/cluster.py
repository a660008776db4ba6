"""A cluster that a kubeconfig names, as plain JSON, in the name of whom one likes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import yaml
from kubernetes import client, config

from ipsec_api.kinds import GROUP, VERSION
from ipsec_lab.netns import LabError

Object = dict[str, Any]

#: Kind to (path of the group, plural, whether it is in a namespace).
_KINDS: Final[Mapping[str, tuple[str, str, bool]]] = {
    "IPsecPeer": (f"apis/{GROUP}/{VERSION}", "ipsecpeers", True),
    "IPsecPolicy": (f"apis/{GROUP}/{VERSION}", "ipsecpolicies", True),
    "ModeConfig": (f"apis/{GROUP}/{VERSION}", "modeconfigs", True),
    "Secret": ("api/v1", "secrets", True),
    "ConfigMap": ("api/v1", "configmaps", True),
    "Event": ("api/v1", "events", True),
    "Pod": ("api/v1", "pods", True),
    "ServiceAccount": ("api/v1", "serviceaccounts", True),
    "Namespace": ("api/v1", "namespaces", False),
    "Node": ("api/v1", "nodes", False),
    "Lease": ("apis/coordination.k8s.io/v1", "leases", True),
    "DaemonSet": ("apis/apps/v1", "daemonsets", True),
    "Deployment": ("apis/apps/v1", "deployments", True),
    "Job": ("apis/batch/v1", "jobs", True),
    "Role": ("apis/rbac.authorization.k8s.io/v1", "roles", True),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings", True),
    "ClusterRole": ("apis/rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": ("apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies", True),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets", True),
    "CustomResourceDefinition": (
        "apis/apiextensions.k8s.io/v1",
        "customresourcedefinitions",
        False,
    ),
}


class Refused(LabError):
    """The API server says no. ``status`` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status: Final = status


class Cluster:
    """``user`` is impersonated; without it one is whom the kubeconfig says. ``close`` it."""

    def __init__(self, kubeconfig: Path, user: str = "") -> None:
        self.kubeconfig: Final = kubeconfig
        # It has no annotations.
        made = config.new_client_from_config(str(kubeconfig))  # type: ignore[no-untyped-call]
        self._api: Final[client.ApiClient] = made
        if user:
            self._api.set_default_header("Impersonate-User", user)

    def close(self) -> None:
        """Close the connections."""
        self._api.close()  # type: ignore[no-untyped-call]  # it has no annotations

    def account(self, namespace: str, name: str) -> Cluster:
        """The same cluster in the name of a service account."""
        return Cluster(self.kubeconfig, f"system:serviceaccount:{namespace}:{name}")

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """None where there is none. Raises Refused."""
        try:
            return self.call("GET", _path(kind, namespace, name))
        except Refused as exc:
            if exc.status == 404:
                return None
            raise

    def list(self, kind: str, namespace: str = "", **query: str) -> list[Object]:
        """All of a kind, or those of a namespace. Raises Refused."""
        items: list[Object] = self.call("GET", _path(kind, namespace), query).get("items") or []
        return items

    def create(self, manifest: Object) -> Object:
        """Raises Refused."""
        metadata = manifest["metadata"]
        path = _path(manifest["kind"], metadata.get("namespace", ""))
        return self.call("POST", path, body=manifest)

    def apply(self, manifest: Object, *, manager: str = "kubectl", part: str = "") -> Object:
        """Server-side apply. Raises Refused."""
        metadata = manifest["metadata"]
        path = _path(manifest["kind"], metadata.get("namespace", ""), metadata["name"], part)
        query = {"fieldManager": manager, "force": "true"}
        return self.call("PATCH", path, query, manifest, "application/apply-patch+yaml")

    def patch(self, kind: str, namespace: str, name: str, body: Object, part: str = "") -> Object:
        """Merge patch. Raises Refused."""
        path = _path(kind, namespace, name, part)
        return self.call("PATCH", path, body=body, content="application/merge-patch+json")

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """If it is there. Raises Refused."""
        try:
            self.call("DELETE", _path(kind, namespace, name))
        except Refused as exc:
            if exc.status != 404:
                raise

    def table(self, kind: str, namespace: str, name: str) -> dict[str, object]:
        """What ``kubectl get -o wide`` shows of one: column to cell."""
        accept = "application/json;as=Table;g=meta.k8s.io;v=v1"
        found = self.call("GET", _path(kind, namespace, name), accept=accept)
        columns = [column["name"] for column in found["columnDefinitions"]]
        return dict(zip(columns, found["rows"][0]["cells"], strict=True))

    def token(self, namespace: str, account: str) -> str:
        """A token of a service account, good for an hour."""
        path = _path("ServiceAccount", namespace, account, "token")
        spec = {"expirationSeconds": 3600}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self.call("POST", path, body=body)["status"]["token"])

    def kubeconfig_of(self, namespace: str, account: str, file: Path) -> Path:
        """``file``, which becomes the kubeconfig of a service account."""
        raw = yaml.safe_load(self.kubeconfig.read_text())
        chosen = next(c for c in raw["contexts"] if c["name"] == raw["current-context"])
        chosen["context"]["user"] = account
        raw["contexts"] = [chosen]
        raw["users"] = [{"name": account, "user": {"token": self.token(namespace, account)}}]
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(raw))
        return file

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        """One request. Raises Refused."""
        request = self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": accept, "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = self._api.call_api(*request)
        text = response.read()  # type: ignore[no-untyped-call]  # it has no annotations
        found: Object = json.loads(text) if text else {}
        if not 200 <= response.status < 300:
            raise Refused(response.status, str(found.get("message", response.reason)))
        return found


def until(holds: Callable[[], object], what: str, timeout: float = 20.0) -> Any:
    """The first true value of ``holds``, which is asked again and again. Raises LabError."""
    deadline = time.monotonic() + timeout
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(0.05)
    return found


def condition(item: Mapping[str, Any] | None, kind: str) -> Mapping[str, Any]:
    """A condition of an object, empty if it is not there."""
    listed = ((item or {}).get("status") or {}).get("conditions") or ()
    return next((each for each in listed if each["type"] == kind), {})


def _path(kind: str, namespace: str, name: str = "", part: str = "") -> str:
    group, plural, namespaced = _KINDS[kind]
    parts = [group]
    if namespaced and namespace:
        parts += ["namespaces", quote(namespace, safe="")]
    return "/" + "/".join([*parts, plural, *(quote(p, safe="") for p in (name, part) if p)])
