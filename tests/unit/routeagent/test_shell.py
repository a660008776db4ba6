"""Leases, streams, memory and the command line, with real sockets on the loopback."""

import asyncio
import contextlib
import ipaddress
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner

from ipsec_api.cluster import ADDRESSES_ANNOTATION
from ipsec_gateway import privatefiles
from ipsec_gateway.cluster import meshline
from ipsec_gateway.cluster.api import Access, Api
from ipsec_gateway.cluster.backoff import Backoff
from ipsec_gateway.cluster.meshclient import MeshClient
from ipsec_gateway.cluster.meshkey import MeshKey
from ipsec_gateway.routeagent.agent import Agent, Options
from ipsec_gateway.routeagent.cli import route_agent
from ipsec_gateway.routeagent.leases import Leases, parse
from ipsec_gateway.routeagent.memory import checks_of, file_in, gateways_of
from ipsec_gateway.routeagent.metrics import Metrics, Scrape
from ipsec_gateway.routeagent.plan import Settings

IP = ipaddress.ip_address
KEY = bytes(range(32))
SILENT = meshline.Line("g1", "a1", 1, digest="d")


def lease(name: str, addresses: str | None = None) -> dict[str, object]:
    notes = {} if addresses is None else {ADDRESSES_ANNOTATION: addresses}
    return {"metadata": {"name": name, "annotations": notes}}


def test_leases_name_gateways_and_their_addresses():
    items = [
        lease("kube-ipsec-gateway-n1", "192.0.2.1,2001:db8::1"),
        lease("kube-ipsec-gateway-n2", "nonsense, 192.0.2.2"),
        lease("kube-ipsec-gateway-n3"),
        lease("kube-ipsec-operator"),
        {},
    ]
    assert parse({"items": items}) == {
        "n1": (IP("192.0.2.1"), IP("2001:db8::1")),
        "n2": (IP("192.0.2.2"),),
        "n3": (),
    }
    assert parse({}) == {}


async def serve(path: str, handler) -> tuple[web.AppRunner, int]:
    app = web.Application()
    app.add_routes([web.get(path, handler)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, runner.addresses[0][1]


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


def test_leases_are_listed_from_the_cache():
    asked: list[web.Request] = []
    found: list[object] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request)
        if len(asked) == 1:
            return web.Response(status=503)
        return web.json_response({"items": [lease("kube-ipsec-gateway-n1", "192.0.2.1")]})

    async def work() -> str:
        runner, port = await serve("/apis/coordination.k8s.io/v1/namespaces/own/leases", handler)
        api = Api(Access(f"http://127.0.0.1:{port}", None, dict))
        leases = Leases(api, "own", found.append)
        task = asyncio.create_task(leases.run())
        await until(lambda: leases.trouble)
        trouble = leases.trouble
        leases.hurry()
        await until(lambda: found)
        assert not leases.trouble
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await api.close()
        await runner.cleanup()
        return trouble

    assert asyncio.run(work()) == "503: Service Unavailable"
    assert found == [{"n1": (IP("192.0.2.1"),)}]
    assert dict(asked[0].query) == {
        "labelSelector": "kubeipsec.dev/gateway=true",
        "resourceVersion": "0",
    }


def follow(
    tmp_path: Path, lines: Callable[[str], list[bytes]], wait: str
) -> tuple[list, MeshClient]:
    """A stream of one connection; ends when there is something in ``wait``."""
    key = tmp_path / "key"
    key.write_bytes(KEY)
    heard: list = []

    def hear(line: meshline.Line) -> bool:
        heard.append(line)
        return True

    async def handler(request: web.Request) -> web.StreamResponse:
        nonce = meshline.request_nonce(KEY, request.headers)
        if nonce is None:
            return web.Response(status=403)
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines(nonce):
            await response.write(line)
        return response

    async def work() -> MeshClient:
        runner, port = await serve(meshline.PATH, handler)
        client = MeshClient(MeshKey(key), port, hear)
        client.follow({"g1": ("127.0.0.1",)})
        await until(lambda: getattr(client, wait) if wait else len(heard) >= 3)
        await client.close()
        await runner.cleanup()
        return client

    return heard, asyncio.run(work())


def test_lines_are_told_and_a_stream_that_ends_is_opened_again(tmp_path):
    line = replace(SILENT, owned={"ns/hq": ("10.9.0.0/16",)}, use=frozenset({"ns/hq"}))

    def lines(nonce: str) -> list[bytes]:
        return [meshline.encode(line, KEY, nonce)]

    heard, client = follow(tmp_path, lines, "")
    assert client.lines["ok"] >= 3
    assert heard[0].gateway == "g1"
    assert heard[0] == line


def test_a_gateway_without_an_address_is_in_trouble_until_it_has_one(tmp_path):
    async def work() -> None:
        client = MeshClient(MeshKey(tmp_path / "key"), 1, bool)
        client.follow({"g1": ()})
        assert "names no address" in client.troubles["g1"]
        client.follow({})
        assert not client.troubles
        await client.close()

    asyncio.run(work())


def test_who_waits_can_be_hurried(tmp_path, monkeypatch):
    monkeypatch.setattr(Backoff, "wait", lambda _: 3600.0)

    async def work() -> None:
        client = MeshClient(MeshKey(tmp_path / "key"), 1, bool)
        client.follow({"g1": ("127.0.0.1",)})
        await until(lambda: client.troubles)
        (tmp_path / "key").write_bytes(b"short")
        client.hurry()
        await until(lambda: "shorter than 16" in client.troubles["g1"])
        await client.close()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (lambda nonce: [b"nonsense\n"], "syntax"),
        (lambda nonce: [meshline.encode(SILENT, bytes(32), nonce)], "mac"),
        (lambda nonce: [meshline.encode(SILENT, KEY, "0" * 32)], "mac"),
        (lambda nonce: [meshline.encode(replace(SILENT, gateway="g2"), KEY, nonce)], "gateway"),
    ],
)
def test_what_is_not_the_gateway_s_is_not_told(tmp_path, lines, why, caplog):
    caplog.set_level(logging.WARNING)
    heard, client = follow(tmp_path, lines, "troubles")
    assert heard == []
    assert client.lines[why] >= 1
    assert "not signed as ours" in caplog.text
    assert KEY.hex() not in caplog.text


@pytest.mark.parametrize("kept", [{}, {"gateways": 1, "rp_filter": []}, {"rp_filter": {"x": "y"}}])
def test_any_memory_is_survived(kept):
    assert gateways_of(kept) == {}
    assert checks_of(kept) == {}


def test_what_is_kept_comes_back():
    kept = {"gateways": {"g1": "192.0.2.1,2001:db8::1"}, "rp_filter": {"eth0": 1}}
    assert gateways_of(kept) == {"g1": (IP("192.0.2.1"), IP("2001:db8::1"))}
    assert checks_of(kept) == {"eth0": 1}


def test_who_restarts_without_an_api_server_calls_the_gateways_that_it_knew(tmp_path):
    privatefiles.write_object(file_in(tmp_path), {"gateways": {"g1": "127.0.0.1"}})

    async def work() -> None:
        agent = Agent(Options("w", Settings(), tmp_path / "key", tmp_path, mesh_port=1))
        agent._recall(0.0)
        await until(lambda: agent._mesh.troubles)
        status = await agent._status()
        assert status["gateways"]["g1"]["addresses"] == ["127.0.0.1"]
        await agent._mesh.close()

    asyncio.run(work())


def test_metrics_have_every_way():
    metrics = Metrics()
    metrics.scrape = Scrape({"vxlan": 2}, {"g1": True}, {"ok": 5}, 7, 1, 0)
    text = metrics.render().decode()
    assert 'ipsec_route_agent_peers{way="vxlan"} 2.0' in text
    assert 'ipsec_route_agent_peers{way="none"} 0.0' in text
    assert 'ipsec_route_agent_gateway_heard{gateway="g1"} 1.0' in text
    assert "ipsec_route_agent_writes_total 7.0" in text


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ((), 2, "NODE_NAME"),
        (("--node-name", "w", "--table", "254"), 2, "254 is the kernel's"),
        (("--node-name", "w", "--mark-bits", "xyz"), 2, "not a mask of 32 bits"),
        (("--node-name", "w", "--gateway", "g1"), 2, "is not NODE=ADDR"),
        (("--node-name", "w", "--node-ip", "1.2.3"), 2, "is not a list of IP addresses"),
        (("--node-name", "w", "--exclude", "10.1.2.3/8"), 2, "such as 10.96.0.0/12"),
        (("--node-name", "w", "--mesh-key", "/nowhere"), 3, "/nowhere cannot be read"),
        (("--node-name", "w", "--mesh-key", __file__), 3, "KUBERNETES_SERVICE_HOST"),
    ],
)
def test_wrong_usage_is_told_with_the_remedy(options, code, says, monkeypatch):
    for name in ("NODE_NAME", "NODE_IP", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers = root.handlers[:]
    try:
        result = CliRunner().invoke(route_agent, options)
    finally:
        root.handlers[:] = handlers
    assert (result.exit_code, says in result.output) == (code, True), result.output


def test_defaults_are_those_of_the_cluster():
    defaults = {p.name: p.default for p in route_agent.params}
    assert defaults["mesh_port"] == 4499
    assert defaults["vxlan_port"] == 4499
    assert json.dumps(defaults["table"]) == "4502"
