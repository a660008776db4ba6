"""The operator against the API server that KUBECONFIG names: latency, thousands of peers, rest.

Nodes are not needed. Everything is in two namespaces of its own, which go afterwards; CRDs that
were there stay. Load, API server and operator share the machine if the cluster is on it.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import yaml

from ipsec_api.cluster import SOURCE_ANNOTATION, TUNNEL_SELECTOR
from ipsec_api.kinds import API_VERSION, GROUP, VERSION
from ipsec_lab.bench_pair import Settings
from ipsec_lab.bench_report import Row
from ipsec_lab.netns import LabError
from ipsec_lab.operator_process import OperatorProcess, settings
from ipsec_operator.api import (
    DAEMON_SETS,
    EVENTS,
    SECRETS,
    Api,
    ApiError,
    NotFound,
    Object,
    Resource,
    configuration,
)

PEERS: Final = Resource(GROUP, VERSION, "ipsecpeers")
_CRDS: Final = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
_NAMESPACES: Final = Resource("", "v1", "namespaces", namespaced=False)
_DEFINITIONS: Final = Path(__file__).parents[2] / "crds"
#: Requests of the load under way at once.
_PARALLEL: Final = 16
_PATIENCE: Final = 180.0
_MIB: Final = 2**20


def operator(chosen: Settings) -> list[Row]:
    """The rows of ``make bench BENCH=operator``. Raises LabError without a cluster."""
    if "KUBECONFIG" not in os.environ:
        raise LabError(
            "set KUBECONFIG to a cluster of yours; a control plane without nodes will do"
        )
    return asyncio.run(_operator(chosen))


async def _operator(chosen: Settings) -> list[Row]:
    tiny = chosen.runs == 1 and chosen.count < 100
    singles, crowd, changes = (5, 20, 3) if tiny else (100, 2000, 20)
    rest = chosen.seconds * 6
    async with Api(await configuration()) as api, _Bench.prepared(api) as bench:
        folder = chosen.new_folder()
        own, peers = bench.own, bench.peers
        with OperatorProcess(folder, Path(os.environ["KUBECONFIG"]), settings(own, peers)) as it:
            await asyncio.to_thread(it.wait_leading)
            async with bench.watching():
                latencies = [await bench.one(f"single-{n}", n) for n in range(singles)]
                before = it.usage()
                all_ready = await bench.crowd(singles, crowd)
                busy = (it.usage() - before).cpu
                resident = it.usage().rss
                await bench.silence()
                changed, touched = await bench.changes(crowd, changes)
                await bench.silence()
                before, writes = it.usage(), bench.writes
                await asyncio.sleep(rest)
                used, writes = it.usage() - before, bench.writes - writes
                peak = it.peak()
    return _rows(
        latencies,
        crowd,
        all_ready,
        (peak, resident),
        changed,
        touched,
        busy,
        used.cpu / rest,
        writes,
        rest,
    )


def _rows(
    latencies: list[float],
    crowd: int,
    all_ready: float,
    memory: tuple[int, int],
    changed: list[float],
    touched: int,
    busy: float,
    cpu: float,
    writes: int,
    rest: float,
) -> list[Row]:
    many = f"{crowd:,} peers"
    p95 = quantiles(latencies, n=20, method="inclusive")[-1]
    peak, resident = (octets / _MIB for octets in memory)
    return [
        Row(
            what="IPsecPeer applied to tunnel Secret rendered, median",
            unit="ms",
            ours=tuple(1000 * each for each in latencies),
            limit=50,
            note=f"{len(latencies)} one after the other, from the start of the request until a "
            "watch shows the Secret; each peer's own Secret was there",
        ),
        Row(what="the same, 95th percentile", unit="ms", ours=(1000 * p95,), limit=150),
        Row(
            what=f"{many} at once until all are rendered and have status",
            unit="s",
            ours=(all_ready,),
            limit=20,
            note=f"{_PARALLEL} requests at a time; their Secrets were there; load, API server, "
            "etcd and operator share the processors if the cluster is on this machine",
        ),
        Row(what="operator's CPU for them", unit="s", ours=(busy,)),
        Row(
            what="operator's memory, at most",
            unit="MiB",
            ours=(peak,),
            limit=150,
            note=f"VmHWM; right after the crowd {resident:.0f} MiB are resident",
        ),
        Row(
            what=f"one peer changed among {many}",
            unit="ms",
            ours=tuple(1000 * each for each in changed),
            limit=100,
        ),
        Row(what="Secrets that a change touches", unit="", ours=(touched,), limit=1),
        Row(
            what=f"writes but Leases while nothing changes, {many}",
            unit="",
            ours=(writes,),
            limit=0,
            note=f"in {rest:.0f} s: what watches of Secrets, resources, DaemonSets and Events show",
        ),
        Row(
            what=f"operator's CPU while nothing changes, {many}",
            unit="% of a core",
            ours=(100 * cpu,),
            limit=1,
        ),
    ]


class _Bench:
    """Two namespaces, and watches of what the operator writes into them."""

    def __init__(self, api: Api, run: str) -> None:
        self.api: Final = api
        self.own: Final = f"kube-ipsec-bench-{run}"
        self.peers: Final = f"kube-ipsec-bench-{run}-peers"
        #: When the tunnel Secret of a peer was last seen to be new, and how often.
        self._rendered: dict[str, float] = {}
        self._judged: dict[str, float] = {}
        #: Changes that were seen, Leases not among them.
        self.writes = 0
        self.secrets = 0
        self._news = asyncio.Event()
        self._watches: list[asyncio.Future[None]] = []
        self._last = time.monotonic()

    @classmethod
    @asynccontextmanager
    async def prepared(cls, api: Api) -> AsyncIterator[_Bench]:
        """With CRDs and namespaces. Raises LabError where the cluster is not for this."""
        bench = cls(api, uuid.uuid4().hex[:8])
        try:
            made = await _define(api)
        except ApiError as exc:
            raise LabError(f"the cluster of KUBECONFIG: {exc}") from None
        try:
            for name in (bench.own, bench.peers):
                body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
                await api.create(_NAMESPACES, None, body)
            yield bench
        finally:
            for name in (bench.own, bench.peers):
                await api.delete(_NAMESPACES, None, name)
            for name in made:
                await api.delete(_CRDS, None, name)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Count and time what is written."""
        watched: tuple[tuple[Resource, str, dict[str, str]], ...] = (
            (SECRETS, self.own, {"labelSelector": TUNNEL_SELECTOR}),
            (PEERS, self.peers, {}),
            (DAEMON_SETS, self.own, {}),
            (EVENTS, self.own, {}),
            (EVENTS, self.peers, {}),
        )
        tasks = self._watches
        for resource, namespace, selectors in watched:
            _, version = await self.api.list(resource, namespace, **selectors)
            tasks.append(
                asyncio.ensure_future(self._watch(resource, namespace, version, selectors))
            )
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(
        self, resource: Resource, namespace: str, version: str, selectors: dict[str, str]
    ) -> None:
        while True:
            events = self.api.watch(resource, namespace, version, **selectors)
            async with aclosing(events):
                # A watch in which nothing happens is silent.
                with suppress(TimeoutError):
                    async for event in events:
                        item = event.get("object")
                        if item is not None:
                            version = item["metadata"]["resourceVersion"]
                            if event["type"] != "BOOKMARK":
                                self._saw(resource, item)

    def _saw(self, resource: Resource, item: Object) -> None:
        now = time.monotonic()
        metadata = item["metadata"]
        self.writes += 1
        self._last = now
        if resource is SECRETS:
            self.secrets += 1
            self._rendered[metadata["annotations"][SOURCE_ANNOTATION].partition("/")[2]] = now
        elif resource is PEERS:
            conditions = (item.get("status") or {}).get("conditions") or ()
            if any(c["type"] == "Ready" for c in conditions):
                self._judged[metadata["name"]] = now
        self._news.set()

    async def one(self, name: str, number: int) -> float:
        """Seconds from the request for a peer until its tunnel Secret is there."""
        await self.api.create(SECRETS, self.peers, _secret(name))
        started = time.monotonic()
        await self.api.create(PEERS, self.peers, _peer(name, number))
        await self._until(self._rendered, [name])
        await self._until(self._judged, [name])
        return self._rendered[name] - started

    async def crowd(self, first: int, count: int) -> float:
        """Seconds from the first request until all are rendered and have a status."""
        numbers = range(first, first + count)
        names = {f"crowd-{n - first}": n for n in numbers}
        await self._all(self.api.create(SECRETS, self.peers, _secret(name)) for name in names)
        started = time.monotonic()
        await self._all(
            self.api.create(PEERS, self.peers, _peer(name, n)) for name, n in names.items()
        )
        await self._until(self._rendered, names)
        await self._until(self._judged, names)
        return (
            max(max(known[n] for n in names) for known in (self._rendered, self._judged)) - started
        )

    async def changes(self, crowd: int, count: int) -> tuple[list[float], int]:
        """Seconds from a change of one peer until its Secret has followed, and the most Secrets
        that a change has touched."""
        seconds, touched = [], 0
        for number in range(count):
            name = f"crowd-{number * crowd // count}"
            self._rendered.pop(name)
            secrets = self.secrets
            started = time.monotonic()
            spec = {"remoteSubnets": [f"172.15.{number}.0/24"]}
            await self.api.patch(PEERS, self.peers, name, {"spec": spec})
            await self._until(self._rendered, [name])
            seconds.append(self._rendered[name] - started)
            await self.silence(1.0)
            touched = max(touched, self.secrets - secrets)
        return seconds, touched

    async def silence(self, seconds: float = 5.0) -> None:
        """Until nothing was written for this long. Raises LabError."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() - self._last < seconds:
            if time.monotonic() > deadline:
                raise LabError("the operator does not stop writing")
            await asyncio.sleep(0.1)

    async def _all(self, calls: Iterable[Any]) -> None:
        waiting = iter(calls)

        async def work() -> None:
            for call in waiting:
                await call

        await asyncio.gather(*(work() for _ in range(_PARALLEL)))

    async def _until(self, known: dict[str, float], names: Iterable[str]) -> None:
        wanted = set(names)
        deadline = time.monotonic() + _PATIENCE
        while not wanted <= known.keys():
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), 5)
            for watch in self._watches:
                if watch.done():
                    watch.result()
            if time.monotonic() > deadline:
                lacking = len(wanted - known.keys())
                what = "status" if known is self._judged else "tunnel Secret"
                raise LabError(f"{lacking} of {len(wanted)} peers have no {what}")


async def _define(api: Api) -> list[str]:
    """Our CRDs in the cluster; the names of those that were not there."""
    made = []
    for file in sorted(_DEFINITIONS.glob("*.yaml")):
        definition = yaml.safe_load(file.read_text())
        name = definition["metadata"]["name"]
        if not await _defined(api, name):
            await api.create(_CRDS, None, definition)
            made.append(name)
    for _ in range(100):
        try:
            await api.list(PEERS, "default")
        except NotFound:
            await asyncio.sleep(0.1)
        else:
            return made
    raise LabError("the API server does not serve our resources")


async def _defined(api: Api, name: str) -> bool:
    """Whether the CRD is there; one that is on its way out is waited for."""
    for _ in range(100):
        try:
            found = await api.get(_CRDS, None, name)
        except NotFound:
            return False
        if "deletionTimestamp" not in found["metadata"]:
            return True
        await asyncio.sleep(0.5)
    raise LabError(f"the CRD {name} has been going for too long")


def _secret(name: str) -> Object:
    metadata = {"name": name}
    data = {"psk": b64encode(f"a key of {name}, long enough".encode()).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


def _peer(name: str, number: int) -> Object:
    high, low = divmod(number, 250)
    return {
        "apiVersion": API_VERSION,
        "kind": "IPsecPeer",
        "metadata": {"name": name},
        "spec": {
            "address": f"198.18.{high}.{low + 1}",
            "authentication": {"method": "preSharedKey", "secretRef": {"name": name}},
            "remoteSubnets": [f"172.{16 + number // 256 % 16}.{number % 256}.0/24"],
        },
    }
