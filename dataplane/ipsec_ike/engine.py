"""The engine: the only public entry to the IKE implementation.

    inputs    configure, receive, on_timer, acquire, expire, mapping, sa_failed, unknown_spi,
              inbound_seen, initiate, terminate, rekey_ike, rekey_child, shutdown
    outputs   take_actions, next_timer, counters, snapshot
    restart   keep_records, records, resume

Each input takes the time, in seconds of a clock that does not go back. After each input the shell
performs ``take_actions()`` in order and calls ``on_timer`` when ``next_timer()`` has come. Nothing
that arrives from the network raises; what is dropped is counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ipsec_ike.actions import SendDatagram
from ipsec_ike.config import Limits, PeerConfig
from ipsec_ike.errors import IkeError, InvalidMajorVersion, LocalMisuse
from ipsec_ike.events import Reason
from ipsec_ike.identifiers import SaId
from ipsec_ike.inputs import Acquire, Datagram, Expire, InheritedSa, SaFailed, UnknownSpi
from ipsec_ike.inputs import Mapping as NatMapping
from ipsec_ike.numbers import ExchangeType, NotifyType
from ipsec_ike.sa.info import ChildSaInfo, IkeSaInfo, Resumed
from ipsec_ike.sa.nat import encapsulated
from ipsec_ike.v2 import init, init_respond, receive, report, resume
from ipsec_ike.v2.host import Action, Host
from ipsec_ike.v2.peer import Peer
from ipsec_ike.v2.peers import Peers
from ipsec_ike.v2.reconfigure import configure
from ipsec_ike.v2.records import Record, Recorder
from ipsec_ike.v2.rekey_ike import RekeyIke
from ipsec_ike.wire.message import (
    FLAG_INITIATOR,
    FLAG_RESPONSE,
    Header,
    decode_header,
    encode_clear,
)
from ipsec_ike.wire.payloads import NotifyPayload

__all__ = ["Action", "ChildSaInfo", "Engine", "IkeSaInfo", "Record", "Resumed"]


class Engine:
    """IKEv2 for any number of peers. ``rng(n)`` gives n octets fit for keys."""

    def __init__(self, *, rng: Callable[[int], bytes], limits: Limits | None = None) -> None:
        self.host: Final = Host(rng, limits or Limits(), Peers())

    # -- outputs -------------------------------------------------------------------------------

    def take_actions(self) -> list[Action]:
        """What is to be done since the last call, in order."""
        actions, self.host.actions = self.host.actions, []
        return actions

    def next_timer(self) -> float | None:
        """When ``on_timer`` has to be called at the latest; None: not at all."""
        return self.host.timers.next()

    @property
    def counters(self) -> Counter[str]:
        """How often what happened, by name. Only grows."""
        return self.host.counters

    def snapshot(self) -> list[IkeSaInfo]:
        """The IKE SAs and their children, but for those that are only remembered to repeat an
        answer."""
        return report.snapshot(self.host)

    # -- another life ----------------------------------------------------------------------------

    def keep_records(self) -> None:
        """Note from now on what a later life needs, for ``records``."""
        if self.host.recorder is None:
            self.host.recorder = Recorder()
            self.host.recorder.configured = True

    def drop_records(self) -> None:
        """There will be no later life."""
        self.host.recorder = None

    def records(self) -> list[Record]:
        """What has changed since the last call. It must be kept in a safe place before any of the
        actions that ``take_actions`` gives are performed: see ``v2.resume``."""
        recorder = self.host.recorder
        return [] if recorder is None else recorder.take(self.host)

    def resume(
        self,
        records: Mapping[str, Mapping[str, Any]],
        peers: Sequence[PeerConfig],
        installed: Mapping[SaId, InheritedSa],
        generation: int,
        now: float,
    ) -> Resumed:
        """``configure`` of an engine that goes on where an earlier one stopped.

        ``records`` are the last ones by key, ``installed`` the SAs of ours in the data plane.
        ``generation`` (1 to 2**24 - 1) is one that no life before had. ``now`` goes on from the
        earlier life. Raises LocalMisuse as ``configure`` does, and if the engine is not new.
        """
        self.host.now = now
        resumed = resume.resume(self.host, records, peers, installed, generation)
        configure(self.host, peers)
        for peer in tuple(self.host.peers.by_name.values()):
            peer.maintain()
        return resumed

    # -- the network ---------------------------------------------------------------------------

    def receive(self, datagram: Datagram, now: float) -> None:
        """An IKE message arrived."""
        host = self.host
        host.now = now
        data = datagram.data
        if len(data) > host.limits.message_size:
            host.counters["dropped_too_long"] += 1
            return
        try:
            header = decode_header(data)
        except InvalidMajorVersion:
            host.counters["dropped_major_version"] += 1
            self._answer_outside(datagram, Header.parse(data), NotifyType.INVALID_MAJOR_VERSION)
            return
        except IkeError:
            host.counters["dropped_malformed"] += 1
            return
        if header.exchange == ExchangeType.IKE_SA_INIT:
            if not header.response:
                init_respond.respond(host, header, datagram)
                return
            sa = host.sas.get(header.spi_i)
            if sa is not None and sa.initiator and not header.initiator:
                init.finish(sa, header, datagram)
            else:
                host.counters["dropped_unknown_spi"] += 1
            return
        sa = host.sas.get(header.spi_r if header.initiator else header.spi_i)
        if sa is None:
            host.counters["dropped_unknown_spi"] += 1
            self._answer_outside(datagram, header, NotifyType.INVALID_IKE_SPI)
            return
        receive.receive(sa, header, datagram)

    def _answer_outside(self, datagram: Datagram, header: Header, notify: NotifyType) -> None:
        """One unprotected notification to a request that belongs to nothing (RFC 7296 1.5, 2.5).

        Never larger than what asked for it, never in answer to a response, and not too often.
        """
        if header.response or not self.host.may_answer():
            return
        data = b"\x02" if notify is NotifyType.INVALID_MAJOR_VERSION else b""
        flags = FLAG_RESPONSE | (0 if header.initiator else FLAG_INITIATOR)
        answer = encode_clear(
            header.spi_i,
            header.spi_r,
            header.exchange,
            flags,
            header.message_id,
            (NotifyPayload(notify, data),),
        )
        if len(answer) > len(datagram.data):
            return
        local = datagram.local
        self.host.emit(SendDatagram(local, datagram.remote, answer, encapsulated(local)))

    # -- time ----------------------------------------------------------------------------------

    def on_timer(self, now: float) -> None:
        """Do what has become due. Calling it early or late does no harm."""
        timers = self.host.timers
        self.host.now = now
        for item in timers.take_due(now):
            item.on_timer(now)
            timers.arm(item)

    # -- configuration and commands --------------------------------------------------------------

    def configure(self, peers: Sequence[PeerConfig], now: float) -> None:
        """Make this the whole configuration; what did not change is not touched.

        Raises LocalMisuse if names or reqids are not unique or something needed is empty.
        """
        self.host.now = now
        configure(self.host, peers)

    def initiate(self, peer: str, now: float) -> None:
        """Bring up the peer and its children now, whatever went wrong before."""
        self.host.now = now
        self._peer(peer).initiate()

    def terminate(self, peer: str, now: float) -> None:
        """Delete the peer's SAs; nothing is started until ``initiate``, a change of its
        configuration, or the peer itself."""
        self.host.now = now
        self._peer(peer).terminate(Reason.TERMINATED, "terminated by command")

    def rekey_ike(self, peer: str, now: float) -> None:
        """Rekey the peer's IKE SA now."""
        self.host.now = now
        sa = self._peer(peer).current()
        if sa is not None:
            sa.enqueue(RekeyIke())

    def rekey_child(self, spi_in: int, now: float) -> None:
        """Rekey the child with that inbound SPI now."""
        self.host.now = now
        child = self.host.children.get(spi_in)
        if child is not None:
            child.owner.child_soft(child)

    def shutdown(self, now: float) -> None:
        """Delete everything everywhere. Done when ``snapshot`` is empty, after 6 s at most."""
        host = self.host
        host.now = now
        host.closing = True
        for peer in tuple(host.peers.by_name.values()):
            peer.terminate(Reason.TERMINATED, "shutdown")

    def _peer(self, name: str) -> Peer:
        peer = self.host.peer(name)
        if peer is None:
            raise LocalMisuse(f"no peer is named {name}")
        return peer

    # -- the data plane --------------------------------------------------------------------------

    def acquire(self, acquire: Acquire, now: float) -> None:
        """A packet needs an SA."""
        host = self.host
        host.now = now
        found = host.peers.by_reqid.get(acquire.reqid)
        if found is None:
            host.counters["acquire_unknown_reqid"] += 1
            return
        peer, child = found
        peer.acquire(child, (acquire.local, acquire.remote))

    def expire(self, expire: Expire, now: float) -> None:
        """An SA reached a limit of bytes, packets or time."""
        host = self.host
        host.now = now
        for child in host.find(expire.id):
            if expire.hard:
                child.owner.child_hard(child)
            else:
                child.owner.child_soft(child)

    def mapping(self, mapping: NatMapping, now: float) -> None:
        """ESP of a peer behind NAT comes from elsewhere."""
        self.host.now = now
        child = self.host.children.get(mapping.spi)
        if child is not None:
            child.owner.child_moved(child, mapping.remote)

    def sa_failed(self, failed: SaFailed, now: float) -> None:
        """The data plane could not install an SA: the child is deleted, and tried again later."""
        self.host.now = now
        for child in self.host.find(failed.id):
            child.owner.child_refused(child, failed.reason)

    def unknown_spi(self, unknown: UnknownSpi, now: float) -> None:
        """The peer sends ESP to an SPI that nobody has (RFC 7296 1.5, 2.21.4)."""
        host = self.host
        host.now = now
        if unknown.spi in host.children or not host.may_answer():
            return
        for sa in tuple(host.sas.values()):
            if sa.up and sa.remote.address == unknown.remote.address:
                sa.notice_unknown_spi(unknown.spi)
                return
        host.counters["unknown_spi"] += 1

    def inbound_seen(self, spi: int, now: float) -> None:
        """ESP arrived and verified: the peer lives."""
        self.host.now = now
        child = self.host.children.get(spi)
        if child is not None:
            child.owner.child_alive(child)
