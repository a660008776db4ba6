"""ESP and AH of the kernel behind IpsecBackend.

The kernel's own tables carry everything: SAs are its states, entries of the SPD its policies. They
outlive the process: a gateway that starts again finds its own by the range of their reqids and
policy indexes (``inherit``), and touches no others.

Protected traffic never leaves in clear. Policies come before SAs and stay over rekeys; a packet
that finds a policy and no SA makes the kernel ask for one (ACQUIRE) and waits meanwhile, up to 100
packets for each policy (``net.core.xfrm_larval_drop`` is set to 0 for that, and back at the end).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ipsec_gateway.ipsec import linux
from ipsec_gateway.ipsec.base import (
    DataplaneError,
    DataplaneEvent,
    IkeFromDataplane,
    Inherited,
    PolicyId,
    PolicySpec,
    SaCounters,
)
from ipsec_gateway.ipsec.natt import NattPair
from ipsec_gateway.ipsec.xfrm_attributes import Encapsulation
from ipsec_gateway.ipsec.xfrm_causes import sa_cause
from ipsec_gateway.ipsec.xfrm_messages import (
    AcquireReport,
    ExpireReport,
    Installed,
    MappingReport,
    Report,
    Selector,
    State,
    StateKey,
    allocate_spi,
    delete_state,
    dump_states,
    get_state,
    raw_key,
    totals,
    word_of,
)
from ipsec_gateway.ipsec.xfrm_netlink import XfrmError, XfrmEvents, XfrmSocket
from ipsec_gateway.ipsec.xfrm_numbers import UDP_ENCAP, UDP_ENCAP_ESPINUDP, Attr
from ipsec_gateway.ipsec.xfrm_offload import Offloads
from ipsec_gateway.ipsec.xfrm_policy import (
    IP_PROTOCOL,
    Ends,
)
from ipsec_gateway.ipsec.xfrm_sa import Treatment, direction_of, repeat_state
from ipsec_gateway.ipsec.xfrm_spd import KernelSpd
from ipsec_gateway.marks import REQID_BASE
from ipsec_ike.actions import SaSpec, UpdateSa
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Acquire, Endpoint, Expire, InheritedSa
from ipsec_ike.inputs import Mapping as NatMapping
from ipsec_ike.numbers import Protocol
from ipsec_ike.selectors import TrafficSelector

log = logging.getLogger(__name__)

_LARVAL_DROP: Final = Path("/proc/sys/net/core/xfrm_larval_drop")
_PROTOCOL: Final = {number: protocol for protocol, number in IP_PROTOCOL.items()}


class XfrmBackend:
    """IpsecBackend. ``natt`` are the NAT traversal sockets, on which the kernel takes the ESP out
    before anybody reads them."""

    name: str = "xfrm"
    #: The kernel's SPD sees all packets; nothing has to be routed anywhere.
    device: str | None = None
    #: SAs and policies outlive the process.
    persistent: bool = True

    def __init__(
        self, *, natt: Sequence[NattPair] = (), treatment: Treatment | None = None
    ) -> None:
        self._natt: Final = tuple(natt)
        self._how: Final = treatment or Treatment()
        self._offloads: Final = Offloads()
        self._netlink: XfrmSocket | None = None
        self._tables: KernelSpd | None = None
        self._events: XfrmEvents | None = None
        self._queue: Final[asyncio.Queue[DataplaneEvent | IkeFromDataplane | None]] = (
            asyncio.Queue()
        )
        #: Our SAs as the kernel finds them now, by the id under which they were added.
        self._sas: Final[dict[SaId, StateKey]] = {}
        self._ids: Final[dict[bytes, SaId]] = {}
        #: Reqids of the outbound ones.
        self._out: Final[dict[SaId, int]] = {}
        self._larval_drop: str | None = None

    async def start(self) -> None:
        """Open the sockets and look at what is there. Raises DataplaneError; changes nothing
        of SAs and policies."""
        loop = asyncio.get_running_loop()
        try:
            self._netlink = XfrmSocket()
            self._tables = KernelSpd(self._netlink)
            # Before the first look, so that nothing falls between the two.
            self._events = XfrmEvents(self._report, self._resync, loop)
            found = self._look_around()
        except BaseException:
            await self.close(remove=False)
            raise
        self._encapsulate(UDP_ENCAP_ESPINUDP)
        self._keep_first_packets(inherited=found)

    async def close(self, *, remove: bool) -> None:
        """Close the sockets. ``remove`` also removes every SA and policy of ours, and nothing
        else; without it they go on carrying traffic."""
        try:
            if remove and self._netlink is not None:
                self._remove_all(self._netlink)
                self._encapsulate(0)
                if self._larval_drop is not None:
                    _write(_LARVAL_DROP, self._larval_drop)
                    self._larval_drop = None
        finally:
            if self._events is not None:
                self._events.close()
                self._events = None
            if self._netlink is not None:
                self._netlink.close()
                self._netlink = None
            self._tables = None
            self._sas.clear()
            self._ids.clear()
            self._out.clear()
            self._queue.put_nowait(None)

    async def inherit(self) -> Inherited:
        """What an earlier life left. It counts as ours from ``start`` on."""
        sas = {}
        for installed in self._dump_states():
            sa = self._id_of(installed.state)
            if sa is not None:
                self._offloads.inherit(sa, installed.state.reqid, installed.raw)
                state, encap = installed.state, installed.encapsulation
                ports = (0, 0)
                if encap is not None:
                    ports = encap.source_port, encap.destination_port
                sas[sa] = InheritedSa(
                    reqid=state.reqid,
                    source=Endpoint(state.source, ports[0]),
                    destination=Endpoint(state.destination, ports[1]),
                    encap=encap is not None,
                )
        return Inherited(sas, dict(self._spd.entries))

    # SAs.

    async def add_sa(self, spec: SaSpec) -> None:
        """Install one SA. Raises DataplaneError with the SA's peer, child, SPI and the cause."""
        what = f"SA {spec.id.spi:08x} ({spec.id.direction.value}) of {spec.peer}/{spec.child}"
        key = IP_PROTOCOL[Protocol(spec.id.protocol)], spec.id.spi, spec.destination.address
        try:
            self._offloads.install(self._kernel, spec, key, self._how)
        except XfrmError as exc:
            raise DataplaneError(f"{what}: {sa_cause(exc, spec)}") from exc
        except DataplaneError as exc:
            raise DataplaneError(f"{what}: {exc}") from exc
        self._know(spec.id, key, spec.reqid)
        if spec.id.direction is Direction.OUT:
            self._spd.lead(spec.reqid, (spec.source.address, spec.destination.address))

    async def update_sa(self, update: UpdateSa) -> None:
        """Move an SA; it keeps its id, keys, counters and replay window (see ``xfrm_sa``).

        Raises DataplaneError if there is none, or the kernel refuses; the SA stays as it was then.
        """
        sa = self._find(update.id)
        if sa is None:
            raise DataplaneError(f"SA {update.id.spi:08x}: no such SA to update")
        old = self._sas[sa]
        try:
            self._move(sa, old, update)
        except XfrmError as exc:
            raise DataplaneError(
                f"SA {sa.spi:08x} ({sa.direction.value}) cannot move to {update.destination}: {exc}"
            ) from exc

    def _move(self, sa: SaId, old: StateKey, update: UpdateSa) -> None:
        body = self._kernel.ask(get_state(old[1], old[0], old[2]))
        now = Installed.decode(body)
        source, destination = update.source, update.destination
        encap = Encapsulation(source.port, destination.port) if update.encap else None
        inward = sa.direction is Direction.IN
        # The kernel does not look at the source of inbound ESP.
        outer = now.state.source if inward else source.address
        same = (outer, destination.address) == (now.state.source, now.state.destination)
        if same and (encap is None) is (now.encapsulation is None):
            if encap != now.encapsulation:
                self._kernel.call(repeat_state(body, outer, old[2], encap, update=True))
            return
        copy = repeat_state(body, outer, destination.address, encap)
        delete = delete_state(old[1], old[0], old[2])
        new = old[0], old[1], destination.address
        if new == old:
            self._check(self._kernel.execute((delete, copy)))
        else:
            self._kernel.call(copy)
        self._know(sa, new, now.state.reqid)
        if not inward:
            self._spd.lead(now.state.reqid, (source.address, destination.address))
        if new != old:
            self._ids.pop(raw_key(old), None)
            self._check(self._kernel.execute((delete,)))

    @staticmethod
    def _check(results: Iterable[XfrmError | None]) -> None:
        for error in results:
            if error is not None and error.number != errno.ESRCH:
                raise error

    async def delete_sa(self, sa: SaId) -> None:
        """Remove an SA; no error if it is gone already."""
        known = self._find(sa)
        if known is None:
            return
        protocol, spi, destination = self._sas[known]
        self._forget(known)
        try:
            self._kernel.call(delete_state(spi, protocol, destination))
        except XfrmError as exc:
            if exc.number != errno.ESRCH:
                raise DataplaneError(f"SA {spi:08x} cannot be deleted: {exc}") from exc

    def offloaded(self) -> Mapping[tuple[int, Direction], str]:
        """The network device that computes the SAs of a reqid in one direction."""
        return self._offloads.taken()

    async def counters(self) -> Mapping[SaId, SaCounters]:
        """Totals of all SAs of ours, out of one dump."""
        now = time.time()
        found = {}
        for body in self._kernel.dump(dump_states()):
            counted = totals(body)
            sa = self._ids.get(counted.key)
            if sa is not None:
                found[sa] = SaCounters(
                    bytes=counted.octets,
                    packets=counted.packets,
                    replayed=counted.outside + counted.replayed,
                    integrity_failures=counted.failed,
                    idle=max(0.0, now - counted.used) if counted.used else None,
                )
        return found

    async def put_policies(self, put: Sequence[PolicySpec], delete: Sequence[PolicyId]) -> None:
        """Apply a difference of the SPD; the puts take effect before the deletes, and each in one
        step. Raises DataplaneError with what the kernel refused; the rest is applied."""
        self._spd.apply(put, delete)

    # Events.

    def deliver_esp(self, data: bytes, local: Endpoint, remote: Endpoint) -> None:
        """Nothing: the kernel takes ESP out of the sockets itself. What comes here came before it
        did, or is no ESP."""

    async def events(self) -> AsyncIterator[DataplaneEvent | IkeFromDataplane]:
        """What the kernel reports about our SAs, until ``close``."""
        while (event := await self._queue.get()) is not None:
            yield event

    def _report(self, report: Report) -> None:
        match report:
            case AcquireReport(selector, templates):
                reqid = next((t.reqid for t in templates if _ours(t.reqid)), 0)
                if reqid and not self._spd.passes_clear(reqid):
                    self._queue.put_nowait(_acquire(reqid, selector))
            case ExpireReport(state, hard):
                sa = self._id_of(state)
                if sa is not None:
                    if hard:
                        self._forget(sa)
                    self._queue.put_nowait(Expire(sa, hard))
            case MappingReport(spi, destination, _, source, port):
                if raw_key((IP_PROTOCOL[Protocol.ESP], spi, destination)) in self._ids:
                    self._queue.put_nowait(NatMapping(spi, Endpoint(source, port)))
            case _:
                # Our policies have no limits; other programs' are theirs.
                return

    def _resync(self) -> None:
        """Events were lost: find out what happened meanwhile."""
        log.warning("the kernel dropped events: looking at all SAs")
        alive = set()
        now = time.time()
        for installed in self._dump_states():
            state = installed.state
            if not state.spi and _ours(state.reqid):
                if not self._spd.passes_clear(state.reqid):
                    self._queue.put_nowait(Acquire(state.reqid))
                continue
            sa = self._id_of(state)
            if sa is not None:
                alive.add(sa)
                if state.is_soft(now):
                    self._queue.put_nowait(Expire(sa, hard=False))
        for sa in self._sas.keys() - alive:
            self._forget(sa)
            self._queue.put_nowait(Expire(sa, hard=True))

    # Bookkeeping.

    @property
    def _kernel(self) -> XfrmSocket:
        if self._netlink is None:
            raise DataplaneError("the data plane is not running")
        return self._netlink

    @property
    def _spd(self) -> KernelSpd:
        if self._tables is None:
            raise DataplaneError("the data plane is not running")
        return self._tables

    def _dump_states(self) -> list[Installed]:
        return [Installed.decode(body) for body in self._kernel.dump(dump_states())]

    def _id_of(self, state: State) -> SaId | None:
        return self._ids.get(raw_key(_key_of(state)))

    def _know(self, sa: SaId, key: StateKey, reqid: int) -> None:
        self._sas[sa] = key
        self._ids[raw_key(key)] = sa
        if sa.direction is Direction.OUT:
            self._out[sa] = reqid

    def _forget(self, sa: SaId) -> None:
        self._offloads.forget(sa)
        self._ids.pop(raw_key(self._sas.pop(sa)), None)
        reqid = self._out.pop(sa, 0)
        if reqid and reqid not in self._out.values():
            try:
                self._spd.lost(reqid)
            except DataplaneError as exc:
                # It stays blocked, which is the safe side; the next change of it tries again.
                log.error("%s", exc)

    def _find(self, sa: SaId) -> SaId | None:
        """The id under which an SA was added; its destination may have moved since."""
        if sa in self._sas:
            return sa
        key = IP_PROTOCOL[Protocol(sa.protocol)], sa.spi, sa.destination
        found = self._ids.get(raw_key(key))
        return found if found is not None and found.direction is sa.direction else None

    def _look_around(self) -> bool:
        """Take in what an earlier life left. Returns whether there was anything."""
        newest: dict[int, int] = {}
        ends: dict[int, Ends] = {}
        for installed in self._dump_states():
            state = installed.state
            if not _ours(state.reqid) or not state.spi or state.protocol not in _PROTOCOL:
                continue
            direction = direction_of(state)
            number = _PROTOCOL[state.protocol]
            sa = SaId(direction, number, state.spi, state.destination)
            self._know(sa, _key_of(state), state.reqid)
            added = state.counted[2]
            if direction is Direction.OUT and added >= newest.get(state.reqid, 0):
                newest[state.reqid] = added
                ends[state.reqid] = state.source, state.destination
        self._spd.load(ends)
        return bool(self._sas or self._spd.entries)

    def _remove_all(self, kernel: XfrmSocket) -> None:
        """Everything of ours, also what only the kernel knows of. SAs first: what is in flight is
        dropped then, and not sent in clear."""
        larval: list[Installed] = []
        deletes = []
        for installed in self._dump_states():
            state = installed.state
            if not _ours(state.reqid):
                continue
            if not state.spi:
                larval.append(installed)
            elif state.protocol in _PROTOCOL:
                deletes.append(delete_state(state.spi, state.protocol, state.destination))
        for each in larval:
            # It can be deleted by its SPI alone, so it gets one.
            with contextlib.suppress(XfrmError):
                blank = replace(each.state, limits=None, counted=(0, 0, 0, 0), sequence=0)
                if_id = word_of(each, Attr.IF_ID)
                kernel.ask(allocate_spi(blank, 0x100, 0xFFFFFFFF, if_id))
        for installed in self._dump_states() if larval else ():
            state = installed.state
            if _ours(state.reqid) and state.spi:
                deletes.append(delete_state(state.spi, state.protocol, state.destination))
        kernel.execute(deletes)
        self._spd.remove_all()

    def _encapsulate(self, kind: int) -> None:
        """Have the kernel take ESP out of the NAT traversal sockets (RFC 3948), or stop it."""
        for pair in self._natt:
            for sock in (pair.ike, pair.esp):
                if sock.fileno() < 0:
                    continue
                try:
                    # It would see several packets as one.
                    sock.setsockopt(socket.IPPROTO_UDP, linux.UDP_GRO, 0)
                    sock.setsockopt(socket.IPPROTO_UDP, UDP_ENCAP, kind)
                except OSError as exc:
                    raise DataplaneError(
                        f"ESP in UDP: {exc.strerror}: this kernel lacks UDP encapsulation"
                    ) from exc

    def _keep_first_packets(self, *, inherited: bool) -> None:
        try:
            before = _LARVAL_DROP.read_text().strip()
            if before == "0":
                # Ours, if there was an earlier life.
                self._larval_drop = "1" if inherited else None
            else:
                _LARVAL_DROP.write_text("0")
                self._larval_drop = before
        except OSError as exc:
            log.warning(
                "packets are dropped until their SA is there (%s: %s)", _LARVAL_DROP, exc.strerror
            )


def _ours(reqid: int) -> bool:
    return bool(reqid & REQID_BASE) and reqid < 1 << 31


def _key_of(state: State) -> StateKey:
    return state.protocol, state.spi, state.destination


def _acquire(reqid: int, packet: Selector) -> Acquire:
    """With the packet's own selectors, if the kernel told a single packet's."""
    sides = (
        (packet.source, packet.source_length, packet.source_port, packet.source_mask),
        (
            packet.destination,
            packet.destination_length,
            packet.destination_port,
            packet.destination_mask,
        ),
    )
    found = []
    for address, length, port, mask in sides:
        if not address or length != (128 if ":" in address else 32):
            return Acquire(reqid)
        exact = mask == 0xFFFF and packet.protocol in _WITH_PORTS
        found.append(
            TrafficSelector.network(
                address,
                protocol=packet.protocol,
                start_port=port if exact else 0,
                end_port=port if exact else 65535,
            )
        )
    return Acquire(reqid, found[0], found[1])


#: Protocols whose selectors have ports: UDP, TCP, DCCP, SCTP, UDP-Lite.
_WITH_PORTS: Final = (6, 17, 33, 132, 136)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as exc:
        log.warning("%s cannot be set back to %s: %s", path, text, exc.strerror)
