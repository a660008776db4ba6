"""Three gateways in one process, each at its own loopback address, with a stand-in API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ipsec_api.cluster import gateway_lease_name, tunnel_secret_name
from ipsec_api.ownership import ranking
from ipsec_api.tunnel import TunnelConfig, TunnelMapping
from ipsec_gateway.cluster import meshline
from ipsec_gateway.cluster.api import Access, Api
from ipsec_gateway.cluster.claims import remote_subnets
from ipsec_gateway.cluster.coordinator import Cluster, ClusterOptions
from ipsec_gateway.cluster.launch import cluster_options
from ipsec_gateway.cluster.membership import LeaseFacts
from ipsec_gateway.cluster.memory import Memory
from ipsec_gateway.cluster.meshclient import MeshClient
from ipsec_gateway.cluster.meshkey import MeshKey
from ipsec_gateway.cluster.metrics import ClusterMetrics
from ipsec_gateway.lastgood import InForce, Key
from ipsec_lab.apistub import LEASES, SECRETS, KubeApi

NODES = {"a": "127.0.11.1", "b": "127.0.11.2", "c": "127.0.11.3"}
PEERS = [f"p{n}" for n in range(6)]
Make = Callable[..., TunnelConfig]
MakeSecret = Callable[[TunnelConfig], dict[str, Any]]


class Rig:
    """Gateways that can be started, stopped and asked."""

    def __init__(self, server: KubeApi, folder: Path, port: int) -> None:
        self.server, self.port, self.folder = server, port, folder
        (folder / "key").write_bytes(b"k" * 32)
        self.clusters: dict[str, Cluster] = {}

    async def start(self, *names: str, memory: Path | None = None) -> None:
        for name in names:
            options = ClusterOptions(
                name,
                (NODES[name],),
                "kube-ipsec",
                mesh_key=self.folder / "key",
                mesh_port=self.port,
                memory=memory,
            )
            api = Api(Access(self.server.url, None, dict))
            self.clusters[name] = cluster = Cluster(options, api, clock=lambda: "now")
            cluster.follower = asyncio.create_task(_follow(cluster))  # type: ignore[attr-defined]  # of the test
            await cluster.open()

    async def stop(self, name: str) -> None:
        cluster = self.clusters.pop(name)
        cluster.follower.cancel()  # type: ignore[attr-defined]  # see start
        await asyncio.gather(cluster.follower, return_exceptions=True)  # type: ignore[attr-defined]  # see start
        await cluster.close()

    def owners(self, peer: str) -> list[str]:
        return [n for n, c in self.clusters.items() if f"default/{peer}" in c.held]

    async def until(self, check: Callable[[], bool]) -> None:
        for _ in range(1500):
            if check():
                return
            await asyncio.sleep(0.01)
        raise AssertionError({n: c.view() for n, c in self.clusters.items()})

    async def settled(self) -> None:
        await self.until(lambda: all(len(self.owners(p)) == 1 for p in PEERS))


async def _follow(cluster: Cluster) -> None:
    async for in_force in cluster.source.snapshots():
        names = {t.key for t in in_force.tunnels}
        assert names | {t.key for t in in_force.standby} == {t.key for t in cluster.source.tunnels}


@pytest.fixture
def rig(tmp_path: Path, tunnel: Make, secret: MakeSecret, unused_port: int) -> Any:
    @asynccontextmanager
    async def make(*names: str) -> AsyncIterator[Rig]:
        server = KubeApi()
        await server.open()
        for peer in PEERS:
            path = f"{SECRETS}/{tunnel_secret_name('default', peer)}"
            await server.put(path, secret(tunnel(peer)))
        it = Rig(server, tmp_path, unused_port)
        try:
            async with asyncio.timeout(60):
                await it.start(*names)
                yield it
        finally:
            for name in tuple(it.clusters):
                await it.stop(name)
            await server.close()

    return make


def test_three_share_the_peers_and_hand_over(rig: Any) -> None:
    async def story() -> None:
        async with rig("a", "b", "c") as it:
            await it.settled()
            everybody = sorted(NODES)
            await it.until(lambda: all(c.view()["live"] == everybody for c in it.clusters.values()))
            # Started one after the other, the first may hold more than its share: none moves.
            first = it.owners(PEERS[0])[0]
            await it.clusters[first].drain()
            await it.settled()
            assert not it.clusters[first].held
            assert it.clusters[first].view()["draining"]
            rest = [n for n in NODES if n != first]
            assert it.owners(PEERS[0]) == [ranking(f"default/{PEERS[0]}", rest)[0]]
            taker = it.clusters[it.owners(PEERS[0])[0]]
            assert taker.failovers[f"default/{PEERS[0]}"] == "now"

    asyncio.run(story())


def test_one_that_goes_silent_is_replaced_without_the_api_server(rig: Any) -> None:
    async def story() -> None:
        async with rig("a", "b") as it:
            await it.settled()
            await it.server.close()
            it.clusters["a"].give_up(frozenset(f"default/{p}" for p in PEERS[:3]))
            await it.until(lambda: all(it.owners(p) == ["b"] for p in PEERS[:3]))
            it.clusters["a"].give_up(frozenset())
            await it.stop("a")
            await it.until(lambda: all(it.owners(p) == ["b"] for p in PEERS))
            assert not it.clusters["b"].view()["api"]

    asyncio.run(story())


def test_the_next_life_goes_on_with_what_it_had(rig: Any) -> None:
    shm = Path("/dev/shm")
    memory = shm / f"kube-ipsec-test-{id(rig)}"

    async def story() -> None:
        async with rig() as it:
            await it.start("a", memory=memory)
            await it.settled()
            await it.start("b")
            await it.until(lambda: it.clusters["a"].view()["live"] == ["a", "b"])
            await asyncio.sleep(1.5)
            held = it.clusters["a"].held
            assert len(held) == len(PEERS)
            # Without the API server, too: it knows its tunnels.
            await it.server.close()
            await it.stop("a")
            await it.start("a", memory=memory)
            assert it.clusters["a"].held == held
            await asyncio.sleep(7)
            assert it.clusters["a"].held == held
            assert not it.clusters["b"].held

    try:
        asyncio.run(story())
    finally:
        Memory(memory).forget()


def of_object(tunnel: TunnelConfig, uid: str) -> TunnelConfig:
    """The same, of a peer that replaced the one of this name."""
    ref = tunnel.source.model_copy(update={"uid": uid})
    policies = tuple(p.model_copy(update={"source": ref}) for p in tunnel.policies)
    return tunnel.model_copy(update={"source": ref, "policies": policies})


def test_statuses_are_the_owners(rig: Any, tunnel: Make, secret: MakeSecret) -> None:
    async def story() -> None:
        async with rig("a") as it:
            await it.settled()
            cluster = it.clusters["a"]
            path = "/apis/kubeipsec.dev/v1alpha1/namespaces/default/ipsecpeers/p0"
            await it.server.put(path, {"spec": {}})
            key = Key("IPsecPeer", "default", "p0")
            whole = InForce(tunnels=cluster.source.tunnels)
            cluster.publish({key: {"conditions": []}}, whole)
            await it.until(lambda: "status" in it.server.objects[path])
            assert it.server.objects[path]["status"] == {"activeGateway": "a", "conditions": []}
            # Let go and taken again, before the gateway has done anything about it.
            where = f"{SECRETS}/{tunnel_secret_name('default', 'p0')}"
            await it.server.delete(where)
            await it.until(lambda: it.owners("p0") == [])
            await it.server.put(where, secret(of_object(tunnel("p0"), "u0")))
            await it.until(lambda: it.server.objects[path]["metadata"].get("uid") == "u0")
            await it.start("b")
            # Who would take over is told, too.
            await it.until(
                lambda: it.server.objects[path]["status"].get("standbyGateways") == ["b"]
            )
            # Another object of that name, which was made while nobody looked, has none yet.
            await it.server.put(where, secret(of_object(tunnel("p0"), "u2")))
            await it.until(lambda: it.server.objects[path]["metadata"].get("uid") == "u2")
            count = len(it.server.applied)
            cluster.publish({key: None}, whole)
            cluster.publish({Key("IPsecPeer", "default", "of-another"): {"x": 1}}, whole)
            await asyncio.sleep(0.2)
            # Leases go on; statuses do not.
            later = it.server.applied[count:]
            assert all(where.startswith(LEASES) for where, _ in later)

    asyncio.run(story())


def test_metrics(rig: Any) -> None:
    async def story() -> None:
        async with rig("a", "b") as it:
            await it.settled()
            await it.until(lambda: it.clusters["a"].view()["meshLines"].get("ok", 0) > 0)
            registry = CollectorRegistry()
            registry.register(ClusterMetrics(it.clusters["a"]))
            text = generate_latest(registry).decode()
            held = len(it.clusters["a"].held)
            assert text.count("ipsec_peer_owned{") == held
            assert 'ipsec_gateways_live{gateway="a"} 2.0' in text
            assert 'ipsec_api_up{gateway="a"} 1.0' in text
            assert 'ipsec_mesh_lines_total{gateway="a",outcome="ok"}' in text

    asyncio.run(story())


def test_strangers_are_told_nothing(rig: Any) -> None:
    async def story() -> None:
        async with rig("a") as it, aiohttp.ClientSession() as session:
            url = f"http://{NODES['a']}:{it.port}{meshline.PATH}"
            async with session.get(url) as response:
                assert response.status == 403
            wrong = meshline.request_headers(b"x" * 32, "ab" * 16)
            async with session.get(url, headers=wrong) as response:
                assert response.status == 403
            (it.folder / "other").write_bytes(b"x" * 32)
            heard: list[meshline.Line] = []

            def hear(line: meshline.Line) -> bool:
                heard.append(line)
                return True

            client = MeshClient(MeshKey(it.folder / "other"), it.port, hear)
            client.follow({"a": (NODES["a"],)})
            await it.until(lambda: "a" in client.troubles)
            assert "mesh key" in client.troubles["a"]
            await client.close()
            right = MeshClient(MeshKey(it.folder / "key"), it.port, hear)
            # A gateway at another one's address is not that one.
            right.follow({"b": (NODES["a"],)})
            await it.until(lambda: right.lines["gateway"] > 0)
            assert not heard
            right.follow({"a": ("127.0.11.99", NODES["a"])})
            await it.until(lambda: len(heard) > 1)
            assert heard[0].owned is not None
            assert heard[1].owned is None
            await right.close()

    asyncio.run(story())


def test_who_knows_no_tunnels_yet_lets_nothing_go(rig: Any) -> None:
    """Its life before may have owned some, and others would forget the way to them."""

    async def story() -> None:
        async with rig() as it:
            await it.start("a")
            await it.until(lambda: bool(it.clusters["a"].held))
            known = it.clusters["a"]._line("")
            assert known.owned
            assert it.clusters["a"]._line(known.digest).owned is None
            await it.server.close()
            await it.start("b")
            unknowing = it.clusters["b"]._line("")
            assert unknowing.owned is None
            assert it.clusters["b"]._line(unknowing.digest).owned is None

    asyncio.run(story())


def test_subnets_are_those_that_our_side_sees(tunnel: Make) -> None:
    assert remote_subnets(tunnel()) == ("10.2.0.0/16",)
    mapping = TunnelMapping(side="remote", original="10.2.0.0/16", mapped="10.9.0.0/16")
    assert remote_subnets(tunnel(mappings=(mapping,))) == ("10.9.0.0/16",)


def test_memory_that_is_damaged_or_old_is_no_memory(tmp_path: Path) -> None:
    folder = Path("/dev/shm") / f"kube-ipsec-memory-{tmp_path.name}"
    try:
        memory = Memory(folder)
        assert not memory.read().tunnels
        memory.keep({"s": b"{}"}, {"b": LeaseFacts("r", ("192.0.2.1",), "g", {"x": "y"})})
        memory.alive({"ns/p"})
        found = memory.read()
        assert found.tunnels == {"s": b"{}"}
        assert found.gateways == {"b": LeaseFacts("r", ("192.0.2.1",), "g", {"x": "y"})}
        assert found.held == {"ns/p"}
        held = folder / "held.json"
        held.write_text(held.read_text().replace('"boot": "', '"boot": "x'))
        assert not memory.read().held
        (folder / "tunnels.json").write_text('{"gateways": {"b": 5}}')
        assert not memory.read().gateways
        (folder / "tunnels.json").write_text("no json")
        assert not memory.read().tunnels
        memory.keep({"s": b"{}"}, {})
        (folder / "tunnels.json").chmod(0o644)
        assert not memory.read().tunnels
    finally:
        memory.forget()
    memory.alive({"ns/p"})
    assert not folder.exists()


def test_who_we_are_is_in_the_environment(tmp_path: Path) -> None:
    there = {"NODE_NAME": "n", "NODE_IP": "192.0.2.1", "NODE_IPS": "192.0.2.1,fd00::1"}
    options = cluster_options({**there, "POD_NAMESPACE": "x"}, group="", memory=tmp_path)
    assert (options.node, options.addresses) == ("n", ("192.0.2.1", "fd00::1"))
    assert (options.namespace, options.group) == ("x", "default")
    assert gateway_lease_name(options.node) == "kube-ipsec-gateway-n"
