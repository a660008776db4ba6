"""Our side of the handshake benchmarks: one process with many peers, driven over standard input.

It is the gateway without its folder of manifests: the engine, the IKE sockets, the pump between
them and the userspace data plane with its packet processes. Statuses, metrics and logs are left
out, as charon's log is.

    {"do": "initiate", "count": 100, "parallel": 8}   -->   {"seconds": 0.07}
    {"do": "tunnel", "count": 20}                     -->   {"times": [0.001, ...]}

Started with one argument, a JSON object: ``side``, ``peers``, ``child``, ``addresses``.
It says ``{"ready": true}`` and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any, Final

from ipsec_gateway import collector
from ipsec_gateway.ipsec.userspace import UserspaceBackend
from ipsec_gateway.pump import Pump
from ipsec_gateway.udp import IkeSockets
from ipsec_ike.config import Limits
from ipsec_ike.engine import Engine
from ipsec_ike.events import ChildSaUp, Event, IkeSaDown, IkeSaUp
from ipsec_lab.bench_peers import initiators, responder

#: Seconds for everything that one order asks for.
_TIMEOUT: Final = 60.0
#: As charon has it in this bench (dos_protection = no): no cookies, whoever comes how often.
_LIMITS: Final = Limits(cookie_threshold=1024, half_open_per_address=1024)


class BenchFailed(Exception):
    """A tunnel did not come up or go down; the message says which and why."""


class Daemon:
    """The gateway's parts, put together for peers that only commands bring up."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup: Final = setup
        #: The event that completes an initiation.
        self._up: Final = ChildSaUp if setup["child"] else IkeSaUp
        self._loop: Final = asyncio.get_running_loop()
        self._waiting: Final[dict[str, tuple[type[Event], asyncio.Future[float]]]] = {}
        self._next = 0
        self._pump: Final = Pump(Engine(rng=os.urandom, limits=_LIMITS), self._on_event, self._loop)

    async def run(self) -> None:
        """Until standard input ends."""
        setup = self._setup
        self._loop.set_exception_handler(lambda _, context: sys.exit(str(context)))
        sockets = IkeSockets(self._pump.receive, self._pump.esp, self._pump.pump)
        sockets.open()
        backend = UserspaceBackend(esp_sockets=[pair.esp for pair in sockets.pairs])
        await backend.start()
        self._pump.sockets, self._pump.backend = sockets, backend
        sockets.attach(self._loop)
        listener = asyncio.create_task(self._listen(backend))
        addresses, child = setup["addresses"], setup["child"]
        if setup["side"] == "a":
            configured = initiators(setup["peers"], addresses, child=child)
        else:
            configured = responder(addresses, child=child)
        self._pump.tell(lambda engine, now: engine.configure(configured, now))
        collector.settle()
        try:
            await self._obey()
        finally:
            listener.cancel()
            self._pump.close()
            await backend.close(remove=True)
            sockets.close(self._loop)

    async def _obey(self) -> None:
        reader = asyncio.StreamReader()
        await self._loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        _say(ready=True)
        while line := await reader.readline():
            # What drives the daemon runs in its process, so it has to cost little: one timeout.
            try:
                async with asyncio.timeout(_TIMEOUT):
                    await self._do(json.loads(line))
            except TimeoutError as exc:
                missing = ", ".join(self._waiting)
                raise BenchFailed(f"not within {_TIMEOUT:g} s: {missing}") from exc

    async def _do(self, order: dict[str, Any]) -> None:
        if order["do"] == "initiate":
            _say(seconds=await self._initiate(order["count"], order["parallel"]))
        else:
            _say(times=[await self._one_tunnel() for _ in range(order["count"])])

    async def _initiate(self, count: int, parallel: int) -> float:
        left = iter(range(self._next, self._next + count))
        self._next += count

        async def one_after_the_other() -> None:
            for number in left:
                await self._reach(f"peer-{number}", "initiate", self._up)

        start = time.perf_counter()
        await asyncio.gather(*(one_after_the_other() for _ in range(parallel)))
        return time.perf_counter() - start

    async def _one_tunnel(self) -> float:
        start = time.perf_counter()
        done = await self._reach("peer-0", "initiate", self._up)
        await self._reach("peer-0", "terminate", IkeSaDown)
        # The order to terminate has ended for charon when the peer has answered: for us, too.
        while self._pump.engine.snapshot():  # noqa: ASYNC110  # the engine has no event for it
            await asyncio.sleep(0.001)
        await self._pump.settled()
        return done - start

    async def _reach(self, peer: str, command: str, event: type[Event]) -> float:
        """Give a command and wait for an event of the peer; the time of the event."""
        future: asyncio.Future[float] = self._loop.create_future()
        self._waiting[peer] = (event, future)
        self._pump.tell(lambda engine, now: getattr(engine, command)(peer, now))
        return await future

    def _on_event(self, event: Event) -> None:
        wanted, future = self._waiting.get(event.peer, (None, None))
        if wanted is not None and future is not None and isinstance(event, wanted):
            del self._waiting[event.peer]
            future.set_result(time.perf_counter())

    async def _listen(self, backend: UserspaceBackend) -> None:
        async for event in backend.events():
            self._pump.report(event)


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def main() -> None:
    """The process."""

    async def run() -> None:
        await Daemon(json.loads(sys.argv[1])).run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
