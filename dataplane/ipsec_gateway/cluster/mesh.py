"""The mesh: every gateway tells every other one, and each route agent, how it is, each second.

A stream is one HTTP response that does not end, with one line (``meshline``) a second and one at
once when something changes. A stream that is silent for three lines is given up and opened anew,
at the next address of the node if it has several.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from ipsec_gateway.cluster import meshline
from ipsec_gateway.cluster.meshline import BadLine, Line
from ipsec_gateway.cluster.reflector import Backoff

log = logging.getLogger("ipsec_gateway")

#: Seconds between lines.
INTERVAL: Final = 1.0
#: Seconds of silence after which a stream is opened anew.
SILENCE: Final = 3.0
_CONNECT: Final = 2.0
#: Seconds of the longest wait before the next attempt: a gateway that is back is seen soon.
_LONGEST_WAIT: Final = 2.0
#: Streams at the same time: all nodes of a large cluster, and strangers are refused before that.
_STREAMS: Final = 6000
#: Bad lines in a row after which a stream is given up.
_PATIENCE: Final = 5


class MeshKey:
    """The key, from a mounted Secret, read for each connection: a new one is taken up by itself."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def read(self) -> bytes:
        """The key. Raises OSError, or ValueError if it is too short."""
        key = self._path.read_bytes()
        if len(key) < meshline.SHORTEST_KEY:
            raise ValueError(f"the mesh key {self._path} is shorter than 16 octets: create it anew")
        return key


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
            await asyncio.wait_for(response.write(data), SILENCE)
            told = line.digest
            try:
                await asyncio.wait_for(changed.wait(), INTERVAL)
            except TimeoutError:
                continue


class MeshClient:
    """Reads the streams of all other gateways. ``on_line`` gets what is signed, and says whether
    it was new."""

    def __init__(self, key: MeshKey, port: int, on_line: Callable[[Line], bool]) -> None:
        self._key: Final = key
        self._port: Final = port
        self._on_line: Final = on_line
        self._followed: dict[str, tuple[tuple[str, ...], asyncio.Task[None]]] = {}
        self._session: aiohttp.ClientSession | None = None
        #: Lines by outcome: "ok", "stale", or why they were dropped.
        self.lines: Final[Counter[str]] = Counter()
        #: Why a gateway is not heard.
        self.troubles: Final[dict[str, str]] = {}

    def follow(self, gateways: Mapping[str, tuple[str, ...]]) -> None:
        """Follow exactly these, at their addresses."""
        for name, (addresses, task) in tuple(self._followed.items()):
            if gateways.get(name) != addresses:
                task.cancel()
                del self._followed[name]
                self.troubles.pop(name, None)
        for name, addresses in gateways.items():
            if name not in self._followed and addresses:
                task = asyncio.create_task(self._follow(name, addresses))
                self._followed[name] = addresses, task

    async def close(self) -> None:
        """End all streams."""
        tasks = [task for _, task in self._followed.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._followed.clear()
        if self._session is not None:
            await self._session.close()

    async def _follow(self, name: str, addresses: tuple[str, ...]) -> None:
        backoff, turn = Backoff(longest=_LONGEST_WAIT), 0
        while True:
            address = addresses[turn % len(addresses)]
            try:
                await self._read(name, address, backoff)
                why = "the stream ended"
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
                why = str(exc) or type(exc).__name__
            turn += 1
            if name not in self.troubles:
                log.info("gateway %s is not heard at %s: %s", name, address, why)
            self.troubles[name] = why
            await asyncio.sleep(backoff.wait())

    async def _read(self, name: str, address: str, backoff: Backoff) -> None:
        key, nonce = self._key.read(), secrets.token_hex(16)
        host = f"[{address}]" if ":" in address else address
        async with self._open().get(
            f"http://{host}:{self._port}{meshline.PATH}",
            headers=meshline.request_headers(key, nonce),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=SILENCE),
        ) as response:
            if response.status != 200:
                raise OSError(f"HTTP status {response.status}: is the mesh key the same?")
            bad = 0
            while data := await response.content.readline():
                try:
                    line = meshline.decode(data, key, nonce)
                    if line.gateway != name:
                        raise BadLine("gateway")
                except BadLine as exc:
                    self.lines[str(exc)] += 1
                    bad += 1
                    if bad >= _PATIENCE:
                        raise
                    continue
                bad = 0
                fresh = self._on_line(line)
                self.lines["ok" if fresh else "stale"] += 1
                backoff.reset()
                if self.troubles.pop(name, None) is not None:
                    log.info("gateway %s is heard again", name)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                read_bufsize=meshline.LONGEST,
                trust_env=False,
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
            )
        return self._session
