"""What the gateway tells of itself: statuses, as files and to the cluster, and its HTTP pages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol

from ipsec_gateway import xfrmstat
from ipsec_gateway.inplace import InPlace
from ipsec_gateway.lastgood import InForce, Key
from ipsec_gateway.metrics import Metrics, Scrape
from ipsec_gateway.options import Options
from ipsec_gateway.pump import Pump
from ipsec_gateway.status import StatusBoard
from ipsec_gateway.statusfiles import FileStatusSink
from ipsec_gateway.steering import Steering
from ipsec_gateway.tools import ToolError
from ipsec_gateway.udp import IkeSockets

log = logging.getLogger("ipsec_gateway")

#: Seconds for which changes of status are collected.
DEBOUNCE: Final = 0.1


class Companion(Protocol):
    """Who else wants to know: the cluster."""

    def publish(self, changes: Mapping[Key, dict[str, Any] | None], in_force: InForce) -> None:
        """Statuses that changed."""

    def probed(self, verdicts: Mapping[str, bool | None]) -> None:
        """Whether each tunnel carries traffic; None: nothing that counts was measured."""

    def view(self) -> dict[str, Any]:
        """For /status."""


class Reports:
    """Reads what the other parts of a gateway know, and changes nothing of it."""

    def __init__(
        self,
        options: Options,
        board: StatusBoard,
        metrics: Metrics,
        pump: Pump,
        sockets: IkeSockets,
        here: InPlace,
        steering: Steering | None,
        companion: Companion | None,
    ) -> None:
        self._options: Final = options
        self._board: Final = board
        self._metrics: Final = metrics
        self._sockets: Final = sockets
        self._here: Final = here
        self._pump: Final = pump
        self._steering: Final = steering
        self._companion: Final = companion
        self._sink: Final = FileStatusSink(options.state) if options.state else None
        #: Whether statuses of objects that went away while nobody looked are deleted.
        self._swept = False
        self.in_force: InForce | None = None
        #: Whether documents have been made so.
        self.ready = False
        #: Set where a status may have changed.
        self.changed: Final = asyncio.Event()

    def open(self) -> None:
        """Take up the statuses of an earlier life. Raises OSError."""
        if self._sink is not None:
            self._board.remember(self._sink.open())

    async def write_forever(self) -> None:
        """Write statuses as they change."""
        while True:
            await self.changed.wait()
            await asyncio.sleep(DEBOUNCE)
            self.changed.clear()
            await self.write()

    async def write(self) -> None:
        """Write the statuses that changed; a disk that is full changes nothing else."""
        # The kernel's back end has it.
        offloaded = getattr(self._pump.backend, "offloaded", None)
        self._board.offloaded(offloaded() if callable(offloaded) else None)
        changes = self._board.changes()
        if self._companion is not None and self.in_force is not None:
            self._companion.publish(changes, self.in_force)
        if self._sink is None:
            return
        try:
            await asyncio.to_thread(self._sink.write, changes)
            if self.ready and not self._swept:
                await asyncio.to_thread(self._sink.drop, set(self._board.all()))
                self._swept = True
        except OSError as exc:
            log.error("status files cannot be written: %s", exc)

    def missing(self) -> str:
        """What /readyz says is missing; empty when nothing is."""
        return "" if self.ready else "the first documents are not in force yet"

    async def scrape(self) -> bytes:
        """/metrics."""
        wanted = self._here.wanted()
        backend = self._pump.backend
        drops = getattr(backend, "drops", None)
        self._metrics.scrape = Scrape(
            gateway=self._options.name,
            peers=self._board.up(),
            configured=frozenset(p.name for p in wanted.peers),
            children=wanted.children,
            patterns=wanted.patterns,
            traffic=await self._pump.traffic(),
            guard=await self._guard_counters(),
            ike_counters=dict(self._pump.engine.counters),
            socket_counters=dict(self._sockets.counters),
            dataplane_drops=drops() if callable(drops) else {},
            xfrm=xfrmstat.read() if self._options.kernel else {},
        )
        return self._metrics.render()

    async def _guard_counters(self) -> dict[str, Any]:
        if self._steering is None or self._pump.backend is None:
            return {}
        try:
            return dict(await self._steering.counters())
        except ToolError:
            # The table is being replaced, or somebody took it away: the next look has them.
            return {}

    async def document(self) -> dict[str, Any]:
        """/status."""
        await self.write()
        return {
            "gateway": self._options.name,
            "dataplane": self._pump.backend.name if self._pump.backend else None,
            "sysctls": self._steering.sysctls.changed if self._steering else {},
            "objects": [
                {"kind": key.kind, "namespace": key.namespace, "name": key.name, "status": status}
                for key, status in sorted(self._board.all().items())
            ],
            **({"cluster": self._companion.view()} if self._companion else {}),
            "errors": [str(e) for e in self.in_force.errors] if self.in_force else [],
        }
