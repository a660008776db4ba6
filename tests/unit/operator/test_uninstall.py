"""kube-ipsec uninstall: the order of the steps, the pods that clean up, the rights it uses."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from kubernetes import client

from ipsec_lab import chart
from ipsec_operator import daemonsets, uninstall
from ipsec_operator.settings import GatewaySettings, RouteAgentSettings, Settings

SETTINGS = Settings(image="example.org/gateway:v1")
GATEWAY = daemonsets.gateway(SETTINGS)
AGENT = daemonsets.route_agent(SETTINGS)


class TestCleaner:
    def test_runs_the_same_container_once(self):
        made = uninstall.cleaner(GATEWAY)
        pod = made["spec"]["template"]["spec"]
        (work,) = pod["initContainers"]
        (before,) = GATEWAY["spec"]["template"]["spec"]["containers"]
        for key in ("image", "securityContext", "volumeMounts", "env"):
            assert work[key] == before[key]
        assert work["args"] == [
            "gateway",
            "--cleanup",
            "--dataplane=auto",
            "--resume=/run/kube-ipsec",
        ]
        assert not {"lifecycle", "livenessProbe", "startupProbe", "ports"} & set(work)

    def test_knows_where_things_are_however_it_was_said(self):
        extra = ("--table", "5000", "--vni=7", "--transport", "vxlan")
        settings = Settings(image="x", route_agent=RouteAgentSettings(extra_args=extra))
        made = uninstall.cleaner(daemonsets.route_agent(settings))
        (work,) = made["spec"]["template"]["spec"]["initContainers"]
        assert work["args"][:2] == ["route-agent", "--cleanup"]
        assert work["args"][-3:] == ["--table", "5000", "--vni=7"]

    def test_takes_the_mark_bits_that_were_allowed(self):
        chosen = GatewaySettings(mark_bits="0xc001", allow_mark_conflict=True)
        made = uninstall.cleaner(daemonsets.gateway(Settings(image="x", gateway=chosen)))
        (work,) = made["spec"]["template"]["spec"]["initContainers"]
        assert work["args"][-2:] == ["--mark-bits=0xc001", "--allow-mark-conflict"]

    def test_closes_with_the_lock_of_the_node_what_was_opened(self):
        pod = uninstall.cleaner(GATEWAY)["spec"]["template"]["spec"]
        assert {"name": "xtables", "mountPath": "/run/xtables.lock"} in (
            pod["initContainers"][0]["volumeMounts"]
        )
        lock = {"path": "/run/xtables.lock", "type": "FileOrCreate"}
        assert {"name": "xtables", "hostPath": lock} in pod["volumes"]

    def test_runs_where_the_other_ran(self):
        old, new = (d["spec"]["template"]["spec"] for d in (GATEWAY, uninstall.cleaner(GATEWAY)))
        for key in ("nodeSelector", "tolerations", "hostNetwork", "serviceAccountName"):
            assert new[key] == old[key]

    def test_waits_without_any_right(self):
        (wait,) = uninstall.cleaner(GATEWAY)["spec"]["template"]["spec"]["containers"]
        assert wait["command"][0] == "python3"
        assert wait["securityContext"]["runAsNonRoot"]

    def test_does_not_need_the_key_of_the_mesh(self):
        volumes = uninstall.cleaner(GATEWAY)["spec"]["template"]["spec"]["volumes"]
        assert [v["secret"]["optional"] for v in volumes if "secret" in v] == [True]

    def test_is_nobody_elses(self):
        ours = {**uninstall.cleaner(GATEWAY)["spec"]["selector"]["matchLabels"]}
        for other in (GATEWAY, AGENT, uninstall.cleaner(AGENT)):
            assert ours != other["spec"]["selector"]["matchLabels"]

    def test_changes_nothing_of_the_other(self):
        before = json.dumps(GATEWAY)
        uninstall.cleaner(GATEWAY)
        assert json.dumps(GATEWAY) == before

    @pytest.mark.parametrize("daemonset", [GATEWAY, AGENT])
    def test_is_an_object_of_the_api(self, daemonset):
        client.V1DaemonSet.model_validate(uninstall.cleaner(daemonset))


class Api:
    """An API server that has one node, and remembers what it was asked for."""

    def __init__(self):
        self.daemonsets = {"kube-ipsec-gateway": GATEWAY, "kube-ipsec-route-agent": AGENT}
        self.secrets = ["tunnel-1", "kube-ipsec-mesh"]
        self.leases = ["kube-ipsec-gateway-node", "kube-ipsec-operator"]
        self.operator = True
        self.stuck = set()
        self.calls = []

    def answer(self, method, path, query, body):
        parts = path.strip("/").split("/")
        place = parts.index("kube-ipsec")
        kind, *rest = parts[place + 1 :]
        name = rest[0] if rest else ""
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(method)
        verb = verb or ("get" if name else "list")
        self.calls.append((verb, "/".join([kind, *rest[1:]]), name or "*"))
        return getattr(self, f"{verb}_{kind}")(name, query, body)

    def patch_deployments(self, name, query, body):
        if not self.operator:
            return 404, {}
        assert body == {"spec": {"replicas": 0}}
        self.operator = False
        return 200, {"kind": "Scale", "apiVersion": "autoscaling/v1"}

    def list_daemonsets(self, name, query, body):
        wanted = re.search(r"metadata\.name%3D([a-z-]+)", query)[1]
        items = [d for n, d in self.daemonsets.items() if n == wanted]
        return 200, {"kind": "DaemonSetList", "apiVersion": "apps/v1", "items": items}

    def create_daemonsets(self, name, query, body):
        counts = dict.fromkeys(
            ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled"), 1
        )
        status = {**counts, "numberReady": 1, "observedGeneration": 1}
        self.daemonsets[body["metadata"]["name"]] = {**body, "status": status}
        return 201, body

    def delete_daemonsets(self, name, query, body):
        return (200, {}) if self.daemonsets.pop(name, None) else (404, {})

    def list_pods(self, name, query, body):
        component = re.search(r"component%3D([a-z-]+)", query)[1]
        running = f"kube-ipsec-{component}" in self.daemonsets or component in self.stuck
        items = []
        if running:
            status = {"containerStatuses": [_state(component not in self.stuck)]}
            items = [
                {
                    "metadata": {"name": "p"},
                    "spec": {"nodeName": "node", "containers": [{"name": "c"}]},
                    "status": status,
                }
            ]
        return 200, {"kind": "PodList", "apiVersion": "v1", "items": items}

    def _named(self, names):
        return 200, {"items": [{"metadata": {"name": n}} for n in names]}

    def list_secrets(self, name, query, body):
        assert "kubeipsec.dev" in query
        return self._named([n for n in self.secrets if n.startswith("tunnel-")])

    def delete_secrets(self, name, query, body):
        if name not in self.secrets:
            return 404, {}
        self.secrets.remove(name)
        return 200, {}

    def list_leases(self, name, query, body):
        assert "kubeipsec.dev" in query
        return self._named([n for n in self.leases if "gateway" in n])

    def delete_leases(self, name, query, body):
        if name not in self.leases:
            return 404, {}
        self.leases.remove(name)
        return 200, {}


def _state(ready):
    return {
        "name": "c",
        "ready": ready,
        "image": "i",
        "imageID": "i",
        "restartCount": 0,
    }


@pytest.fixture
def api():
    return Api()


@pytest.fixture
def cluster(api):
    class Handler(BaseHTTPRequestHandler):
        def serve(self):
            length = int(self.headers.get("content-length") or 0)
            raw = self.rfile.read(length)
            path, _, query = self.path.partition("?")
            body = json.loads(raw) if raw else None
            status, answer = api.answer(self.command, path, query, body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_DELETE = serve

        def log_message(self, *_):
            """Not into the output of the tests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        host = f"http://127.0.0.1:{server.server_address[1]}"
        with client.ApiClient(client.Configuration(host=host)) as connection:
            yield uninstall.Cluster(connection, "kube-ipsec")
        server.shutdown()


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds


def run(cluster, clock=None):
    clock = clock or Clock()
    return list(uninstall.steps(cluster, 100.0, clock, clock.sleep))


def test_everything_goes_and_each_step_is_said(api, cluster):
    lines = run(cluster)
    assert not [line for line in lines if line.startswith("warning")]
    assert lines[0] == "the operator is stopped"
    assert "cleaned up after kube-ipsec-gateway everywhere" in lines
    assert not api.operator
    assert (api.daemonsets, api.secrets, api.leases) == ({}, [], [])


def test_the_operator_stops_first_and_the_clean_up_comes_last(api, cluster):
    run(cluster)
    verbs = [(verb, kind) for verb, kind, _ in api.calls]
    assert verbs[0] == ("patch", "deployments/scale")
    deleted = [name for verb, kind, name in api.calls if (verb, kind) == ("delete", "daemonsets")]
    assert deleted == [
        "kube-ipsec-gateway",
        "kube-ipsec-route-agent",
        "kube-ipsec-cleanup-gateway",
        "kube-ipsec-cleanup-route-agent",
    ]
    assert verbs.index(("create", "daemonsets")) > verbs.index(("delete", "daemonsets"))
    assert verbs.index(("delete", "secrets")) > verbs.index(("create", "daemonsets"))


def test_twice_does_no_harm(api, cluster):
    run(cluster)
    lines = run(cluster)
    assert lines == ["there is no operator", "Secrets and Leases are deleted"]


def test_a_dead_node_is_named_and_not_waited_for(api, cluster):
    api.stuck = {"gateway", "cleanup-gateway"}
    clock = Clock()
    lines = run(cluster, clock)
    warnings = [line for line in lines if line.startswith("warning")]
    assert len(warnings) == 2
    assert all("node" in line for line in warnings)
    assert clock.time <= 100
    assert (api.daemonsets, api.secrets, api.leases) == ({}, [], [])


def test_another_error_of_the_api_is_not_hidden(api, cluster):
    api.patch_deployments = lambda *_: (403, {"message": "no"})
    with pytest.raises(client.ApiException):
        run(cluster)


def test_the_chart_allows_what_it_calls_and_nothing_else(api, cluster):
    run(cluster)
    manifests = yaml.safe_load_all(chart.uninstaller())
    (role,) = (obj for obj in manifests if obj["kind"] == "Role")
    allowed = {
        (verb, resource, name)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ["*"])
    }
    used = {
        (verb, kind, name if kind == "deployments/scale" else "*") for verb, kind, name in api.calls
    }
    assert used == allowed
