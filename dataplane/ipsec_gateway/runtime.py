"""The gateway: from a source of documents to tunnels, and back to statuses.

One task follows the source, one makes the intent so, one listens to the data plane, one writes
statuses. The engine itself runs in callbacks (``pump``). Reconciling is level-triggered: whatever
woke it, the whole intent is computed and what differs is done, in this order:

    guard -> data plane -> routes -> policies -> engine -> (what is gone has said good-bye)
    -> policies, routes and guard that nobody wants any more

so that a protected packet never finds an open way. An error anywhere in the callbacks ends the
process: its supervisor starts a clean one, and the guard stays in the kernel meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from ipsec_gateway.board import Cause
from ipsec_gateway.classify import Address
from ipsec_gateway.dynamic import generated
from ipsec_gateway.facts import Facts
from ipsec_gateway.forward.findings import Blocked
from ipsec_gateway.forward.keeper import Forwarding
from ipsec_gateway.forward.watch import ForwardWatch
from ipsec_gateway.handover import Handover
from ipsec_gateway.http import HttpServer, Pages
from ipsec_gateway.inplace import InPlace
from ipsec_gateway.intent import Intent, intent
from ipsec_gateway.ipsec.base import (
    DataplaneError,
    IpsecBackend,
    PolicySpec,
    WorkerRestarted,
)
from ipsec_gateway.ipsec.mtu import INITIAL
from ipsec_gateway.lastgood import InForce, LastGood
from ipsec_gateway.links import Links
from ipsec_gateway.logs import log_event
from ipsec_gateway.metrics import Metrics
from ipsec_gateway.nodewatch import NodeWatch
from ipsec_gateway.options import Options
from ipsec_gateway.pathprobe.answering import ProbeResponder
from ipsec_gateway.pathprobe.prober import Prober, subjects
from ipsec_gateway.pathprobe.schedule import Health, Subject
from ipsec_gateway.ports import PortConflict
from ipsec_gateway.pump import Pump
from ipsec_gateway.reports import Companion, Reports
from ipsec_gateway.resolve import Resolver
from ipsec_gateway.sizes import Sized, Sizes
from ipsec_gateway.sources.directory import Files
from ipsec_gateway.status import StatusBoard
from ipsec_gateway.steering import Steering, device_mtu
from ipsec_gateway.survey import Survey
from ipsec_gateway.tools import ToolError
from ipsec_gateway.udp import IkeSockets
from ipsec_ike.engine import Engine
from ipsec_ike.events import ChildSaDown, ChildSaUp, Event, IkeSaDown, PeerMoved, Reason

log = logging.getLogger("ipsec_gateway")

#: Seconds that peers have to answer our deletes.
GOODBYE: Final = 3.0
#: Seconds between looks at names and at the ways to the peers.
UPKEEP: Final = 10.0
#: Seconds between looks at whether our routes, rules and the nftables table are still there.
CHECK: Final = 60.0
#: Seconds after a failed reconciliation.
RETRY: Final = 2.0
#: Seconds between looks at the SAs' counters.
POLL: Final = 2.0
#: Seconds for which arrivals of peers that come to us are collected.
GATHER: Final = 0.5


class Source(Protocol):
    """Where documents come from."""

    def snapshots(self) -> AsyncIterator[Files | InForce]:
        """Whole contents, at once and after every change; or what follows from them."""

    def refresh(self) -> None:
        """Look again now."""


class Gateway:
    """One gateway process. ``run`` is the whole of it."""

    def __init__(
        self,
        options: Options,
        source: Source,
        make_backend: Callable[[IkeSockets], IpsecBackend],
        companion: Companion | None = None,
    ) -> None:
        self._companion: Final = companion
        self._options: Final = options
        self._source: Final = source
        self._make_backend: Final = make_backend
        self._loop: Final = asyncio.get_running_loop()
        self.pump: Final = Pump(Engine(rng=os.urandom), self._on_event, self._loop)
        self._sockets: Final = IkeSockets(
            self.pump.receive,
            self.pump.esp,
            self.pump.pump,
            ports=options.ports,
            numbers=options.numbers,
        )
        self.board: Final = StatusBoard(_now)
        self.metrics: Final = Metrics(options.name)
        self._prober: Final = Prober(options.name, self._subjects, self._probed, self._loop)
        self.metrics.registry.register(self._prober)
        self._memory: Final = LastGood()
        self._resolver: Final = Resolver(self._wake_up, numbers=options.numbers)
        self._watch: Final = NodeWatch(
            self._moved, self._translated if options.lazy_tracking else None, self._loop
        )
        self._handover: Final = Handover(options.resume, self.pump, self._loop)
        self._goodbye = options.goodbye or options.resume is None
        steered = options.kernel or options.device is not None
        self._steering: Final = (
            Steering(options.device, numbers=options.numbers, lazy=options.lazy_tracking)
            if steered
            else None
        )
        self._forwarding: Final = (
            ForwardWatch(
                Forwarding(options.device, opens=options.open_forward, clock=self._loop.time),
                self._forwarded,
                self._on_done,
            )
            if steered
            else None
        )
        self._links: Final = Links(options.numbers, used=options.kernel)
        self._responder: Final = ProbeResponder(
            options.name,
            self._loop,
            enabled=options.probe_responder and steered,
            device=options.device,
        )
        self.metrics.registry.register(self._responder)
        self._survey: Final = Survey(
            options, self._resolver, self._links, self.pump, self._responder
        )
        self._sizes: Final = Sizes()
        self._sized = Sized({}, {})
        self._sizes_due = 0.0
        self._in_force: InForce | None = None
        self._intent: Intent | None = None
        #: What the intent was computed from.
        self._basis: tuple[InForce, Facts] | None = None
        #: What the kernel was last set up for, and when.
        self._done: tuple[Intent, tuple[Address, ...], int | None] | None = None
        #: How often something moved: what did while the rest was made so is not done.
        self._moves = 0
        self._checked = 0.0
        self._here: Final = InPlace(self.pump, self._steering, self._handover)
        self.pump.prepare = self._here.prepare
        self._reports: Final = Reports(
            options,
            self.board,
            self.metrics,
            self.pump,
            self._sockets,
            self._here,
            self._steering,
            companion,
        )
        self._backend_task: asyncio.Task[None] | None = None
        self._wake: Final = asyncio.Event()
        self._stop: Final = asyncio.Event()
        self._failure: BaseException | None = None
        self._arrivals: asyncio.TimerHandle | None = None
        self._told: set[str] = set()

    def stop(self, *, goodbye: bool = False) -> None:
        """End in good order (SIGTERM). ``goodbye``: leave nothing to a later gateway (SIGINT)."""
        self._goodbye |= goodbye
        self._stop.set()
        self._wake.set()

    def refresh(self) -> None:
        """Read and look up everything again (SIGHUP)."""
        self._source.refresh()
        self._resolver.hurry()
        self._wake_up()

    async def run(self) -> None:
        """Until ``stop``. Raises PortConflict or OSError where it cannot start, and whatever broke
        it later."""
        self._loop.set_exception_handler(self._on_exception)
        self._reports.open()
        self._sockets.open()
        self.pump.sockets = self._sockets
        server = HttpServer(
            Pages(self._reports.missing, self._reports.scrape, self._reports.document)
        )
        tasks: list[asyncio.Task[None]] = []
        try:
            if self._options.listen is not None:
                await _serve(server, *self._options.listen)
            self._handover.open()
            self._sockets.attach(self._loop)
            self._watch.open()
            log.info("IKE on UDP ports %s", " and ".join(map(str, self._sockets.ports)))
            work = (
                self._reconcile_forever(),
                self._follow(),
                self._poll(),
                self._reports.write_forever(),
            )
            tasks = [asyncio.create_task(each) for each in work]
            if self._steering is not None:
                tasks.append(asyncio.create_task(self._prober.run()))
            for task in tasks:
                task.add_done_callback(self._on_done)
            await self._stop.wait()
            # What it is doing it does to the end: half of it would be hard to take away.
            await asyncio.gather(tasks[0], return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._forwarding is not None:
                await self._forwarding.settled()
            if self._failure is None and tasks:
                await self._leave()
            else:
                self._handover.crashed()
                if self.pump.backend is not None:
                    await self.pump.backend.close(remove=False)
            self._watch.close()
            self._responder.close()
            await self._resolver.close()
            self.pump.close()
            self._sockets.close(self._loop)
            await server.close()
        if self._failure is not None:
            raise self._failure

    # Following.

    async def _follow(self) -> None:
        """Take what the source gives."""
        async for files in self._source.snapshots():
            if isinstance(files, InForce):
                in_force = files
            else:
                in_force = await self._handover.take(self._memory, files.files)
            self._tell(in_force)
            self._in_force = self._reports.in_force = in_force
            self._wake_up()

    def _tell(self, in_force: InForce) -> None:
        """Log what is wrong with the documents, once for each fault."""
        told = set()
        for level, each in (
            *((logging.ERROR, e) for e in in_force.errors),
            *((logging.ERROR, r) for r in in_force.rejections),
            *((logging.WARNING, a) for a in in_force.advice),
            *((logging.WARNING, w) for w in in_force.warnings),
        ):
            text = str(each)
            told.add(text)
            if text not in self._told:
                log.log(level, "%s", text)
        self._told = told

    def _wake_up(self) -> None:
        self._wake.set()

    def _arrived(self) -> None:
        """Peers have come to us: the ways to them are known now."""
        self._arrivals = None
        self._wake_up()

    def _moved(self) -> None:
        """An address or the default route changed: routes of ours may have gone with it."""
        self._done = None
        self._moves += 1
        self._wake_up()

    def _translated(self) -> None:
        """Somebody may translate sources who did not before."""
        if self._steering is not None and self._steering.suspect():
            self._moved()

    async def _reconcile_forever(self) -> None:
        wait = UPKEEP
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait)
            self._wake.clear()
            if self._in_force is not None and not self._stop.is_set():
                done = await self._reconcile(self._in_force)
                if done:
                    self._look_at_others()
                wait = UPKEEP if done else RETRY
                if done and self._options.goodbye:
                    self.stop()

    async def _reconcile(self, in_force: InForce) -> bool:
        """Make it so. Returns whether all of it could be done."""
        started = self._loop.time()
        trouble: Cause | None = None
        try:
            facts = await self._survey.facts(in_force, started)
            wanted = self._intent
            if wanted is None or self._basis != (in_force, facts):
                wanted = await asyncio.to_thread(intent, in_force.tunnels, facts)
                if in_force is not self._in_force:
                    return True  # superseded, and woken up again
                self.board.configured(in_force, wanted)
                self._reports.changed.set()
                if wanted == self._intent:
                    wanted = self._intent
            if wanted.peers or wanted.policies or in_force.standby:
                await self._apply(wanted, facts.addresses)
            elif self._left():
                await self._withdraw()
            self._intent, self._basis = wanted, (in_force, facts)
            self._reports.ready = True
        except (ToolError, DataplaneError) as exc:
            trouble = Cause("DataplaneError", str(exc))
            log.error("cannot make it so: %s", exc)
            self._done = None
        self.board.programmed(trouble)
        self._reports.changed.set()
        self.metrics.reconciled(self._loop.time() - started, ok=trouble is None)
        return trouble is None

    def _left(self) -> bool:
        """Whether anything is to be taken away once there is nothing to do: also the data plane
        that was kept running for others' peers."""
        before = self._intent
        if before is None or self.pump.backend is not None:
            return True
        return bool(before.peers or before.policies)

    async def _apply(self, static: Intent, addresses: tuple[Address, ...]) -> None:
        steering, before, here = self._steering, self._intent, self._here
        moves = self._moves
        first = self._handover.first
        if first and self._options.kernel and self.pump.backend is None:
            # What an earlier gateway has left must be known before its guard is replaced.
            await self._start_backend(static.policies)
        wanted = here.begin(static)
        mtu = None
        if steering is not None:
            mtu = await self._inner_mtu()
            if self._loop.time() > self._checked + CHECK:
                self._done = None
                await steering.verify_guard()
            await self._guard(mtu)
            self._responder.serve()
            again = self._done is None
            await self._links.apply(wanted.interfaces, self._sized.reqids, again=again)
            if self._done == (wanted, addresses, mtu):
                return
        self._sockets.marks = wanted.outer
        backend = self.pump.backend or await self._start_backend(wanted.policies)
        if steering is not None:
            mtu = await self._inner_mtu()
            await self._guard(mtu)
            await here.route(addresses)
        await here.put(backend)
        gone = set()
        if before is None or first or wanted.peers != before.peers:
            self._handover.configure(wanted.peers)
            if before is not None:
                gone = {p.name for p in before.peers} - {p.name for p in wanted.peers}
        if gone:
            await self._until_gone(gone)
            self.pump.forget({p.name for p in wanted.peers})
        await here.drop(backend)
        if steering is not None:
            await steering.prune()
            await self._links.prune()
            await steering.settle(here.wanted())
            await here.end()
            self.board.translated(await steering.translators())
        if first:
            self._wake_up()
        self.board.generated(generated(self.pump.engine.snapshot()) if static.patterns else ())
        self._done = (wanted, addresses, mtu) if moves == self._moves else None
        self._checked = self._loop.time()

    def _look_at_others(self) -> None:
        """Find out whether others on this node let pass what tunnels carry."""
        if self._forwarding is None or self.pump.backend is None:
            return
        if self._intent is not None and self._basis is not None:
            # What peers get from templates is not asked for: it brings no peer and no interface.
            self._forwarding.look(self._intent, self._basis[1].addresses)

    def _forwarded(self, found: Mapping[str, Blocked]) -> None:
        if self.board.forwarded(found):
            self._reports.changed.set()

    async def _guard(self, mtu: int | None) -> None:
        """Put the nftables table in place."""
        await self._here.guard(mtu, {} if self._options.device else self._sized.clamps)

    async def _inner_mtu(self) -> int | None:
        """Octets of the largest inner packet, for subnets of which nothing better is known."""
        device = self._options.device
        return INITIAL if device is None else await device_mtu(device)

    def _measure(self) -> None:
        """Look at how large packets may be, after SAs came, and once in a while."""
        now = self._loop.time()
        if now < self._sizes_due:
            return
        self._sizes_due = now + CHECK
        routed = frozenset(r for i in (self._intent or Intent()).interfaces for r in i.reqids)
        sized = self._sizes.of(self.pump.engine.snapshot(), now, routed)
        if sized == self._sized:
            return
        self._sized = sized
        self.board.sized(sized.mtus)
        self._reports.changed.set()
        if self._options.kernel:
            self._wake_up()

    async def _until_gone(self, peers: set[str] | None) -> None:
        """Wait until the SAs of these peers (None: all) are deleted, for ``GOODBYE`` at most."""
        deadline = self._loop.time() + GOODBYE
        while self._loop.time() < deadline:
            left = {sa.peer for sa in self.pump.engine.snapshot()}
            if not (left if peers is None else left & peers):
                break
            await asyncio.sleep(0.02)
        await self.pump.settled()

    # The data plane comes and goes with the first and the last tunnel.

    async def _start_backend(self, wanted: Sequence[PolicySpec]) -> IpsecBackend:
        backend = self._make_backend(self._sockets)
        await backend.start()
        self._here.policies = self._handover.inherit(await backend.inherit(), wanted)
        self.pump.backend = backend
        self._backend_task = asyncio.create_task(self._listen(backend))
        self._backend_task.add_done_callback(self._on_done)
        log.info("data plane: %s", backend.name)
        return backend

    async def _listen(self, backend: IpsecBackend) -> None:
        async for event in backend.events():
            if isinstance(event, WorkerRestarted):
                self.metrics.restarted()
                log.warning("a packet process was replaced: %s", event.detail)
            else:
                self.pump.report(event)

    async def _withdraw(self) -> None:
        """Leave nothing behind: no SA, policy, route, rule, device, and then no guard."""
        if self._handover.first and self.pump.backend is None:
            await self._start_backend(())
        self._handover.configure(())
        await self._until_gone(None)
        await self._dismantle()

    async def _dismantle(self) -> None:
        self._responder.close()
        if self._forwarding is not None:
            await self._forwarding.close()
        if self._steering is not None:
            await self._steering.unroute()
        backend = self.pump.backend
        if backend is not None:
            self.pump.backend = None
            self.pump.dropped()
            await backend.close(remove=True)
            if self._backend_task is not None:
                await asyncio.gather(self._backend_task, return_exceptions=True)
        self._here.policies.clear()
        self._done = None
        await self._links.remove()
        if self._steering is not None:
            await self._steering.unguard()

    async def _leave(self) -> None:
        """The end: everything stays for the next gateway, or good-bye to all peers and everything
        taken away."""
        backend = self.pump.backend
        if not self._goodbye and self._handover.first:
            # Nothing has been taken over yet.
            self._handover.close()
            return
        if not self._goodbye and backend is not None and backend.persistent:
            log.info("stopping: SAs, policies and the guard stay for the next gateway")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.pump.settled(), GOODBYE)
            self._handover.close()
            await backend.close(remove=False)
            await self._reports.write()
            return
        log.info("stopping")
        try:
            if self._handover.first:
                await self._withdraw()
            self.pump.tell(lambda engine, now: engine.shutdown(now))
            await self._until_gone(None)
            await self._dismantle()
        except (ToolError, DataplaneError) as exc:
            log.error("not everything could be taken away: %s", exc)
            self._handover.crashed()
        else:
            self._handover.forget()
        await self._reports.write()

    # Reports.

    def _on_event(self, event: Event) -> None:
        log_event(event)
        self.board.event(event)
        self.metrics.event(event)
        self._handover.event(event)
        self._reports.changed.set()
        if isinstance(event, ChildSaUp | ChildSaDown | PeerMoved):
            self._sizes_due = 0.0
            template = "" if isinstance(event, PeerMoved) else event.template
            if self._here.has_use or template:
                self._wake_up()
            elif self._survey.has_passive and self._arrivals is None:
                # Crowds of them come after a restart, and each look is at all of them.
                self._arrivals = self._loop.call_later(GATHER, self._arrived)
        if isinstance(event, IkeSaDown) and event.reason in (Reason.TIMEOUT, Reason.PEER_DEAD):
            tunnels = self._in_force.tunnels if self._in_force else ()
            self._resolver.doubt(a for t in tunnels if t.key == event.peer for a in t.addresses)

    def _subjects(self) -> tuple[list[Subject], dict[str, str]]:
        """Whom to probe. A cluster has to know which gateway is able to, so unasked, too."""
        if self._in_force is None or self._basis is None:
            return [], {}
        return subjects(
            self._in_force.tunnels,
            self._basis[1].addresses,
            self.board.up(),
            self._sized.mtus,
            unasked=self._companion is not None,
        )

    def _probed(self, health: Mapping[str, Health]) -> None:
        self.board.probed(health)
        self._reports.changed.set()
        if self._companion is not None:
            self._companion.probed({peer: each.ok for peer, each in health.items()})

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL)
            await self.pump.poll()
            self._measure()
            self._watch.poll()

    # The watchdog.

    def _on_exception(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something broke where nobody could catch it: better no gateway than half of one."""
        exc = context.get("exception")
        failure = exc if isinstance(exc, Exception) else RuntimeError(str(context.get("message")))
        self.fail(failure)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            self.fail(exc)

    def fail(self, exc: BaseException) -> None:
        if self._failure is None:
            self._failure = exc
            log.critical("broken: %s: %s", type(exc).__name__, exc)
        self.stop()


async def _serve(server: HttpServer, host: str, port: int) -> None:
    try:
        await server.open(host, port)
    except OSError as exc:
        raise PortConflict(
            f"cannot serve /readyz and /metrics on {host}:{port} ({exc.strerror}): choose another "
            "address with --listen"
        ) from exc


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
