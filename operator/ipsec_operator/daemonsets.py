"""Settings to DaemonSets: gateways on the labelled nodes, route agents on all nodes. Pure.

A gateway has UDP 500 and 4500 of its node, so that two of them never run on one node: a roll takes
one pod away before it makes the next one (``maxUnavailable`` 1, ``maxSurge`` 0). Its ``preStop``
hands its peers to the other gateways; with the kernel's ESP the SAs stay and the next gateway goes
on with them, from records in a memory-backed folder of the node.
"""

from __future__ import annotations

import json
from typing import Any, Final

from ipsec_api.cluster import (
    COMPONENT_LABEL,
    DIGEST_ANNOTATION,
    GATEWAY_NAME,
    GATEWAY_SERVICE_ACCOUNT,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MESH_KEY,
    MESH_KEY_PATH,
    MESH_SECRET,
    NAME_LABEL,
    NODE_IP_ENV,
    NODE_NAME_ENV,
    POD_NAMESPACE_ENV,
    ROUTE_AGENT_NAME,
    ROUTE_AGENT_SERVICE_ACCOUNT,
    digest,
)
from ipsec_operator.settings import GatewaySettings, RouteAgentSettings, Settings

Manifest = dict[str, Any]

_GATEWAY: Final = "gateway"
_ROUTE_AGENT: Final = "route-agent"
_TUN: Final = "/dev/net/tun"
#: Of all who change iptables on a node.
_LOCK: Final = "/run/xtables.lock"
#: Folder of the node with what the next route agent goes on with; gone with a boot, as its routes.
_STATE: Final = "/run/kube-ipsec"


def manifests(settings: Settings, services: tuple[str, ...] = ()) -> dict[str, Manifest]:
    """The DaemonSets that should exist, by name. ``services`` are the networks of Services, which
    gateways track whatever ``notrack`` says."""
    wanted = {GATEWAY_NAME: gateway(settings, services)}
    if settings.route_agent.enabled:
        wanted[ROUTE_AGENT_NAME] = route_agent(settings)
    return wanted


def gateway(settings: Settings, services: tuple[str, ...] = ()) -> Manifest:
    """The DaemonSet of the gateways."""
    chosen = settings.gateway
    args = [
        "gateway",
        "--cluster",
        f"--dataplane={chosen.dataplane}",
        f"--resume={chosen.resume_path}",
        f"--listen=:{chosen.port}",
        f"--log-format={settings.log_format}",
        f"--log-level={chosen.log_level}",
        *([f"--group={chosen.group}"] if chosen.group else []),
        *([f"--mark-bits={chosen.mark_bits}"] if chosen.mark_bits else []),
        *([f"--tables={chosen.tables}"] if chosen.tables else []),
        *(["--allow-mark-conflict"] if chosen.allow_mark_conflict else []),
        *(["--open-forward"] if chosen.open_forward else []),
        *([] if chosen.probe_responder else ["--no-probe-responder"]),
        *(f"--service-cidr={network}" for network in services),
        *chosen.extra_args,
    ]
    volumes: list[Manifest] = [
        _mesh_volume(),
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        {
            "name": "resume",
            "hostPath": {"path": chosen.resume_path, "type": "DirectoryOrCreate"},
        },
        # Legacy iptables is changed by one at a time, by whoever has the lock of the node: also to
        # take away what was opened while openForward was true.
        {"name": "xtables", "hostPath": {"path": _LOCK, "type": "FileOrCreate"}},
    ]
    mounts: list[Manifest] = [
        _mesh_mount(),
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of this pod alone
        {"name": "resume", "mountPath": chosen.resume_path},
        {"name": "xtables", "mountPath": _LOCK},
    ]
    if not chosen.privileged and chosen.dataplane != "xfrm":
        volumes.append({"name": "tun", "hostPath": {"path": _TUN, "type": "CharDevice"}})
        mounts.append({"name": "tun", "mountPath": _TUN})
    container: Manifest = {
        "name": _GATEWAY,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": args,
        "env": [*_environment(), *chosen.extra_env],
        "ports": [{"name": "metrics", "containerPort": chosen.port, "hostPort": chosen.port}],
        "securityContext": _rights(chosen.privileged, "NET_ADMIN", "NET_RAW"),
        "resources": chosen.resources,
        "volumeMounts": mounts,
        "lifecycle": {"preStop": {"exec": {"command": ["kube-ipsec", "gateway", "--drain"]}}},
        "startupProbe": _probe("/healthz", "metrics", period=2, failures=60),
        "livenessProbe": _probe("/healthz", "metrics", period=10, failures=6),
        "readinessProbe": _probe("/readyz", "metrics", period=5, failures=2),
    }
    return _daemonset(settings, chosen, _GATEWAY, container, volumes)


def route_agent(settings: Settings) -> Manifest:
    """The DaemonSet of the route agents."""
    chosen, gateways, own = settings.route_agent, settings.gateway, settings.cluster_subnets
    # Of the tables and rules from N on, gateways have N - 1 to N + 1.
    tables = gateways.tables or ""
    container: Manifest = {
        "name": _ROUTE_AGENT,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": [
            "route-agent",
            f"--listen=:{chosen.port}",
            f"--log-format={settings.log_format}",
            f"--log-level={chosen.log_level}",
            f"--transport={chosen.transport}",
            f"--vni={chosen.vni}",
            f"--vxlan-port={chosen.vxlan_port}",
            *([f"--mark-bits={gateways.mark_bits}"] if gateways.mark_bits else []),
            *([f"--table={int(tables) + 2}"] if tables.isdecimal() else []),
            # Given values alone: what is discovered changes with every node.
            *(f"--exclude={network}" for network in (*own.pods, *own.services, *own.nodes)),
            *chosen.extra_args,
        ],
        "env": [*_environment(), *chosen.extra_env],
        "ports": [{"name": "metrics", "containerPort": chosen.port, "hostPort": chosen.port}],
        "securityContext": _rights(False, "NET_ADMIN"),
        "resources": chosen.resources,
        "volumeMounts": [
            _mesh_mount(),
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of this pod alone
            {"name": "state", "mountPath": _STATE},
        ],
        "startupProbe": _probe("/healthz", "metrics", period=2, failures=60),
        "livenessProbe": _probe("/healthz", "metrics", period=10, failures=6),
        "readinessProbe": _probe("/readyz", "metrics", period=5, failures=2),
    }
    volumes: list[Manifest] = [
        _mesh_volume(),
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
        {"name": "state", "hostPath": {"path": _STATE, "type": "DirectoryOrCreate"}},
    ]
    return _daemonset(settings, chosen, _ROUTE_AGENT, container, volumes)


def _daemonset(
    settings: Settings,
    chosen: GatewaySettings | RouteAgentSettings,
    component: str,
    container: Manifest,
    volumes: list[Manifest],
) -> Manifest:
    is_gateway = isinstance(chosen, GatewaySettings)
    selector = {NAME_LABEL: "kube-ipsec", COMPONENT_LABEL: component}
    labels = {**settings.common_labels, **chosen.labels, **selector}
    rolling = {"maxUnavailable": 1 if is_gateway else "25%", "maxSurge": 0}
    strategy = chosen.update_strategy if isinstance(chosen, GatewaySettings) else "RollingUpdate"
    pod: Manifest = {
        "hostNetwork": True,
        # Names of peers are resolved before the cluster's DNS may be there, and with it.
        "dnsPolicy": "ClusterFirstWithHostNet",
        "serviceAccountName": GATEWAY_SERVICE_ACCOUNT
        if is_gateway
        else ROUTE_AGENT_SERVICE_ACCOUNT,
        "nodeSelector": chosen.node_selector,
        "tolerations": list(chosen.tolerations),
        "terminationGracePeriodSeconds": chosen.termination_grace_period
        if isinstance(chosen, GatewaySettings)
        else 10,
        "containers": [container],
        "volumes": volumes,
        "enableServiceLinks": False,
    }
    if chosen.priority_class_name:
        pod["priorityClassName"] = chosen.priority_class_name
    if chosen.affinity:
        pod["affinity"] = chosen.affinity
    if settings.image_pull_secrets:
        pod["imagePullSecrets"] = list(settings.image_pull_secrets)
    name = GATEWAY_NAME if is_gateway else ROUTE_AGENT_NAME
    manifest: Manifest = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": {**labels, MANAGED_BY_LABEL: MANAGED_BY},
        },
        "spec": {
            "selector": {"matchLabels": selector},
            "revisionHistoryLimit": 3,
            "updateStrategy": {"type": strategy}
            | ({"rollingUpdate": rolling} if strategy == "RollingUpdate" else {}),
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        "kubectl.kubernetes.io/default-container": component,
                        **chosen.annotations,
                    },
                },
                "spec": pod,
            },
        },
    }
    text = json.dumps(manifest, sort_keys=True)
    manifest["metadata"]["annotations"] = {DIGEST_ANNOTATION: digest(text)}
    return manifest


def _environment() -> list[Manifest]:
    fields = {
        NODE_NAME_ENV: "spec.nodeName",
        NODE_IP_ENV: "status.hostIP",
        "NODE_IPS": "status.hostIPs",
        "POD_NAME": "metadata.name",
        POD_NAMESPACE_ENV: "metadata.namespace",
    }
    return [
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in fields.items()
    ]


def _rights(privileged: bool, *capabilities: str) -> Manifest:
    if privileged:
        return {"privileged": True, "readOnlyRootFilesystem": True, "runAsUser": 0}
    return {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsUser": 0,
        "capabilities": {"drop": ["ALL"], "add": list(capabilities)},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _probe(path: str, port: str, *, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }


def _mesh_volume() -> Manifest:
    # 0400: the key is root's alone.
    return {
        "name": "mesh",
        "secret": {
            "secretName": MESH_SECRET,
            "defaultMode": 0o400,
            "items": [{"key": MESH_KEY, "path": MESH_KEY}],
        },
    }


def _mesh_mount() -> Manifest:
    return {"name": "mesh", "mountPath": MESH_KEY_PATH.rpartition("/")[0], "readOnly": True}
