"""Statuses of the peers that this gateway owns, by server-side apply on ``/status``.

The operator owns Accepted, ResolvedRefs and Ready; the owner of the peer has Programmed,
Established, Forwarding, Healthy and the facts of the tunnel. All gateways are one field manager, so
that the next owner's word replaces the last one's. Written is only what differs from what was
written last; of what changes while the API server is away only the newest state is written
afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from ipsec_api.cluster import GATEWAY_MANAGER
from ipsec_api.kinds import API_VERSION, GROUP, KINDS
from ipsec_gateway.cluster.api import Api, ApiError
from ipsec_gateway.cluster.backoff import Backoff
from ipsec_gateway.lastgood import Key

log = logging.getLogger("ipsec_gateway")

#: The conditions that a gateway has the word on.
CONDITIONS: Final = ("Programmed", "Established", "Forwarding", "Healthy")
#: Fields that the operator has the word on: said by us, even as empty, they would be ours.
_NOT_OURS: Final = frozenset({"observedGeneration", "discoveredSubnets"})
#: Seconds between two writes of the same object.
INTERVAL: Final = 1.0
#: Writes that are under way at the same time.
_AT_ONCE: Final = 4
#: Codes that another try with the same body does not change: gone, replaced, refused.
_HOPELESS: Final = frozenset({400, 403, 404, 409, 422})
#: Codes that say something of the API server and nothing of the object: not reached, too many
#: requests, not available. With any other the rest goes on.
_AWAY: Final = frozenset({0, 429, 502, 503, 504})
#: Seconds until an object is tried again that the API server stumbles over.
STUMBLE: Final = 30.0

_PLURALS: Final = {kind.name: kind.plural for kind in KINDS}


def body_of(key: Key, status: Mapping[str, Any], uid: str) -> dict[str, Any]:
    """What is applied: our part of the status. With ``uid`` what is said of an object that has
    replaced another one is something new; the API server does not compare it in ``/status``."""
    ours = {name: value for name, value in status.items() if name not in _NOT_OURS}
    ours["conditions"] = [c for c in status.get("conditions", ()) if c["type"] in CONDITIONS]
    metadata = {"name": key.name, "namespace": key.namespace}
    if uid:
        metadata["uid"] = uid
    return {"apiVersion": API_VERSION, "kind": key.kind, "metadata": metadata, "status": ours}


def path_of(key: Key) -> str:
    """Of the status of an object."""
    group, version = API_VERSION.split("/")
    assert group == GROUP
    plural = _PLURALS[key.kind]
    return f"/apis/{group}/{version}/namespaces/{key.namespace}/{plural}/{key.name}/status"


class ApiStatusSink:
    """``put`` and ``drop`` from the loop; ``run`` writes. ``uid_of`` gives the uid of an object."""

    def __init__(
        self,
        api: Api,
        uid_of: Callable[[Key], str],
        *,
        interval: float = INTERVAL,
        stumble: float = STUMBLE,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._api: Final = api
        self._uid_of: Final = uid_of
        self._interval: Final = interval
        self._stumble: Final = stumble
        self._rng: Final = rng
        self._pending: dict[Key, dict[str, Any]] = {}
        self._written: dict[Key, dict[str, Any]] = {}
        self._due: dict[Key, float] = {}
        self._wake: Final = asyncio.Event()
        self._busy: set[Key] = set()
        self.writes = 0

    def put(self, key: Key, status: Mapping[str, Any]) -> None:
        """The status of an object whose status is ours to write."""
        body = body_of(key, status, self._uid_of(key))
        if body == self._written.get(key):
            self._pending.pop(key, None)
            return
        self._pending[key] = body
        self._wake.set()

    def drop(self, key: Key) -> None:
        """The status is not ours any more: another gateway's, or the object is gone."""
        self._pending.pop(key, None)
        self._written.pop(key, None)
        self._due.pop(key, None)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to write."""
        return not self._pending and not self._busy

    async def run(self) -> None:
        """For ever."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(self._rng)
        running: set[asyncio.Task[float]] = set()
        try:
            while True:
                self._wake.clear()
                now = loop.time()
                ready = [
                    k for k in self._pending if self._due.get(k, 0) <= now and k not in self._busy
                ]
                pause = 0.0
                for start in range(0, len(ready), _AT_ONCE):
                    running = {
                        asyncio.create_task(self._write(key, backoff))
                        for key in ready[start : start + _AT_ONCE]
                    }
                    pause = max(await asyncio.gather(*running))
                    if pause:
                        break
                if pause:
                    await asyncio.sleep(pause)
                    continue
                waits = [self._due.get(k, 0) - loop.time() for k in self._pending]
                try:
                    await asyncio.wait_for(
                        self._wake.wait(), max(0.01, min(waits)) if waits else None
                    )
                except TimeoutError:
                    continue
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _write(self, key: Key, backoff: Backoff) -> float:
        """Write one. Returns seconds for which nothing should be written."""
        body = self._pending.get(key)
        if body is None:
            return 0.0
        self._busy.add(key)
        loop = asyncio.get_running_loop()
        wait = self._interval
        try:
            self.writes += 1
            await self._api.apply(path_of(key), body, manager=GATEWAY_MANAGER)
        except ApiError as exc:
            if exc.status in _AWAY:
                return backoff.wait(exc.retry_after)
            log.warning("status of %s %s/%s is not written: %s", *key, exc)
            if exc.status in _HOPELESS:
                self._done(key, body)
            else:
                wait = self._stumble
        else:
            backoff.reset()
            self._done(key, body)
        finally:
            self._busy.discard(key)
            self._due[key] = loop.time() + wait * (1 + 0.2 * self._rng())
        return 0.0

    def _done(self, key: Key, body: dict[str, Any]) -> None:
        # It may have been dropped or replaced in the meantime.
        if self._pending.get(key) is body:
            del self._pending[key]
            self._written[key] = body
        elif key in self._pending:
            self._written[key] = body
