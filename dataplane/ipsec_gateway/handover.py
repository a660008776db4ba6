"""From one life of the gateway to the next: what stays in the kernel, and who goes on with it.

Where the data plane outlives the process, the engine's records are kept with every turn of the loop
(``resumefile``), and the next life begins here:

1. The backend says what it has inherited. Policies count as put; what is the same is not touched.
2. The engine resumes from the records and says which SAs it goes on with.
3. The other SAs are orphans. Those whose traffic has an SA again, or whose policy nobody wants any
   more, go. The others stay while a new SA is negotiated, because they may still carry traffic:
   until it has been up for a moment, for ``PATIENCE`` seconds at most.

Without records all inherited SAs are orphans: the same path sets the tunnels up anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ipsec_api.documents import Documents
from ipsec_gateway import keepsake
from ipsec_gateway.ipsec.base import Inherited, PolicyId, PolicySpec
from ipsec_gateway.lastgood import InForce, LastGood
from ipsec_gateway.ports import PortConflict
from ipsec_gateway.pump import Pump
from ipsec_gateway.resumefile import InUse, ResumeFile
from ipsec_ike.actions import DeleteSa
from ipsec_ike.config import PeerConfig
from ipsec_ike.engine import Engine
from ipsec_ike.events import ChildSaRekeyed, ChildSaUp, Event
from ipsec_ike.identifiers import SaId
from ipsec_ike.inputs import InheritedSa

log = logging.getLogger("ipsec_gateway")

#: Where records are kept unless somebody says otherwise.
DEFAULT: Final = Path("/run/kube-ipsec")

#: Seconds for which orphans wait for a new SA of their reqid.
PATIENCE: Final = 60.0
#: Seconds for which they stay beside it, for packets that are on their way.
GRACE: Final = 5.0
#: Seconds after which a life that resumed has shown that it can live.
SETTLED: Final = 60.0


class Handover:
    """``directory`` None: nothing is kept, and nothing is left behind."""

    def __init__(self, directory: Path | None, pump: Pump, loop: asyncio.AbstractEventLoop) -> None:
        self._directory: Final = directory
        self._pump: Final = pump
        self._loop: Final = loop
        self._file: ResumeFile | None = None
        self._inherited: Mapping[SaId, InheritedSa] = {}
        self._fresh = True
        #: What is kept of them; None before the first.
        self._documents: bytes | None = None
        self._orphans: dict[SaId, int] = {}
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def wanted(self) -> bool:
        """Whether this gateway takes over from an earlier one and leaves things to a later one."""
        return self._directory is not None

    @property
    def first(self) -> bool:
        """Whether something of an earlier life may be waiting to be taken over or away."""
        return self.wanted and self._fresh

    def open(self) -> None:
        """Lock the directory and read it. Raises PortConflict if another gateway is at it."""
        if self._directory is None:
            return
        try:
            self._file = it = ResumeFile(self._directory, self._loop.time())
        except InUse as exc:
            raise PortConflict(str(exc)) from exc
        except OSError as exc:
            log.warning("a restart will set up all tunnels anew: %s", exc)
            return
        if it.refused:
            log.warning(
                "the state that an earlier gateway left in %s is not used (%s): all tunnels are set"
                " up anew",
                self._directory,
                it.refused,
            )
        self._pump.engine.keep_records()
        self._pump.keep = self._keep

    def _keep(self) -> None:
        """Before anything is done, write down what it follows from."""
        it = self._file
        if it is None:
            return
        try:
            it.write(self._pump.engine.records(), self._loop.time())
        except OSError as exc:
            log.warning("a restart will set up all tunnels anew: %s: %s", self._directory, exc)
            self.forget()

    async def take(self, memory: LastGood, files: Mapping[str, Documents]) -> InForce:
        """``memory.take``, begun with what was good in the life before, and kept for the next."""
        if not self.wanted:
            return await asyncio.to_thread(memory.take, files)
        if self._documents is None:
            it = self._file
            self._documents = kept = b"" if it is None or it.refused else it.read_documents()
            await asyncio.to_thread(lambda: memory.remember(keepsake.load(kept)))
        in_force = await asyncio.to_thread(memory.take, files)
        now = await asyncio.to_thread(lambda: keepsake.dump(memory.in_force()))
        if now != self._documents and (it := self._file) is not None:
            self._documents = now
            try:
                it.write_documents(now)
            except OSError as exc:
                log.warning("what is good now is not kept for a restart: %s: %s", it.directory, exc)
        return in_force

    def forget(self) -> None:
        """Nothing is left to go on from."""
        self._pump.keep = None
        self._pump.engine.drop_records()
        if self._file is not None:
            it, self._file = self._file, None
            it.remove()

    def close(self) -> None:
        """The records stay for the next life."""
        self._cancel()
        self._pump.keep = None
        if self._file is not None:
            it, self._file = self._file, None
            it.settled()
            it.close()

    def crashed(self) -> None:
        """Something broke, perhaps because of the records: whoever counts must see that."""
        self._cancel()
        self._pump.keep = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _cancel(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    # -- the beginning -----------------------------------------------------------------------------

    def inherit(
        self, inherited: Inherited, wanted: Iterable[PolicySpec]
    ) -> dict[PolicyId, PolicySpec]:
        """What the backend has; gives the policies, those that are wanted as they are wanted.

        The kernel knows no names, so a policy that differs in its name alone is the same.
        """
        self._inherited = dict(inherited.sas)
        policies = dict(inherited.policies)
        for spec in wanted:
            there = policies.get(spec.id)
            if there is not None and replace(spec, name=there.name) == there:
                policies[spec.id] = spec
        if not self._fresh:
            self._sort_out(frozenset(), ())
        return policies

    def configure(self, peers: Sequence[PeerConfig]) -> None:
        """``Engine.configure``; the first time it goes on from the records."""
        if not self._fresh:
            self._pump.tell(lambda engine, now: engine.configure(peers, now))
            return
        self._fresh = False
        self._pump.tell(lambda engine, now: self._resume(engine, peers, now))

    def _resume(self, engine: Engine, peers: Sequence[PeerConfig], now: float) -> None:
        it = self._file
        if it is None or not it.records:
            engine.configure(peers, now)
            self._sort_out(frozenset(), peers)
            return
        records, it.records = it.records, {}
        resumed = engine.resume(records, peers, self._inherited, it.generation, now)
        log.info(
            "going on after %.1f s: %d IKE SAs, %d children; %d records unusable, %d children"
            " without SAs in the kernel",
            it.age,
            resumed.ike_sas,
            resumed.children,
            resumed.unreadable,
            resumed.missing,
        )
        self._pump.adopt(resumed.sas)
        self._sort_out(resumed.sas, peers)
        self._later(SETTLED, it.settled)

    def _sort_out(self, known: frozenset[SaId], peers: Sequence[PeerConfig]) -> None:
        """Which of the inherited SAs go at once, and which wait."""
        carried = {
            child.reqid
            for sa in self._pump.engine.snapshot()
            for child in sa.children
            if child.outbound
        }
        expected = {child.reqid for peer in peers for child in peer.children} - carried
        orphans = {i: sa.reqid for i, sa in self._inherited.items() if i not in known}
        self._inherited = {}
        self._orphans = {i: reqid for i, reqid in orphans.items() if reqid in expected}
        gone = orphans.keys() - self._orphans.keys()
        self._pump.order(DeleteSa(sa) for sa in gone)
        if orphans:
            log.info(
                "of an earlier gateway %d SAs are removed, %d stay until there are new ones",
                len(gone),
                len(self._orphans),
            )
        if self._orphans:
            self._later(PATIENCE, lambda: self._remove(tuple(self._orphans)))

    def event(self, event: Event) -> None:
        """A child that is up ends the waiting of the orphans of its reqid."""
        if self._orphans and isinstance(event, ChildSaUp | ChildSaRekeyed):
            waiting = tuple(sa for sa, reqid in self._orphans.items() if reqid == event.reqid)
            if waiting:
                self._later(GRACE, lambda: self._remove(waiting))

    def _remove(self, sas: Iterable[SaId]) -> None:
        gone = [sa for sa in sas if self._orphans.pop(sa, None) is not None]
        self._pump.order(DeleteSa(sa) for sa in gone)
        self._pump.pump()

    def _later(self, seconds: float, what: Callable[[], object]) -> None:
        self._timers.append(self._loop.call_later(seconds, what))
