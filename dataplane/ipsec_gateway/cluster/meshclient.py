"""Reads the mesh streams of gateways: one connection each, kept open, opened again for ever.

A stream that is silent for three lines is given up and opened anew, at the next address of the node
if it has several; so is one with a line that is not signed as ours, or is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import aiohttp

from ipsec_gateway.cluster import meshline
from ipsec_gateway.cluster.backoff import Backoff
from ipsec_gateway.cluster.meshkey import MeshKey
from ipsec_gateway.cluster.meshline import BadLine, Line

log = logging.getLogger("ipsec_gateway")

#: Seconds of silence after which a stream is opened anew.
SILENCE: Final = 3.0
#: Seconds for a connection to be there.
_CONNECT: Final = 2.0
#: Seconds of the longest wait before the next attempt: a gateway that is back is seen soon.
_LONGEST_WAIT: Final = 2.0


class MeshClient:
    """All streams that one node reads. ``on_line`` gets what is signed, and says whether it was
    new. ``longest_wait``: seconds between two attempts at the most."""

    def __init__(
        self,
        key: MeshKey,
        port: int,
        on_line: Callable[[Line], bool],
        *,
        longest_wait: float = _LONGEST_WAIT,
    ) -> None:
        self._key: Final = key
        self._port: Final = port
        self._on_line: Final = on_line
        self._longest_wait: Final = longest_wait
        self._followed: dict[str, tuple[tuple[str, ...], asyncio.Task[None] | None]] = {}
        self._session: aiohttp.ClientSession | None = None
        self._hurry = asyncio.Event()
        #: Lines by outcome: "ok", "stale", or why they were dropped.
        self.lines: Final[Counter[str]] = Counter()
        #: Why a gateway is not heard.
        self.troubles: Final[dict[str, str]] = {}

    def follow(self, gateways: Mapping[str, tuple[str, ...]]) -> None:
        """Follow exactly these, at the addresses of their nodes."""
        for name, (addresses, task) in tuple(self._followed.items()):
            if gateways.get(name) != addresses:
                if task is not None:
                    task.cancel()
                del self._followed[name]
                self.troubles.pop(name, None)
        for name, addresses in gateways.items():
            if name in self._followed:
                continue
            task = None
            if addresses:
                task = asyncio.create_task(self._follow(name, addresses), name=f"mesh {name}")
            else:
                self._failed(name, "its Lease names no address")
            self._followed[name] = addresses, task

    def hurry(self) -> None:
        """Have those that wait before another attempt make it now."""
        self._hurry.set()
        self._hurry = asyncio.Event()

    async def close(self) -> None:
        """End all streams."""
        tasks = [task for _, task in self._followed.values() if task is not None]
        self._followed.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _follow(self, name: str, addresses: tuple[str, ...]) -> None:
        backoff, turn = Backoff(longest=self._longest_wait), 0
        while True:
            address = addresses[turn % len(addresses)]
            turn += 1
            try:
                await self._read(name, address, backoff)
                why = "the stream ended"
            except BadLine as exc:
                self.lines[str(exc)] += 1
                why = f"what came is not signed as ours or not a line ({exc})"
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
                why = str(exc) or type(exc).__name__
            self._failed(name, f"{address}: {why}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), backoff.wait())

    async def _read(self, name: str, address: str, backoff: Backoff) -> None:
        """One stream to its end."""
        key, nonce = self._key.read(), secrets.token_hex(16)
        host = f"[{address}]" if ":" in address else address
        async with self._open().get(
            f"http://{host}:{self._port}{meshline.PATH}",
            headers=meshline.request_headers(key, nonce),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=SILENCE),
        ) as response:
            if response.status != 200:
                raise OSError(f"HTTP status {response.status}: is the mesh key the same?")
            while data := await response.content.readline():
                line = meshline.decode(data, key, nonce)
                if line.gateway != name:
                    raise BadLine("gateway")
                self.lines["ok" if self._on_line(line) else "stale"] += 1
                backoff.reset()
                if self.troubles.pop(name, None) is not None:
                    log.info("gateway %s is heard again", name)

    def _failed(self, name: str, why: str) -> None:
        """Said once for each silence, however its reason changes."""
        if name not in self.troubles:
            log.warning("gateway %s is not heard (%s)", name, why)
        self.troubles[name] = why

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                read_bufsize=meshline.LONGEST,
                trust_env=False,
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
            )
        return self._session
