"""Every option of the programs is of use in a cluster, or there is a reason why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import pytest
import yaml

from ipsec_api.cluster import GATEWAY_NAME, ROUTE_AGENT_NAME
from ipsec_gateway.cli import gateway
from ipsec_gateway.routeagent.cli import route_agent
from ipsec_operator.cli import operator
from ipsec_operator.daemonsets import manifests
from ipsec_operator.settings import parse

#: What sets each option that the chart does not set by itself: values, and what comes of them.
BY_VALUE: dict[str, dict[str, tuple[dict[str, Any], str]]] = {
    "gateway": {
        "--group": ({"gateway": {"group": "east"}}, "--group=east"),
        "--dataplane": ({"gateway": {"dataplane": "userspace"}}, "--dataplane=userspace"),
        "--resume": ({"gateway": {"resumePath": "/run/x"}}, "--resume=/run/x"),
        "--listen": ({"gateway": {"port": 9999}}, "--listen=:9999"),
        "--log-format": ({"operator": {"logFormat": "text"}}, "--log-format=text"),
        "--log-level": ({"gateway": {"logLevel": "debug"}}, "--log-level=debug"),
        "--mark-bits": ({"gateway": {"markBits": "0x700"}}, "--mark-bits=0x700"),
        "--tables": ({"gateway": {"tables": "5000"}}, "--tables=5000"),
        "--allow-mark-conflict": (
            {"gateway": {"allowMarkConflict": True}},
            "--allow-mark-conflict",
        ),
        "--probe-responder": (
            {"gateway": {"probeResponder": False}},
            "--no-probe-responder",
        ),
        "--open-forward": ({"gateway": {"openForward": True}}, "--open-forward"),
    },
    "route-agent": {
        "--transport": ({"routeAgent": {"transport": "vxlan"}}, "--transport=vxlan"),
        "--vni": ({"routeAgent": {"vni": 77}}, "--vni=77"),
        "--vxlan-port": ({"routeAgent": {"vxlanPort": 4789}}, "--vxlan-port=4789"),
        "--table": ({"gateway": {"tables": "5000"}}, "--table=5002"),
        "--mark-bits": ({"gateway": {"markBits": "0x700"}}, "--mark-bits=0x700"),
        "--exclude": ({"clusterSubnets": {"pods": ["10.9.0.0/16"]}}, "--exclude=10.9.0.0/16"),
        "--listen": ({"routeAgent": {"port": 9999}}, "--listen=:9999"),
        "--log-format": ({"operator": {"logFormat": "text"}}, "--log-format=text"),
        "--log-level": ({"routeAgent": {"logLevel": "debug"}}, "--log-level=debug"),
    },
    "operator": {},
}
#: What nobody sets in a cluster, and why.
NOT_HERE = {
    "gateway": {
        "--manifests": "the cluster has the documents",
        "--state": "statuses are in the cluster",
        "--dry-run": "kubectl apply --dry-run=server",
        "--cleanup": "the uninstall's own pods have it (ipsec_operator.uninstall)",
    },
    "route-agent": {
        "--gateway": "gateways are known by their Leases",
        "--mesh-port": "gateways serve the one port that kubeipsec.dev has",
        "--mesh-key": "the Secret is mounted where it is looked for",
        "--state": "the folder that is mounted is where it is looked for",
        "--cleanup": "the uninstall's own pods have it (ipsec_operator.uninstall)",
    },
    "operator": {
        "--check": "the chart's schema and the operator's start say the same",
    },
}
COMMANDS = {"gateway": gateway, "route-agent": route_agent, "operator": operator}
NAMES = {"gateway": GATEWAY_NAME, "route-agent": ROUTE_AGENT_NAME}
Install = Callable[..., Any]


def options(name: str) -> dict[str, click.Option]:
    found = COMMANDS[name].params
    return {o.opts[0]: o for o in found if isinstance(o, click.Option) and not o.is_eager}


def container(install: Install, only: Any, name: str, **values: Any) -> dict[str, Any]:
    """The container that the chart's values come to, by way of the operator."""
    objects = install(**values)
    if name == "operator":
        pod = only(objects, "Deployment", "kube-ipsec-operator")["spec"]["template"]["spec"]
    else:
        settings = only(objects, "ConfigMap", "kube-ipsec-operator")["data"]["operator.yaml"]
        made = manifests(parse(settings), services=("10.96.0.0/12",))[NAMES[name]]
        pod = made["spec"]["template"]["spec"]
    (found,) = pod["containers"]
    return dict(found)


def is_set(option: click.Option, found: dict[str, Any]) -> bool:
    """Whether arguments, environment or hooks of a container set an option."""
    names = option.envvar if isinstance(option.envvar, list | tuple) else [option.envvar]
    spellings = {*option.opts, *option.secondary_opts}
    hooks = yaml.safe_dump(found.get("lifecycle", {}))
    return (
        any(argument.partition("=")[0] in spellings for argument in found["args"])
        or any(variable["name"] in names for variable in found["env"])
        or f"- {option.opts[0]}\n" in hooks
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_set_or_a_value_or_of_no_use(
    install: Install, only: Any, name: str
) -> None:
    plain = container(install, only, name)
    there = options(name)
    mine = {option for option, each in there.items() if is_set(each, plain)}
    assert there.keys() - mine - BY_VALUE[name].keys() == NOT_HERE[name].keys()
    assert there.keys() >= BY_VALUE[name].keys()


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in BY_VALUE for option in BY_VALUE[name]]
)
def test_values_set_options(install: Install, only: Any, name: str, option: str) -> None:
    values, argument = BY_VALUE[name][option]
    arguments = container(install, only, name, **values)["args"]
    assert argument in arguments
    assert argument not in container(install, only, name)["args"]
    # The program takes what it gets.
    COMMANDS[name].make_context(name, arguments[1:], resilient_parsing=False).close()


@pytest.mark.parametrize("opens", [False, True])
def test_who_changes_iptables_has_the_lock_of_the_node(
    install: Install, only: Any, opens: bool
) -> None:
    """Also who opens nothing any more: it takes away what it has opened before."""
    found = container(install, only, "gateway", gateway={"openForward": opens})
    assert "/run/xtables.lock" in {mount["mountPath"] for mount in found["volumeMounts"]}
