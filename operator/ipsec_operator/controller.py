"""The reconcile loop: what the store wants, compared with what is there; the difference is written.

Work items come from the store and from the watches; each says what to look at, and whoever looks
compares anew, so that an item too many does no harm and writes nothing:

=============  =====================================================================================
item           look
=============  =====================================================================================
judge          compile what has changed, a slice at a time
tunnel         the Secret of a peer: write, delete, or nothing
status         the operator's conditions of an object: apply, or nothing
fetch          the data of a Secret that a resource has begun to refer to
daemonset      a DaemonSet: apply, delete, or nothing
=============  =====================================================================================
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal

from ipsec_api.cluster import DIGEST_ANNOTATION, MANAGED_BY, MANAGED_BY_LABEL, OPERATOR_MANAGER
from ipsec_api.kinds import GROUP, KINDS, VERSION
from ipsec_api.snapshot import IPsecPeer
from ipsec_operator import change, daemonsets, status, templates, tunnels
from ipsec_operator.api import (
    CONFIG_MAPS,
    DAEMON_SETS,
    SECRETS,
    Api,
    ApiError,
    Conflict,
    NotFound,
    Object,
    Resource,
)
from ipsec_operator.events import Events
from ipsec_operator.graph import Key
from ipsec_operator.queue import Queue, Retry
from ipsec_operator.settings import Settings
from ipsec_operator.store import EVERYTHING, Store, Work

log = logging.getLogger("ipsec_operator")

Item = tuple[Work | Literal["daemonset"], Key]

#: The three kinds by name.
RESOURCES: Final = {kind.name: Resource(GROUP, VERSION, kind.plural) for kind in KINDS}
#: Units that are judged before others get a turn.
_SLICE: Final = 100
#: Seconds in which what gateways say of the peers of a template is gathered for its status, which
#: takes a look at all of them.
GATHER: Final = 1.0
#: Calls to the API server under way at once.
WORKERS: Final = 16


class Controller:
    """One leading operator. ``now`` is the time in RFC 3339."""

    def __init__(
        self, settings: Settings, api: Api, events: Events, now: Callable[[], str]
    ) -> None:
        self.settings = settings
        self.api = api
        self.events = events
        self._now = now
        self.queue: Queue[Item] = Queue(urgent=lambda item: item[0] in ("judge", "fetch"))
        self.store = Store(self._mark)
        #: Whether some gateway is alive.
        self.gateways = False
        #: DaemonSets in the cluster that are ours, by name.
        self.daemon_sets: dict[str, Object] = {}
        self._applied: dict[str, int] = {}

    async def run(self) -> None:
        """Work until cancelled. The store has to be complete before: what it does not know is
        taken to be gone."""
        workers = [asyncio.ensure_future(self.queue.work(self._look)) for _ in range(WORKERS)]
        workers.append(asyncio.ensure_future(self.events.run()))
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def _mark(self, work: Work, key: Key) -> None:
        if work == "template":
            self.queue.later(("status", key), GATHER)
        else:
            self.queue.add((work, key))

    async def _look(self, item: Item) -> None:
        work, key = item
        try:
            match work:
                case "judge":
                    await self._judge()
                case "tunnel":
                    await self._tunnel(key)
                case "status":
                    await self._status(key)
                case "fetch":
                    await self._fetch(key)
                case "daemonset":
                    await self._daemon_set(key.name)
        except ApiError as exc:
            raise Retry(str(exc)) from None

    async def _judge(self) -> None:
        self.store.judge_some(_SLICE)
        if not self.store.clean:
            self._mark("judge", EVERYTHING)
        await asyncio.sleep(0)

    # -- tunnels

    async def _tunnel(self, unit: Key) -> None:
        store = self.store
        if not store.settled(unit):
            return
        wanted, present = store.wanted.get(unit), store.present.get(unit)
        if wanted is None:
            if present is not None:
                await self._remove(unit, present)
            return
        if present is not None and present.digest == wanted.digest:
            return
        found = await self._write(wanted, new=present is None)
        store.put_tunnel(tunnels.read(found))
        self._tell_change(unit, present, wanted)

    async def _write(self, tunnel: tunnels.Tunnel, *, new: bool) -> Object:
        namespace = self.settings.namespace
        body = tunnels.manifest(tunnel, namespace, self.settings.common_labels)
        # Cheaper for the API server than server-side apply, which compares and reads YAML. Nobody
        # else has a part of it, and so what is not written any more, such as a label, goes.
        if new:
            with suppress(Conflict):
                return await self.api.create(SECRETS, namespace, body, manager=OPERATOR_MANAGER)
        return await self.api.replace(SECRETS, body, manager=OPERATOR_MANAGER)

    async def _remove(self, unit: Key, present: tunnels.Tunnel) -> None:
        await self.api.delete(SECRETS, self.settings.namespace, present.name)
        self.store.drop_tunnel(present.name)
        log.info("%s: tunnel removed", unit)
        resource = self.store.resources.get(unit)
        if resource is not None:
            text = "the tunnel was taken away from the gateways"
            self.events.tell(resource.ref, "Normal", "Removed", text)

    def _tell_change(self, unit: Key, before: tunnels.Tunnel | None, after: tunnels.Tunnel) -> None:
        resource = self.store.resources.get(unit)
        if resource is None:
            return
        old = before.config() if before is not None else None
        new = after.config() if old is not None else None
        if old is None or new is None:
            log.info("%s: tunnel rendered into Secret %s", unit, after.name)
            text = f"rendered into Secret {self.settings.namespace}/{after.name} for the gateways"
            self.events.tell(resource.ref, "Normal", "Rendered", text)
            return
        found = change.classify(old, new)
        if found is not None:
            log.info("%s: %s", unit, found)
            reason = "HotChange" if found.kind == "Hot" else found.kind
            self.events.tell(resource.ref, "Normal", reason, str(found))

    # -- statuses

    async def _status(self, key: Key) -> None:
        store = self.store
        resource = store.resources.get(key)
        if resource is None:
            self.events.forget(key)
            return
        if key not in store.judged or not store.settled(resource.unit):
            return
        faults = store.rejections.get(key, ())
        programmed, facts = None, None
        if templates.is_template(resource):
            users = store.users(key)
            programmed = templates.programmed(resource, users, accepted=not faults)
            facts = templates.facts(resource, users, accepted=not faults)
        verdicts = status.verdicts(
            resource,
            faults,
            store.advice.get(key, ()),
            held=key in store.held,
            gateways=self.gateways,
            programmed=programmed,
        )
        document = resource.document
        discovers = isinstance(document, IPsecPeer) and document.spec.local_subnets is None
        local = store.networks.local if discovers else ()
        body = status.desired(resource, verdicts, local, self._now(), facts)
        if body is None:
            return
        kind = RESOURCES[key.kind]
        try:
            found = await self.api.apply(kind, body, manager=OPERATOR_MANAGER, part="status")
        except NotFound:
            return
        store.put_resource(found)
        before = status.conditions(resource.status)
        for kind_, reason, message in status.news(before, verdicts):
            self.events.tell(resource.ref, kind_, reason, message)

    # -- the data of Secrets

    async def _fetch(self, key: Key) -> None:
        if not self.store.lacks(key):
            return
        try:
            if key.kind == "Secret":
                found = await self.api.get(SECRETS, key.namespace, key.name)
                self.store.put_data("Secret", found)
            else:
                found = await self.api.get(CONFIG_MAPS, key.namespace, key.name)
                self.store.put_data("ConfigMap", found | {"kind": "ConfigMap"})
        except NotFound:
            self.store.drop_data(key)

    # -- DaemonSets

    def daemon_sets_wanted(self) -> dict[str, daemonsets.Manifest]:
        """Those that should exist, by name."""
        return daemonsets.manifests(self.settings, self.store.networks.services)

    def look_at_daemon_sets(self) -> None:
        """Look at all that exist or should."""
        for name in self.daemon_sets_wanted().keys() | self.daemon_sets.keys():
            self.queue.add(("daemonset", Key("DaemonSet", self.settings.namespace, name)))

    async def _daemon_set(self, name: str) -> None:
        wanted, present = self.daemon_sets_wanted().get(name), self.daemon_sets.get(name)
        if wanted is None:
            if present is not None and _ours(present):
                await self.api.delete(DAEMON_SETS, self.settings.namespace, name)
                log.info("DaemonSet %s removed", name)
            return
        if present is not None and self._applied.get(name) == _generation(present):
            digests = [
                (m.get("metadata") or {}).get("annotations") or {} for m in (present, wanted)
            ]
            if digests[0].get(DIGEST_ANNOTATION) == digests[1][DIGEST_ANNOTATION]:
                return
        found = await self.api.apply(DAEMON_SETS, wanted, manager=OPERATOR_MANAGER)
        self.daemon_sets[name] = found
        self._applied[name] = _generation(found)
        log.info("DaemonSet %s applied", name)


def _generation(manifest: Object) -> int:
    return int((manifest.get("metadata") or {}).get("generation") or 0)


def _ours(manifest: dict[str, Any]) -> bool:
    labels = (manifest.get("metadata") or {}).get("labels") or {}
    return bool(labels.get(MANAGED_BY_LABEL) == MANAGED_BY)
