"""``kube-ipsec uninstall``: nodes become what they were, before the chart is gone.

The chart runs it as a Job. In this order, since each step would be undone by what is before it:

1. The operator goes (its Deployment is scaled to 0), so that nothing is made anew.
2. The DaemonSets of gateways and route agents go. With the kernel's ESP their SAs stay.
3. A DaemonSet made from each of them runs the same container with ``--cleanup``: it says good-bye
   to the peers and takes away SAs, policies, rules, routes, tables. A node that does not finish in
   time is named, and not waited for: whoever uninstalls must not be stopped by a dead node.
4. What operator and gateways have made in this namespace goes: Secrets, Leases.

Running it twice does no harm.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import click
from kubernetes import client, config

from ipsec_api.cluster import (
    COMPONENT_LABEL,
    DEFAULT_NAMESPACE,
    GATEWAY_LEASE_SELECTOR,
    GATEWAY_NAME,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MESH_SECRET,
    NAME_LABEL,
    OPERATOR_LEASE,
    POD_NAMESPACE_ENV,
    ROUTE_AGENT_NAME,
    TUNNEL_SELECTOR,
)

Manifest = dict[str, Any]

#: The chart's Deployment.
OPERATOR_NAME: Final = "kube-ipsec-operator"
#: DaemonSet to the DaemonSet that cleans up after it.
CLEANERS: Final = {
    GATEWAY_NAME: "kube-ipsec-cleanup-gateway",
    ROUTE_AGENT_NAME: "kube-ipsec-cleanup-route-agent",
}
#: Of the arguments of a container, what its clean-up has to know, too: where things are.
_KEPT: Final = frozenset(
    (
        *("--dataplane", "--resume", "--mark-bits", "--tables"),
        *("--table", "--vni", "--vxlan-port", "--state"),
    )
)
#: The same, of those without a value.
_FLAGS: Final = frozenset(("--allow-mark-conflict",))
#: Seconds between looks at the API.
_PAUSE: Final = 2.0
_GONE, _EXISTS = 404, 409


def cleaner(daemonset: Mapping[str, Any]) -> Manifest:
    """The DaemonSet that cleans up after this one: the same pods, where its container runs once
    with ``--cleanup`` before another one that only waits. Pure."""
    name = CLEANERS[daemonset["metadata"]["name"]]
    labels = {NAME_LABEL: "kube-ipsec", COMPONENT_LABEL: name.removeprefix("kube-ipsec-")}
    pod = copy.deepcopy(daemonset["spec"]["template"]["spec"])
    (work,) = pod["containers"]
    for key in ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe", "ports"):
        work.pop(key, None)
    subcommand, *options = work["args"]
    work["args"] = [subcommand, "--cleanup", *_kept(options)]
    wait: Manifest = {
        "name": "done",
        "image": work["image"],
        "imagePullPolicy": work.get("imagePullPolicy", "IfNotPresent"),
        # The image has no shell and no sleep.
        "command": ["python3", "-c", "import signal; signal.pause()"],
        "securityContext": {
            "runAsUser": 65532,
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod["initContainers"], pod["containers"] = [work], [wait]
    pod["terminationGracePeriodSeconds"] = 1
    # The Secret with the key of the mesh may be gone; nothing here needs it.
    for volume in pod.get("volumes", ()):
        if "secret" in volume:
            volume["secret"]["optional"] = True
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": name,
            "namespace": daemonset["metadata"]["namespace"],
            "labels": {**labels, MANAGED_BY_LABEL: MANAGED_BY},
        },
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": "100%", "maxSurge": 0},
            },
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _kept(options: Sequence[str]) -> Iterator[str]:
    """``--name=value`` and ``--name value`` of the options that a clean-up has to know."""
    follows = False
    for option in options:
        name, equals, _ = option.partition("=")
        if follows or name in _KEPT or name in _FLAGS:
            yield option
        follows = name in _KEPT and not equals


class Cluster:
    """What the steps need of the API. Raises ``client.ApiException``."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.namespace: Final = namespace
        self._api: Final = api
        self._core: Final = client.CoreV1Api(api)
        self._apps: Final = client.AppsV1Api(api)
        self._leases: Final = client.CoordinationV1Api(api)

    def stop_operator(self) -> bool:
        """False if there is none."""
        return _unless(
            _GONE,
            lambda: self._apps.patch_namespaced_deployment_scale(
                OPERATOR_NAME, self.namespace, {"spec": {"replicas": 0}}
            ),
        )

    def daemonset(self, name: str) -> Manifest | None:
        """As JSON; None if there is none."""
        found = self._apps.list_namespaced_daemon_set(
            self.namespace, field_selector=f"metadata.name={name}"
        )
        return next(iter(self._items(found)), None)

    def create(self, manifest: Manifest) -> None:
        """One that is there already stays as it is."""
        body = client.V1DaemonSet.model_validate(manifest)
        _unless(_EXISTS, lambda: self._apps.create_namespaced_daemon_set(self.namespace, body))

    def delete_daemonset(self, name: str) -> None:
        """And, after that, its pods."""
        _unless(
            _GONE,
            lambda: self._apps.delete_namespaced_daemon_set(
                name, self.namespace, propagation_policy="Foreground"
            ),
        )

    def pods(self, component: str) -> list[Manifest]:
        """Pods of a component, as JSON."""
        selector = f"{NAME_LABEL}=kube-ipsec,{COMPONENT_LABEL}={component}"
        return self._items(self._core.list_namespaced_pod(self.namespace, label_selector=selector))

    def delete_rest(self) -> None:
        """Secrets of tunnels and of the mesh, Leases."""
        core, leases, here = self._core, self._leases, self.namespace
        tunnels = core.list_namespaced_secret(here, label_selector=TUNNEL_SELECTOR)
        for name in (MESH_SECRET, *self._names(tunnels)):
            _unless(_GONE, partial(core.delete_namespaced_secret, name, here))
        gateways = leases.list_namespaced_lease(here, label_selector=GATEWAY_LEASE_SELECTOR)
        for name in (OPERATOR_LEASE, *self._names(gateways)):
            _unless(_GONE, partial(leases.delete_namespaced_lease, name, here))

    def _items(self, found: object) -> list[Manifest]:
        # It has no annotations.
        plain = self._api.sanitize_for_serialization(found)  # type: ignore[no-untyped-call]
        items: list[Manifest] = plain["items"]
        return items

    def _names(self, found: object) -> list[str]:
        return [item["metadata"]["name"] for item in self._items(found)]


def _unless(status: int, call: Callable[[], object]) -> bool:
    """False if the API answered with this status."""
    try:
        call()
    except client.ApiException as exc:
        if exc.status != status:
            raise
        return False
    return True


def steps(
    cluster: Cluster, timeout: float, now: Callable[[], float], sleep: Callable[[float], None]
) -> Iterator[str]:
    """Do it, saying what is done. ``timeout`` in seconds is for the nodes: a fifth of it for the
    operator to stop, two for gateways and agents, two for the clean-up."""

    def until(left: Callable[[], set[str]], share: float) -> set[str]:
        deadline = now() + share * timeout
        while (nodes := left()) and now() < deadline:
            sleep(_PAUSE)
        return nodes

    def running(component: str) -> set[str]:
        return {_node(pod) for pod in cluster.pods(component)}

    def unfinished(name: str) -> set[str]:
        status = (cluster.daemonset(name) or {}).get("status", {})
        pods = cluster.pods(_component(name))
        if not status.get("observedGeneration") or len(pods) < status["desiredNumberScheduled"]:
            return {"nodes that have no pod yet"}
        return {_node(pod) for pod in pods if not _is_ready(pod)}

    yield "the operator is stopped" if cluster.stop_operator() else "there is no operator"
    if left := until(lambda: running("operator"), 0.2):
        yield f"warning: the operator still runs on {_listed(left)}"
    found = {name: raw for name in CLEANERS if (raw := cluster.daemonset(name)) is not None}
    for name in found:
        cluster.delete_daemonset(name)
    for name in found:
        left = until(partial(running, _component(name)), 0.4 / len(found))
        yield (f"warning: {name} still runs on {_listed(left)}" if left else f"{name} is gone")
    for raw in found.values():
        cluster.create(cleaner(raw))
    for name in found:
        left = until(partial(unfinished, CLEANERS[name]), 0.4 / len(found))
        yield (
            f"warning: not cleaned up after {name}: {_listed(left)}; restart these nodes"
            if left
            else f"cleaned up after {name} everywhere"
        )
    for name in CLEANERS.values():
        cluster.delete_daemonset(name)
    cluster.delete_rest()
    yield "Secrets and Leases are deleted"


def _component(name: str) -> str:
    return name.removeprefix("kube-ipsec-")


def _node(pod: Mapping[str, Any]) -> str:
    return str(pod["spec"].get("nodeName") or pod["metadata"]["name"])


def _is_ready(pod: Mapping[str, Any]) -> bool:
    states = pod.get("status", {}).get("containerStatuses") or ()
    return any(state["ready"] for state in states)


def _listed(nodes: set[str]) -> str:
    return ", ".join(sorted(nodes))


@click.command()
@click.option(
    "--namespace",
    envvar=POD_NAMESPACE_ENV,
    default=DEFAULT_NAMESPACE,
    show_default=True,
    help="Where kube-ipsec is installed.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 3600),
    default=180,
    show_default=True,
    help="Seconds to wait for nodes.",
)
def uninstall(namespace: str, timeout: float) -> None:
    """Take away from nodes, and from its namespace, what kube-ipsec has put there.

    CRDs and resources stay; `helm uninstall` runs this by itself.
    """
    try:
        config.load_config()  # type: ignore[no-untyped-call]  # it has no annotations
    except config.ConfigException as exc:
        raise click.ClickException(f"no cluster: {exc}; set KUBECONFIG") from None
    with client.ApiClient() as api:
        try:
            for line in steps(Cluster(api, namespace), timeout, time.monotonic, time.sleep):
                click.echo(line)
        except client.ApiException as exc:
            raise click.ClickException(
                f"the API server refuses ({exc.status} {exc.reason}): {str(exc.body)[:300]}"
            ) from None
