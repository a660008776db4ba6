"""List, then watch, then go on where it was: for objects that the server can select for us.

kopf passes no selectors to the server. What most of a cluster's objects of a kind are not for us
(Leases, Secrets, ConfigMaps) is watched here, so that the server keeps it away.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final, Protocol

from ipsec_operator.api import Api, ApiError, Gone, Object, Resource

log = logging.getLogger("ipsec_operator")

#: Seconds between attempts.
_FIRST: Final = 0.5
_LONGEST: Final = 30.0


class Sink(Protocol):
    """Who is told."""

    def replace(self, items: Sequence[Object]) -> None:
        """These are all objects there are."""

    def put(self, item: Object) -> None:
        """This one is new, or has changed."""

    def drop(self, item: Object) -> None:
        """This one is gone."""


class Watch:
    """One kind of objects in one namespace, or in all of them."""

    def __init__(
        self,
        api: Api,
        resource: Resource,
        namespace: str | None,
        sink: Sink,
        clock: Callable[[], float],
        **selectors: str,
    ) -> None:
        self._api = api
        self._resource = resource
        self._namespace = namespace
        self._sink = sink
        self._clock = clock
        self._selectors = selectors
        self._jitter = random.Random()  # noqa: S311 - not for secrets
        #: Set once the first list is in.
        self.synced = asyncio.Event()
        #: When the server last said anything, by the clock.
        self.heard = clock()

    def __str__(self) -> str:
        return f"{self._resource} of {self._namespace or 'all namespaces'}"

    async def run(self) -> None:
        """Until cancelled."""
        version, delay = "", _FIRST
        while True:
            try:
                if not version:
                    version = await self.look()
                version = await self._follow(version)
                delay = _FIRST
            except Gone:
                version = ""
            except TimeoutError:
                # Nothing has changed, or the connection is dead: the next one tells.
                delay = _FIRST
            except ApiError as exc:
                log.warning("watch of %s: %s", self, exc)
                # Whether the version is still good shows when there is an answer again.
                await asyncio.sleep(delay * (0.5 + self._jitter.random()))
                delay = min(_LONGEST, delay * 2)

    async def look(self) -> str:
        """List all of them; gives the version. Also beside the watch, which is silent where nothing
        changes. Raises ApiError."""
        items, version = await self._api.list(self._resource, self._namespace, **self._selectors)
        self.heard = self._clock()
        self._sink.replace(items)
        self.synced.set()
        return version

    async def _follow(self, version: str) -> str:
        events = self._api.watch(self._resource, self._namespace, version, **self._selectors)
        async with aclosing(events):
            async for event in events:
                self.heard = self._clock()
                item = event.get("object") or {}
                kind = event.get("type")
                if kind in ("ADDED", "MODIFIED"):
                    self._sink.put(item)
                elif kind == "DELETED":
                    self._sink.drop(item)
                version = str((item.get("metadata") or {}).get("resourceVersion") or version)
        # The server ends a watch now and then; it is no hurry to begin the next one.
        await asyncio.sleep(0.1)
        return version
