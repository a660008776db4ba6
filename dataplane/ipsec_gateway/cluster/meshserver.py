"""The mesh: every gateway tells every other one, and each route agent, how it is, each second.

A stream is one HTTP response that does not end, with one line (``meshline``) a second and one at
once when something changes. ``meshclient`` reads it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from aiohttp import web

from ipsec_gateway.cluster import meshline
from ipsec_gateway.cluster.meshkey import MeshKey
from ipsec_gateway.cluster.meshline import Line

log = logging.getLogger("ipsec_gateway")

#: Seconds between lines.
INTERVAL: Final = 1.0
#: Seconds for who listens to take a line: after as many it opens the stream anew.
_SLOWEST: Final = 3.0
#: Streams at the same time: all nodes of a large cluster, and strangers are refused before that.
_STREAMS: Final = 6000


class MeshServer:
    """Serves ``GET /mesh``. ``line`` gives what we are now, with what we own if its digest is not
    the one that it is given."""

    def __init__(self, key: MeshKey, line: Callable[[str], Line]) -> None:
        self._key: Final = key
        self._line: Final = line
        self._changed = asyncio.Event()
        self._streams = 0
        #: Requests by outcome.
        self.requests: Final[Counter[str]] = Counter()
        app = web.Application()
        app.router.add_get(meshline.PATH, self._serve)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=0.2
        )

    async def open(self, addresses: Iterable[str], port: int) -> None:
        """Begin to serve. Raises OSError where none of the addresses can be bound."""
        await self._runner.setup()
        failure: OSError | None = None
        bound = 0
        for address in addresses:
            try:
                await web.TCPSite(self._runner, address, port).start()
                bound += 1
            except OSError as exc:
                failure = exc
        if not bound:
            raise failure or OSError("no address to serve the mesh on")

    async def close(self) -> None:
        """End all streams."""
        await self._runner.cleanup()

    def kick(self) -> None:
        """Something changed: tell it at once."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        try:
            key = self._key.read()
        except (OSError, ValueError) as exc:
            log.error("the mesh is not served: %s", exc)
            return web.Response(status=503)
        nonce = meshline.request_nonce(key, request.headers)
        if nonce is None:
            self.requests["refused"] += 1
            return web.Response(status=403, text="who does not know the key is told nothing\n")
        if self._streams >= _STREAMS:
            self.requests["full"] += 1
            return web.Response(status=503, headers={"Retry-After": "5"})
        self.requests["ok"] += 1
        self._streams += 1
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        try:
            await response.prepare(request)
            await self._tell(response, key, nonce)
        except (ConnectionError, TimeoutError):
            # It went away, or does not read: it comes back by itself.
            self.requests["ended"] += 1
        finally:
            self._streams -= 1
        return response

    async def _tell(self, response: web.StreamResponse, key: bytes, nonce: str) -> None:
        told = ""
        while True:
            changed = self._changed
            line = self._line(told)
            data = meshline.encode(line, key, nonce)
            await asyncio.wait_for(response.write(data), _SLOWEST)
            told = line.digest
            try:
                await asyncio.wait_for(changed.wait(), INTERVAL)
            except TimeoutError:
                continue
