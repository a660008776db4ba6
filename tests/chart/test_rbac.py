"""What the chart allows is what the code calls, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipsec_operator import rbac

ROOT = Path(__file__).parents[2]

OWN = "kube-ipsec"
KINDS = ("ipsecpeers", "ipsecpolicies", "modeconfigs")


def needed(watched):
    """The operator's own list, in the form of ``granted``."""
    for right in rbac.OPERATOR:
        places = {
            "cluster": ["*"],
            "own": [OWN],
            "kube-system": ["kube-system"],
            "watched": watched or ["*"],
        }[right.scope]
        for where in places:
            for resource in right.resources:
                for verb in right.verbs:
                    for name in right.names or ["*"]:
                        yield where, right.group, resource, verb, name


@pytest.mark.parametrize("watched", [[], ["a", "b"]], ids=["all", "two"])
def test_the_operator_has_what_it_calls_and_nothing_else(watched, install, granted):
    objects = install(watchNamespaces=watched)
    assert set(granted(objects, "kube-ipsec-operator")) == set(needed(watched))


def test_the_operator_reads_secrets_only_where_it_watches(install, granted):
    objects = install(watchNamespaces=["a", "b"])
    places = {w for w, _, r, _, _ in granted(objects, "kube-ipsec-operator") if r == "secrets"}
    assert places == {"a", "b", OWN}


@pytest.mark.parametrize("watched", [[], ["a", "b"]], ids=["all", "two"])
def test_gateways_have_what_they_call_and_nothing_else(watched, install, granted):
    """Secrets in their own namespace alone; ipsec_gateway/cluster has the calls."""
    expected = {
        *((OWN, "", "secrets", verb, "*") for verb in ("list", "watch")),
        *(
            (OWN, "coordination.k8s.io", "leases", verb, "*")
            for verb in ("list", "watch", "create", "patch")
        ),
        ("*", "", "nodes", "get", "*"),
        *(
            (where, "kubeipsec.dev", f"{kind}/status", "patch", "*")
            for where in watched or ["*"]
            for kind in KINDS
        ),
    }
    assert set(granted(install(watchNamespaces=watched), "kube-ipsec-gateway")) == expected


def test_route_agents_list_leases_and_nothing_else(install, granted):
    rights = set(granted(install(), "kube-ipsec-route-agent"))
    assert rights == {(OWN, "coordination.k8s.io", "leases", "list", "*")}


@pytest.mark.parametrize(
    ("package", "account"), [("cluster", "gateway"), ("routeagent", "route-agent")]
)
def test_the_resources_in_the_code_are_those_of_the_role(package, account, install, granted):
    """Whoever adds a call to the API is reminded of its role."""
    folder = ROOT / "dataplane" / "ipsec_gateway" / package
    paths = {
        found
        for file in folder.glob("*.py")
        for found in re.findall(r"/apis?/[^\s\"'`]+", file.read_text())
    }
    assert paths
    plain = {re.sub(r"/\{[^}]*name\}", "/NAME", path) for path in paths}
    resources = {
        "status" if path.endswith("/status") else re.sub(r"/(\{[^}]*\}|NAME)$", "", path)
        for path in plain
    }
    found = {path.rpartition("/")[2] for path in resources}
    rights = {r for _, _, r, _, _ in granted(install(), f"kube-ipsec-{account}")}
    assert found == {"status" if r.endswith("/status") else r for r in rights}


def test_nobody_may_do_everything(install):
    for obj in install(openshift={"enabled": True}):
        for rule in obj.get("rules", ()) or ():
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def test_users_get_the_resources_with_their_roles(install, only):
    objects = install()
    view = only(objects, "ClusterRole", "kube-ipsec-view")
    edit = only(objects, "ClusterRole", "kube-ipsec-edit")
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {k for k in view["metadata"]["labels"] if k.startswith(prefix)} == {
        f"{prefix}{role}" for role in ("view", "edit", "admin")
    }
    assert f"{prefix}view" not in edit["metadata"]["labels"]
    # Statuses are written by the operator and the gateways alone.
    for role in (view, edit):
        assert [sorted(rule["resources"]) for rule in role["rules"]] == [sorted(KINDS)]
    names = {obj["metadata"]["name"] for obj in install(rbac={"aggregate": False})}
    assert not names & {"kube-ipsec-view", "kube-ipsec-edit"}


def test_everybody_who_is_bound_exists(install):
    objects = install()
    accounts = {o["metadata"]["name"] for o in objects if o["kind"] == "ServiceAccount"}
    subjects = {s["name"] for o in objects for s in o.get("subjects", ())}
    assert subjects == accounts
