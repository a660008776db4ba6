"""Between the engine and the world: inputs in, actions out, in the engine's order.

The engine is called synchronously, from socket callbacks and one timer; what it wants done goes
through one queue. Datagrams and events are done at once. What the data plane does may have to wait
for a packet process; then the queue stands still until it is done, since the order of actions is
the contract (an inbound SA must be there before the message that lets the peer use it).
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ipsec_gateway.ipsec.base import DataplaneError, IkeFromDataplane, IpsecBackend, SaCounters
from ipsec_gateway.udp import IkeSockets
from ipsec_ike.actions import AddSa, DeleteSa, SaSpec, SendDatagram, UpdateSa
from ipsec_ike.config import template_of
from ipsec_ike.events import Event
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import (
    Acquire,
    Datagram,
    Endpoint,
    Expire,
    Mapping,
    SaFailed,
    UnknownSpi,
)

if TYPE_CHECKING:
    from ipsec_ike.engine import Engine

log = logging.getLogger("ipsec_gateway")

#: With more SAs than this, counters are not read for each SA that goes.
_FEW: Final = 64


@dataclass(slots=True)
class Traffic:
    """Octets and packets in both directions."""

    rx_bytes: int = 0
    rx_packets: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    replayed: int = 0
    integrity_failures: int = 0

    def add(self, direction: Direction, counted: SaCounters) -> None:
        """Add what one SA has counted."""
        if direction is Direction.IN:
            self.rx_bytes += counted.bytes
            self.rx_packets += counted.packets
        else:
            self.tx_bytes += counted.bytes
            self.tx_packets += counted.packets
        self.replayed += counted.replayed
        self.integrity_failures += counted.integrity_failures

    def plus(self, other: Traffic) -> Traffic:
        """The sum of both."""
        return Traffic(
            self.rx_bytes + other.rx_bytes,
            self.rx_packets + other.rx_packets,
            self.tx_bytes + other.tx_bytes,
            self.tx_packets + other.tx_packets,
            self.replayed + other.replayed,
            self.integrity_failures + other.integrity_failures,
        )


class Pump:
    """Drives one engine. All methods belong to the thread of ``loop``.

    ``on_event`` gets each event in its place among the actions. ``sockets`` must have been made
    with ``receive``, ``esp`` and ``pump`` of this object; ``backend`` may come and go.
    """

    def __init__(
        self,
        engine: Engine,
        on_event: Callable[[Event], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.engine: Final = engine
        self.sockets: IkeSockets | None = None
        self.backend: IpsecBackend | None = None
        #: Called before the engine's actions are taken: a place to write down its records.
        self.keep: Callable[[], None] | None = None
        #: What has to be done before the inbound SA of a child is added. Raises DataplaneError.
        self.prepare: Callable[[SaSpec], Awaitable[None]] | None = None
        self._on_event: Final = on_event
        self._loop: Final = loop
        self._queue: Final[deque[Any]] = deque()
        self._waiting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle: Final = asyncio.Event()
        self._idle.set()
        self._sas: Final[dict[SaId, tuple[str, str]]] = {}
        self._past: Final[dict[tuple[str, str], Traffic]] = {}
        self._packets: dict[SaId, int] = {}

    # Inputs.

    def receive(self, datagram: Datagram) -> None:
        """An IKE message; ``pump`` follows after the burst."""
        self.engine.receive(datagram, self._loop.time())

    def esp(self, data: bytes, local: Endpoint, remote: Endpoint) -> None:
        """ESP that came in on an IKE socket."""
        if self.backend is not None:
            self.backend.deliver_esp(data, local, remote)

    def tell(self, command: Callable[[Engine, float], object]) -> None:
        """Give the engine a command, such as ``configure``, and do what follows from it."""
        command(self.engine, self._loop.time())
        self.pump()

    def report(self, event: object) -> None:
        """An event of the data plane."""
        now = self._loop.time()
        match event:
            case Acquire():
                self.engine.acquire(event, now)
            case Expire():
                self.engine.expire(event, now)
            case Mapping():
                self.engine.mapping(event, now)
            case SaFailed():
                log.error("data plane: SA %08x: %s", event.id.spi, event.reason)
                self.engine.sa_failed(event, now)
            case UnknownSpi():
                self.engine.unknown_spi(event, now)
            case IkeFromDataplane():
                if self.sockets is not None:
                    self.sockets.deliver(event.data, event.local, event.remote)
        self.pump()

    # Actions.

    def pump(self) -> None:
        """Do what the engine wants, as far as it can be done without waiting."""
        self._collect()
        if self._waiting is None:
            self._drain()
        self._arm()

    def _collect(self) -> None:
        """Take what the engine wants. What it follows from is written down first."""
        if self.keep is not None:
            self.keep()
        self._queue.extend(self.engine.take_actions())

    def order(self, actions: Iterable[DeleteSa]) -> None:
        """Put actions of our own behind the engine's; ``pump`` must follow if it is not running."""
        self._queue.extend(actions)

    def adopt(self, sas: Iterable[SaId]) -> None:
        """SAs that were not added here belong to children of the engine all the same."""
        owners = {
            (direction, spi): (sa.peer, child.name)
            for sa in self.engine.snapshot()
            for child in sa.children
            for direction, spi in ((Direction.IN, child.spi_in), (Direction.OUT, child.spi_out))
        }
        for sa_id in sas:
            owner = owners.get((sa_id.direction, sa_id.spi))
            if owner is not None:
                self._sas[sa_id] = owner

    async def settled(self) -> None:
        """Until every action so far is done."""
        await self._idle.wait()

    def _drain(self) -> None:
        queue = self._queue
        while queue:
            action = queue.popleft()
            if type(action) is SendDatagram:
                assert self.sockets is not None
                self.sockets.send(action)
            elif isinstance(action, Event):
                self._on_event(action)
            else:
                work = self._perform(action)
                try:
                    awaited = work.send(None)
                except StopIteration:
                    continue
                self._idle.clear()
                self._waiting = self._loop.create_task(self._finish(work, awaited))
                self._waiting.add_done_callback(_raise)
                return
        self._idle.set()

    async def _finish(self, work: Coroutine[Any, Any, None], awaited: object) -> None:
        """Wait for an action that could not be done at once, then go on."""
        await _resume(work, awaited)
        self._waiting = None
        self._collect()
        self._drain()
        self._arm()

    async def _perform(self, action: object) -> None:
        """Have the data plane do it; what it refuses goes back to the engine."""
        try:
            if self.backend is None:
                raise DataplaneError("the data plane is not running")
            match action:
                case AddSa(spec):
                    if self.prepare is not None and spec.id.direction is Direction.IN:
                        await self.prepare(spec)
                    await self.backend.add_sa(spec)
                    self._sas[spec.id] = (spec.peer, spec.child)
                case UpdateSa():
                    await self.backend.update_sa(action)
                case DeleteSa(sa):
                    await self._account(sa)
                    await self.backend.delete_sa(sa)
                case _:
                    raise TypeError(f"no such action: {type(action).__name__}")
        except DataplaneError as exc:
            if isinstance(action, AddSa):
                failed = SaFailed(action.spec.id, str(exc))
                self.engine.sa_failed(failed, self._loop.time())
            if self.backend is not None:
                log.error("data plane: %s", exc)

    def _arm(self) -> None:
        """One timer for the engine's next deadline. One that fires early does no harm."""
        due = self.engine.next_timer()
        if due is None or (self._timer is not None and self._timer.when() <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.engine.on_timer(self._loop.time())
        self.pump()

    def close(self) -> None:
        """Stop the timer and what is being waited for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting is not None:
            self._waiting.cancel()

    # Counters.

    async def poll(self) -> None:
        """Tell the engine which inbound SAs have seen traffic: that is a sign of life."""
        if self.backend is None:
            return
        counters = await self.backend.counters()
        now = self._loop.time()
        packets = {s: c.packets for s, c in counters.items() if s.direction is Direction.IN}
        for sa, count in packets.items():
            if count != self._packets.get(sa, 0):
                self.engine.inbound_seen(sa.spi, now)
        self._packets = packets

    async def traffic(self) -> dict[tuple[str, str], Traffic]:
        """Totals by (peer, child) since the start, over all SAs that there were."""
        totals = dict(self._past)
        if self.backend is not None:
            live: dict[tuple[str, str], Traffic] = {}
            for sa, counted in (await self.backend.counters()).items():
                owner = self._owner(sa)
                if owner is not None:
                    live.setdefault(owner, Traffic()).add(sa.direction, counted)
            for owner, each in live.items():
                totals[owner] = totals.get(owner, Traffic()).plus(each)
        return totals

    def forget(self, peers: set[str]) -> None:
        """Drop the totals of peers that are gone."""
        for owner in [o for o in self._past if o[0] not in peers]:
            del self._past[owner]

    def dropped(self) -> None:
        """The data plane is gone and its SAs with it."""
        self._sas.clear()

    def _owner(self, sa: SaId) -> tuple[str, str] | None:
        found = self._sas.get(sa)
        if found is None:  # it has moved to another address
            found = next(
                (o for s, o in self._sas.items() if (s.direction, s.spi) == (sa.direction, sa.spi)),
                None,
            )
        return found

    async def _account(self, sa: SaId) -> None:
        """Keep what an SA has counted before it goes."""
        owner = self._owner(sa)
        assert self.backend is not None
        if owner is not None and len(self._sas) <= _FEW:
            counted = (await self.backend.counters()).get(sa)
            if counted is not None:
                # What is made from a template counts for it: the names of the children come and go.
                owner = owner[0], template_of(owner[1])
                self._past.setdefault(owner, Traffic()).add(sa.direction, counted)
        for known in [s for s in self._sas if (s.direction, s.spi) == (sa.direction, sa.spi)]:
            del self._sas[known]


@types.coroutine
def _resume(work: Coroutine[Any, Any, None], awaited: object) -> Generator[object, Any, None]:
    """Go on with a coroutine that was started by hand and waits for ``awaited``."""
    while True:
        try:
            sent = yield awaited
        except BaseException as exc:  # handed into the coroutine, as await does
            advance = partial(work.throw, exc)
        else:
            advance = partial(work.send, sent)
        try:
            awaited = advance()
        except StopIteration:
            return


def _raise(task: asyncio.Task[None]) -> None:
    """An exception in the pump is the end: the loop's exception handler gets it."""
    if not task.cancelled() and (exc := task.exception()) is not None:
        raise exc
