"""Our Lease, others' Leases, and statuses by server-side apply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ipsec_api.cluster import DRAINING_ANNOTATION, gateway_lease_name
from ipsec_gateway.cluster import api as client
from ipsec_gateway.cluster.api import Access, Api, ApiError, NoCluster, in_cluster
from ipsec_gateway.cluster.apistatus import ApiStatusSink, body_of
from ipsec_gateway.cluster.leases import Leases, Mine, facts_of, lease_of
from ipsec_gateway.cluster.membership import LeaseFacts
from ipsec_gateway.lastgood import Key
from ipsec_lab.apistub import LEASES, KubeApi

NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
POD = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
MINE = Mine("node-1", ("192.0.2.1", "fd00::1"), "edge", {"zone": "a"}, uid="u")
PEERS = "/apis/kubeipsec.dev/v1alpha1/namespaces/default/ipsecpeers"


def run(story: Callable[[KubeApi, Api], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        server = KubeApi()
        await server.open()
        api = Api(Access(server.url, None, dict))
        try:
            async with asyncio.timeout(20):
                await story(server, api)
        finally:
            await api.close()
            await server.close()

    asyncio.run(whole())


async def until(check: Callable[[], bool]) -> None:
    for _ in range(1000):
        if check():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come to that")


def test_a_lease_says_what_others_need() -> None:
    lease = lease_of(MINE, "kube-ipsec", NOW)
    assert lease["spec"] == {
        "holderIdentity": "node-1",
        "leaseDurationSeconds": 6,
        "renewTime": "2026-11-23T12:00:00.123456Z",
    }
    assert lease["metadata"]["labels"]["kubeipsec.dev/gateway"] == "true"
    assert facts_of(lease) == (
        "node-1",
        LeaseFacts("2026-11-23T12:00:00.123456Z", ("192.0.2.1", "fd00::1"), "edge", {"zone": "a"}),
    )
    assert lease["metadata"]["annotations"][DRAINING_ANNOTATION] == "false"


@pytest.mark.parametrize(
    "lease",
    [
        {},
        {"metadata": {"name": "another"}},
        {"metadata": {"name": gateway_lease_name("x"), "annotations": 5}},
        {"metadata": {"name": gateway_lease_name("x")}, "spec": {"holderIdentity": "y"}},
        {
            "metadata": {
                "name": gateway_lease_name("x"),
                "annotations": {"kubeipsec.dev/node-labels": "no json"},
            }
        },
    ],
)
def test_other_leases_are_nobodys(lease: dict[str, Any]) -> None:
    assert facts_of(lease) is None


def test_leases_are_renewed_and_followed() -> None:
    async def story(server: KubeApi, api: Api) -> None:
        listed: list[Mapping[str, LeaseFacts]] = []
        seen: list[tuple[str, LeaseFacts | None]] = []
        contacts: list[int] = []
        await server.put(f"{LEASES}/{gateway_lease_name('b')}", lease_of(Mine("b"), "n", NOW))
        leases = Leases(
            api,
            "kube-ipsec",
            Mine("a"),
            on_list=listed.append,
            on_lease=lambda node, facts: seen.append((node, facts)),
            on_contact=lambda: contacts.append(1),
            rng=lambda: 0.0,
        )
        tasks = [
            asyncio.create_task(leases.renew()),
            asyncio.create_task(leases.reflector.run()),
        ]
        await until(lambda: bool(listed and seen))
        assert "b" in listed[0]
        leases.mine.draining = True
        leases.hurry()
        await until(lambda: any(facts is not None and facts.draining for _, facts in seen))
        # Somebody deletes our Lease: the next renewal makes it again.
        await server.delete(f"{LEASES}/{gateway_lease_name('a')}")
        await server.delete(f"{LEASES}/{gateway_lease_name('b')}")
        await until(lambda: ("b", None) in seen)
        leases.hurry()
        await until(lambda: f"{LEASES}/{gateway_lease_name('a')}" in server.objects)
        assert contacts
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(story)


def test_labels_of_the_node_are_followed() -> None:
    async def story(server: KubeApi, api: Api) -> None:
        path = "/api/v1/nodes/a"
        await server.put(path, {"metadata": {"labels": {"zone": "1"}, "uid": "n1"}})
        changed = asyncio.Event()
        mine = Mine("a")
        leases = Leases(
            api,
            "kube-ipsec",
            mine,
            on_list=lambda _: None,
            on_lease=lambda *_: None,
            on_contact=lambda: None,
        )
        task = asyncio.create_task(leases.follow_node(changed.set))
        await changed.wait()
        assert (mine.labels, mine.uid) == ({"zone": "1"}, "n1")
        assert lease_of(mine, "n", NOW)["metadata"]["ownerReferences"][0]["uid"] == "n1"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(story)


# --- statuses ---------------------------------------------------------------------------------

HQ = Key("IPsecPeer", "default", "hq")


def status(reason: str = "Established", **more: Any) -> dict[str, Any]:
    kinds = ("Accepted", "ResolvedRefs", "Programmed", "Established", "Ready")
    conditions = [{"type": kind, "status": "True", "reason": reason} for kind in kinds]
    return {"observedGeneration": 3, "conditions": conditions, **more}


def test_only_our_part_is_written() -> None:
    body = body_of(HQ, status(activeGateway="a", discoveredSubnets=[]), "u1")
    assert body["metadata"] == {"name": "hq", "namespace": "default", "uid": "u1"}
    assert body["status"]["activeGateway"] == "a"
    assert body["status"].keys() == {"activeGateway", "conditions"}
    assert [c["type"] for c in body["status"]["conditions"]] == ["Programmed", "Established"]


def test_statuses_are_written_once_and_coalesced() -> None:
    async def story(server: KubeApi, api: Api) -> None:
        await server.put(f"{PEERS}/hq", {"spec": {}})
        sink = ApiStatusSink(api, lambda _: "u1", interval=0.3)
        task = asyncio.create_task(sink.run())

        async def idle() -> None:
            await until(lambda: sink.idle)

        sink.put(HQ, status())
        await idle()
        sink.put(HQ, status())
        await idle()
        assert len(server.applied) == 1
        for number in range(50):
            sink.put(HQ, status(f"R{number}"))
            await asyncio.sleep(0)
        await idle()
        assert len(server.applied) <= 3
        assert server.objects[f"{PEERS}/hq"]["status"]["conditions"][0]["reason"] == "R49"
        # Another gateway's now, and ours again: the whole is written anew.
        sink.drop(HQ)
        before = len(server.applied)
        sink.put(HQ, status("R49"))
        await idle()
        assert len(server.applied) == before + 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(story)


def test_failures_are_tried_again_or_given_up() -> None:
    async def story(server: KubeApi, api: Api) -> None:
        await server.put(f"{PEERS}/hq", {"spec": {}})
        sink = ApiStatusSink(api, lambda _: "", interval=0.01, rng=lambda: 0.0)
        task = asyncio.create_task(sink.run())
        server.failing[:] = [429, 503]
        sink.put(HQ, status("A"))
        sink.put(Key("IPsecPeer", "default", "gone"), status("A"))
        await until(lambda: sink.idle)
        assert server.objects[f"{PEERS}/hq"]["status"]["conditions"][0]["reason"] == "A"
        assert f"{PEERS}/gone" not in server.objects
        # During an outage only the newest is kept.
        await server.close()
        sink.put(HQ, status("B"))
        await asyncio.sleep(0.2)
        sink.put(HQ, status("C"))
        count = len(server.applied)
        await server.reopen()
        await until(lambda: sink.idle)
        assert len(server.applied) == count + 1
        assert server.objects[f"{PEERS}/hq"]["status"]["conditions"][0]["reason"] == "C"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(story)


def test_an_object_that_the_api_server_stumbles_over_stops_no_other() -> None:
    async def story(server: KubeApi, api: Api) -> None:
        await server.put(f"{PEERS}/hq", {"spec": {}})
        await server.put(f"{PEERS}/other", {"spec": {}})
        sink = ApiStatusSink(api, lambda _: "", interval=0.01, stumble=0.5, rng=lambda: 0.0)
        server.failing[:] = [500]
        sink.put(HQ, status("A"))
        task = asyncio.create_task(sink.run())
        await until(lambda: not server.failing)
        sink.put(Key("IPsecPeer", "default", "other"), status("A"))
        await until(lambda: "status" in server.objects[f"{PEERS}/other"])
        assert "status" not in server.objects[f"{PEERS}/hq"]
        await until(lambda: "status" in server.objects[f"{PEERS}/hq"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(story)


# --- the client -------------------------------------------------------------------------------


def test_without_a_cluster_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoCluster, match="or set KUBECONFIG"):
        in_cluster({}, instead="set KUBECONFIG")
    with pytest.raises(NoCluster, match="service account"):
        in_cluster(POD, tmp_path, instead="")


def test_a_pod_takes_up_a_new_token_and_a_new_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_FILES_AGE", -1.0)
    (tmp_path / "ca.crt").write_bytes(authority("one"))
    access = in_cluster(POD, tmp_path, instead="")
    assert access.url == "https://[fd00::1]:6443"
    assert access.ssl is not None
    with pytest.raises(ApiError, match="token cannot be read"):
        access.headers()
    (tmp_path / "token").write_text("today\n")
    assert access.headers() == {"Authorization": "Bearer today"}
    (tmp_path / "token").write_text("tomorrow\n")
    (tmp_path / "ca.crt").write_bytes(authority("two"))
    assert access.headers() == {"Authorization": "Bearer tomorrow"}
    assert len(access.ssl.get_ca_certs()) == 2
    (tmp_path / "token").unlink()
    assert access.headers() == {"Authorization": "Bearer tomorrow"}


def authority(name: str) -> bytes:
    """Its certificate, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_errors_have_a_status_and_a_cause() -> None:
    async def story(server: KubeApi, api: Api) -> None:
        with pytest.raises(ApiError, match="not found") as told:
            await api.get("/api/v1/nodes/x")
        assert told.value.status == 404
        await server.close()
        with pytest.raises(ApiError, match="cannot be reached") as told:
            await api.get("/api/v1/nodes/x")
        assert told.value.status == 0

    run(story)
