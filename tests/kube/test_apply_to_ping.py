"""From ``kubectl apply`` to a ping, and what happens to it when a gateway goes.

The operator and three gateways run as processes with the rights of their service accounts, the
gateways and a worker node in network namespaces, on the API server that KUBECONFIG names. Clear
text at the remote sites is counted, and there is to be none.
"""

from __future__ import annotations

import base64
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ipsec_api.cluster import (
    DRAINING_ANNOTATION,
    TUNNEL_SELECTOR,
    gateway_lease_name,
    tunnel_secret_name,
)
from ipsec_lab.cluster import condition, until
from ipsec_lab.cluster_rig import PSK, ClusterRig, five_lines, obstacle
from ipsec_lab.failover_rig import GATEWAYS, PODS, REMOTES
from ipsec_lab.leftovers import footprint, left_behind
from ipsec_lab.netns import LabError
from ipsec_lab.traffic import ConstantPing, ping, ping_until

# Seven daemons start, and gateways are waited for.
pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]

INTERVAL = 0.05
SITES = {"r1": ("198.51.100.101", "10.9.0.9"), "r2": ("198.51.100.102", "10.8.0.9")}


@pytest.fixture(scope="module")
def release(install):
    if reason := obstacle(Path(os.environ["KUBECONFIG"])):
        pytest.skip(reason)
    with install() as made:
        yield made


@pytest.fixture(scope="module")
def rig(release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rig")
    with release.operator() as operator:
        operator.wait_leading()
        with ClusterRig(folder, release.cluster, release.namespace) as it:
            it.clean = {n: footprint(it.namespaces[n]) for n in GATEWAYS}
            it.start()
            for name in GATEWAYS:
                it.gateway(name)
            it.wait("all have joined", lambda: all(len(live(it, n)) == 3 for n in GATEWAYS))
            yield it
            assert it.clear() == 0, "pods' packets left in clear text"
            for log in (*folder.glob("*.log"), operator.log_path):
                assert "Traceback" not in log.read_text(), log.read_text()


def live(rig, name):
    return rig.view(name).get("live", ())


class User:
    def __init__(self, rig, namespace):
        self.rig = rig
        self.cluster = rig.cluster
        self.namespace = namespace

    def secret(self, name, psk=PSK):
        metadata = {"name": name, "namespace": self.namespace}
        data = {"psk": base64.b64encode(psk).decode()}
        return self.cluster.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
        )

    def peer(self, name):
        return self.cluster.apply(five_lines(name, self.namespace, SITES[name][0], REMOTES[name]))

    def get(self, name):
        return self.cluster.get("IPsecPeer", self.namespace, name)

    def wait(self, name, kind="Ready", status="True", timeout=60):
        """``kubectl wait --for=condition=KIND=STATUS``: for the generation of now."""

        def found():
            item = self.get(name)
            said = condition(item, kind)
            now = said.get("observedGeneration") == item["metadata"]["generation"]
            return said if now and said.get("status") == status else None

        try:
            return until(found, f"{name}: {kind}={status}", timeout)
        except Exception as exc:
            exc.add_note(f"{self.get(name)}\n{self.rig.logs()}")
            raise

    def shown(self, name):
        return self.cluster.table("IPsecPeer", self.namespace, name)

    def owner(self, name):
        return self.rig.owner(f"{self.namespace}/{name}")

    def delete(self, name):
        self.cluster.delete("IPsecPeer", self.namespace, name)
        self.cluster.delete("Secret", self.namespace, name)


@pytest.fixture
def user(rig, release):
    return User(rig, release.users)


@pytest.fixture
def r1(user):
    """A peer that is up; it stays for the next test."""
    user.secret("r1")
    user.peer("r1")
    user.wait("r1")
    return "r1"


def pod(rig):
    return rig.namespaces["pod"]


def passes(rig, site, timeout=30):
    return ping_until(pod(rig), SITES[site][1], timeout=timeout)


def gap(result):
    """Seconds of the longest run of lost pings."""
    longest = run = 0
    lost = set(result.lost)
    for number in range(1, result.sent + 1):
        run = run + 1 if number in lost else 0
        longest = max(longest, run)
    return longest * INTERVAL


def test_two_documents_are_enough(rig, user, record_property):
    user.secret("r1")
    start = time.monotonic()
    user.peer("r1")
    user.wait("r1")
    ready = time.monotonic() - start
    passes(rig, "r1")
    record_property(
        "measured", f"apply to Ready {ready:.2f} s, to ping {time.monotonic() - start:.2f} s"
    )
    item = user.get("r1")
    assert {c["type"]: c["status"] for c in item["status"]["conditions"]} == {
        **dict.fromkeys(("Accepted", "ResolvedRefs", "Programmed", "Established"), "True"),
        **({"Healthy": "True"} if condition(item, "Healthy") else {}),
        "Ready": "True",
    }
    owner = user.owner("r1")
    assert item["status"]["activeGateway"] == rig.node(owner)
    others = {rig.node(n) for n in GATEWAYS if n != owner}
    assert set(item["status"]["standbyGateways"]) == others
    assert item["status"]["childSAs"] == {"installed": 1, "expected": 1}
    # Who else translates sources is looked at last.
    until(lambda: user.get("r1")["status"].get("natBackend") == "none", "NAT back end")


def test_kubectl_get_tells_the_truth(rig, user, r1):
    shown = user.shown(r1)
    assert shown["Remote"] == SITES[r1][0]
    assert (shown["Ready"], shown["Reason"]) == ("True", "Ready")
    assert shown["Gateway"] == rig.node(user.owner(r1))
    assert shown["Cipher"]
    assert shown["NAT"] is False
    assert shown["Uptime"] not in (None, "", "<unknown>")


def test_nothing_is_written_while_nothing_changes(rig, user, r1):
    until(lambda: condition(user.get(r1), "Healthy").get("status") == "True", "the probe")
    # The probe's round trip is in the status, and told now and then: the rest stays as it is.
    before = user.get(r1)
    time.sleep(4)
    after = user.get(r1)
    for item in (before, after):
        item["status"].pop("lastProbe", None)
        for each in ("managedFields", "resourceVersion"):
            item["metadata"].pop(each)
    assert before == after


def test_a_wrong_key_is_named_and_stops_no_other(rig, user, r1):
    start = user.get(r1)["status"]["establishedAt"]
    user.secret("r2", b"not what the other side has")
    user.peer("r2")
    try:
        said = user.wait("r2", "Established", "False")
        until(
            lambda: condition(user.get("r2"), "Established")["reason"] == "AuthFailed",
            "the cause",
        )
        said = condition(user.get("r2"), "Established")
        assert SITES["r2"][0] in said["message"]
        assert user.wait("r2", "Ready", "False")["reason"] == said["reason"]
        assert user.shown("r2")["Reason"] == "AuthFailed"
        user.wait(r1)
        assert user.get(r1)["status"]["establishedAt"] == start
        assert not ping(pod(rig), SITES["r2"][1], count=1, wait=0.5).received
        passes(rig, r1, 5)
        # The right one is all it takes.
        user.secret("r2")
        user.wait("r2")
        passes(rig, "r2")
    finally:
        user.delete("r2")


def test_policies_have_a_status_too(rig, user):
    user.secret("r2")
    peer = five_lines("r2", user.namespace, SITES["r2"][0], REMOTES["r2"])
    del peer["spec"]["remoteSubnets"]
    user.cluster.apply(peer)
    selectors = [{"src": PODS, "dst": REMOTES["r2"]}]
    policy = {
        "apiVersion": peer["apiVersion"],
        "kind": "IPsecPolicy",
        "metadata": {"name": "r2", "namespace": user.namespace},
        "spec": {"peerRef": {"name": "r2"}, "selectors": selectors},
    }
    get = lambda: user.cluster.get("IPsecPolicy", user.namespace, "r2")  # noqa: E731
    try:
        user.cluster.apply(policy)
        until(lambda: condition(get(), "Ready").get("status") == "True", "the policy is Ready", 60)
        assert get()["status"]["selectorsInstalled"] == 1
        passes(rig, "r2")
        user.cluster.delete("IPsecPolicy", user.namespace, "r2")
        rig.wait(
            "it is gone", lambda: not ping(pod(rig), SITES["r2"][1], count=1, wait=0.3).received
        )
    finally:
        user.cluster.delete("IPsecPolicy", user.namespace, "r2")
        user.delete("r2")


def test_a_peer_that_was_replaced_is_up_again(rig, user, r1):
    """``kubectl replace --force``: another object, of which nothing has been said yet."""
    before = user.get(r1)
    user.cluster.delete("IPsecPeer", user.namespace, r1)
    user.peer(r1)
    user.wait(r1)
    after = user.get(r1)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["status"]["activeGateway"]
    passes(rig, r1)


def moved(user, name, owner):
    return lambda: (now := user.owner(name)) not in ("", owner) and now


def active(user, name):
    return user.get(name)["status"].get("activeGateway")


def settled(rig, user, name, owner):
    """Once ``owner`` is what everybody says."""
    node = rig.node(owner)
    until(lambda: active(user, name) == node, "status follows", 30)
    user.wait(name)
    return user.get(name)


def test_a_killed_gateway_is_replaced(rig, user, r1, record_property):
    owner = user.owner(r1)
    passes(rig, r1)
    with ConstantPing(pod(rig), SITES[r1][1], interval=INTERVAL) as constant:
        rig.kill(owner)
        new = until(moved(user, r1, owner), "another owner", 30)
        owned_at = time.monotonic()
        until(lambda: active(user, r1) == rig.node(new), "status follows", 30)
        said_at = time.monotonic()
        passes(rig, r1)
        time.sleep(1)
        result = constant.stop()
    assert gap(result) < 20
    item = settled(rig, user, r1, new)
    told = said_at - owned_at
    record_property(
        "measured",
        f"kill -9: {gap(result):.2f} s without answers; the API knows {told:.2f} s later",
    )
    assert item["status"]["lastFailover"]
    until(lambda: rig.node(owner) not in user.get(r1)["status"]["standbyGateways"], "standbys")
    rig.gateway(owner)
    rig.wait("it has joined", lambda: bool(rig.view(owner).get("joined")))
    assert user.owner(r1) == new, "nothing moves when it comes back"
    until(lambda: rig.node(owner) in user.get(r1)["status"]["standbyGateways"], "standby", 30)


def test_a_gateway_that_is_told_to_end_hands_over(rig, user, r1, record_property):
    passes(rig, r1)
    owner = user.owner(r1)
    lease = gateway_lease_name(rig.node(owner))
    with ConstantPing(pod(rig), SITES[r1][1], interval=INTERVAL) as constant:
        assert rig.terminate(owner) == 0
        new = until(moved(user, r1, owner), "another owner", 30)
        passes(rig, r1)
        time.sleep(1)
        result = constant.stop()
    record_property("measured", f"SIGTERM: {gap(result):.2f} s without answers")
    assert gap(result) < 10
    said = user.cluster.get("Lease", rig.own, lease)["metadata"]["annotations"]
    assert said[DRAINING_ANNOTATION] == "true"
    item = settled(rig, user, r1, new)
    assert rig.node(owner) not in item["status"]["standbyGateways"]
    rig.gateway(owner)
    rig.wait("it has joined", lambda: bool(rig.view(owner).get("joined")))
    until(lambda: rig.node(owner) in user.get(r1)["status"]["standbyGateways"], "standby", 30)


def test_without_the_api_server_it_goes_on(rig, user, r1, record_property):
    passes(rig, r1)
    owner = user.owner(r1)
    rig.outage(*GATEWAYS)
    try:
        with ConstantPing(pod(rig), SITES[r1][1], interval=INTERVAL) as constant:
            rig.kill(owner)
            new = until(moved(user, r1, owner), "another owner", 40)
            passes(rig, r1)
            time.sleep(1)
            result = constant.stop()
        record_property("measured", f"kill -9, API away: {gap(result):.2f} s without answers")
        assert user.get(r1)["status"]["activeGateway"] == rig.node(owner), "nobody could say so"
    finally:
        rig.back(*GATEWAYS)
    settled(rig, user, r1, new)
    passes(rig, r1)
    rig.gateway(owner)
    rig.wait("it has joined", lambda: bool(rig.view(owner).get("joined")))


def test_deletion_leaves_nothing(rig, user, r1):
    passes(rig, r1)
    user.delete(r1)
    assert user.get(r1) is None, "nothing holds it back"
    secret = tunnel_secret_name(user.namespace, r1)
    until(lambda: user.cluster.get("Secret", rig.own, secret) is None, "its tunnel Secret")
    assert not user.cluster.list("Secret", rig.own, labelSelector=TUNNEL_SELECTOR)
    rig.wait("nobody holds it", lambda: not any(rig.view(n)["held"] for n in GATEWAYS))
    left = lambda: {n: left_behind(rig.namespaces[n], rig.clean[n]) for n in GATEWAYS}  # noqa: E731
    with suppress(LabError):
        rig.wait("gateways are as they were", lambda: not any(left().values()), seconds=20)
    assert not any(left().values()), f"{left()}\n{rig.logs()}"
    assert not ping(pod(rig), SITES[r1][1], count=1, wait=0.5).received
