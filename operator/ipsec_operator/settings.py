"""What the chart's values tell the operator: one YAML file, read once at the start.

The file is a ConfigMap that the chart mounts; a change of it rolls the operator's pods. Field names
are camelCase in YAML. An unknown field is an error, so that a typing mistake never passes for a
setting.
"""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError

from ipsec_api.base import ApiModel
from ipsec_api.cluster import DEFAULT_NAMESPACE, GATEWAY_NODE_LABEL


class SettingsError(Exception):
    """The settings cannot be used; the text names the field and the remedy."""


def _cidr(value: str) -> str:
    return str(ip_network(value))


#: A network in CIDR notation without host bits.
Cidr = Annotated[str, AfterValidator(_cidr)]
#: An object of the Kubernetes API that is passed on as it is, such as a toleration.
Passed = dict[str, Any]


class GatewaySettings(ApiModel):
    """The DaemonSet of the gateways."""

    node_selector: dict[str, str] = Field(default_factory=lambda: {GATEWAY_NODE_LABEL: "true"})
    tolerations: tuple[Passed, ...] = ({"operator": "Exists"},)
    affinity: Passed | None = None
    #: False: the capabilities NET_ADMIN and NET_RAW alone, and /dev/net/tun from the node.
    privileged: bool = True
    resources: Passed = Field(default_factory=dict)
    priority_class_name: str = "system-node-critical"
    #: Who carries the packets.
    dataplane: Literal["auto", "xfrm", "userspace"] = "auto"
    #: Bits of the packet mark that are the gateway's; None is the gateway's own choice.
    mark_bits: str | None = None
    #: First of the routing tables that are the gateway's; None is the gateway's own choice.
    tables: str | None = None
    #: The mark bits may be others' as well: they do not run here.
    allow_mark_conflict: bool = False
    #: Rules that let tunnels' traffic pass are put into others' chains on the forward hook.
    open_forward: bool = False
    #: Answer probes of other gateways by UDP.
    probe_responder: bool = True
    extra_args: tuple[str, ...] = ()
    extra_env: tuple[Passed, ...] = ()
    #: TCP port of /healthz, /readyz and /metrics on the node's address.
    port: Annotated[int, Field(ge=1, le=65535)] = 9501
    #: Gateway group of these gateways; peers choose one with spec.gatewaySelector.group.
    group: str = ""
    #: OnDelete: whoever deletes a pod decides when a gateway changes.
    update_strategy: Literal["RollingUpdate", "OnDelete"] = "RollingUpdate"
    #: Seconds from SIGTERM to SIGKILL; handing over takes 3.
    termination_grace_period: Annotated[int, Field(ge=5, le=600)] = 30
    #: Memory-backed folder of the node with what the next gateway needs to go on with the SAs.
    resume_path: str = "/run/kube-ipsec"
    annotations: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class RouteAgentSettings(ApiModel):
    """The DaemonSet on all nodes that leads pods' traffic to the gateways."""

    enabled: bool = True
    node_selector: dict[str, str] = Field(default_factory=lambda: {"kubernetes.io/os": "linux"})
    tolerations: tuple[Passed, ...] = ({"operator": "Exists"},)
    affinity: Passed | None = None
    resources: Passed = Field(default_factory=dict)
    priority_class_name: str = "system-node-critical"
    extra_args: tuple[str, ...] = ()
    extra_env: tuple[Passed, ...] = ()
    #: TCP port of /healthz and /metrics on the node's address.
    port: Annotated[int, Field(ge=1, le=65535)] = 9502
    #: How packets get to a gateway on another node: as the agent finds, or always by VXLAN.
    transport: Literal["auto", "vxlan"] = "auto"
    #: Number of the VXLAN, and its UDP port.
    vni: Annotated[int, Field(ge=1, le=0xFFFFFF)] = 4499
    vxlan_port: Annotated[int, Field(ge=1, le=65535)] = 4499
    annotations: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class ClusterSubnets(ApiModel):
    """Networks of the cluster. What is given here is taken; what is empty is discovered."""

    pods: tuple[Cidr, ...] = ()
    services: tuple[Cidr, ...] = ()
    nodes: tuple[Cidr, ...] = ()


class Settings(ApiModel):
    """Everything the operator is told."""

    #: Where the operator, the gateways and the tunnel Secrets are.
    namespace: str = DEFAULT_NAMESPACE
    #: Namespaces whose resources and Secrets are read; empty is all of them.
    watch_namespaces: tuple[str, ...] = ()
    #: The data plane's image, which gateways and route agents run.
    image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[Passed, ...] = ()
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    route_agent: RouteAgentSettings = Field(default_factory=RouteAgentSettings)
    cluster_subnets: ClusterSubnets = Field(default_factory=ClusterSubnets)
    log_format: Literal["text", "json"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: Labels of everything that the operator creates.
    common_labels: dict[str, str] = Field(default_factory=dict)
    #: Several replicas: only the holder of the Lease works.
    leader_election: bool = True
    #: TCP port of /healthz, /readyz and /metrics of the operator.
    port: Annotated[int, Field(ge=0, le=65535)] = 8080

    def watches(self, namespace: str) -> bool:
        """Whether resources of this namespace are looked at."""
        return not self.watch_namespaces or namespace in self.watch_namespaces


def parse(text: str) -> Settings:
    """The settings in a YAML text. Raises SettingsError."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise SettingsError(f"not YAML{where}: check indentation and quotes there") from None
    if not isinstance(raw, dict):
        raise SettingsError("not a map: write KEY: VALUE lines, image at least")
    try:
        return Settings.model_validate_json(json.dumps(raw))
    except ValidationError as exc:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in exc.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise SettingsError("; ".join(faults)) from None
    except (TypeError, ValueError):
        raise SettingsError("a value is not JSON: put dates and the like in quotes") from None


def load(path: Path) -> Settings:
    """The settings in a file. Raises SettingsError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} cannot be read: {exc}") from None
    try:
        return parse(text)
    except SettingsError as exc:
        raise SettingsError(f"{path}: {exc}") from None
