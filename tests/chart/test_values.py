"""values.yaml, its schema, and the operator's settings that become of it."""

from __future__ import annotations

import copy
import json

import helm_python
import pytest
import yaml

from ipsec_api.cluster import GATEWAY_NODE_LABEL
from ipsec_lab import chart
from ipsec_operator import settings

DEFAULTS = yaml.safe_load((chart.CHART / "values.yaml").read_text())
SCHEMA = json.loads((chart.CHART / "values.schema.json").read_text())
#: Of the model, what is not for users: the chart fixes it.
FIXED = {"leaderElection", "port"}


def groups(node, path=()):
    """Paths of the maps that the schema closes."""
    if node.get("additionalProperties") is False:
        yield path
        for key, child in node["properties"].items():
            yield from groups(child, (*path, key))


def nest(path, value):
    for key in reversed(path):
        value = {key: value}
    return value


def refused(values):
    with pytest.raises(helm_python.HelmError) as caught:
        chart.render(values)
    return str(caught.value)


@pytest.mark.parametrize("path", list(groups(SCHEMA)), ids=".".join)
def test_unknown_keys_are_refused_everywhere(path):
    assert "'tpyo' not allowed" in refused(nest(path, {"tpyo": 1}))


def test_every_map_is_closed_or_has_users_keys():
    def walk(node, path):
        if node.get("type") == "object" and "properties" in node:
            assert node["additionalProperties"] is False, path
        for key, child in node.get("properties", {}).items():
            walk(child, f"{path}.{key}")
        if isinstance(node.get("items"), dict):
            walk(node["items"], f"{path}[]")

    walk(SCHEMA, "")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"operator": {"replicas": "two"}}, "/operator/replicas"),
        ({"gateway": {"dataplane": "kernel"}}, "/gateway/dataplane"),
        ({"gateway": {"port": 0}}, "/gateway/port"),
        ({"operator": {"image": {"digest": "abc"}}}, "/operator/image/digest"),
        ({"clusterSubnets": {"pods": ["10.0.0.0"]}}, "/clusterSubnets/pods/0"),
        ({"watchNamespaces": "team-a"}, "/watchNamespaces"),
        ({"gateway": {"tolerations": [{"operater": "Exists"}]}}, "/gateway/tolerations/0"),
        ({"imagePullSecrets": ["registry"]}, "/imagePullSecrets/0"),
        ({"monitoring": {"podMonitor": {"interval": "often"}}}, "/monitoring/podMonitor/interval"),
    ],
)
def test_wrong_values_are_refused_by_name(values, named):
    assert named in refused(values)


def test_every_value_is_documented_and_described():
    def leaves(node, path=""):
        for key, value in node.items():
            here = f"{path}.{key}".lstrip(".")
            if here not in documented and isinstance(value, dict) and value:
                yield from leaves(value, here)
            else:
                yield here

    documented = {value.path for value in chart.values()}
    assert set(leaves(DEFAULTS)) == documented


def fields(model):
    return {field.alias for field in model.model_fields.values()}


@pytest.mark.parametrize(
    ("model", "group", "besides"),
    [
        (settings.GatewaySettings, "gateway", {"image"}),
        (settings.RouteAgentSettings, "routeAgent", set()),
        (settings.ClusterSubnets, "clusterSubnets", set()),
    ],
)
def test_what_the_operator_can_be_told_is_a_value(model, group, besides):
    assert set(DEFAULTS[group]) - besides == fields(model)


def told(install, only, **values):
    text = only(install(**values), "ConfigMap", "kube-ipsec-operator")["data"]["operator.yaml"]
    assert fields(settings.Settings) - set(yaml.safe_load(text)) == FIXED
    return settings.parse(text)


def test_defaults_of_the_chart_are_those_of_the_operator(install, only):
    ours = told(install, only)
    theirs = settings.Settings(image=ours.image)
    changed = {
        name
        for name in type(ours.gateway).model_fields
        if getattr(ours.gateway, name) != getattr(theirs.gateway, name)
    }
    # An empty affinity is none; resources are for the one who knows the cluster.
    assert changed <= {"affinity", "resources"}
    assert ours.gateway.node_selector == {GATEWAY_NODE_LABEL: "true"}
    assert ours.namespace == theirs.namespace


def test_values_reach_the_operator(install, only):
    values = {
        "watchNamespaces": ["a"],
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"registry": "example.org/x", "tag": "v1", "pullPolicy": "Always"},
        "clusterSubnets": {"services": ["10.96.0.0/12"]},
        "gateway": {
            "privileged": False,
            "markBits": "0x700",
            "tables": "5000",
            "extraEnv": [{"name": "A", "value": "b"}],
            "resources": {"limits": {"memory": "1Gi"}},
        },
        "routeAgent": {"enabled": False},
        "operator": {"logFormat": "text", "logLevel": "debug"},
        "commonLabels": {"team": "network"},
    }
    ours = told(install, only, **values)
    assert ours.watch_namespaces == ("a",)
    assert ours.image == "example.org/x/gateway:v1"
    assert ours.image_pull_policy == "Always"
    assert ours.image_pull_secrets == ({"name": "registry"},)
    assert ours.cluster_subnets.services == ("10.96.0.0/12",)
    assert not ours.gateway.privileged
    assert (ours.gateway.mark_bits, ours.gateway.tables) == ("0x700", "5000")
    assert ours.gateway.extra_env == ({"name": "A", "value": "b"},)
    assert ours.gateway.resources["limits"] == {"memory": "1Gi"}
    assert not ours.route_agent.enabled
    assert (ours.log_format, ours.log_level) == ("text", "debug")
    assert ours.common_labels == {"team": "network"}


def test_a_digest_wins_over_a_tag(install, only):
    digest = "sha256:" + "0" * 64
    image = {"repository": "gw", "tag": "v2", "digest": digest}
    ours = told(install, only, gateway={"image": image})
    assert ours.image == f"ghcr.io/kube-ipsec/gw@{digest}"


def test_other_settings_are_other_pods(install, only):
    def checksum(**values):
        deployment = only(install(**values), "Deployment", "kube-ipsec-operator")
        return deployment["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]

    assert checksum() == checksum(operator={"replicas": 2})
    assert checksum() != checksum(gateway={"port": 9999})


def test_the_page_lists_every_value():
    page = chart.PAGE.read_text()
    for value in chart.values():
        assert f"| `{value.path}` |" in page


def test_a_value_without_a_comment_is_noticed():
    from ipsec_lab.chart_schema import Undescribed, schema

    values = copy.deepcopy(DEFAULTS)
    values["gateway"]["new"] = 1
    with pytest.raises(Undescribed, match=r"gateway\.new"):
        schema(values, {value.path: value.text for value in chart.values()})
