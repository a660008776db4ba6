"""List and watch: a collection of objects, followed for as long as the process lives.

    list -> watch from its version -+-> the stream ends in order: watch again from the last version
      ^                             +-> it breaks: wait, then the same
      |                             +-> the version is too old (410): list again
      +-----------------------------+

Waits double from half a second to half a minute and have jitter, so that gateways do not come back
all at once after an outage. What was known stays known meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from ipsec_gateway.cluster.api import Api, ApiError, Silent
from ipsec_gateway.cluster.backoff import Backoff

log = logging.getLogger("ipsec_gateway")

#: Objects of one page of a list.
_PAGE: Final = 500
_GONE: Final = 410

Objects = Mapping[str, Mapping[str, Any]]


class Reflector:
    """Calls ``on_list`` with all objects by name, then ``on_object`` for each that changed, with
    None for one that is gone; ``on_contact`` for each sign of life of the API server.

    ``what`` names the collection in the log. ``silence``: seconds without an event or bookmark
    after which the stream is opened anew. It need not be dead: where nothing changes, bookmarks
    come only if etcd reports progress, which not every etcd is set up for.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        *,
        what: str,
        on_list: Callable[[Objects], None],
        on_object: Callable[[str, Mapping[str, Any] | None], None],
        on_contact: Callable[[], None] = lambda: None,
        selector: str = "",
        silence: float = 150.0,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._api: Final = api
        self._path: Final = path
        self._what: Final = what
        self._on_list: Final = on_list
        self._on_object: Final = on_object
        self._on_contact: Final = on_contact
        self._params: Final = {"labelSelector": selector} if selector else {}
        self._silence: Final = silence
        self._rng: Final = rng
        self._version = ""
        self._away = False
        #: Lists and watches so far, for metrics and tests.
        self.lists = 0
        self.watches = 0

    async def run(self) -> None:
        """Never ends by itself."""
        backoff = Backoff(self._rng)
        while True:
            try:
                if not self._version:
                    await self._list()
                    self._contact(backoff)
                await self._watch(backoff)
                # A server that ends every stream at once must not make a loop of it.
                await asyncio.sleep(0.1 * self._rng())
            except Silent:
                # The next stream tells whether anybody is there.
                continue
            except ApiError as exc:
                if exc.status == _GONE:
                    self._version = ""
                if exc.status != _GONE or not backoff.fresh:
                    self._complain(exc)
                await asyncio.sleep(backoff.wait(exc.retry_after))

    async def _list(self) -> None:
        found: dict[str, Mapping[str, Any]] = {}
        params = {**self._params, "limit": str(_PAGE)}
        while True:
            self.lists += 1
            page = await self._api.get(self._path, params)
            try:
                found.update((item["metadata"]["name"], item) for item in page["items"])
                version = str(page["metadata"]["resourceVersion"])
                more = page["metadata"].get("continue")
            except (KeyError, TypeError, AttributeError) as exc:
                raise ApiError(0, f"the list of {self._what} is no list") from exc
            if not more:
                break
            params["continue"] = str(more)
        self._version = version
        self._on_list(found)

    async def _watch(self, backoff: Backoff) -> None:
        params = {
            **self._params,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            # Ends at different times for different gateways.
            "timeoutSeconds": str(240 + int(self._rng() * 240)),
        }
        self.watches += 1
        events = self._api.watch(
            self._path, params, silence=self._silence, opened=partial(self._contact, backoff)
        )
        async for event in events:
            self._contact(backoff)
            self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:
        try:
            kind, item = event["type"], event["object"]
            if kind == "ERROR":
                raise ApiError(int(item.get("code", 0)), str(item.get("message", "")))
            name = str(item["metadata"].get("name", ""))
            version = str(item["metadata"]["resourceVersion"])
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise ApiError(0, f"an event of {self._what} is no event") from exc
        if kind in ("ADDED", "MODIFIED"):
            self._on_object(name, item)
        elif kind == "DELETED":
            self._on_object(name, None)
        # A BOOKMARK has a version and nothing else.
        self._version = version

    def _contact(self, backoff: Backoff) -> None:
        backoff.reset()
        if self._away:
            self._away = False
            log.info("the API server is back: %s", self._what)
        self._on_contact()

    def _complain(self, exc: ApiError) -> None:
        """Once for each outage."""
        if not self._away:
            self._away = True
            log.warning("%s are not followed, what is known stays: %s", self._what, exc)
