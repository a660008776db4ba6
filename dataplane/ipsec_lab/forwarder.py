"""A TCP port here is one somewhere else: a way to the API server out of a network namespace.

The listening socket may live in any namespace (``Namespace.socket``); connections to the target are
made from the one that this process is in. What goes through is not looked at, so that TLS ends at
the target. ``cut`` is an outage.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import yaml

_CHUNK: Final = 1 << 16


class Forwarder:
    """Forwards from ``listener``, which has to be bound, until ``close``. A context manager."""

    def __init__(self, listener: socket.socket, target: tuple[str, int]) -> None:
        self._listener: Final = listener
        self._target: Final = target
        self._loop: Final = asyncio.new_event_loop()
        self._open: Final[set[asyncio.StreamWriter]] = set()
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._away = False
        #: Connections that were let through so far.
        self.connections = 0
        listener.listen(64)
        listener.setblocking(False)
        self._thread: Final = threading.Thread(target=self._run, name="forwarder", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.getsockname()[1])

    def cut(self) -> None:
        """Break all connections and every new one."""
        self._away = True
        self.drop()

    def mend(self) -> None:
        """The outage is over."""
        self._away = False

    def drop(self) -> None:
        """Break all connections; new ones are let through."""
        asyncio.run_coroutine_threadsafe(self._drop(), self._loop).result(10)

    def close(self) -> None:
        """End it."""
        if self._thread.is_alive():
            self.cut()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._listener.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        accepting = self._loop.create_task(self._accept())
        try:
            self._loop.run_forever()
        finally:
            tasks = (accepting, *self._tasks)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            # Transports that were aborted close their sockets in the next turn.
            self._loop.run_until_complete(asyncio.sleep(0.01))
            self._loop.close()

    async def _accept(self) -> None:
        while True:
            inside, _ = await self._loop.sock_accept(self._listener)
            task = self._loop.create_task(self._carry(inside))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, inside: socket.socket) -> None:
        if self._away:
            inside.close()
            return
        ends: list[asyncio.StreamWriter] = []
        try:
            reader, writer = await asyncio.open_connection(sock=inside)
            ends.append(writer)
            other_reader, other = await asyncio.open_connection(*self._target)
            ends.append(other)
            self._open.update(ends)
            self.connections += 1
            await asyncio.gather(_pour(reader, other), _pour(other_reader, writer))
        except OSError:
            # One end broke: so does the other one.
            return
        finally:
            for end in ends:
                self._open.discard(end)
                end.transport.abort()

    async def _drop(self) -> None:
        for end in tuple(self._open):
            end.transport.abort()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


def server_of(kubeconfig: Path) -> tuple[str, int]:
    """Host and port of the API server that a kubeconfig's current context names."""
    raw: dict[str, Any] = yaml.safe_load(kubeconfig.read_text())
    context = next(c["context"] for c in raw["contexts"] if c["name"] == raw["current-context"])
    cluster = next(c["cluster"] for c in raw["clusters"] if c["name"] == context["cluster"])
    parts = urlsplit(cluster["server"])
    return str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
