"""The operator as a process, with its service account's rights, on what users apply.

Nodes are not needed. What gateways say is said here in their name: by impersonating their account.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from datetime import UTC, datetime
from functools import partial

import pytest

from ipsec_api.cluster import (
    GATEWAY_MANAGER,
    OPERATOR_MANAGER,
    TUNNEL_SELECTOR,
    tunnel_secret_name,
)
from ipsec_api.kinds import API_VERSION
from ipsec_api.tunnel import TunnelConfig
from ipsec_lab.cluster import Refused, condition, until

PSK = "correct horse battery staple"
#: Seconds in which nothing is to happen.
QUIET = 3.0


class User:
    """Somebody with peers in a namespace."""

    def __init__(self, release):
        self.cluster = release.cluster
        self.namespace = release.users
        self.own = release.namespace
        self._numbers = iter(range(1, 250))
        self.applied = {}

    def secret(self, name, **data):
        octets = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
        return self.cluster.apply(self._object("v1", "Secret", name) | {"data": octets})

    def peer(self, name, **spec):
        number = next(self._numbers)
        full = {
            "address": f"203.0.113.{number}",
            "authentication": {"method": "preSharedKey", "secretRef": {"name": name}},
            "remoteSubnets": [f"10.20.{number}.0/24"],
        }
        manifest = self._object(API_VERSION, "IPsecPeer", name) | {"spec": full | spec}
        self.applied[name] = manifest
        return self.cluster.apply(manifest)

    def _object(self, version, kind, name):
        metadata = {"name": name, "namespace": self.namespace}
        return {"apiVersion": version, "kind": kind, "metadata": metadata}

    def get(self, name):
        return self.cluster.get("IPsecPeer", self.namespace, name)

    def tunnel(self, name):
        """The tunnel Secret of a peer, or None."""
        return self.cluster.get("Secret", self.own, tunnel_secret_name(self.namespace, name))

    def config(self, name):
        found = self.tunnel(name)
        return found and TunnelConfig.from_json(base64.b64decode(found["data"]["tunnel.json"]))

    def says(self, name, kind, status, reason=None):
        """The condition, once it is like that for the generation of now."""

        def found():
            item = self.get(name)
            said = condition(item, kind)
            same = said.get("observedGeneration") == item["metadata"]["generation"]
            right = said.get("status") == status and reason in (None, said.get("reason"))
            return said if same and right else None

        return until(found, f"{name}: {kind} is {status} {reason or ''}")

    def running(self, name, **spec):
        """A peer with its tunnel Secret, which has come to rest."""
        self.secret(name, psk=PSK)
        self.peer(name, **spec)
        self.says(name, "Accepted", "True")
        return until(lambda: self.tunnel(name), f"tunnel Secret of {name}")

    def events(self, name):
        found = self.cluster.list("Event", self.namespace)
        return [e for e in found if e["involvedObject"]["name"] == name]


@pytest.fixture
def user(release, operator):
    return User(release)


@pytest.fixture
def name(user):
    """Of a peer of this test, which goes afterwards."""
    chosen = f"peer-{uuid.uuid4().hex[:6]}"
    yield chosen
    user.cluster.delete("IPsecPeer", user.namespace, chosen)
    user.cluster.delete("Secret", user.namespace, chosen)
    until(lambda: user.tunnel(chosen) is None, "the tunnel Secret is gone")


def version(item):
    return item["metadata"]["resourceVersion"]


def test_a_peer_becomes_a_tunnel_secret_and_conditions(user, name):
    tunnel = user.running(name)
    config = user.config(name)
    assert (config.source.namespace, config.source.name) == (user.namespace, name)
    assert [s.dst for p in config.policies for s in p.selectors]
    assert tunnel["metadata"]["labels"]["kubeipsec.dev/tunnel"] == "true"
    assert user.says(name, "ResolvedRefs", "True")
    ready = user.says(name, "Ready", "False", "NoGatewayNode")
    assert "kubeipsec.dev/gateway=true" in ready["message"]
    assert user.get(name)["status"]["discoveredSubnets"] == ["10.244.0.0/16", "10.96.0.0/16"]
    assert "Rendered" in until(
        lambda: [e["reason"] for e in user.events(name)], "an Event about the tunnel"
    )


def test_kubectl_get_shows_it(user, name):
    user.running(name, address="203.0.113.250")
    user.says(name, "Ready", "False")
    shown = user.cluster.table("IPsecPeer", user.namespace, name)
    assert shown["Remote"] == "203.0.113.250"
    assert (shown["Ready"], shown["Reason"]) == ("False", "NoGatewayNode")
    assert {"Gateway", "Uptime", "RTT", "Cipher", "NAT", "Age"} <= shown.keys()


def said_by_gateway(user, name, established="True", **status):
    """What the owner of the peer writes, with the rights of gateways."""
    generation = user.get(name)["metadata"]["generation"]
    gateway = user.cluster.account(user.own, "kube-ipsec-gateway")
    conditions = [
        {
            "type": kind,
            "status": value,
            "reason": kind if value == "True" else "NoAnswer",
            "message": "" if value == "True" else "203.0.113.1:500 does not answer",
            "observedGeneration": generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind, value in (("Programmed", "True"), ("Established", established))
    ]
    metadata = {"name": name, "namespace": user.namespace}
    body = {"apiVersion": API_VERSION, "kind": "IPsecPeer", "metadata": metadata}
    try:
        return gateway.apply(
            body | {"status": {"conditions": conditions, **status}},
            manager=GATEWAY_MANAGER,
            part="status",
        )
    finally:
        gateway.close()


def test_operator_and_gateways_each_own_their_fields_of_a_status(user, name):
    user.running(name)
    said_by_gateway(user, name, activeGateway="node-1")
    item = user.get(name)
    assert {c["type"] for c in item["status"]["conditions"]} == {
        *("Accepted", "ResolvedRefs", "Ready", "Programmed", "Established")
    }
    owners = {
        m["manager"]: json.dumps(m["fieldsV1"])
        for m in item["metadata"]["managedFields"]
        if m.get("subresource") == "status"
    }
    assert set(owners) == {OPERATOR_MANAGER, GATEWAY_MANAGER}
    assert "Established" not in owners[OPERATOR_MANAGER]
    assert "activeGateway" not in owners[OPERATOR_MANAGER]
    assert "Accepted" not in owners[GATEWAY_MANAGER]
    assert "kopf" not in json.dumps(item["metadata"])
    assert "finalizers" not in item["metadata"]


def test_a_template_lists_what_the_peers_of_all_gateways_have(user, name, request):
    group, peers = f"group-{name}", (name, f"{name}-b")
    pool = user._object(API_VERSION, "IPsecPolicy", f"pool-{name}")
    selectors = [{"src": "10.244.0.0/16", "dst": "10.99.0.0/24"}]
    pool["spec"] = {"template": True, "group": group, "selectors": selectors}
    user.cluster.apply(pool)
    for kind, made in (("IPsecPolicy", f"pool-{name}"), ("IPsecPeer", peers[1])):
        request.addfinalizer(partial(user.cluster.delete, kind, user.namespace, made))
    for number, peer in enumerate(peers):
        asks = {
            "method": "preSharedKey",
            "secretRef": {"name": peer},
            "generatePolicy": "port-strict",
            "policyTemplateGroup": group,
        }
        user.running(peer, authentication=asks)
        has = {"template": f"pool-{name}", "remote": [f"10.99.0.{number}/32"], "pairs": 1}
        may = {"template": f"pool-{name}", "generation": 1, "pairs": 1}
        node = f"node-{number}"
        said_by_gateway(user, peer, activeGateway=node, generated=[has], templates=[may])

    def both():
        status = user.cluster.get("IPsecPolicy", user.namespace, f"pool-{name}").get("status", {})
        return status if len(status.get("generated", ())) == 2 else None

    status = until(both, "the template's status has both")
    assert {each["peer"] for each in status["generated"]} == set(peers)
    assert (status["state"], status["selectorsInstalled"]) == ("Template", 2)


def test_ready_is_what_all_of_them_say(user, name):
    user.running(name)
    gateway = user.cluster.account(user.own, "kube-ipsec-gateway")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    lease = "kube-ipsec-gateway-node-1"
    gateway.create(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": lease,
                "namespace": user.own,
                "labels": {"kubeipsec.dev/gateway": "true"},
            },
            "spec": {"holderIdentity": "node-1", "leaseDurationSeconds": 6, "renewTime": now},
        }
    )
    gateway.close()
    try:
        user.says(name, "Ready", "False", "Pending")
        said_by_gateway(user, name, activeGateway="node-1")
        user.says(name, "Ready", "True")
        said_by_gateway(user, name, "False", activeGateway="node-1")
        said = user.says(name, "Ready", "False", "NoAnswer")
        assert "203.0.113.1:500" in said["message"]
        # Of an older generation nothing counts.
        said_by_gateway(user, name, activeGateway="node-1")
        user.says(name, "Ready", "True")
        user.peer(name, address="203.0.113.252")
        user.says(name, "Ready", "False", "Pending")
    finally:
        user.cluster.delete("Lease", user.own, lease)
    user.says(name, "Ready", "False", "NoGatewayNode")


def test_what_others_write_into_a_status_is_not_fought_over(user, name):
    user.running(name)
    said_by_gateway(user, name, activeGateway="node-1")
    user.says(name, "Ready", "False", "NoGatewayNode")
    edit = {"status": {"activeGateway": "somewhere"}}
    edited = user.cluster.patch("IPsecPeer", user.namespace, name, edit, "status")
    time.sleep(QUIET)
    assert version(user.get(name)) == version(edited)


def test_what_the_operator_has_said_is_put_right(user, name):
    user.running(name)
    user.says(name, "Ready", "False", "NoGatewayNode")
    status = user.get(name)["status"]
    for each in status["conditions"]:
        each["status"] = "True"
    user.cluster.patch("IPsecPeer", user.namespace, name, {"status": status}, "status")
    user.says(name, "Ready", "False", "NoGatewayNode")


def test_a_tunnel_secret_that_was_edited_by_hand_is_put_right(user, name):
    before = user.running(name)["data"]
    secret = tunnel_secret_name(user.namespace, name)
    user.cluster.patch("Secret", user.own, secret, {"data": {"tunnel.json": "e30="}})
    until(lambda: user.tunnel(name)["data"] == before, "the Secret is as it was")
    user.cluster.delete("Secret", user.own, secret)
    until(lambda: (user.tunnel(name) or {}).get("data") == before, "the Secret is there again")


def test_a_changed_key_touches_one_secret(user, name):
    other = f"{name}-other"
    try:
        before = user.running(name), user.running(other)
        user.secret(name, psk="a new key, which is long enough", **{"psk-previous": PSK})
        until(lambda: version(user.tunnel(name)) != version(before[0]), "the key is rendered")
        time.sleep(QUIET)
        assert version(user.tunnel(other)) == version(before[1])
        (identity,) = user.config(name).identities
        assert identity.psk_previous.get_secret_value() == PSK.encode()
        events = [e["reason"] for e in user.events(name)]
        assert "Reestablish" in events
    finally:
        user.cluster.delete("IPsecPeer", user.namespace, other)
        user.cluster.delete("Secret", user.namespace, other)


def test_a_missing_secret_takes_no_tunnel_away(user, name):
    before = user.running(name)
    user.cluster.delete("Secret", user.namespace, name)
    said = user.says(name, "ResolvedRefs", "False", "SecretNotFound")
    assert "its last good version stays in force" in said["message"]
    # Nor does a change of the spec meanwhile, or a new start of the operator.
    user.peer(name, address="203.0.113.251")
    user.says(name, "ResolvedRefs", "False", "SecretNotFound")
    time.sleep(QUIET)
    assert version(user.tunnel(name)) == version(before)
    user.secret(name, psk=PSK)
    user.says(name, "ResolvedRefs", "True")
    until(lambda: version(user.tunnel(name)) != version(before), "the change is rendered")


def test_a_wrong_peer_says_what_to_do_and_stops_no_other(user, name):
    clashing = f"{name}-z"
    try:
        before = user.running(name)
        subnets = user.get(name)["spec"]["remoteSubnets"]
        user.secret(clashing, psk=PSK)
        user.peer(clashing, remoteSubnets=subnets)
        user.peer(f"{name}-pods", remoteSubnets=["10.244.7.0/24"])
        user.secret(f"{name}-pods", psk=PSK)
        said = user.says(clashing, "Accepted", "False", "Overlap")
        assert name in said["message"]
        assert (
            "10.244.0.0/16" in user.says(f"{name}-pods", "Accepted", "False", "Overlap")["message"]
        )
        event = until(
            lambda: [e for e in user.events(clashing) if e["reason"] == "Overlap"],
            "an Event about the overlap",
        )
        assert event[0]["type"] == "Warning"
        assert event[0]["message"] == said["message"]
        assert user.says(name, "Accepted", "True")
        assert version(user.tunnel(name)) == version(before)
        assert user.tunnel(clashing) is None
        # The one that is in the way goes: the other comes into force by itself.
        user.cluster.delete("IPsecPeer", user.namespace, name)
        user.says(clashing, "Accepted", "True")
        until(lambda: user.tunnel(clashing), "the other's tunnel")
    finally:
        for each in (clashing, f"{name}-pods"):
            user.cluster.delete("IPsecPeer", user.namespace, each)
            user.cluster.delete("Secret", user.namespace, each)


def test_deletion_waits_for_nobody(user, name):
    user.running(name)
    said_by_gateway(user, name, activeGateway="a-node-that-is-dead")
    user.cluster.delete("IPsecPeer", user.namespace, name)
    assert user.get(name) is None
    until(lambda: user.tunnel(name) is None, "the tunnel Secret is gone")


def test_what_was_deleted_while_the_operator_was_down_is_found(user, name, operator):
    other = f"{name}-stays"
    try:
        user.running(name)
        stays = user.running(other)
        operator.stop()
        user.cluster.delete("IPsecPeer", user.namespace, name)
        assert user.get(name) is None
        assert user.tunnel(name)
        operator.start()
        until(lambda: user.tunnel(name) is None, "the orphan is gone", 40)
        assert version(user.tunnel(other)) == version(stays)
        # What goes between the operator's first list and its first watch is found, too.
        operator.wait_leading()
        user.cluster.delete("IPsecPeer", user.namespace, other)
        until(lambda: user.tunnel(other) is None, "the other's tunnel is gone")
    finally:
        user.cluster.delete("IPsecPeer", user.namespace, other)
        user.cluster.delete("Secret", user.namespace, other)


KINDS = ("IPsecPeer", "Secret", "DaemonSet", "Event", "ConfigMap", "ServiceAccount")


def everything(user):
    """Versions of all objects in both namespaces, Leases left out."""
    return {
        (kind, item["metadata"]["name"]): version(item)
        for kind in KINDS
        for namespace in (user.namespace, user.own)
        for item in user.cluster.list(kind, namespace)
    }


def settled(user):
    """Once nothing has changed for a while."""
    last = {}

    def same():
        nonlocal last
        before, last = last, everything(user)
        time.sleep(1)
        return before == last

    until(same, "no change")
    return last


def test_nothing_is_written_where_nothing_changed(user, name, operator):
    user.running(name)
    said_by_gateway(user, name, activeGateway="node-1")
    before = settled(user)
    time.sleep(2 * QUIET)
    assert everything(user) == before
    # Applied again, and after a new start.
    user.cluster.apply(user.applied[name])
    operator.stop()
    operator.start()
    operator.wait_leading()
    time.sleep(QUIET)
    assert everything(user) == before


def test_no_key_is_seen_outside_of_secrets(user, name, operator):
    keys = (PSK, "another key nobody may see")
    user.running(name)
    user.secret(name, psk=keys[1])
    until(
        lambda: user.config(name).identities[0].psk.get_secret_value() == keys[1].encode(),
        "the new key is rendered",
    )
    user.secret(name, other=keys[0])
    user.says(name, "ResolvedRefs", "False")
    seen = json.dumps(
        [user.cluster.list(kind, user.namespace) for kind in KINDS if kind != "Secret"]
    )
    seen += operator.log() + operator.get("/metrics")[1]
    for key in keys:
        for form in (key, base64.b64encode(key.encode()).decode(), key.encode().hex()):
            assert form not in seen


def test_daemon_sets_are_made_and_put_right(user, release):
    def daemon_sets():
        return {d["metadata"]["name"]: d for d in user.cluster.list("DaemonSet", user.own)}

    names = {"kube-ipsec-gateway", "kube-ipsec-route-agent"}
    found = until(lambda: names <= daemon_sets().keys() and daemon_sets(), "DaemonSets")
    (container,) = found["kube-ipsec-gateway"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == release.settings()["image"]
    assert found["kube-ipsec-gateway"]["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0
    edit = {"spec": {"template": {"spec": {"hostNetwork": False}}}}
    user.cluster.patch("DaemonSet", user.own, "kube-ipsec-gateway", edit)
    until(
        lambda: daemon_sets()["kube-ipsec-gateway"]["spec"]["template"]["spec"].get("hostNetwork"),
        "the edit by hand is put right",
    )
    user.cluster.delete("DaemonSet", user.own, "kube-ipsec-route-agent")
    until(lambda: names <= daemon_sets().keys(), "the DaemonSet is there again")


def test_changed_values_roll_the_gateways(user, release, operator):
    before = user.cluster.get("DaemonSet", user.own, "kube-ipsec-gateway")
    operator.stop()
    agent = release.settings()["routeAgent"] | {"enabled": False}
    with release.operator("changed", image="registry.invalid/other:2", routeAgent=agent) as changed:
        changed.wait_leading()
        after = until(
            lambda: (
                (d := user.cluster.get("DaemonSet", user.own, "kube-ipsec-gateway"))
                and version(d) != version(before)
                and d
            ),
            "the DaemonSet changes",
        )
        (container,) = after["spec"]["template"]["spec"]["containers"]
        assert container["image"] == "registry.invalid/other:2"
        until(
            lambda: user.cluster.get("DaemonSet", user.own, "kube-ipsec-route-agent") is None,
            "the route agents are gone",
        )
    operator.start()
    operator.wait_leading()


def test_networks_of_the_cluster_are_found(user, name, release, operator):
    cluster = user.cluster
    if cluster.list("Node"):
        pytest.skip("its nodes say what the networks are; a node of the test would be one too many")
    spec = {"podCIDRs": ["10.99.0.0/24"], "podCIDR": "10.99.0.0/24"}
    # Nobody is to be put there.
    spec["taints"] = [{"key": "kube-ipsec.test/none", "effect": "NoSchedule"}]
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"{name}-node"}, "spec": spec}
    cluster.create(node)
    operator.stop()
    try:
        with release.operator("finder", clusterSubnets={}) as finder:
            finder.wait_leading()
            user.running(name)
            found = user.get(name)["status"]["discoveredSubnets"]
            assert found[0] == "10.99.0.0/24"
            assert len(found) > 1, "networks of Services are known to the API server"
            # A network of the cluster is none of a peer's.
            user.peer(name, remoteSubnets=["10.99.0.0/16"])
            assert "10.99.0.0/24" in user.says(name, "Accepted", "False", "Overlap")["message"]
    finally:
        cluster.delete("Node", "", f"{name}-node")
        operator.start()
        operator.wait_leading()


def test_each_account_may_do_its_own_work_only(user, name):
    user.running(name)
    accounts = {
        each: user.cluster.account(user.own, f"kube-ipsec-{each}")
        for each in ("operator", "gateway", "route-agent")
    }
    secret = tunnel_secret_name(user.namespace, name)
    edit = {"metadata": {"labels": {"a": "b"}}}
    refused = [
        lambda: accounts["operator"].patch("Secret", user.namespace, name, edit),
        lambda: accounts["operator"].patch("IPsecPeer", user.namespace, name, edit),
        lambda: accounts["operator"].delete("IPsecPeer", user.namespace, name),
        lambda: accounts["gateway"].list("Secret", user.namespace),
        lambda: accounts["gateway"].patch("Secret", user.own, secret, edit),
        lambda: accounts["gateway"].delete("Secret", user.own, secret),
        lambda: accounts["gateway"].patch("IPsecPeer", user.namespace, name, edit),
        lambda: accounts["gateway"].list("Node"),
        lambda: accounts["route-agent"].list("Secret", user.own),
        lambda: accounts["route-agent"].get("Secret", user.own, "kube-ipsec-mesh"),
        lambda: accounts["route-agent"].patch("IPsecPeer", user.namespace, name, edit, "status"),
    ]
    for number, call in enumerate(refused):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.status == 403, number
    tunnels = accounts["gateway"].list("Secret", user.own, labelSelector=TUNNEL_SELECTOR)
    assert secret in [each["metadata"]["name"] for each in tunnels]
    assert accounts["route-agent"].list("Lease", user.own) is not None
    for each in accounts.values():
        each.close()


def test_another_replica_takes_over(user, name, release, operator, record_property):
    with release.operator("operator-1") as second:
        assert second.wait_ready() == "waiting for the Lease"
        lease = user.cluster.get("Lease", user.own, "kube-ipsec-operator")
        assert lease["spec"]["holderIdentity"] == "operator-0"
        before = settled(user)
        killed = time.monotonic()
        operator.kill()
        second.wait_leading()
        record_property("measured", f"took over {time.monotonic() - killed:.1f} s after a kill")
        time.sleep(QUIET)
        assert everything(user) == before
        user.running(name)
        operator.start()
        assert operator.wait_ready() == "waiting for the Lease"
        # In good order it is handed over at once.
        second.stop()
        operator.wait_leading()
    said = user.cluster.get("Lease", user.own, "kube-ipsec-operator")["spec"]
    assert said["holderIdentity"] == "operator-0"
    assert said["leaseTransitions"] >= 2
