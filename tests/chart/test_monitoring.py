"""Alerts and dashboard ask for metrics that exist, with labels that they have."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from ipsec_gateway.metrics import Metrics
from ipsec_operator import daemonsets
from ipsec_operator.settings import Settings

MONITORING = {
    "labels": {"release": "prometheus"},
    "podMonitor": {"enabled": True},
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
}
ROOT = Path(__file__).parents[2]
_NAME = re.compile(r"\b(?:kube_)?ipsec_[a-z_0-9]+")
#: Who has metrics besides the gateway's own: they are made of things that tests do not have.
SOURCES = (
    "dataplane/ipsec_gateway/pathprobe/prober.py",
    "dataplane/ipsec_gateway/routeagent/metrics.py",
    "operator/ipsec_operator/health.py",
)
_FAMILY = re.compile(r"(Counter|Gauge)MetricFamily\(\s*\"([a-z_]+)\"")


@cache
def metrics():
    """Names as they are scraped: counters end in _total."""
    found = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in Metrics("node").collect()
    }
    for source in SOURCES:
        families = _FAMILY.findall((ROOT / source).read_text())
        assert families, source
        found |= {name + ("_total" if kind == "Counter" else "") for kind, name in families}
    return found


@pytest.fixture
def objects(install):
    return install(monitoring=MONITORING)


@pytest.fixture
def alerts(objects, only):
    (group,) = only(objects, "PrometheusRule", "kube-ipsec")["spec"]["groups"]
    return group["rules"]


@pytest.fixture
def dashboard(objects, only):
    data = only(objects, "ConfigMap", "kube-ipsec-dashboard")["data"]
    return json.loads(data["kube-ipsec.json"])


def expressions(dashboard):
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_metrics_of_alerts_exist(alerts):
    for alert in alerts:
        names = set(_NAME.findall(alert["expr"]))
        assert names <= metrics(), alert["alert"]
        assert names or "up{" in alert["expr"]


def test_metrics_of_the_dashboard_exist(dashboard):
    variables = [v["definition"] for v in dashboard["templating"]["list"] if "definition" in v]
    for expression in [*expressions(dashboard), *variables]:
        names = set(_NAME.findall(expression))
        assert names
        assert names <= metrics()


def test_every_expression_is_balanced(alerts, dashboard):
    for expression in [*(a["expr"] for a in alerts), *expressions(dashboard)]:
        count = Counter(expression)
        for left, right in ("()", "{}", "[]"):
            assert count[left] == count[right], expression


def test_alerts_say_what_where_and_what_to_do(alerts):
    names = [alert["alert"] for alert in alerts]
    assert len(set(names)) == len(names)
    for alert in alerts:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(alert["annotations"]) == {"summary", "description"}
        text = " ".join(alert["annotations"].values())
        kept = re.search(r"by \(([^)]+)\)", alert["expr"])
        if kept:
            # A label that the expression has summed up is empty in the text.
            used = set(re.findall(r"\$labels\.(\w+)", text))
            assert used <= set(kept[1].replace(" ", "").split(",")), alert["alert"]


def test_the_job_of_the_alert_is_that_of_the_monitor(alerts, objects, only):
    monitor = only(objects, "PodMonitor", "kube-ipsec")["metadata"]
    (down,) = (alert for alert in alerts if alert["alert"] == "IPsecGatewayDown")
    assert f'job="{monitor["namespace"]}/{monitor["name"]}"' in down["expr"]


def test_the_monitor_finds_the_pods_of_the_operators_daemonsets(objects, only):
    spec = only(objects, "PodMonitor", "kube-ipsec")["spec"]
    (choice,) = spec["selector"]["matchExpressions"]
    (endpoint,) = spec["podMetricsEndpoints"]
    for daemonset in daemonsets.manifests(Settings(image="x")).values():
        template = daemonset["spec"]["template"]
        labels = template["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        assert labels[choice["key"]] in choice["values"]
        (container,) = template["spec"]["containers"]
        assert endpoint["port"] in [port["name"] for port in container["ports"]]


def test_labels_of_peers_are_not_replaced_by_those_of_pods(objects, only):
    (endpoint,) = only(objects, "PodMonitor", "kube-ipsec")["spec"]["podMetricsEndpoints"]
    assert endpoint["honorLabels"] is True


def test_prometheus_finds_them_by_the_labels_asked_for(objects, only):
    for kind, name in [
        ("PodMonitor", "kube-ipsec"),
        ("ServiceMonitor", "kube-ipsec-operator"),
        ("PrometheusRule", "kube-ipsec"),
    ]:
        assert only(objects, kind, name)["metadata"]["labels"]["release"] == "prometheus"
    labels = only(objects, "ConfigMap", "kube-ipsec-dashboard")["metadata"]["labels"]
    assert labels["grafana_dashboard"] == "1"


def test_nothing_of_it_without_being_asked(install):
    kinds = {obj["kind"] for obj in install()}
    assert not kinds & {"PodMonitor", "ServiceMonitor", "PrometheusRule", "Service"}


def test_panels_do_not_overlap(dashboard):
    taken = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
