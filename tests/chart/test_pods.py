"""Pods of the chart: what they may do, and where they run."""

from __future__ import annotations

import pytest

from ipsec_api import cluster
from ipsec_api.kinds import KINDS
from ipsec_api.structural import crd
from ipsec_lab import chart


def pods(objects):
    for obj in objects:
        match obj["kind"]:
            case "Pod":
                yield obj["metadata"]["name"], obj["metadata"], obj["spec"]
            case "Deployment" | "Job":
                template = obj["spec"]["template"]
                yield obj["metadata"]["name"], template["metadata"], template["spec"]


#: What the profile "restricted" of Pod Security lets pods set.
SAFE_SYSCTLS = {"net.ipv4.ping_group_range"}


def test_pods_are_restricted_and_read_only(install):
    found = list(pods(install()))
    assert len(found) == 7
    for name, _, spec in found:
        security = spec["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {s["name"] for s in security.get("sysctls", ())} <= SAFE_SYSCTLS
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert {kind for v in spec.get("volumes", ()) for kind in set(v) - {"name"}} <= {
            "configMap",
            "emptyDir",
        }
        for container in spec["containers"]:
            inside = container["securityContext"]
            assert inside["allowPrivilegeEscalation"] is False
            assert inside["readOnlyRootFilesystem"] is True
            assert inside["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]


def test_settings_of_images_reach_every_pod(install):
    digest = "sha256:" + "1" * 64
    values = {
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"registry": "example.org/x/", "pullPolicy": "Always"},
        "operator": {"image": {"digest": digest}},
    }
    for name, _, spec in pods(install(**values)):
        assert spec["imagePullSecrets"] == [{"name": "registry"}], name
        (container,) = spec["containers"]
        assert container["image"] == f"example.org/x/operator@{digest}"
        assert container["imagePullPolicy"] == "Always"


def test_the_operator_is_found_by_its_selectors(install, only):
    objects = install(operator={"replicas": 2}, monitoring={"serviceMonitor": {"enabled": True}})
    deployment = only(objects, "Deployment", "kube-ipsec-operator")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        only(objects, "PodDisruptionBudget", "kube-ipsec-operator")["spec"]["selector"][
            "matchLabels"
        ],
        only(objects, "NetworkPolicy", "kube-ipsec-operator")["spec"]["podSelector"]["matchLabels"],
        only(objects, "Service", "kube-ipsec-operator")["spec"]["selector"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert selector["app.kubernetes.io/component"] == "operator"
    # ... and nobody else is.
    for name, metadata, _ in pods(objects):
        if name != "kube-ipsec-operator":
            assert not selectors[0].items() <= metadata["labels"].items()


def test_a_budget_and_distance_only_for_several_replicas(install, only):
    kinds = {obj["kind"] for obj in install()}
    assert "PodDisruptionBudget" not in kinds
    spec = only(install(), "Deployment", "kube-ipsec-operator")["spec"]["template"]["spec"]
    assert "affinity" not in spec
    two = only(install(operator={"replicas": 2}), "Deployment", "kube-ipsec-operator")
    assert "podAntiAffinity" in two["spec"]["template"]["spec"]["affinity"]


def test_probes_and_ports_belong_together(install, only):
    objects = install()
    deployment = only(objects, "Deployment", "kube-ipsec-operator")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    policy = only(objects, "NetworkPolicy", "kube-ipsec-operator")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]


def test_egress_is_restricted_on_request(install, only):
    values = {"restrictEgress": True, "apiServerPorts": [16443]}
    policy = only(
        install(operator={"networkPolicy": values}), "NetworkPolicy", "kube-ipsec-operator"
    )["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert {p["port"] for rule in policy["egress"] for p in rule["ports"]} == {53, 16443}


def test_names_are_those_of_the_code(install):
    names = {(obj["kind"], obj["metadata"]["name"]) for obj in install()}
    assert ("ServiceAccount", cluster.GATEWAY_SERVICE_ACCOUNT) in names
    assert ("ServiceAccount", cluster.ROUTE_AGENT_SERVICE_ACCOUNT) in names
    # The operator makes the key: a chart that is rendered twice would make two.
    assert ("Secret", cluster.MESH_SECRET) not in names


class TestCrds:
    def test_are_those_of_the_models(self, install):
        ours = {o["metadata"]["name"]: o for o in install() if "CustomResource" in o["kind"]}
        theirs = {o["metadata"]["name"]: o for o in map(crd, KINDS)}
        assert set(ours) == set(theirs)
        for name, obj in ours.items():
            assert obj["spec"] == theirs[name]["spec"]

    def test_are_kept_unless_told(self, install):
        def policies(**values):
            return {
                o["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
                for o in install(**values)
                if o["kind"] == "CustomResourceDefinition"
            }

        assert policies() == {"keep"}
        assert policies(crds={"keep": False}) == {None}
        assert policies(crds={"enabled": False}) == set()


class TestHooks:
    def test_clean_up_comes_before_the_chart_goes(self, install, only):
        objects = [o for o in install() if chart.hook(o) == "pre-delete"]
        assert sorted(o["kind"] for o in objects) == [
            "Job",
            "Role",
            "RoleBinding",
            "ServiceAccount",
        ]
        weights = {
            o["kind"]: int(o["metadata"]["annotations"]["helm.sh/hook-weight"]) for o in objects
        }
        assert weights["Job"] > max(w for kind, w in weights.items() if kind != "Job")
        job = only(objects, "Job", "kube-ipsec-uninstall")
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["uninstall", "--timeout", "180"]

    def test_helm_test_has_five(self, install):
        def names(**values):
            return [
                o["spec"]["containers"][0]["args"][1]
                for o in install(**values)
                if o["kind"] == "Pod" and chart.hook(o) == "test"
            ]

        assert sorted(names()) == ["config", "established", "gateway", "ping", "size"]
        assert "gateway" not in names(tests={"pingRemoteGateway": False})
        assert not names(tests={"enabled": False})

    def test_targets_and_namespaces_reach_the_tests(self, install):
        objects = install(tests={"targets": ["10.20.0.1", "fd00::1"]}, watchNamespaces=["a"])
        args = {
            o["spec"]["containers"][0]["args"][1]: o["spec"]["containers"][0]["args"][2:]
            for o in objects
            if o["kind"] == "Pod"
        }
        targets = ["--target=10.20.0.1", "--target=fd00::1"]
        assert args["config"] == ["--namespace=a"]
        assert args["ping"] == args["size"] == ["--namespace=a", *targets]

    @pytest.mark.parametrize("hook", ["pre-delete", "test"])
    def test_rights_come_and_go_with_the_hook(self, hook, install):
        for obj in install():
            if chart.hook(obj) == hook:
                policy = obj["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
                assert policy == "before-hook-creation,hook-succeeded"


def test_openshift_admits_gateways_and_route_agents(install, only):
    def scc(**values):
        return only(
            install(openshift={"enabled": True}, **values),
            "SecurityContextConstraints",
            "kube-ipsec",
        )

    assert scc()["allowPrivilegedContainer"] is True
    assert scc(gateway={"privileged": False})["allowPrivilegedContainer"] is False
    assert scc()["users"] == [
        "system:serviceaccount:kube-ipsec:kube-ipsec-gateway",
        "system:serviceaccount:kube-ipsec:kube-ipsec-route-agent",
    ]
    assert len(scc(routeAgent={"enabled": False})["users"]) == 1
    assert "SecurityContextConstraints" not in {o["kind"] for o in install()}
