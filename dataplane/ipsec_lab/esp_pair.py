"""Two userspace data planes with fixed keys at the two sites of a topology: ESP without IKE.

What IKE would negotiate is made here: SPIs, keys and selectors that fit each other. Each data plane
runs in an event loop of its own, in a thread that has entered the gateway's network namespace, as
have the packet processes that it starts.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypeVar

from ipsec_gateway.ipsec.base import (
    DataplaneEvent,
    IkeFromDataplane,
    PolicyAction,
    PolicyDirection,
    PolicyId,
    PolicySpec,
)
from ipsec_gateway.ipsec.natt import NATT_PORT, NattPair, open_natt_pair
from ipsec_gateway.ipsec.userspace import UserspaceBackend
from ipsec_ike.actions import SaSpec
from ipsec_ike.config import Mode
from ipsec_ike.crypto.transforms import esp_transform
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Endpoint
from ipsec_ike.numbers import Encr, Protocol, TransformType
from ipsec_ike.proposal import Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.bench_process import Usage, usage
from ipsec_lab.esp_packets import make_spec
from ipsec_lab.netns import LabError, Namespace, enter_namespace
from ipsec_lab.topology import Topology

T = TypeVar("T")
GCM: Final = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
REQID: Final = 7
_TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True)
class Suite:
    """What the two SAs of a tunnel have in common."""

    encryption: Transform = GCM
    integrity: Transform | None = None
    esn: bool = True
    encap: bool = True
    #: IP version of the outer packets.
    outer: int = 4
    replay_window: int = 1024

    @classmethod
    def named(cls, name: str, **changes: Any) -> Self:
        """One of ``esp_packets.SUITES``."""
        spec = make_spec(name)
        return cls(encryption=spec.encryption, integrity=spec.integrity, **changes)


class EspGateway:
    """One data plane in a namespace. A context manager; needs root."""

    def __init__(self, namespace: Namespace, *, mtu: int | None = None) -> None:
        self.namespace: Final = namespace
        #: What it reported, in order.
        self.events: Final[list[DataplaneEvent | IkeFromDataplane]] = []
        self._mtu: Final = mtu
        self._loop: Final = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._pairs: list[NattPair] = []
        self._thread: Final = threading.Thread(target=self._run, name=f"esp-{namespace.label}")

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(_TIMEOUT)
        if self._failed is not None:
            self._thread.join()
            raise self._failed
        self._listener = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self.backend.close(remove=True))
        self._listener.result(_TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_TIMEOUT)
        for pair in self._pairs:
            pair.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the data plane's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_TIMEOUT)

    def wait_for(self, found: Callable[[DataplaneEvent | IkeFromDataplane], bool]) -> None:
        """Until an event is reported that ``found`` accepts. Raises LabError after 20 seconds."""
        deadline = time.monotonic() + 20
        while not any(map(found, list(self.events))):
            if time.monotonic() > deadline:
                raise LabError(f"no such event among {self.events}")
            time.sleep(0.02)

    def usage(self) -> Usage:
        """What the packet processes have used so far; the gateway itself does nothing here."""
        total = Usage(0.0, 0)
        for pid in self.backend.pids().values():
            if pid is not None:
                used = usage(pid)
                total = Usage(total.cpu + used.cpu, total.rss + used.rss)
        return total

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            enter_namespace(self.namespace.path)
            self._pairs = [open_natt_pair(f) for f in (socket.AF_INET, socket.AF_INET6)]
            self.backend = UserspaceBackend(
                esp_sockets=[pair.esp for pair in self._pairs], fixed_mtu=self._mtu
            )
            self._loop.run_until_complete(self.backend.start())
        except BaseException as exc:
            self._failed = exc
            for pair in self._pairs:
                pair.close()
        self._ready.set()
        if self._failed is None:
            self._loop.run_forever()
        self._loop.close()

    async def _listen(self) -> None:
        async for event in self.backend.events():
            self.events.append(event)


class EspPair:
    """Both gateways of a topology with a tunnel between their LANs. A context manager.

    ``generation`` numbers the SAs that stand: ``rekey`` adds the next ones and takes the old away.
    """

    def __init__(
        self, topology: Topology, suite: Suite | None = None, *, mtu: int | None = None
    ) -> None:
        self.topology: Final = topology
        self.suite: Final = suite or Suite()
        self.a: Final = EspGateway(topology.gw_a, mtu=mtu)
        self.b: Final = EspGateway(topology.gw_b, mtu=mtu)
        self.generation = 0

    def __enter__(self) -> Self:
        self.a.__enter__()
        try:
            self.b.__enter__()
            try:
                self._set_up()
            except BaseException:
                self.b.__exit__(None, None, None)
                raise
        except BaseException:
            self.a.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *why: object) -> None:
        try:
            self.a.__exit__(*why)
        finally:
            self.b.__exit__(*why)

    def gateway(self, name: str) -> EspGateway:
        """Site ``a`` or ``b``."""
        return {"a": self.a, "b": self.b}[name]

    def spec(self, name: str, direction: Direction, generation: int | None = None) -> SaSpec:
        """The SA of a generation as site ``name`` has it."""
        number = self.generation if generation is None else generation
        sender = name if direction is Direction.OUT else self._other(name)
        suite, receiver = self.suite, self._other(sender)
        layout = esp_transform(suite.encryption, suite.integrity)
        keys = hashlib.shake_256(f"{sender}{number}".encode()).digest(layout.key_octets)
        port = NATT_PORT if suite.encap else 0
        source = Endpoint(self.topology.site(sender).wan_address(suite.outer), port)
        destination = Endpoint(self.topology.site(receiver).wan_address(suite.outer), port)
        spi = 0x1000 * (number + 1) + ord(sender)
        return SaSpec(
            id=SaId(direction, Protocol.ESP, spi, destination.address),
            source=source,
            destination=destination,
            encap=suite.encap,
            reqid=REQID,
            mode=Mode.TUNNEL,
            encryption=suite.encryption,
            encryption_key=Secret(keys[: layout.encryption_key]),
            integrity=suite.integrity,
            integrity_key=Secret(keys[layout.encryption_key :]),
            esn=suite.esn,
            replay_window=suite.replay_window,
            local_ts=self._selectors(name),
            remote_ts=self._selectors(self._other(name)),
            peer="lab/pair",
            child="lan",
        )

    def add(self, generation: int, **changes: Any) -> None:
        """Install the four SAs of a generation, inbound ones first, as IKE would."""
        for direction in (Direction.IN, Direction.OUT):
            for name in ("a", "b"):
                spec = replace(self.spec(name, direction, generation), **changes)
                gateway = self.gateway(name)
                gateway.do(gateway.backend.add_sa(spec))
        self.generation = generation

    def delete(self, generation: int) -> None:
        """Remove the four SAs of a generation, outbound ones first."""
        for direction in (Direction.OUT, Direction.IN):
            for name in ("a", "b"):
                gateway = self.gateway(name)
                gateway.do(gateway.backend.delete_sa(self.spec(name, direction, generation).id))

    def rekey(self) -> None:
        """Make before break."""
        old = self.generation
        self.add(old + 1)
        self.delete(old)

    def policies(self, name: str) -> list[PolicySpec]:
        """What protects the traffic between the LANs, seen from one site."""
        return [
            PolicySpec(
                id=PolicyId(PolicyDirection.OUT, local, remote),
                action=PolicyAction.ENCRYPT,
                priority=10,
                reqid=REQID,
                name="lab/pair",
            )
            for local in self._selectors(name)
            for remote in self._selectors(self._other(name))
            if len(local.start) == len(remote.start)
        ]

    def _set_up(self) -> None:
        for name in ("a", "b"):
            gateway = self.gateway(name)
            gateway.do(gateway.backend.put_policies(self.policies(name), []))
            site, other = self.topology.site(name), self.topology.site(self._other(name))
            # The twin takes over when the device goes, as the gateway's own routing has it; without
            # it a late TCP segment would leave in clear text after the tunnel has been closed.
            gateway.namespace.ip(
                *(f"route replace unreachable {net} metric 4242" for net in other.lans),
                *(
                    f"route add {net} dev {gateway.backend.device} src {site.gateway(index)}"
                    for index, net in enumerate(other.lans)
                ),
            )
        self.add(0)

    @staticmethod
    def _other(name: str) -> str:
        return "b" if name == "a" else "a"

    def _selectors(self, name: str) -> tuple[TrafficSelector, ...]:
        return tuple(TrafficSelector.network(net) for net in self.topology.site(name).lans)
