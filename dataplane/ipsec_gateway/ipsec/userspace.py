"""ESP without the kernel's help: a TUN device and two packet processes behind IpsecBackend.

The gateway's event loop never touches a packet; it opens what needs privileges, hands it to the
processes and tells them what the engine decides::

    packets in clear --> TUN --> [ out: encrypt ] --> UDP 4500 or IP protocol 50 -->
    packets in clear <-- TUN <-- [ in: decrypt  ] <-- UDP 4500 or IP protocol 50 <--

Tunnel mode and ESP only. Lifetimes in seconds are the engine's; octets and packets are counted
here. SAs end with the gateway: there is no one else who could carry on.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final

from ipsec_gateway.ipsec import mtu as mtus
from ipsec_gateway.ipsec import tun
from ipsec_gateway.ipsec.base import (
    DataplaneError,
    DataplaneEvent,
    IkeFromDataplane,
    Inherited,
    PolicyDirection,
    PolicyId,
    PolicySpec,
    SaCounters,
    WorkerRestarted,
    moved,
)
from ipsec_gateway.ipsec.cipher import check_keys
from ipsec_gateway.ipsec.control import AddSa, Body, DeliverEsp, Message, PutPolicies, Refused
from ipsec_gateway.ipsec.drops import Drop
from ipsec_gateway.ipsec.natt import prepare
from ipsec_gateway.ipsec.outer import PathMtu, Senders, open_raw, outer_families
from ipsec_gateway.ipsec.shared import SLOTS, SharedState, Word
from ipsec_gateway.ipsec.supervisor import Supervisor
from ipsec_ike.actions import SaSpec, UpdateSa
from ipsec_ike.config import Mode
from ipsec_ike.errors import LocalMisuse
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Endpoint, SaFailed
from ipsec_ike.numbers import Protocol

log = logging.getLogger(__name__)

#: Events that may wait for the gateway; later ones are dropped.
EVENTS: Final = 4096
#: Seconds between two looks at the path MTUs that the kernel has learned or forgotten.
MTU_INTERVAL: Final = 30.0
#: Seconds after which a change of many SAs is looked at as one.
MTU_DELAY: Final = 0.1


class UserspaceBackend:
    """IpsecBackend.

    ``device`` is the TUN device to create. ``esp_sockets`` are the ``esp`` sockets of
    ``natt.open_natt_pair``, one per family and port; they stay the caller's. ``raw`` also opens
    sockets for IP protocol 50. ``fixed_mtu`` is the TUN device's MTU; None derives it from the
    paths to the peers and the overhead of their SAs, at least 1280.
    """

    name: str = "userspace"
    persistent: bool = False

    def __init__(
        self,
        *,
        device: str = "ipsec0",
        esp_sockets: Sequence[socket.socket] = (),
        raw: bool = True,
        fixed_mtu: int | None = None,
    ) -> None:
        self.device: str | None = device
        self._device: Final = device
        self._natt: Final = tuple(esp_sockets)
        self._want_raw: Final = raw
        self._fixed_mtu: Final = fixed_mtu
        #: MTU of the device now, in octets.
        self.mtu = fixed_mtu or mtus.INITIAL
        self._sas: Final[dict[SaId, SaSpec]] = {}
        self._slots: Final[dict[SaId, int]] = {}
        self._free: Final[list[int]] = []
        self._used_slots = 0
        self._policies: Final[dict[PolicyId, PolicySpec]] = {}
        self._queue: Final[asyncio.Queue[DataplaneEvent | IkeFromDataplane | None]] = (
            asyncio.Queue()
        )
        self._state: SharedState | None = None
        self._tun: int | None = None
        self._raw: list[socket.socket] = []
        self._senders = Senders(())
        self._workers: dict[Direction, Supervisor] = {}
        self._mtu_task: asyncio.Task[None] | None = None
        self._adapting: asyncio.TimerHandle | None = None
        #: Whether ``mtu`` is what a live SA needs, and not only where we began.
        self._bounded = False
        #: Path MTUs by source and destination, until the next look at all of them.
        self._known_paths: dict[tuple[str, str], int] = {}

    async def start(self) -> None:
        """Create device, sockets and processes. Raises DataplaneError; nothing stays then."""
        try:
            self._tun = tun.open_tun(self._device)
            tun.bring_up(self._device, self.mtu)
            if self._want_raw:
                for family in outer_families():
                    self._raw.append(open_raw(family))
                    prepare(self._raw[-1])
            self._state = SharedState.create()
            self._senders = Senders((*self._natt, *self._raw))
            sockets = [sock.fileno() for sock in (*self._natt, *self._raw)]
            for direction in (Direction.OUT, Direction.IN):
                self._workers[direction] = Supervisor(
                    direction.value,
                    (self._tun, self._state.fd),
                    sockets,
                    snapshot=lambda direction=direction: self._snapshot(direction),  # type: ignore[misc]  # mypy cannot type the default
                    on_event=self._on_event,
                    on_restart=self._on_restart,
                )
            starts = (worker.start() for worker in self._workers.values())
            for result in await asyncio.gather(*starts, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
        except BaseException:
            await self.close(remove=True)
            raise
        self._mtu_task = asyncio.create_task(self._follow_mtu())

    async def inherit(self) -> Inherited:
        """Nothing: SAs and policies ended with the processes that held them."""
        return Inherited()

    async def close(self, *, remove: bool) -> None:
        """End processes, device and sockets. ``remove`` makes no difference here: what the
        processes held ends with them."""
        if self._mtu_task is not None:
            self._mtu_task.cancel()
            await asyncio.gather(self._mtu_task, return_exceptions=True)
            self._mtu_task = None
        if self._adapting is not None:
            self._adapting.cancel()
            self._adapting = None
        await asyncio.gather(*(worker.close() for worker in self._workers.values()))
        self._workers.clear()
        for sock in self._raw:
            sock.close()
        self._raw.clear()
        if self._tun is not None:
            os.close(self._tun)
            self._tun = None
        if self._state is not None:
            self._state.close()
            self._state = None
        self._sas.clear()
        self._slots.clear()
        self._free.clear()
        self._used_slots = 0
        self._policies.clear()
        self._queue.put_nowait(None)

    async def add_sa(self, spec: SaSpec) -> None:
        """Install one SA: its process is told, and knows it before it sees any later packet.

        Raises DataplaneError with the SA's peer, child and SPI.
        """
        sa = spec.id
        try:
            self._check(spec)
            worker = self._worker(sa)
            slot = self._take_slot()
        except (DataplaneError, LocalMisuse) as exc:
            what = f"SA {sa.spi:08x} ({sa.direction.value}) of {spec.peer}/{spec.child}"
            raise DataplaneError(f"{what}: {exc}") from exc
        self._sas[sa] = spec
        self._slots[sa] = slot
        worker.tell(AddSa(spec, slot))
        self._narrow_mtu(spec)

    def _check(self, spec: SaSpec) -> None:
        """Everything that a packet process could refuse."""
        if spec.mode is not Mode.TUNNEL:
            raise DataplaneError("the userspace data plane has tunnel mode only")
        if spec.id.protocol != Protocol.ESP:
            raise DataplaneError("the userspace data plane has ESP only")
        if spec.id in self._sas:
            raise DataplaneError("exists already")
        check_keys(spec)
        # What arrives may come from any port: behind a NAT, from none that we have ourselves.
        if spec.id.direction is Direction.OUT:
            self._senders.find(spec.source, spec.destination, encap=spec.encap)

    async def update_sa(self, update: UpdateSa) -> None:
        """Move an SA; it keeps its id. Raises DataplaneError if there is none."""
        known = self._find(update.id)
        if known is None:
            raise DataplaneError(f"SA {update.id.spi:08x}: no such SA to update")
        self._sas[known] = moved(self._sas[known], update)
        await self._worker(known).request(
            UpdateSa(known, update.source, update.destination, update.encap)
        )
        self._adapt_soon()

    async def delete_sa(self, sa: SaId) -> None:
        """Remove an SA; no error if it is gone already.

        Its process has done so on return: what tells the peer that an outbound SA is not used any
        more must not leave before that is true.
        """
        known = self._find(sa)
        if known is None:
            return
        del self._sas[known]
        await self._worker(known).request(known)
        slot = self._slots.pop(known, None)
        if slot is not None:
            heapq.heappush(self._free, slot)
        self._adapt_soon()

    async def put_policies(self, put: Sequence[PolicySpec], delete: Sequence[PolicyId]) -> None:
        """Apply a difference of the SPD; the puts take effect before the deletes.

        Only the outbound ones are looked at: inbound packets are checked against the negotiated
        selectors of the SA that brought them, and clear text never passes through here.
        """
        put = [p for p in put if p.id.direction is PolicyDirection.OUT]
        delete = [p for p in delete if p.direction is PolicyDirection.OUT]
        kept = {policy.id for policy in put}
        for policy in put:
            self._policies[policy.id] = policy
        for policy_id in delete:
            if policy_id not in kept:
                self._policies.pop(policy_id, None)
        if put or delete:
            worker = self._workers[Direction.OUT]
            await worker.request(PutPolicies(tuple(put), tuple(delete)))

    async def counters(self) -> Mapping[SaId, SaCounters]:
        """Totals of all SAs, read from shared memory: the processes do not notice."""
        assert self._state is not None
        now = time.monotonic_ns()
        words = self._state.words
        found = {}
        for sa, slot in self._slots.items():
            base = self._state.base(slot)
            seen = words[base + Word.LAST_SEEN]
            found[sa] = SaCounters(
                bytes=words[base + Word.BYTES],
                packets=words[base + Word.PACKETS],
                replayed=words[base + Word.REPLAYED],
                integrity_failures=words[base + Word.INTEGRITY],
                idle=max(0.0, (now - seen) / 1e9) if seen else None,
            )
        return found

    def drops(self) -> dict[str, int]:
        """Packets dropped since the start, by reason (``Drop`` in lower case)."""
        if self._state is None:
            return {}
        counted = self._state.drops()
        return {reason.name.lower(): counted[reason] for reason in Drop}

    def deliver_esp(self, data: bytes, local: Endpoint, remote: Endpoint) -> None:
        """ESP that arrived on an IKE socket; dropped while the process is being replaced."""
        worker = self._workers.get(Direction.IN)
        if worker is not None:
            worker.post(DeliverEsp(data, remote))

    async def events(self) -> AsyncIterator[DataplaneEvent | IkeFromDataplane]:
        """What the processes report, until ``close``."""
        while (event := await self._queue.get()) is not None:
            yield event

    def pids(self) -> dict[Direction, int | None]:
        """The packet processes."""
        return {direction: worker.pid for direction, worker in self._workers.items()}

    # Bookkeeping.

    def _worker(self, sa: SaId) -> Supervisor:
        worker = self._workers.get(sa.direction)
        if worker is None:
            raise DataplaneError(f"SA {sa.spi:08x}: the data plane is not running")
        return worker

    def _find(self, sa: SaId) -> SaId | None:
        """The id under which an SA was added; its destination may have moved since."""
        if sa in self._sas:
            return sa
        return next(
            (
                known
                for known, spec in self._sas.items()
                if (known.direction, known.protocol, known.spi)
                == (sa.direction, sa.protocol, sa.spi)
                and spec.destination.address == sa.destination
            ),
            None,
        )

    def _take_slot(self) -> int:
        assert self._state is not None
        if self._free:
            slot = heapq.heappop(self._free)
        elif self._used_slots < SLOTS:
            slot = self._used_slots
            self._used_slots += 1
        else:
            raise DataplaneError(f"more than {SLOTS} SAs")
        self._state.clear(slot)
        return slot

    def _snapshot(self, direction: Direction) -> Iterable[Body]:
        if direction is Direction.OUT:
            yield PutPolicies(tuple(self._policies.values()), ())
        for sa, spec in list(self._sas.items()):
            if sa.direction is direction:
                yield AddSa(spec, self._slots[sa])

    # Events.

    def _on_event(self, message: Message) -> None:
        if isinstance(message, PathMtu):
            log.info("path to %s carries %d octets", message.destination, message.mtu)
            self._adapt_soon()
        elif isinstance(message, Refused):
            self._refused(message)
        elif self._queue.qsize() < EVENTS:
            self._queue.put_nowait(message)  # type: ignore[arg-type]  # Reply and Request do not come here

    def _refused(self, refused: Refused) -> None:
        """``add_sa`` looks at everything that could be wrong, so this should not happen."""
        if self._sas.pop(refused.id, None) is not None:
            heapq.heappush(self._free, self._slots.pop(refused.id))
            self._queue.put_nowait(SaFailed(refused.id, refused.error))

    def _on_restart(self, reason: str) -> None:
        log.warning("%s and was replaced", reason)
        self._queue.put_nowait(WorkerRestarted(reason))

    # MTU.

    def _adapt_soon(self) -> None:
        """``_adapt_mtu`` once for all that happens in the next moment."""
        if self._adapting is None and self._fixed_mtu is None:
            loop = asyncio.get_running_loop()
            self._adapting = loop.call_later(MTU_DELAY, self._adapt_mtu)

    def _narrow_mtu(self, spec: SaSpec) -> None:
        """A new SA: what it needs holds before its first packet."""
        if self._fixed_mtu is not None or spec.id.direction is not Direction.OUT:
            return
        path = self._path_mtu(spec)
        if path:
            room = max(mtus.MINIMUM, mtus.inner_mtu(path, spec))
            self._set_mtu(min(self.mtu, room) if self._bounded else room)
            self._bounded = True

    def _adapt_mtu(self) -> None:
        """Let the device's MTU follow the narrowest way of all live outbound SAs."""
        self._adapting = None
        self._known_paths.clear()
        narrowest = 0
        for sa, spec in self._sas.items():
            if sa.direction is not Direction.OUT:
                continue
            path = self._path_mtu(spec)
            if path:
                room = mtus.inner_mtu(path, spec)
                narrowest = min(narrowest or room, room)
        self._bounded = narrowest > 0
        if narrowest:
            self._set_mtu(max(mtus.MINIMUM, narrowest))

    def _path_mtu(self, spec: SaSpec) -> int:
        """What the kernel said of the path: asked for the first SA of many."""
        key = spec.source.address, spec.destination.address
        path = self._known_paths.get(key)
        if path is None:
            path = mtus.path_mtu(*key)
            if path:  # a route that is missing may come at any time
                self._known_paths[key] = path
        return path

    def _set_mtu(self, wanted: int) -> None:
        if wanted == self.mtu or self._tun is None:
            return
        try:
            tun.set_mtu(self._device, wanted)
        except OSError as exc:
            log.warning("MTU %d of %s: %s", wanted, self._device, exc)
            return
        self.mtu = wanted

    async def _follow_mtu(self) -> None:
        while True:
            await asyncio.sleep(MTU_INTERVAL)
            self._adapt_soon()
