"""The order of actions, whatever the data plane takes its time for."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from ipsec_gateway.ipsec.base import DataplaneError, IkeFromDataplane, SaCounters
from ipsec_gateway.ipsec.recording import RecordingBackend
from ipsec_gateway.pump import Pump, Traffic
from ipsec_ike.actions import AddSa, DeleteSa, SaSpec, SendDatagram
from ipsec_ike.config import Mode
from ipsec_ike.events import Event, Warned
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Acquire, Datagram, Endpoint, Expire
from ipsec_ike.numbers import Encr, Protocol, TransformType
from ipsec_ike.proposal import Transform
from ipsec_ike.secret import Secret

HERE, THERE = Endpoint("192.0.2.1", 500), Endpoint("198.51.100.1", 500)


def spec(spi: int, direction: Direction = Direction.IN) -> SaSpec:
    return SaSpec(
        id=SaId(direction, Protocol.ESP, spi, "192.0.2.1"),
        source=THERE,
        destination=HERE,
        encap=False,
        reqid=1,
        mode=Mode.TUNNEL,
        encryption=Transform(TransformType.ENCR, Encr.AES_GCM_16, 128),
        encryption_key=Secret(bytes(20)),
        integrity=None,
        integrity_key=Secret(b""),
        esn=False,
        replay_window=64,
        local_ts=(),
        remote_ts=(),
        peer="default/hq",
        child="hq",
    )


def datagram(text: bytes) -> SendDatagram:
    return SendDatagram(HERE, THERE, text, False)


class FakeEngine:
    """Gives out what it is told to."""

    def __init__(self) -> None:
        self.actions: list[Any] = []
        self.told: list[tuple[str, Any]] = []
        self.counters: Counter[str] = Counter()
        self.due: float | None = None

    def take_actions(self) -> list[Any]:
        taken, self.actions = self.actions, []
        return taken

    def next_timer(self) -> float | None:
        return self.due

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.told.append((name, args[0] if len(args) > 1 else None))


class SlowBackend(RecordingBackend):
    """Every SA takes a while."""

    async def add_sa(self, spec: SaSpec) -> None:
        await asyncio.sleep(0.01)
        await super().add_sa(spec)


class Rig:
    def __init__(self, backend: RecordingBackend | None) -> None:
        self.engine = FakeEngine()
        self.done: list[object] = []
        self.pump = Pump(self.engine, self._event, asyncio.get_running_loop())  # type: ignore[arg-type]
        self.pump.backend = self.backend = backend
        self.pump.sockets = self  # type: ignore[assignment]

    def send(self, action: SendDatagram) -> None:
        """As sockets: notes how many SAs there were at that moment."""
        count = len(self.backend.sas) if self.backend else 0
        self.done.append((action.data, count))

    def _event(self, event: Event) -> None:
        self.done.append(event)

    def deliver(self, data: bytes, local: Endpoint, remote: Endpoint) -> None:
        self.done.append((data, local, remote))


@pytest.mark.parametrize("backend", [RecordingBackend, SlowBackend])
def test_actions_are_done_in_order(backend) -> None:
    async def work() -> None:
        rig = Rig(backend())
        event = Warned(peer="default/hq", message="x")
        rig.engine.actions = [datagram(b"0"), AddSa(spec(1)), event, datagram(b"1"), AddSa(spec(2))]
        rig.pump.pump()
        assert rig.done[0] == (b"0", 0), "nothing to wait for: done at once"
        # More comes while the data plane is busy: it queues behind.
        rig.engine.actions = [datagram(b"2"), DeleteSa(spec(1).id), datagram(b"3")]
        rig.pump.pump()
        await rig.pump.settled()
        assert rig.done == [(b"0", 0), event, (b"1", 1), (b"2", 2), (b"3", 1)]

    asyncio.run(work())


def test_without_waiting_nothing_is_scheduled() -> None:
    async def work() -> None:
        rig = Rig(RecordingBackend())
        rig.engine.actions = [AddSa(spec(1)), datagram(b"1")]
        before = asyncio.all_tasks()
        rig.pump.pump()
        assert rig.done == [(b"1", 1)]
        assert asyncio.all_tasks() == before

    asyncio.run(work())


def test_what_the_data_plane_refuses_goes_back_to_the_engine() -> None:
    async def work() -> None:
        for backend in (RecordingBackend(refuse={7}), None):
            rig = Rig(backend)
            rig.engine.actions = [AddSa(spec(7)), datagram(b"after")]
            rig.pump.pump()
            await rig.pump.settled()
            ((name, failed),) = rig.engine.told
            assert name == "sa_failed"
            assert failed.id == spec(7).id
            assert failed.reason
            assert rig.done[-1] == (b"after", 0)

    asyncio.run(work())


def test_a_failure_in_the_middle_of_waiting_is_not_swallowed() -> None:
    class Broken(RecordingBackend):
        async def add_sa(self, spec: SaSpec) -> None:
            await asyncio.sleep(0)
            raise ZeroDivisionError

    async def work() -> None:
        rig = Rig(Broken())
        failures: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
        rig.engine.actions = [AddSa(spec(1))]
        rig.pump.pump()
        for _ in range(5):
            await asyncio.sleep(0)
        assert [type(f) for f in failures] == [ZeroDivisionError]

    asyncio.run(work())


def test_one_timer_for_the_next_deadline() -> None:
    async def work() -> None:
        rig = Rig(RecordingBackend())
        loop = asyncio.get_running_loop()
        rig.engine.due = loop.time() + 1000
        rig.pump.pump()
        rig.engine.due = loop.time() + 0.01
        rig.pump.pump()
        await asyncio.sleep(0.05)
        rig.engine.due = None
        assert [name for name, _ in rig.engine.told] == ["on_timer"] * len(rig.engine.told)
        assert rig.engine.told
        rig.pump.close()

    asyncio.run(work())


def test_events_of_the_data_plane_become_inputs() -> None:
    async def work() -> None:
        rig = Rig(RecordingBackend())
        limit = Expire(spec(8).id, hard=True)
        for event in (Acquire(7), limit):
            rig.pump.report(event)
        assert rig.engine.told == [("acquire", Acquire(7)), ("expire", limit)]
        rig.pump.report(IkeFromDataplane(b"\0\0\0\0x", HERE, THERE))
        assert rig.done == [(b"\0\0\0\0x", HERE, THERE)]
        rig.pump.receive(Datagram(b"", HERE, THERE))
        assert rig.engine.told[-1][0] == "receive"

    asyncio.run(work())


def test_totals_go_on_over_a_rekey() -> None:
    async def work() -> None:
        backend = RecordingBackend()
        rig = Rig(backend)
        old, new = spec(1), spec(2)
        rig.engine.actions = [AddSa(old)]
        rig.pump.pump()
        backend.totals[old.id] = SaCounters(bytes=100, packets=1)
        rig.engine.actions = [AddSa(new), DeleteSa(old.id)]
        rig.pump.pump()
        backend.totals[new.id] = SaCounters(bytes=10, packets=1)
        assert await rig.pump.traffic() == {
            ("default/hq", "hq"): Traffic(rx_bytes=110, rx_packets=2)
        }
        rig.pump.forget(set())
        rig.engine.actions = [DeleteSa(new.id)]
        rig.pump.pump()
        assert (await rig.pump.traffic())["default/hq", "hq"].rx_bytes == 10

    asyncio.run(work())


def test_inbound_traffic_is_a_sign_of_life() -> None:
    async def work() -> None:
        backend = RecordingBackend()
        rig = Rig(backend)
        rig.engine.actions = [AddSa(spec(1)), AddSa(spec(2, Direction.OUT))]
        rig.pump.pump()
        backend.totals[spec(1).id] = SaCounters(packets=3)
        backend.totals[spec(2, Direction.OUT).id] = SaCounters(packets=3)
        await rig.pump.poll()
        await rig.pump.poll()
        assert rig.engine.told == [("inbound_seen", 1)]

    asyncio.run(work())


def test_a_delete_that_fails_is_logged_and_not_fatal(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(RecordingBackend):
        async def delete_sa(self, sa: SaId) -> None:
            raise DataplaneError("no")

    async def work() -> None:
        rig = Rig(Refusing())
        rig.engine.actions = [DeleteSa(spec(1).id), datagram(b"1")]
        rig.pump.pump()
        assert rig.done == [(b"1", 0)]

    asyncio.run(work())
    assert "no" in caplog.text
