"""The chart over a matrix of values: linted, rendered, and judged by the API's models."""

from __future__ import annotations

import re
from collections import Counter

import helm_python
import pytest
import yaml

from ipsec_lab import chart

MATRIX = {
    "defaults": {},
    "everything": {
        "commonLabels": {"team": "network"},
        "imagePullSecrets": [{"name": "registry"}],
        "operator": {
            "replicas": 2,
            "image": {"digest": "sha256:" + "a" * 64},
            "networkPolicy": {"restrictEgress": True, "from": [{"namespaceSelector": {}}]},
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"operator": "Exists"}],
            "podAnnotations": {"a": "b"},
            "serviceAccountAnnotations": {"a": "b"},
        },
        "gateway": {"markBits": "0x700", "tables": "5000", "extraArgs": ["--log-level=debug"]},
        "clusterSubnets": {"pods": ["10.244.0.0/16", "fd00::/56"]},
        "monitoring": {
            "labels": {"release": "prometheus"},
            "podMonitor": {"enabled": True},
            "serviceMonitor": {"enabled": True},
            "prometheusRule": {"enabled": True},
            "dashboard": {"enabled": True, "namespace": "grafana"},
        },
        "openshift": {"enabled": True},
        "tests": {"targets": ["10.20.0.1"]},
    },
    "nothing": {
        "crds": {"enabled": False},
        "rbac": {"aggregate": False},
        "operator": {
            "priorityClassName": "",
            "networkPolicy": {"enabled": False},
            "podDisruptionBudget": {"enabled": False},
        },
        "routeAgent": {"enabled": False},
        "cleanup": {"enabled": False},
        "tests": {"enabled": False},
    },
    "narrow": {"watchNamespaces": ["a", "b"], "gateway": {"privileged": False}},
    "affinity": {"operator": {"replicas": 2, "affinity": {"nodeAffinity": {}}}},
    "dependency": {"global": {"x": 1}, "enabled": True},
}


@pytest.mark.parametrize("name", MATRIX)
def test_linted(name):
    report = helm_python.lint(chart.CHART, MATRIX[name], strict=True, namespace="kube-ipsec")
    # A chart may have an icon; that it has none is not worth a word (severity 1).
    assert not [m for m in report["messages"] if m["severity"] > 1]
    assert not report["errors"]


@pytest.mark.parametrize("name", MATRIX)
def test_objects_are_what_the_api_knows(name, install, judged):
    objects = install(**MATRIX[name])
    assert objects
    for obj in objects:
        judged(obj)


def test_the_judge_sees_mistakes(install, judged, only):
    good = only(install(), "Deployment", "kube-ipsec-operator")
    container = good["spec"]["template"]["spec"]["containers"][0]
    container["imagePullpolicy"] = "Always"
    with pytest.raises(AssertionError, match=r"no such field: \['imagePullpolicy'\]"):
        judged(good)
    del container["imagePullpolicy"]
    good["spec"]["replicas"] = "1"
    with pytest.raises(AssertionError, match="replicas"):
        judged(good)
    good["spec"]["replicas"] = 1
    del good["spec"]["selector"]
    with pytest.raises(AssertionError, match="selector"):
        judged(good)


@pytest.mark.parametrize("name", MATRIX)
def test_every_object_once_with_its_labels(name, install):
    objects = install(**MATRIX[name])
    keys = Counter(
        (o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects
    )
    assert not [key for key, count in keys.items() if count > 1]
    wanted = {"app.kubernetes.io/name": "kube-ipsec", "app.kubernetes.io/managed-by": "Helm"}
    wanted |= MATRIX[name].get("commonLabels", {})
    for obj in objects:
        assert wanted.items() <= obj["metadata"]["labels"].items()


def test_another_namespace_is_used_throughout():
    rendered = chart.render(MATRIX["everything"], namespace="elsewhere")
    objects = chart.objects(rendered)
    assert {o["metadata"].get("namespace") for o in objects} == {
        None,
        "elsewhere",
        "kube-system",
        "grafana",
    }
    subjects = [s for o in objects for s in o.get("subjects", ())]
    assert subjects
    assert {s["namespace"] for s in subjects} == {"elsewhere"}
    assert "kube-ipsec:kube-ipsec-" not in str(rendered)


def test_names_that_look_like_numbers_stay_text(judged):
    values = {**MATRIX["everything"], "watchNamespaces": ["42", "null"]}
    objects = chart.objects(chart.render(values, namespace="1234"))
    for obj in objects:
        judged(obj)
    assert {"42", "null", "1234"} <= {str(o["metadata"].get("namespace")) for o in objects}
    assert "1234" in {o["metadata"].get("namespace") for o in objects}


def test_notes_name_the_label_and_the_next_step():
    text = chart.render()["kube-ipsec/templates/NOTES.txt"]
    assert "kubectl label node NODE kubeipsec.dev/gateway=true" in text
    assert "kubectl get ipsecpeers" in text


def test_extra_objects_are_templates(install, only):
    objects = install(
        extraObjects=[
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "one", "namespace": "{{ .Release.Namespace }}"},
            },
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-two'}",
        ]
    )
    assert only(objects, "ConfigMap", "one")["metadata"]["namespace"] == "kube-ipsec"
    assert only(objects, "ConfigMap", "kube-ipsec-two")


def test_generated_files_are_those_of_now():
    stale = [path for path, text in chart.generated() if path.read_text() != text]
    assert not stale, "run make crds"


class TestBundle:
    def test_has_no_hooks_and_nothing_of_helm(self):
        text = chart.bundle() + chart.uninstaller()
        assert "helm" not in text.lower().replace("charts/", "")

    def test_begins_with_the_namespace_and_the_resources(self, judged):
        objects = list(yaml.safe_load_all(chart.bundle()))
        kinds = [obj["kind"] for obj in objects]
        assert kinds[:4] == ["Namespace", *["CustomResourceDefinition"] * 3]
        assert kinds.count("Deployment") == 1
        for obj in objects:
            judged(obj)

    def test_images_have_a_tag(self):
        images = re.findall(r"image: (.+)", chart.bundle())
        assert len(images) == 2
        assert all(re.fullmatch(r"[a-z./-]+:[\w.]+", image) for image in images)
