"""Follows the mesh streams of gateways: one connection each, kept open, opened again for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import aiohttp

from ipsec_gateway.cluster import meshline
from ipsec_gateway.intent import Address
from ipsec_gateway.routeagent.picture import SILENCE, Says, networks

log = logging.getLogger("ipsec_gateway")

#: Seconds between two attempts: at first, and at most.
_FIRST, _LONGEST_PAUSE = 0.2, 5.0
#: Seconds for a connection to be there.
_CONNECT: Final = 2.0
#: A stream that lives so long, in seconds, was a good one.
_GOOD: Final = 5.0


class Streams:
    """All connections of one agent. ``on_line`` gets what was said by who knows the key."""

    def __init__(self, key: Path, port: int, on_line: Callable[[Says], None]) -> None:
        self._key: Final = key
        self._port: Final = port
        self._on_line: Final = on_line
        self._followers: dict[str, tuple[tuple[Address, ...], asyncio.Task[None]]] = {}
        self._hurry = asyncio.Event()
        #: Lines by outcome: "ok", or why one was refused.
        self.lines: Final[Counter[str]] = Counter()
        #: Why a gateway is not heard, by its name.
        self.troubles: Final[dict[str, str]] = {}

    def follow(self, gateways: Mapping[str, tuple[Address, ...]]) -> None:
        """Follow exactly these, at these node addresses."""
        for name in [n for n, (at, _) in self._followers.items() if gateways.get(n, ()) != at]:
            self._followers.pop(name)[1].cancel()
            self.troubles.pop(name, None)
        for name in gateways.keys() - self._followers.keys():
            addresses = gateways[name]
            task = asyncio.create_task(self._follow(name, addresses), name=f"mesh {name}")
            self._followers[name] = (addresses, task)

    def hurry(self) -> None:
        """Have those that wait before another attempt make it now."""
        self._hurry.set()
        self._hurry = asyncio.Event()

    async def close(self) -> None:
        """The end of all connections."""
        tasks = [task for _, task in self._followers.values()]
        self._followers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, name: str, addresses: tuple[Address, ...]) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=SILENCE)
        pause, turn = _FIRST, 0
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession(
            timeout=timeout, read_bufsize=meshline.LONGEST, trust_env=False
        ) as session:
            while True:
                address = addresses[turn % len(addresses)] if addresses else None
                turn += 1
                began = loop.time()
                try:
                    if address is None:
                        raise OSError("its Lease names no address")
                    await self._read(session, name, address)
                    trouble = "the stream ended"
                except meshline.BadLine as exc:
                    self.lines[str(exc)] += 1
                    trouble = f"what came is not signed as ours or not a line ({exc})"
                except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
                    trouble = str(exc) or type(exc).__name__
                if self.troubles.get(name) != trouble:
                    self.troubles[name] = trouble
                    log.warning("gateway %s at %s port %s: %s", name, address, self._port, trouble)
                pause = _FIRST if loop.time() - began > _GOOD else min(pause * 2, _LONGEST_PAUSE)
                with contextlib.suppress(TimeoutError):
                    jitter = random.uniform(0.7, 1.0)  # noqa: S311 - spreads attempts, no secret
                    await asyncio.wait_for(self._hurry.wait(), pause * jitter)

    async def _read(self, session: aiohttp.ClientSession, name: str, address: Address) -> None:
        """One stream to its end."""
        # Read for every connection: a key that is replaced in the mounted Secret is taken up.
        key = self._key.read_bytes()
        nonce = secrets.token_hex(16)
        host = f"[{address}]" if address.version == 6 else str(address)
        url = f"http://{host}:{self._port}{meshline.PATH}"
        async with session.get(url, headers=meshline.request_headers(key, nonce)) as answer:
            if answer.status != 200:
                raise OSError(
                    f"answers with HTTP status {answer.status}: is the mesh key the same?"
                )
            while data := await answer.content.readline():
                line = meshline.decode(data, key, nonce)
                if line.gateway != name:
                    raise meshline.BadLine("gateway")
                self.lines["ok"] += 1
                if self.troubles.pop(name, None) is not None:
                    log.info("gateway %s is heard again", name)
                self._on_line(said(line))


def said(line: meshline.Line) -> Says:
    """A line in the terms of the picture."""
    owned = line.owned
    return Says(
        line.gateway,
        line.incarnation,
        line.seq,
        line.draining,
        line.gives_up,
        None if owned is None else {peer: networks(each) for peer, each in owned.items()},
        line.ages,
        line.use,
    )
