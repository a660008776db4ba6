"""One operator from start to end: who leads lists everything, watches, and reconciles.

The order at the start is what keeps tunnels up: nothing is judged, and nothing is taken to be gone,
before every list is in. While the API server is away the operator waits; gateways go on without it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import kopf

from ipsec_api.cluster import (
    GATEWAY_LEASE_SELECTOR,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MESH_KEY,
    MESH_KEY_LENGTH,
    MESH_SECRET,
    TUNNEL_SECRET_TYPE,
    TUNNEL_SELECTOR,
)
from ipsec_api.kinds import API_VERSION
from ipsec_operator import handlers, sinks
from ipsec_operator.api import (
    CONFIG_MAPS,
    DAEMON_SETS,
    LEASES,
    SECRETS,
    Api,
    ApiError,
    Conflict,
    NotFound,
)
from ipsec_operator.controller import RESOURCES, Controller
from ipsec_operator.events import Events
from ipsec_operator.gateways import Gateways
from ipsec_operator.graph import Key
from ipsec_operator.networkwatch import NetworkWatch
from ipsec_operator.settings import Settings
from ipsec_operator.store import older
from ipsec_operator.watch import Watch

log = logging.getLogger("ipsec_operator")

#: Seconds between two lists of everything, which find what a watch has lost.
RESYNC: Final = 300.0
#: Seconds after which kopf's watches have listed everything themselves.
SETTLED: Final = 5.0
#: Seconds that a watch may lag behind a list.
LAG: Final = 20.0
#: Seconds after which a watch counts as stale: each is opened anew when it has been silent.
STALE: Final = 300.0
#: Seconds that kopf gets to stop.
_STOP: Final = 1.0
#: Seconds between two looks at the gateways' Leases.
_LEASES: Final = 5.0
#: What is no Secret that a resource refers to.
_FOREIGN: Final = ",".join(
    f"type!={kind}"
    for kind in (
        TUNNEL_SECRET_TYPE,
        "helm.sh/release.v1",
        "kubernetes.io/service-account-token",
        "bootstrap.kubernetes.io/token",
    )
)


def now() -> str:
    """The time, RFC 3339, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def precisely() -> str:
    """The time, RFC 3339, to the microsecond, as Leases have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Operator:
    """A replica that leads. ``connect`` logs kopf in."""

    def __init__(
        self,
        settings: Settings,
        api: Api,
        identity: str,
        clock: Callable[[], float],
        connect: handlers.Login = handlers.login,
    ) -> None:
        self.settings = settings
        self.api = api
        self.controller = Controller(settings, api, Events(api, clock, now, identity), now)
        self.gateways = Gateways(clock)
        #: Set once everything has been listed.
        self.complete = asyncio.Event()
        #: Set once kopf runs. It has taken the process's signals for itself by then.
        self.kopf_runs = asyncio.Event()
        #: Set if kopf's watches have been seen to be deaf.
        self.deaf = False
        store = self.controller.store
        self._networks = NetworkWatch(
            api, settings.cluster_subnets, store, self._look_at_daemon_sets
        )
        self._connect = connect
        self._clock = clock
        own, client = settings.namespace, self.api
        labels = {"labelSelector": f"{MANAGED_BY_LABEL}={MANAGED_BY}"}
        self._leases = Watch(
            client, LEASES, own, self.gateways, clock, labelSelector=GATEWAY_LEASE_SELECTOR
        )
        self._watches = [
            self._leases,
            Watch(client, SECRETS, own, sinks.Tunnels(store), clock, labelSelector=TUNNEL_SELECTOR),
            Watch(
                client,
                DAEMON_SETS,
                own,
                sinks.DaemonSets(self.controller, self._look_at_daemon_sets),
                clock,
                **labels,
            ),
        ]
        for namespace in self.namespaces:
            data, maps = sinks.Data(store, "Secret"), sinks.Data(store, "ConfigMap")
            self._watches += [
                Watch(client, SECRETS, namespace, data, clock, fieldSelector=_FOREIGN),
                Watch(client, CONFIG_MAPS, namespace, maps, clock),
            ]

    @property
    def namespaces(self) -> tuple[str | None, ...]:
        """Those that are watched; None stands for all."""
        return self.settings.watch_namespaces or (None,)

    def stale(self) -> str | None:
        """Why what we know may be out of date, or None."""
        if self.deaf:
            return "kopf's watches miss changes"
        for watch in self._watches:
            silence = self._clock() - watch.heard
            if silence > STALE:
                return f"nothing heard of {watch} for {silence:.0f} s"
        return None

    def _look_at_daemon_sets(self) -> None:
        if self.complete.is_set():
            self.controller.look_at_daemon_sets()

    async def run(self) -> None:
        """Until cancelled, or until something of it ends. Raises what ended it."""
        tasks: set[asyncio.Future[Any]] = {asyncio.ensure_future(w.run()) for w in self._watches}
        try:
            await self._start()
            work = (self.controller.run(), self._kopf(), self._resync(), self._tick())
            tasks |= {asyncio.ensure_future(each) for each in work}
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- the start

    async def _start(self) -> None:
        await self._persist(self._mesh_key)
        for watch in self._watches:
            await watch.synced.wait()
        await self._persist(self._networks.discover)
        for kind in RESOURCES:
            await self._persist(partial(self._list, kind))
        self.gateways_counted()
        self.complete.set()
        self.controller.look_at_daemon_sets()
        log.info("complete: %d resources", len(self.controller.store.resources))

    async def _persist(self, step: Callable[[], Any]) -> None:
        """Until it works: the API server, or a CRD, may come later than the operator."""
        delay = 1.0
        while True:
            try:
                await step()
            except ApiError as exc:
                log.warning("start: %s; again in %.0f s", exc, delay)
                await asyncio.sleep(delay)
                delay = min(30.0, delay * 2)
            else:
                return

    async def _mesh_key(self) -> None:
        """The key with which gateways and route agents know each other, if there is none."""
        namespace = self.settings.namespace
        try:
            await self.api.get(SECRETS, namespace, MESH_SECRET)
        except NotFound:
            key = b64encode(secrets.token_bytes(MESH_KEY_LENGTH)).decode()
            labels = {**self.settings.common_labels, MANAGED_BY_LABEL: MANAGED_BY}
            metadata = {"name": MESH_SECRET, "namespace": namespace, "labels": labels}
            body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
            try:
                await self.api.create(SECRETS, namespace, body | {"data": {MESH_KEY: key}})
            except Conflict:
                log.info("the mesh key was made by somebody else meanwhile")

    # -- what kopf sees

    async def _kopf(self) -> None:
        stop = asyncio.Event()
        running = asyncio.ensure_future(
            kopf.operator(
                registry=handlers.registry(self._seen, self._gone, self._connect),
                settings=handlers.settings(),
                standalone=True,
                clusterwide=not self.settings.watch_namespaces,
                namespaces=list(self.settings.watch_namespaces),
                stop_flag=stop,
                ready_flag=self.kopf_runs,
            )
        )
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            # kopf has tasks of its own, which it ends in order when it is asked, and only then.
            # After that it waits for everybody else's, which it takes for its own that hang.
            stop.set()
            await asyncio.wait({running}, timeout=_STOP)
            running.cancel()
            await asyncio.wait({running})
            raise

    def _seen(self, kind: str, item: Mapping[str, Any]) -> None:
        if kind == "Node":
            self._networks.put_node(item)
        else:
            self.controller.store.put_resource({"kind": kind, **item})

    def _gone(self, kind: str, item: Mapping[str, Any]) -> None:
        if kind == "Node":
            self._networks.drop_node(item)
            return
        key = Key.of(kind, item)
        self.controller.store.drop_resource(key)
        self.controller.events.forget(key)

    # -- what a watch may have lost

    async def _list(self, kind: str) -> None:
        """All objects of a kind, into the store. A deletion that no watch told shows here."""
        store = self.controller.store
        for namespace in self.namespaces:
            items, version = await self.api.list(RESOURCES[kind], namespace)
            for item in items:
                # Items of a list do not say what they are.
                store.put_resource({**item, "kind": kind, "apiVersion": API_VERSION})
            known = {Key.of(kind, item) for item in items}
            for key, held in list(store.resources.items()):
                here = key.kind == kind and namespace in (None, key.namespace)
                # What is newer than the list was told by a watch meanwhile.
                if here and key not in known and not older(version, held.version):
                    store.drop_resource(key)

    async def _resync(self) -> None:
        jitter = random.Random()  # noqa: S311 - not for secrets
        # What was deleted after our list and before the first one of kopf's, no watch tells.
        await asyncio.sleep(SETTLED)
        for kind in RESOURCES:
            await self._persist(partial(self._list, kind))
        while True:
            await asyncio.sleep(RESYNC * (0.8 + 0.4 * jitter.random()))
            try:
                await self._check()
                await self._networks.discover()
            except ApiError as exc:
                log.warning("resync: %s", exc)

    async def _check(self) -> None:
        """List everything, give the watches time, and see whether they have told the same."""
        store, lost = self.controller.store, 0
        listed: dict[Key, str] = {}
        for kind, resource in RESOURCES.items():
            for namespace in self.namespaces:
                for item in (await self.api.list(resource, namespace))[0]:
                    version = (item.get("metadata") or {}).get("resourceVersion")
                    listed[Key.of(kind, item)] = str(version or "")
        await asyncio.sleep(LAG)
        for key, version in listed.items():
            held = store.resources.get(key)
            # What is not known may have been deleted meanwhile: the next list tells.
            lost += held is not None and older(held.version, version)
        for kind in RESOURCES:
            await self._list(kind)
        self.deaf = bool(lost)
        if lost:
            log.error("kopf's watches have missed %d changes", lost)

    # -- gateways

    async def _tick(self) -> None:
        while True:
            for _ in range(6):
                await asyncio.sleep(_LEASES)
                await self.look_at_gateways()
            self.controller.store.cool()

    async def look_at_gateways(self) -> None:
        """Count them. Where nobody renews a Lease their watch is silent, as it is while the API
        server is away: asking tells the one from the other."""
        if self._clock() - self._leases.heard >= _LEASES:
            try:
                await self._leases.look()
            except ApiError as exc:
                log.debug("Leases of gateways: %s", exc)
        self.gateways_counted()

    def gateways_counted(self) -> None:
        """Whether some gateway is alive; statuses say so."""
        some = self.gateways.alive(self._leases.heard) > 0
        if some != self.controller.gateways:
            self.controller.gateways = some
            for key in self.controller.store.resources:
                self.controller.queue.add(("status", key))
