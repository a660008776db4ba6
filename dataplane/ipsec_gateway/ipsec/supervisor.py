"""Keeps one packet process running, and what it was told with it.

The process is a fresh interpreter: nothing of the gateway's memory, event loop or threads is in it.
It inherits descriptors by number and learns SAs and policies over the control socket. When it ends,
a new one is started and told everything again from what the gateway holds (``snapshot``), so a
request that was under way when the old one died is done when the new one is ready.

There are two sockets to it. Requests go over the control socket, which wakes it. New SAs go into
the other one, the shelf, which it looks into when a packet has no SA, before it works on a request,
and when it is told to, a moment after something was put there. So nothing that a packet needs is
ever missing, and a burst of a hundred handshakes does not wake it a hundred times.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.control import AddSa, Body, Decoder, Message, Ping, Reply, Request, encode

log = logging.getLogger(__name__)

#: Seconds for the interpreter and its libraries to load, on a busy machine.
START_TIMEOUT: Final = 60.0
#: Seconds after which a process that does not answer is replaced.
REPLY_TIMEOUT: Final = 15.0
#: Seconds between two looks whether it answers.
PING_INTERVAL: Final = 5.0
#: Seconds before a process that failed at once is started again: doubled each time.
_BACKOFF: Final = (0.05, 5.0)
#: Octets that may wait for a process before ``post`` drops.
_POST_LIMIT: Final = 4 << 20
#: Seconds after which a process is woken to take what is on its shelf.
_SHELF_TIME: Final = 0.02
#: Octets of the largest frame for the shelf.
_SHELF_FRAME: Final = 1 << 15


class _Gone(Exception):
    """The process ended."""


class _Process:
    """One incarnation."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        shelf: socket.socket,
        on_event: Callable[[Message], None],
    ) -> None:
        self._process: Final = process
        self._reader: Final = reader
        self._writer: Final = writer
        self._shelf: Final = shelf
        self._reminder: asyncio.TimerHandle | None = None
        self._on_event: Final = on_event
        self._numbers: Final = itertools.count(1)
        self._open: Final[dict[int, asyncio.Future[Reply]]] = {}
        self.ready: Final[asyncio.Future[Reply]] = asyncio.get_running_loop().create_future()
        self._open[0] = self.ready
        self._listener: Final = asyncio.create_task(self._listen())
        #: Set when another process has been told everything, or none will follow.
        self.replaced: Final = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def request(self, body: Body) -> None:
        """Raises _Gone or DataplaneError with the refusal.

        There is no time limit here: ``Supervisor`` ends a process that does not answer pings.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        try:
            if self._listener.done():
                raise _Gone
            self._writer.write(encode(Request(number, body)))
            reply = await answer
        finally:
            self._open.pop(number, None)
        if reply.error:
            raise DataplaneError(reply.error)

    def post(self, body: Body) -> bool:
        """Send without an answer; False if it is gone or too much waits already."""
        if self._writer.transport.get_write_buffer_size() > _POST_LIMIT:
            return False
        if self._listener.done():
            return False
        self._writer.write(encode(Request(0, body)))
        return True

    def tell(self, body: AddSa) -> bool:
        """Put a new SA on the shelf; False if the process is gone."""
        if self._listener.done():
            return False
        frame = encode(Request(0, body))
        try:
            if len(frame) > _SHELF_FRAME:
                raise BlockingIOError
            self._shelf.send(frame)
        except BlockingIOError:
            # Full. What goes over the control socket makes it take what is on the shelf first.
            self._writer.write(frame)
        except OSError:
            return False
        else:
            if self._reminder is None:
                loop = asyncio.get_running_loop()
                self._reminder = loop.call_later(_SHELF_TIME, self._remind)
        return True

    def _remind(self) -> None:
        self._reminder = None
        self.post(Ping())

    async def _listen(self) -> None:
        decoder = Decoder()
        try:
            while data := await self._reader.read(1 << 16):
                for message in decoder.feed(data):
                    if isinstance(message, Reply):
                        waiting = self._open.get(message.number)
                        if waiting is not None and not waiting.done():
                            waiting.set_result(message)
                    else:
                        self._on_event(message)
        except ConnectionError as exc:
            log.debug("control socket of packet process %d: %s", self.pid, exc)
        finally:
            for waiting in self._open.values():
                if not waiting.done():
                    waiting.set_exception(_Gone())

    async def ended(self) -> int:
        """Its exit status, when it has one."""
        return await self._process.wait()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
            self._process.kill()

    async def close(self) -> None:
        """Let it end by closing the control socket, or end it."""
        if self._reminder is not None:
            self._reminder.cancel()
        self._shelf.close()
        self._writer.close()
        try:
            await asyncio.wait_for(self._process.wait(), 5.0)
        except TimeoutError:
            self.kill()
            await self._process.wait()
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        if self.ready.done() and not self.ready.cancelled():
            self.ready.exception()  # seen: an unfinished start was reported by spawn


class Supervisor:
    """One direction (``out`` or ``in``). ``snapshot`` gives all that a new process must be told;
    ``on_event`` gets its events, ``on_restart`` why the last one ended."""

    def __init__(
        self,
        direction: str,
        descriptors: Sequence[int],
        sockets: Sequence[int],
        *,
        snapshot: Callable[[], Iterable[Body]],
        on_event: Callable[[Message], None],
        on_restart: Callable[[str], None],
    ) -> None:
        self.direction: Final = direction
        self._descriptors: Final = descriptors
        self._sockets: Final = sockets
        self._snapshot: Final = snapshot
        self._on_event: Final = on_event
        self._on_restart: Final = on_restart
        self._process: _Process | None = None
        #: What was told while there was no process; the next one hears it behind the snapshot.
        self._missed: list[AddSa] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the first process. Raises DataplaneError if it does not come up."""
        self._process = await self._spawn()
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._watch())]

    async def close(self) -> None:
        """End the process for good."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._process is not None:
            await self._process.close()
            self._process.replaced.set()
            self._process = None

    async def request(self, body: Body) -> None:
        """Have ``body`` done. Whatever it changes must be in ``snapshot`` already.

        Returns when it is done, by this process or the next one, to which it is said again: the
        snapshot may be older. Raises DataplaneError with the process's refusal.
        """
        process: _Process | None = self._running()
        while process is not None:
            try:
                await process.request(body)
            except _Gone:
                await process.replaced.wait()
                process = self._process
            else:
                return

    def tell(self, body: AddSa) -> None:
        """Have a new SA there for every packet that arrives from now on, without waiting for it.

        It must be in ``snapshot`` already. Raises DataplaneError after ``close``.
        """
        if not self._running().tell(body):
            self._missed.append(body)

    def _running(self) -> _Process:
        if self._process is None:
            raise DataplaneError(f"the {self.direction}bound packet process is closed")
        return self._process

    def post(self, body: Body) -> bool:
        """Send without waiting; False if it was dropped."""
        return self._process is not None and self._process.post(body)

    async def _keep(self) -> None:
        wait, longest = _BACKOFF
        loop = asyncio.get_running_loop()
        while True:
            process = self._process
            assert process is not None
            began = loop.time()
            status = await process.ended()
            await process.close()
            reason = f"the {self.direction}bound packet process {_cause(status)}"
            wait = _BACKOFF[0] if loop.time() - began > longest else min(wait * 2, longest)
            while True:
                await asyncio.sleep(wait)
                try:
                    self._process = await self._spawn()
                    break
                except DataplaneError as exc:
                    log.error("%s", exc)
                    wait = min(wait * 2, longest)
            for body in self._missed:
                self._process.tell(body)
            self._missed.clear()
            process.replaced.set()
            self._on_restart(reason)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PING_INTERVAL)
            process = self._process
            try:
                await asyncio.wait_for(self.request(Ping()), REPLY_TIMEOUT)
            except TimeoutError:
                if process is not None and process is self._process:
                    log.warning("the %sbound packet process does not answer", self.direction)
                    process.kill()

    async def _spawn(self) -> _Process:
        ours, theirs = socket.socketpair()
        shelf, their_shelf = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        shelf.setblocking(False)
        numbers = [theirs.fileno(), their_shelf.fileno(), *self._descriptors]
        arguments = [self.direction, *map(str, numbers), ",".join(map(str, self._sockets))]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "ipsec_gateway.ipsec.worker",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[*numbers, *self._sockets],
                start_new_session=True,
            )
        except OSError as exc:
            ours.close()
            shelf.close()
            raise DataplaneError(f"packet process cannot be started: {exc}") from exc
        finally:
            theirs.close()
            their_shelf.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        started = _Process(process, reader, writer, shelf, self._on_event)
        try:
            await asyncio.wait_for(asyncio.shield(started.ready), START_TIMEOUT)
            for body in self._snapshot():
                if not (isinstance(body, AddSa) and started.tell(body)):
                    await started.request(body)
            await started.request(Ping())
        except (_Gone, TimeoutError) as exc:
            started.kill()
            await started.close()
            raise DataplaneError(
                f"the {self.direction}bound packet process did not come up"
            ) from exc
        except BaseException:
            # Refused, or cancelled: the process must not stay behind.
            started.kill()
            await started.close()
            raise
        return started


def _cause(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
