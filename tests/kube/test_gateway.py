"""What a gateway asks of the API server, with the rights of its service account.

The code under test is the gateway's own client; the operator renders what it follows. Nodes are not
needed: the one whose gateway this is exists as an object alone.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from ipsec_api.cluster import (
    GATEWAY_LEASE_SELECTOR,
    GATEWAY_MANAGER,
    OPERATOR_MANAGER,
    TUNNEL_SELECTOR,
    gateway_lease_name,
    tunnel_secret_name,
)
from ipsec_api.kinds import API_VERSION, GROUP
from ipsec_gateway.cluster.api import Api, ApiError
from ipsec_gateway.cluster.apistatus import ApiStatusSink, path_of
from ipsec_gateway.cluster.kubeconfig import plain
from ipsec_gateway.cluster.leases import Leases, Mine
from ipsec_gateway.cluster.source import TunnelSource
from ipsec_gateway.lastgood import Key
from ipsec_gateway.routeagent.leases import Leases as AgentLeases
from ipsec_lab.cluster import condition, until
from ipsec_lab.forwarder import Forwarder, server_of

PSK = "correct horse battery staple"
THEN = "2026-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def access(release, tmp_path_factory):
    return access_of(release, "kube-ipsec-gateway", tmp_path_factory.mktemp("account"))


def access_of(release, account, folder):
    """Access with the rights of this account of the release."""
    file = release.cluster.kubeconfig_of(release.namespace, account, folder / "kubeconfig")
    if (found := plain(file)) is None:
        pytest.skip("KUBECONFIG reaches its cluster in a way that gateways leave to a package")
    return found


@pytest.fixture
def node(release):
    """A Node object, which goes afterwards."""
    name = f"kube-ipsec-test-{uuid.uuid4().hex[:8]}"
    labels = {"zone": "north"}
    made = release.cluster.create(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
    )
    yield made["metadata"]
    release.cluster.delete("Node", "", name)
    release.cluster.delete("Lease", release.namespace, gateway_lease_name(name))


def manifest(release, kind, name, **more):
    version = "v1" if kind == "Secret" else API_VERSION
    metadata = {"name": name, "namespace": release.users}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}


@pytest.fixture
def peer(release, operator):
    """``peer(number)`` gives the name of a peer that the operator has rendered."""
    made = []

    def make(number):
        name = f"peer-{uuid.uuid4().hex[:6]}"
        made.append(name)
        psk = base64.b64encode(PSK.encode()).decode()
        release.cluster.apply(manifest(release, "Secret", name, data={"psk": psk}))
        spec = {
            "address": f"203.0.113.{number}",
            "authentication": {"method": "preSharedKey", "secretRef": {"name": name}},
            "remoteSubnets": [f"10.20.{number}.0/24"],
        }
        release.cluster.apply(manifest(release, "IPsecPeer", name, spec=spec))
        until(lambda: tunnel(release, name), f"tunnel Secret of {name}")
        return name

    yield make
    for name in made:
        release.cluster.delete("IPsecPeer", release.users, name)
        release.cluster.delete("Secret", release.users, name)
    for name in made:
        until(lambda name=name: tunnel(release, name) is None, "the tunnel Secret is gone")


def tunnel(release, name):
    return release.cluster.get("Secret", release.namespace, tunnel_secret_name(release.users, name))


def with_api(access, work):
    """What ``work(api)`` gives."""

    async def run():
        api = Api(access)
        try:
            return await work(api)
        finally:
            await api.close()

    return asyncio.run(run())


async def soon(holds, what):
    await asyncio.to_thread(until, holds, what)


@contextlib.asynccontextmanager
async def running(work):
    task = asyncio.ensure_future(work)
    try:
        yield task
        assert not task.done(), "it never ends by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# -- tunnel Secrets


@pytest.fixture
def line(access):
    """Access by a connection that breaks when told."""
    there = server_of(Path(os.environ["KUBECONFIG"]))
    with socket.create_server(("127.0.0.1", 0)) as listener, Forwarder(listener, there) as forward:
        # Its certificate is not for this address.
        access.ssl.check_hostname = False
        url = f"https://127.0.0.1:{forward.port}"
        yield replace(access, url=url), forward


def test_tunnels_are_listed_followed_and_resumed(release, line, peer):
    first = peer(1)
    key = f"{release.users}/{first}"
    access, forward = line

    async def work(api):
        source = TunnelSource(api, release.namespace, rng=lambda: 0.0)

        def keys():
            return {each.key for each in source.tunnels}

        async with running(source.reflector.run()):
            await soon(lambda: key in keys(), "the list")
            (known,) = (t for t in source.tunnels if t.key == key)
            assert known.identities[0].psk.get_secret_value() == PSK.encode()
            second = await asyncio.to_thread(peer, 2)
            await soon(lambda: f"{release.users}/{second}" in keys(), "an addition")
            # The connection breaks, and something happens meanwhile.
            forward.cut()
            await asyncio.to_thread(release.cluster.delete, "IPsecPeer", release.users, second)
            await soon(lambda: not tunnel(release, second), "its Secret goes")
            assert f"{release.users}/{second}" in keys(), "what is known stays"
            forward.mend()
            await soon(lambda: f"{release.users}/{second}" not in keys(), "the deletion")
            assert key in keys()
            assert source.reflector.lists == 1, "it goes on from where it was"
            assert source.reflector.watches >= 2
        return source

    source = with_api(access, work)
    assert not source._faults


def test_a_version_that_is_too_old_leads_to_a_new_list(release, access, peer):
    name = peer(3)
    other = peer(4)

    async def work(api):
        source = TunnelSource(api, release.namespace, rng=lambda: 0.0)
        # As after days without the API server: what happened since is forgotten there.
        source.reflector._version = "1"
        async with running(source.reflector.run()):
            await soon(lambda: len(source.tunnels) >= 2, "what there is now")
            return source.reflector.lists, {t.source.name for t in source.tunnels}

    lists, names = with_api(access, work)
    assert {name, other} <= names
    assert lists <= 1


# -- the Lease


def lease(release, node):
    return release.cluster.get("Lease", release.namespace, gateway_lease_name(node["name"]))


def leases(api, release, node, seen):
    return Leases(
        api,
        release.namespace,
        Mine(node["name"], ("192.0.2.1", "2001:db8::1")),
        on_list=seen.update,
        on_lease=lambda name, facts: seen.__setitem__(name, facts),
        on_contact=lambda: None,
    )


def test_the_lease_is_made_renewed_and_belongs_to_the_node(release, access, node):
    async def work(api):
        seen = {}
        ours = leases(api, release, node, seen)
        changed = asyncio.Event()
        async with (
            running(ours.renew()),
            running(ours.reflector.run()),
            running(ours.follow_node(changed.set)),
        ):
            await changed.wait()
            owned = lambda: (lease(release, node) or {})["metadata"].get("ownerReferences")  # noqa: E731
            await soon(lambda: node["name"] in seen, "our own Lease, as others see it")
            await soon(owned, "its owner")
            made = await asyncio.to_thread(lease, release, node)
            facts = seen[node["name"]]
            await soon(lambda: seen[node["name"]].renewed > facts.renewed, "a renewal")
            await soon(lambda: seen[node["name"]].labels == {"zone": "north"}, "the labels")
            ours.mine.draining = True
            ours.hurry()
            await soon(lambda: seen[node["name"]].draining, "that it drains")
        return made

    made = with_api(access, work)
    assert made["spec"]["holderIdentity"] == node["name"]
    assert made["spec"]["leaseDurationSeconds"] == 6
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Node", node["name"], node["uid"])


def test_a_lease_that_somebody_took_or_deleted_is_put_right(release, access, node):
    own = release.namespace

    async def work(api):
        ours = leases(api, release, node, {})
        await ours.write()
        name = gateway_lease_name(node["name"])
        taken = {"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 3600}}
        await asyncio.to_thread(release.cluster.patch, "Lease", own, name, taken)
        await ours.write()
        found = [await asyncio.to_thread(lease, release, node)]
        await asyncio.to_thread(release.cluster.delete, "Lease", own, name)
        await ours.write()
        found.append(await asyncio.to_thread(lease, release, node))
        return found

    for found in with_api(access, work):
        assert found["spec"]["holderIdentity"] == node["name"]
        assert found["spec"]["leaseDurationSeconds"] == 6


def test_a_lease_does_not_outlive_its_node(release, access, node):
    """The garbage collector of the cluster sees to it."""

    async def work(api):
        ours = leases(api, release, node, {})
        ours.mine.uid = node["uid"]
        await ours.write()

    with_api(access, work)
    assert lease(release, node)
    release.cluster.delete("Node", "", node["name"])
    until(lambda: lease(release, node) is None, "the Lease is gone", 60)


def test_route_agents_find_the_gateways(release, access, node, tmp_path):
    """With the rights of their own account, which has no Secret at all."""
    found = []

    async def listed(api):
        agent = AgentLeases(api, release.namespace, found.append)
        async with running(agent.run()):
            await soon(lambda: found, "a list")
        assert agent.trouble == ""

    with_api(access, lambda api: leases(api, release, node, {}).write())
    with_api(access_of(release, "kube-ipsec-route-agent", tmp_path), listed)
    addresses = [str(each) for each in found[-1][node["name"]]]
    assert addresses == ["192.0.2.1", "2001:db8::1"]


# -- statuses


def status(generation=1, *, established="True", **more):
    conditions = [
        {
            "type": kind,
            "status": value,
            "reason": kind,
            "message": "",
            "observedGeneration": generation,
            "lastTransitionTime": THEN,
        }
        for kind, value in (
            ("Accepted", "True"),
            ("Programmed", "True"),
            ("Established", established),
        )
    ]
    empty = {"discoveredSubnets": []}
    return {"observedGeneration": generation, "conditions": conditions, **empty, **more}


async def written(sink):
    async with running(sink.run()):
        await soon(lambda: sink.idle, "everything is written")


def managers(item):
    return {
        each["manager"]: json.dumps(each["fieldsV1"])
        for each in item["metadata"]["managedFields"]
        if each.get("subresource") == "status"
    }


def test_a_status_is_beside_the_operators(release, access, peer):
    name = peer(5)
    key = Key("IPsecPeer", release.users, name)

    def get():
        return release.cluster.get("IPsecPeer", release.users, name)

    until(lambda: condition(get(), "Ready"), "the operator's word")
    uid = get()["metadata"]["uid"]

    async def work(api):
        sink = ApiStatusSink(api, lambda _: uid)
        sink.put(key, status(activeGateway="node-1", standbyGateways=["node-2"]))
        await written(sink)
        until(lambda: "Established" in str(condition(get(), "Established")), "ours")
        said = get()
        sink.put(key, status(activeGateway="node-1", standbyGateways=["node-2"]))
        assert sink.idle, "the same once more is no write"
        # Another process, which does not know what the first has written.
        again = ApiStatusSink(api, lambda _: uid)
        again.put(key, status(activeGateway="node-1", standbyGateways=["node-2"]))
        await written(again)
        return said

    with_api(access, work)
    said = get()
    assert {each["type"] for each in said["status"]["conditions"]} == {
        *("Accepted", "ResolvedRefs", "Ready", "Programmed", "Established")
    }
    owners = managers(said)
    assert set(owners) == {OPERATOR_MANAGER, GATEWAY_MANAGER}
    assert "Established" not in owners[OPERATOR_MANAGER]
    assert "activeGateway" not in owners[OPERATOR_MANAGER]
    assert "Accepted" not in owners[GATEWAY_MANAGER]
    assert "discoveredSubnets" not in owners[GATEWAY_MANAGER]
    assert said["status"]["discoveredSubnets"] == ["10.244.0.0/16", "10.96.0.0/16"]
    assert 'observedGeneration"' not in owners[GATEWAY_MANAGER].split("f:conditions")[0]
    assert said["status"]["standbyGateways"] == ["node-2"]


def test_the_next_owner_replaces_the_last_ones_word(release, access, peer):
    name = peer(6)
    key = Key("IPsecPeer", release.users, name)

    async def work(api):
        first = ApiStatusSink(api, lambda _: "")
        first.put(
            key, status(activeGateway="node-1", cipherSuite="one", standbyGateways=["node-2"])
        )
        await written(first)
        second = ApiStatusSink(api, lambda _: "")
        second.put(key, status(established="False", activeGateway="node-2"))
        await written(second)

    with_api(access, work)
    found = until(
        lambda: (
            (item := release.cluster.get("IPsecPeer", release.users, name))["status"].get(
                "activeGateway"
            )
            == "node-2"
            and item
        ),
        "the second gateway's word",
    )
    assert "cipherSuite" not in found["status"], "what only the first one knew is gone"
    assert "standbyGateways" not in found["status"]
    assert condition(found, "Established")["status"] == "False"
    assert condition(found, "Accepted")["status"] == "True"


def test_the_same_status_again_changes_no_version(release, access, peer):
    name = peer(7)
    key = Key("IPsecPeer", release.users, name)

    async def work(api):
        versions = []
        for _ in range(2):
            sink = ApiStatusSink(api, lambda _: "")
            sink.put(key, status(activeGateway="node-1"))
            await written(sink)
            await asyncio.sleep(1.5)  # the operator says what follows from it
            item = await asyncio.to_thread(release.cluster.get, "IPsecPeer", release.users, name)
            versions.append(item["metadata"]["resourceVersion"])
        return versions

    first, second = with_api(access, work)
    assert first == second


def test_policies_have_a_status_too(release, access, peer):
    name = peer(8)
    selectors = [{"src": "10.244.0.0/16", "dst": "10.30.8.0/24"}]
    policy = manifest(
        release, "IPsecPolicy", name, spec={"peerRef": {"name": name}, "selectors": selectors}
    )
    release.cluster.apply(policy)
    get = lambda: release.cluster.get("IPsecPolicy", release.users, name)  # noqa: E731
    try:
        until(lambda: condition(get(), "Accepted").get("status") == "True", "it is accepted")

        async def work(api):
            sink = ApiStatusSink(api, lambda _: get()["metadata"]["uid"])
            more = {"state": "Established", "selectorsInstalled": 1}
            sink.put(Key("IPsecPolicy", release.users, name), status(**more))
            await written(sink)

        with_api(access, work)
        found = get()
        assert found["status"]["selectorsInstalled"] == 1
        assert set(managers(found)) == {OPERATOR_MANAGER, GATEWAY_MANAGER}
        assert condition(found, "Accepted")["status"] == "True"
    finally:
        release.cluster.delete("IPsecPolicy", release.users, name)


def test_what_cannot_be_written_stops_nothing_else(release, access, peer, caplog):
    name = peer(9)
    key, gone = (Key("IPsecPeer", release.users, each) for each in (name, "never-was"))

    async def work(api):
        sink = ApiStatusSink(api, lambda _: "")
        sink.put(gone, status())
        await written(sink)
        sink.put(key, status(effectiveMTU=-1))
        await written(sink)
        assert sink.writes == 2, "there is no use in trying again"
        sink.put(key, status(activeGateway="node-1"))
        await written(sink)

    with_api(access, work)
    found = release.cluster.get("IPsecPeer", release.users, name)
    assert found["status"]["activeGateway"] == "node-1"
    assert release.cluster.get("IPsecPeer", release.users, "never-was") is None
    told = [record.getMessage() for record in caplog.records if "not written" in record.message]
    assert [text.split("is not written: ")[1][:3] for text in told] == ["404", "422"]


# -- rights


def test_it_may_do_nothing_else(release, access, peer, node):
    name = peer(10)
    own, users = (f"/api/v1/namespaces/{n}/secrets" for n in (release.namespace, release.users))
    peers = f"/apis/{GROUP}/v1alpha1/namespaces/{release.users}/ipsecpeers"
    body = manifest(release, "IPsecPeer", name, spec={"disabled": True})

    async def work(api):
        refused = [
            api.get(users),
            api.get(f"{users}/{name}"),
            api.get("/api/v1/secrets"),
            api.get("/api/v1/namespaces/kube-system/secrets"),
            api.get(f"{own}/kube-ipsec-mesh"),
            api.get("/api/v1/nodes"),
            api.get(peers),
            api.get(f"{peers}/{name}"),
            api.apply(f"{peers}/{name}", body, manager=GATEWAY_MANAGER),
            api.apply(f"{own}/mine", {"apiVersion": "v1", "kind": "Secret"}, manager="x"),
        ]
        codes = []
        for each in refused:
            with pytest.raises(ApiError) as caught:
                await each
            codes.append(caught.value.status)
        assert codes == [403] * len(refused)
        found = await api.get(own, {"labelSelector": TUNNEL_SELECTOR})
        assert tunnel_secret_name(release.users, name) in [
            each["metadata"]["name"] for each in found["items"]
        ]
        path = f"/apis/coordination.k8s.io/v1/namespaces/{release.namespace}/leases"
        await api.get(path, {"labelSelector": GATEWAY_LEASE_SELECTOR})
        assert (await api.get(f"/api/v1/nodes/{node['name']}"))["metadata"]["uid"] == node["uid"]
        key = Key("IPsecPeer", release.users, name)
        answer = await api.apply(
            path_of(key), manifest(release, "IPsecPeer", name, status={}), manager=GATEWAY_MANAGER
        )
        assert answer["metadata"]["name"] == name

    with_api(access, work)
