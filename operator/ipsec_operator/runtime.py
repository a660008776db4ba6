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
from collections.abc import Callable, Mapping, Sequence
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
from ipsec_operator import discovery, handlers, tunnels
from ipsec_operator.api import (
    CONFIG_MAPS,
    DAEMON_SETS,
    IP_POOLS,
    LEASES,
    NODES,
    SECRETS,
    SERVICE_CIDRS,
    Api,
    ApiError,
    Conflict,
    NotFound,
    Object,
)
from ipsec_operator.api import Resource as ApiResource
from ipsec_operator.controller import RESOURCES, Controller
from ipsec_operator.events import Events
from ipsec_operator.gateways import Gateways
from ipsec_operator.graph import Key
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
_FORBIDDEN: Final = 403


def now() -> str:
    """The time, RFC 3339, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def precisely() -> str:
    """The time, RFC 3339, to the microsecond, as Leases have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class _Data:
    """A watch of Secrets or ConfigMaps, told to the store."""

    def __init__(self, operator: Operator, kind: Any, namespace: str | None) -> None:
        self._store = operator.controller.store
        self._kind = kind
        self._namespace = namespace
        self._known: set[Key] = set()

    def replace(self, items: Sequence[Object]) -> None:
        gone = self._known - {self._key(item) for item in items}
        for key in gone:
            self._known.discard(key)
            self._store.drop_data(key)
        for item in items:
            self.put(item)

    def put(self, item: Object) -> None:
        self._known.add(self._key(item))
        # Items of a list do not say what they are.
        self._store.put_data(self._kind, item | {"kind": self._kind})

    def drop(self, item: Object) -> None:
        key = self._key(item)
        self._known.discard(key)
        self._store.drop_data(key)

    def _key(self, item: Object) -> Key:
        metadata = item.get("metadata") or {}
        return Key(self._kind, str(metadata.get("namespace")), str(metadata.get("name")))


class _Tunnels:
    """The watch of the tunnel Secrets."""

    def __init__(self, operator: Operator) -> None:
        self._store = operator.controller.store

    def replace(self, items: Sequence[Object]) -> None:
        names = {_name(item) for item in items}
        for tunnel in list(self._store.present.values()):
            if tunnel.name not in names:
                self._store.drop_tunnel(tunnel.name)
        for item in items:
            self.put(item)

    def put(self, item: Object) -> None:
        # The type of a Secret cannot be changed; others may have our label and are not ours.
        if item.get("type") == TUNNEL_SECRET_TYPE:
            self._store.put_tunnel(tunnels.read(item))

    def drop(self, item: Object) -> None:
        self._store.drop_tunnel(_name(item))


class _DaemonSets:
    """The watch of the DaemonSets."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._controller = operator.controller

    def replace(self, items: Sequence[Object]) -> None:
        self._controller.daemon_sets = {_name(item): item for item in items}
        self._look()

    def put(self, item: Object) -> None:
        self._controller.daemon_sets[_name(item)] = item
        self._look()

    def drop(self, item: Object) -> None:
        self._controller.daemon_sets.pop(_name(item), None)
        self._look()

    def _look(self) -> None:
        if self._operator.complete.is_set():
            self._controller.look_at_daemon_sets()


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
        self.nodes: dict[str, discovery.Node] = {}
        self._sources = discovery.Sources()
        self._connect = connect
        self._clock = clock
        own, client = settings.namespace, self.api
        labels = {"labelSelector": f"{MANAGED_BY_LABEL}={MANAGED_BY}"}
        self._leases = Watch(
            client, LEASES, own, self.gateways, clock, labelSelector=GATEWAY_LEASE_SELECTOR
        )
        self._watches = [
            self._leases,
            Watch(client, SECRETS, own, _Tunnels(self), clock, labelSelector=TUNNEL_SELECTOR),
            Watch(client, DAEMON_SETS, own, _DaemonSets(self), clock, **labels),
        ]
        for namespace in self.namespaces:
            secrets_, maps = (_Data(self, k, namespace) for k in ("Secret", "ConfigMap"))
            self._watches += [
                Watch(client, SECRETS, namespace, secrets_, clock, fieldSelector=_FOREIGN),
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
        await self._persist(self._discover)
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
            self._put_node(item)
        else:
            self.controller.store.put_resource({"kind": kind, **item})

    def _gone(self, kind: str, item: Mapping[str, Any]) -> None:
        if kind == "Node":
            if self.nodes.pop(_name(item), None) is not None:
                self._decide()
            return
        metadata = item.get("metadata") or {}
        key = Key(kind, str(metadata.get("namespace")), str(metadata.get("name")))
        self.controller.store.drop_resource(key)
        self.controller.events.forget(key)

    def _put_node(self, item: Mapping[str, Any]) -> None:
        name, found = _name(item), discovery.node(item)
        if self.nodes.get(name) != found:
            self.nodes[name] = found
            self._decide()

    # -- networks

    async def _discover(self) -> None:
        """Raises ApiError, and changes nothing, where the API server does not answer."""
        kubeadm = await self._config_map("kubeadm-config")
        cilium = await self._config_map("cilium-config")
        pods, services = discovery.kubeadm(kubeadm)
        sources = discovery.Sources(
            service_cidrs=discovery.service_cidrs(await self._optional(SERVICE_CIDRS)),
            kubeadm_pods=pods,
            kubeadm_services=services,
            calico=discovery.calico(await self._optional(IP_POOLS)),
            cilium=discovery.cilium(cilium),
        )
        nodes, _ = await self.api.list(NODES)
        self.nodes = {_name(item): discovery.node(item) for item in nodes}
        self._sources = sources
        self._decide()

    def _decide(self) -> None:
        store = self.controller.store
        before = store.networks
        values = self.settings.cluster_subnets
        store.set_networks(discovery.decide(values, self._sources, self.nodes))
        if store.networks == before:
            return
        log.info(
            "networks of the cluster: pods %s, services %s (%s)",
            ", ".join(store.networks.pods) or "unknown",
            ", ".join(store.networks.services) or "unknown",
            store.networks.origin,
        )
        if self.complete.is_set():
            self.controller.look_at_daemon_sets()

    async def _config_map(self, name: str) -> Object:
        try:
            return await self.api.get(CONFIG_MAPS, "kube-system", name)
        except ApiError as exc:
            if isinstance(exc, NotFound) or exc.status == _FORBIDDEN:
                return {}
            raise

    async def _optional(self, resource: ApiResource) -> list[Object]:
        """What a cluster may not have, or not let us read."""
        try:
            items, _ = await self.api.list(resource)
        except ApiError as exc:
            if isinstance(exc, NotFound) or exc.status == _FORBIDDEN:
                return []
            raise
        return items

    # -- what a watch may have lost

    async def _list(self, kind: str) -> None:
        """All objects of a kind, into the store. A deletion that no watch told shows here."""
        store = self.controller.store
        for namespace in self.namespaces:
            items, version = await self.api.list(RESOURCES[kind], namespace)
            for item in items:
                # Items of a list do not say what they are.
                store.put_resource({**item, "kind": kind, "apiVersion": API_VERSION})
            known = {_key(kind, item) for item in items}
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
                await self._discover()
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
                    listed[_key(kind, item)] = str(version or "")
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


def _name(item: Mapping[str, Any]) -> str:
    return str((item.get("metadata") or {}).get("name", ""))


def _key(kind: str, item: Mapping[str, Any]) -> Key:
    metadata = item.get("metadata") or {}
    return Key(kind, str(metadata.get("namespace")), str(metadata.get("name")))
