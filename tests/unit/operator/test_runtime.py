"""The whole operator against an API server in memory (kmock): every handler and every watch."""

import asyncio
import base64
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ipsec_api.cluster import TUNNEL_SECRET_TYPE, tunnel_secret_name
from ipsec_lab import operator_rig
from ipsec_lab.kubeapi import Call
from ipsec_lab.operator_rig import NODE, OWN, Cluster
from ipsec_operator import rbac
from ipsec_operator.health import application
from ipsec_operator.leader import Leadership
from ipsec_operator.runtime import precisely

Make = Callable[..., Any]


@pytest.fixture
def in_cluster() -> Callable[[Callable[[Cluster], Coroutine[Any, Any, None]]], None]:
    """Run the body of a test in a loop, with a cluster of one node."""
    return lambda body: asyncio.run(operator_rig.in_cluster(body))


def test_gateways_that_all_fell_silent_are_told_from_an_api_server_that_did(
    in_cluster: Any, make: Make
) -> None:
    """The watch of their Leases says nothing in either case."""

    async def body(cluster: Cluster) -> None:
        cluster.heartbeat()
        cluster.server.add(make("secret", 1))
        cluster.server.add(make("peer", 1))
        async with cluster.running() as operator:
            await operator.look_at_gateways()
            assert operator.controller.gateways
            cluster.ahead = 60.0
            cluster.server.refuse = lambda call: 503 if call.plural == "leases" else None
            await operator.look_at_gateways()
            assert operator.controller.gateways
            cluster.server.refuse = lambda _: None
            await operator.look_at_gateways()
            assert not operator.controller.gateways
            no_gateway = ("False", "NoGatewayNode")
            await cluster.until(lambda: cluster.reason("peer-1", "Ready") == no_gateway)
            cluster.heartbeat(at="2026-01-01T00:01:00.000000Z")
            await cluster.quiet(operator)
            await operator.look_at_gateways()
            assert operator.controller.gateways

    in_cluster(body)


def test_from_nothing_to_a_tunnel_and_back(in_cluster: Any, make: Make) -> None:
    async def body(cluster: Cluster) -> None:
        async with cluster.running() as operator:
            cluster.server.add(make("secret", 1))
            cluster.server.add(make("peer", 1))
            await cluster.until(cluster.tunnels)
            await cluster.until(lambda: cluster.reason("peer-1", "Ready"))
            assert cluster.reason("peer-1", "Accepted") == ("True", "Accepted")
            assert cluster.reason("peer-1", "ResolvedRefs") == ("True", "ResolvedRefs")
            assert cluster.reason("peer-1", "Ready") == ("False", "NoGatewayNode")
            status = cluster.server.one("ipsecpeers", "default", "peer-1")["status"]
            assert status["observedGeneration"] == 1
            assert status["discoveredSubnets"] == ["10.244.0.0/24"]
            await cluster.quiet(operator)
            before = len(cluster.server.writes())
            await cluster.quiet(operator)
            assert len(cluster.server.writes()) == before
            cluster.server.remove("ipsecpeers", "default", "peer-1")
            await cluster.until(lambda: not cluster.tunnels())

    in_cluster(body)


def test_ready_is_what_the_gateway_says_of_this_generation(in_cluster: Any, make: Make) -> None:
    async def body(cluster: Cluster) -> None:
        cluster.heartbeat()
        async with cluster.running():
            cluster.server.add(make("secret", 1))
            cluster.server.add(make("peer", 1))
            await cluster.until(lambda: cluster.reason("peer-1", "Ready") == ("False", "Pending"))

            def say(established: str, generation: int, reason: str = "Established") -> None:
                conditions = [
                    {
                        "type": kind,
                        "status": value,
                        "reason": reason if kind == "Established" else kind,
                        "message": "said by the gateway",
                        "observedGeneration": generation,
                        "lastTransitionTime": "2026-01-01T00:00:00Z",
                    }
                    for kind, value in (("Programmed", "True"), ("Established", established))
                ]
                status = {"conditions": conditions, "activeGateway": "node-1"}
                cluster.server.set_status("ipsecpeers", "default", "peer-1", status)

            say("True", 1)
            await cluster.until(lambda: cluster.reason("peer-1", "Ready") == ("True", "Ready"))
            # What the gateway has written stays.
            status = cluster.server.one("ipsecpeers", "default", "peer-1")["status"]
            assert status["activeGateway"] == "node-1"
            assert cluster.reason("peer-1", "Established") == ("True", "Established")
            say("False", 1, "PeerDead")
            await cluster.until(lambda: cluster.reason("peer-1", "Ready") == ("False", "PeerDead"))
            say("True", 1)
            await cluster.until(lambda: cluster.reason("peer-1", "Ready") == ("True", "Ready"))
            cluster.server.add(make("peer", 1, mtu=1300))
            await cluster.until(lambda: cluster.reason("peer-1", "Ready") == ("False", "Pending"))
            await cluster.until(lambda: cluster.tunnels()["default/peer-1"].mtu == 1300)
            say("True", 2)
            await cluster.until(lambda: cluster.reason("peer-1", "Ready") == ("True", "Ready"))
            told = {(e["reason"], e["type"]) for e in cluster.server.all("events")}
            await cluster.until(
                lambda: (
                    {("NotReady", "Warning"), ("Ready", "Normal"), ("HotChange", "Normal")}
                    <= {(e["reason"], e["type"]) for e in cluster.server.all("events")}
                )
            )
            assert told is not None

    in_cluster(body)


def test_a_policy_a_mode_config_and_a_node_are_followed(in_cluster: Any, make: Make) -> None:
    async def body(cluster: Cluster) -> None:
        async with cluster.running():
            cluster.server.add(make("secret", 1))
            cluster.server.add(make("peer", 1))
            policy = make("policy", "more", "peer-1", "10.244.0.0/24", "192.168.9.0/24")
            cluster.server.add(policy)
            await cluster.until(
                lambda: cluster.tunnels() and len(cluster.tunnels()["default/peer-1"].policies) == 2
            )
            await cluster.until(lambda: cluster.reason("more", "Accepted", "ipsecpolicies"))
            cluster.server.add(make("crd", "ModeConfig", "pool", {"responder": False}))
            await cluster.until(lambda: cluster.reason("pool", "Ready", "modeconfigs"))
            cluster.server.add(NODE | {"spec": {"podCIDRs": ["10.245.0.0/24"]}})
            await cluster.until(
                lambda: (
                    "10.245.0.0/24"
                    in {
                        s.src
                        for p in cluster.tunnels()["default/peer-1"].policies
                        for s in p.selectors
                    }
                )
            )
            cluster.server.remove("ipsecpolicies", "default", "more")
            await cluster.until(lambda: len(cluster.tunnels()["default/peer-1"].policies) == 1)

    in_cluster(body)


def test_rotation_and_a_missing_secret(in_cluster: Any, make: Make) -> None:
    async def body(cluster: Cluster) -> None:
        async with cluster.running() as operator:
            for number in (1, 2):
                cluster.server.add(make("secret", number))
                cluster.server.add(make("peer", number))
            await cluster.until(lambda: len(cluster.tunnels()) == 2)
            await cluster.quiet(operator)
            cluster.server.calls.clear()
            cluster.server.add(make("secret", 1, "new", **{"psk-previous": "old"}))
            await cluster.quiet(operator)
            (identity,) = cluster.tunnels()["default/peer-1"].identities
            assert identity.psk.get_secret_value() == b"new"
            touched = [c.name for c in cluster.server.writes() if c.plural == "secrets"]
            assert len(touched) == 1
            cluster.server.remove("secrets", "default", "psk-1")
            await cluster.until(
                lambda: cluster.reason("peer-1", "ResolvedRefs") == ("False", "SecretNotFound")
            )
            await cluster.quiet(operator)
            found = cluster.condition("ipsecpeers", "peer-1", "ResolvedRefs")["message"]
            assert "its last good version stays in force" in found
            assert len(cluster.tunnels()) == 2
            cluster.server.add(make("secret", 1, "back"))
            await cluster.until(
                lambda: cluster.reason("peer-1", "ResolvedRefs") == ("True", "ResolvedRefs")
            )
            await cluster.until(
                lambda: (
                    cluster.tunnels()["default/peer-1"].identities[0].psk.get_secret_value()
                    == b"back"
                )
            )

    in_cluster(body)


def test_a_new_operator_writes_nothing_and_removes_what_nobody_wants(
    in_cluster: Any, make: Make
) -> None:
    async def body(cluster: Cluster) -> None:
        for number in (1, 2):
            cluster.server.add(make("secret", number))
            cluster.server.add(make("peer", number))
        async with cluster.running() as operator:
            await cluster.until(lambda: len(cluster.tunnels()) == 2)
            await cluster.quiet(operator)
        # The operator is down meanwhile.
        cluster.server.remove("ipsecpeers", "default", "peer-2")
        cluster.server.remove("secrets", "default", "psk-1")
        cluster.server.calls.clear()
        async with cluster.running() as operator:
            await cluster.until(lambda: len(cluster.tunnels()) == 1)
            await cluster.quiet(operator)
            assert set(cluster.tunnels()) == {"default/peer-1"}
            written = [c for c in cluster.server.writes() if c.plural == "secrets"]
            assert [c.verb for c in written] == ["delete"]

    in_cluster(body)


def test_a_tunnel_secret_that_somebody_changed_or_deleted_is_made_anew(
    in_cluster: Any, make: Make
) -> None:
    async def body(cluster: Cluster) -> None:
        async with cluster.running() as operator:
            cluster.server.add(make("secret", 1))
            cluster.server.add(make("peer", 1))
            await cluster.until(cluster.tunnels)
            await cluster.quiet(operator)
            (held,) = [
                s for s in cluster.server.all("secrets") if s.get("type") == "kubeipsec.dev/tunnel"
            ]
            good = held["data"]["tunnel.json"]
            name = held["metadata"]["name"]
            cluster.server.add(held | {"data": {"tunnel.json": "e30="}})
            await cluster.until(
                lambda: cluster.server.one("secrets", OWN, name)["data"]["tunnel.json"] == good
            )
            cluster.server.remove("secrets", OWN, name)
            await cluster.until(cluster.tunnels)
            # A copy of it would be the same tunnel twice; what only has the label is not ours.
            metadata = held["metadata"] | {"name": "copy"}
            cluster.server.add(held | {"metadata": metadata})
            labels = {"kubeipsec.dev/tunnel": "true"}
            other = {"name": "other", "namespace": OWN, "labels": labels}
            secret = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": other}
            cluster.server.add(secret)
            await cluster.until(
                lambda: "copy" not in {s["metadata"]["name"] for s in cluster.server.all("secrets")}
            )
            await cluster.quiet(operator)
            assert cluster.server.one("secrets", OWN, "other")
            assert cluster.server.one("secrets", OWN, name)

    in_cluster(body)


def test_a_tunnel_secret_without_its_label_is_taken_back(in_cluster: Any, make: Make) -> None:
    """No watch of ours shows it, so that it seems not to be there."""

    async def body(cluster: Cluster) -> None:
        name = tunnel_secret_name("default", "peer-1")
        metadata = {"name": name, "namespace": OWN}
        unlabelled = {"apiVersion": "v1", "kind": "Secret", "type": TUNNEL_SECRET_TYPE}
        cluster.server.add(unlabelled | {"metadata": metadata, "data": {}})
        async with cluster.running() as operator:
            cluster.server.add(make("secret", 1))
            cluster.server.add(make("peer", 1))
            await cluster.until(lambda: cluster.server.one("secrets", OWN, name)["data"])
            await cluster.quiet(operator)
            held = cluster.server.one("secrets", OWN, name)
            assert held["metadata"]["labels"]["kubeipsec.dev/tunnel"] == "true"
            verbs = [c.verb for c in cluster.server.writes() if c.plural == "secrets"]
            assert verbs[-2:] == ["create", "update"]

    in_cluster(body)


def test_what_is_not_written_any_more_goes_from_a_tunnel_secret(
    in_cluster: Any, make: Make
) -> None:
    """Also a label that was ours by the request that made the Secret."""

    async def body(cluster: Cluster) -> None:
        name = tunnel_secret_name("default", "peer-1")

        def labels() -> set[str]:
            return set(cluster.server.one("secrets", OWN, name)["metadata"]["labels"])

        cluster.server.add(make("secret", 1))
        cluster.server.add(make("peer", 1))
        async with cluster.running(common_labels={"team": "a"}):
            await cluster.until(cluster.tunnels)
            assert "team" in labels()
        async with cluster.running():
            cluster.server.add(make("peer", 1, mtu=1300))
            await cluster.until(lambda: cluster.tunnels()["default/peer-1"].mtu == 1300)
            assert labels() == {"kubeipsec.dev/tunnel", "app.kubernetes.io/managed-by"}

    in_cluster(body)


def test_daemon_sets_are_made_repaired_and_taken_away(in_cluster: Any) -> None:
    async def body(cluster: Cluster) -> None:
        async with cluster.running() as operator:
            await cluster.until(lambda: len(cluster.server.all("daemonsets")) == 2)
            await cluster.quiet(operator)
            cluster.server.calls.clear()
            await cluster.quiet(operator)
            assert cluster.server.writes() == []
            held = cluster.server.one("daemonsets", OWN, "kube-ipsec-gateway")
            spec = held["spec"] | {"revisionHistoryLimit": 9}
            cluster.server.add(held | {"spec": spec})
            await cluster.until(
                lambda: (
                    cluster.server.one("daemonsets", OWN, "kube-ipsec-gateway")["spec"][
                        "revisionHistoryLimit"
                    ]
                    == 3
                )
            )
            cluster.server.remove("daemonsets", OWN, "kube-ipsec-gateway")
            await cluster.until(lambda: len(cluster.server.all("daemonsets")) == 2)
        async with cluster.running(route_agent={"enabled": False}):
            await cluster.until(lambda: len(cluster.server.all("daemonsets")) == 1)
        key = cluster.server.one("secrets", OWN, "kube-ipsec-mesh")["data"]["key"]
        assert len(base64.b64decode(key)) == 32

    in_cluster(body)


def test_errors_of_the_api_server_are_outlived(in_cluster: Any, make: Make) -> None:
    async def body(cluster: Cluster) -> None:
        async with cluster.running() as operator:
            down = True

            def refuse(call: Call) -> int | None:
                return 503 if down and call.writes else None

            cluster.server.refuse = refuse
            cluster.server.add(make("secret", 1))
            cluster.server.add(make("peer", 1))
            await cluster.until(lambda: operator.controller.queue.failing)
            assert cluster.tunnels() == {}
            # Watches end, and what they would go on from is forgotten.
            cluster.server.forget()
            cluster.server.cut()
            cluster.server.remove("secrets", "default", "psk-1")
            cluster.server.add(make("secret", 1, "another"))
            down = False
            await cluster.until(cluster.tunnels)
            await cluster.until(
                lambda: (
                    cluster.tunnels()["default/peer-1"].identities[0].psk.get_secret_value()
                    == b"another"
                )
            )
            await cluster.until(lambda: cluster.reason("peer-1", "Accepted"))

    in_cluster(body)


def test_what_no_watch_told_is_found_by_a_list(
    in_cluster: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipsec_operator.runtime.RESYNC", 0.1)
    monkeypatch.setattr("ipsec_operator.runtime.LAG", 0.05)

    async def body(cluster: Cluster) -> None:
        async with cluster.running() as operator:
            cluster.server.add(make("secret", 1))
            cluster.server.add(make("peer", 1))
            await cluster.until(cluster.tunnels)
            await cluster.quiet(operator)
            # kopf hears nothing any more.
            monkeypatch.setattr(operator, "_seen", lambda *_: None)
            peers = operator.controller.store
            ghost = make("crd", "IPsecPeer", "ghost", make("peer", 9)["spec"], resourceVersion="1")
            peers.put_resource(ghost)
            await cluster.until(lambda: make("key", ghost) not in peers.resources)
            assert operator.stale() is None

    in_cluster(body)


def test_what_may_not_be_read_of_the_networks_is_found_elsewhere(in_cluster: Any) -> None:
    async def body(cluster: Cluster) -> None:
        hidden = ("servicecidrs", "configmaps")
        cluster.server.refuse = lambda call: (
            403 if call.plural in hidden and call.namespace in (None, "kube-system") else None
        )
        async with cluster.running(watch_namespaces=("default",)) as operator:
            networks = operator.controller.store.networks
            assert (networks.pods, networks.services) == (("10.244.0.0/24",), ())

    in_cluster(body)


def test_only_watched_namespaces_are_looked_at(in_cluster: Any, make: Make) -> None:
    async def body(cluster: Cluster) -> None:
        async with cluster.running(watch_namespaces=("tenants",)) as operator:
            for namespace in ("tenants", "others"):
                cluster.server.add(make("secret", 1, namespace=namespace))
                cluster.server.add(make("peer", 1, namespace=namespace))
                cluster.server.add(make("secret", 2, namespace=namespace))
            await cluster.until(cluster.tunnels)
            await cluster.quiet(operator)
            assert set(cluster.tunnels()) == {"tenants/peer-1"}
            read = {
                c.namespace
                for c in cluster.server.calls
                if c.plural in ("secrets", "configmaps") and not c.writes
            }
            assert read == {"tenants", OWN, "kube-system"}

    in_cluster(body)


def granted(call: Call, watched: tuple[str, ...]) -> bool:
    """Whether the rights in ``rbac`` cover a call."""
    resource = f"{call.plural}/{call.part}" if call.part else call.plural
    places = {
        "cluster": call.namespace is None,
        "own": call.namespace == OWN,
        "watched": call.namespace in watched if watched else True,
        "kube-system": call.namespace == "kube-system",
    }
    return any(
        right.group == call.group
        and resource in right.resources
        and call.verb in right.verbs
        and places[right.scope]
        and (not right.names or call.name in right.names)
        for right in rbac.OPERATOR
    )


@pytest.mark.parametrize("watched", [(), ("default",)])
def test_every_call_is_covered_by_a_right(
    in_cluster: Any, make: Make, watched: tuple[str, ...]
) -> None:
    async def body(cluster: Cluster) -> None:
        async with cluster.running(watch_namespaces=watched) as operator:
            leadership = Leadership(operator.api, OWN, "operator-0", time.monotonic, precisely)
            lead = asyncio.ensure_future(leadership.run(operator.complete.wait))
            cluster.server.add(make("secret", 1))
            cluster.server.add(make("peer", 1))
            await cluster.until(cluster.tunnels)
            cluster.server.remove("ipsecpeers", "default", "peer-1")
            await cluster.until(lambda: not cluster.tunnels())
            await lead
            await cluster.until(lambda: cluster.server.all("events"))
        assert {c.plural for c in cluster.server.calls} >= {"leases", "events", "daemonsets"}
        beyond = {c for c in cluster.server.calls if not granted(c, watched)}
        assert beyond == set()

    in_cluster(body)


def test_no_secret_is_told(in_cluster: Any, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    psk = "correct horse battery staple"
    forms = (psk, psk.encode().hex(), base64.b64encode(psk.encode()).decode())

    async def body(cluster: Cluster) -> None:
        async with cluster.running() as operator:
            cluster.server.add(make("secret", 1))
            cluster.server.add(make("peer", 1))
            bad = make("peer", 2, remoteSubnets=[psk])
            cluster.server.add(bad)
            await cluster.until(cluster.tunnels)
            cluster.server.add(make("secret", 1, psk + " 2"))
            cluster.server.refuse = lambda call: 500 if call.plural == "secrets" else None
            cluster.server.add(make("secret", 1, psk + " 3"))
            await cluster.until(lambda: operator.controller.queue.failing)
            cluster.server.refuse = lambda _: None
            await cluster.until(lambda: cluster.server.all("events"))
            await cluster.quiet(operator)
            store = operator.controller.store
            said = [repr(t) for t in (*store.present.values(), *store.wanted.values())]
            said += [repr(store._data), repr(store.rejections), repr(operator.settings)]
            said += [str(e) for e in cluster.server.all("events")]
            said += [str(p.get("status")) for p in cluster.server.all("ipsecpeers")]
            said += [str(d) for d in cluster.server.all("daemonsets")]
            said += [record.getMessage() for record in caplog.records if "ipsec" in record.name]
            assert len(said) > 10
            assert [form for form in forms for text in said if form in text] == []

    in_cluster(body)


def test_the_pages_of_health(in_cluster: Any, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(cluster: Cluster) -> None:
        async with cluster.running() as operator:
            cluster.server.add(make("secret", 1))
            cluster.server.add(make("peer", 1))
            await cluster.until(cluster.tunnels)
            runner = web.AppRunner(application(operator, None))
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"

            async def get(page: str) -> tuple[int, str]:
                async with aiohttp.ClientSession() as session, session.get(url + page) as answer:
                    return answer.status, await answer.text()

            try:
                assert await get("/healthz") == (200, "ok\n")
                assert await get("/readyz") == (200, "leading\n")
                _, text = await get("/metrics")
                assert "kube_ipsec_operator_tunnels 1.0" in text
                assert 'kube_ipsec_operator_resources{kind="IPsecPeer"} 1.0' in text
                operator.deaf = True
                assert (await get("/healthz"))[0] == 503
                operator.deaf = False
                monkeypatch.setattr("ipsec_operator.runtime.STALE", -1.0)
                status, text = await get("/healthz")
                assert status == 503
                assert "nothing heard of" in text
            finally:
                await runner.cleanup()

    in_cluster(body)
