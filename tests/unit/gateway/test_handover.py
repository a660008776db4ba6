"""From one life of a gateway to the next: a pump and a data plane that outlives it, and at the
other end an engine that knows nothing of all that."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from ipsec_gateway import handover, privatefiles
from ipsec_gateway.handover import Handover
from ipsec_gateway.ipsec.base import (
    Inherited,
    PolicyAction,
    PolicyDirection,
    PolicyId,
    PolicySpec,
    SaCounters,
)
from ipsec_gateway.ipsec.recording import Operation, RecordingBackend
from ipsec_gateway.ports import PortConflict
from ipsec_gateway.pump import Pump
from ipsec_gateway.resumefile import ResumeFile
from ipsec_ike.actions import SendDatagram
from ipsec_ike.config import ChildConfig, IdentityConfig, PeerConfig
from ipsec_ike.config import Path as Way
from ipsec_ike.engine import Engine
from ipsec_ike.events import ChildSaDown, ChildSaUp, Event, IkeSaDown, IkeSaResumed, IkeSaUp
from ipsec_ike.identifiers import Direction
from ipsec_ike.identity import Identity
from ipsec_ike.inputs import Datagram
from ipsec_ike.numbers import Encr, Esn, Group, Prf, Protocol, TransformType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.message import decode_header

GCM = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
X25519 = Transform(TransformType.KE, Group.CURVE25519)
IKE = Proposal(Protocol.IKE, (GCM, Transform(TransformType.PRF, Prf.HMAC_SHA2_256), X25519))
ESP = Proposal(Protocol.ESP, (GCM, Transform(TransformType.ESN, Esn.NO_ESN)))
NETS = {"here": "10.1.0.0/16", "there": "10.2.0.0/16"}
ADDRESS = {"here": "192.0.2.1", "there": "192.0.2.2"}
OTHER = {"here": "there", "there": "here"}


def peer(side: str) -> PeerConfig:
    other = OTHER[side]
    return PeerConfig(
        name=f"default/{other}",
        identities=(
            IdentityConfig(
                name="id",
                local_id=Identity.fqdn(side),
                remote_id=Identity.fqdn(other),
                psk=Secret(b"a secret of the two"),
            ),
        ),
        children=(
            ChildConfig(
                name="net",
                local_ts=(TrafficSelector.network(NETS[side]),),
                remote_ts=(TrafficSelector.network(NETS[other]),),
                proposals=(ESP,),
                reqid=7,
            ),
        ),
        ike_proposals=(IKE,),
        paths=(Way(ADDRESS[side], ADDRESS[other]),),
        remote_networks=(ip_network(ADDRESS[other]),),
        initiate=side == "here",
    )


class Life:
    """What a gateway process is made of, without sockets: those of the rig."""

    def __init__(self, rig: Rig, folder: Path | None) -> None:
        loop = asyncio.get_running_loop()
        self.events: list[Event] = []
        self.pump = Pump(Engine(rng=os.urandom), self._event, loop)
        self.pump.sockets = rig  # type: ignore[assignment]
        self.handover = Handover(folder, self.pump, loop)
        self.backend = RecordingBackend(persistent=True, sas=rig.sas, policies=rig.policies)

    def _event(self, event: Event) -> None:
        self.events.append(event)
        self.handover.event(event)

    async def begin(
        self, peers: Sequence[PeerConfig], policies: Sequence[PolicySpec] = ()
    ) -> dict[PolicyId, PolicySpec]:
        self.handover.open()
        await self.backend.start()
        found = self.handover.inherit(await self.backend.inherit(), policies)
        self.pump.backend = self.backend
        self.handover.configure(peers)
        return found

    def kill(self) -> None:
        """As by SIGKILL: the lock is free, and nothing else happens."""
        self.pump.close()
        self.handover._cancel()
        it = self.handover._file
        if it is not None:
            it.close()
            self.handover._file = None
            self.pump.keep = None

    def happened(self, *kinds: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kinds)]


class Rig:
    """The wire and the kernel: ``sas`` and ``policies`` outlive every gateway."""

    def __init__(self) -> None:
        self.sas: dict[Any, Any] = {}
        self.policies: dict[PolicyId, PolicySpec] = {}
        self.life: Life | None = None
        self.there = Engine(rng=random.Random(1).randbytes)
        self.sent: list[bytes] = []
        self.lost = False

    def send(self, action: SendDatagram) -> None:
        """As the sockets of the gateway."""
        self.sent.append(action.data)
        if not self.lost:
            now = asyncio.get_running_loop().time()
            self.there.receive(Datagram(action.data, action.remote, action.local), now)
            asyncio.get_running_loop().call_soon(self.answers)

    def answers(self) -> None:
        for action in self.there.take_actions():
            if isinstance(action, SendDatagram) and self.life is not None and not self.lost:
                life = self.life
                life.pump.receive(Datagram(action.data, action.remote, action.local))
                life.pump.pump()

    async def until(self, reached: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not reached():  # noqa: ASYNC110  # what is waited for is plain data
                await asyncio.sleep(0.01)

    async def up(self, folder: Path | None) -> Life:
        """A first life with a tunnel."""
        self.there.configure([peer("there")], asyncio.get_running_loop().time())
        self.life = life = Life(self, folder)
        await life.begin([peer("here")])
        await self.until(lambda: len(self.sas) == 2)
        return life


def run(work: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        rig = Rig()
        try:
            await work(rig)
        finally:
            if rig.life is not None:
                rig.life.kill()

    asyncio.run(main())


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on tmpfs."""
    base = Path(f"/dev/shm/kube-ipsec-handover-{os.getpid()}")
    if privatefiles.file_system(base.parent) not in privatefiles.MEMORY:
        pytest.skip("no tmpfs at /dev/shm")
    base.mkdir()
    monkeypatch.setattr(handover, "GRACE", 0.05)
    yield base / "state"
    shutil.rmtree(base)


def test_the_next_life_goes_on(folder: Path) -> None:
    async def work(rig: Rig) -> None:
        first = await rig.up(folder)
        before = dict(rig.sas)
        first.kill()
        rig.life = second = Life(rig, folder)
        await second.begin([peer("here")])
        await rig.until(lambda: second.happened(IkeSaResumed))
        await asyncio.sleep(0.2)
        assert rig.sas == before
        assert {o.name for o in second.backend.log} == {"start", "inherit"}
        assert not second.happened(IkeSaDown, ChildSaDown)
        # It is really the same: the other end answers, and its traffic is counted for the child.
        second.pump.tell(lambda engine, now: engine.rekey_child(_inbound(rig), now))
        await rig.until(lambda: len(rig.sas) == 3 and rig.sas != before)
        second.backend.totals = {sa: SaCounters(packets=3) for sa in rig.sas}
        traffic = await second.pump.traffic()
        assert traffic[("default/there", "net")].rx_packets >= 3

    run(work)


def _inbound(rig: Rig) -> int:
    return next(sa.spi for sa in rig.sas if sa.direction is Direction.IN)


def test_records_are_written_before_anything_is_sent(folder: Path) -> None:
    """At every request and answer the file already has it."""
    checked: list[bool] = []

    class Watching(Rig):
        def send(self, action: SendDatagram) -> None:
            if decode_header(action.data).exchange not in (34, 35):
                checked.append(action.data.hex() in (folder / "journal").read_text())
            super().send(action)

    async def work(_: Rig) -> None:
        it = Watching()
        life = await it.up(folder)
        life.pump.tell(lambda engine, now: engine.rekey_ike("default/there", now))
        await it.until(lambda: len(checked) >= 2)
        it.there.rekey_child(_inbound(it), asyncio.get_running_loop().time())
        it.answers()
        await it.until(lambda: len(checked) >= 3)
        life.kill()

    run(work)
    assert all(checked), "request of the rekey, Delete of the old one, answer"


def test_without_records_there_are_new_sas_before_the_old_ones_go(folder: Path) -> None:
    async def work(rig: Rig) -> None:
        first = await rig.up(folder)
        old = set(rig.sas)
        first.kill()
        (folder / "journal").unlink()
        rig.life = second = Life(rig, folder)
        rig.lost = True
        await second.begin([peer("here")])
        await asyncio.sleep(0.2)
        assert set(rig.sas) == old, "they may still carry traffic"
        rig.lost = False
        await rig.until(lambda: second.happened(ChildSaUp))
        assert old < set(rig.sas)
        await rig.until(lambda: not old & set(rig.sas))
        assert len(rig.sas) == 2
        assert not second.happened(IkeSaResumed)

    run(work)


def test_orphans_do_not_wait_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "PATIENCE", 0.1)

    async def work(rig: Rig) -> None:
        first = await rig.up(None)
        first.kill()
        rig.lost = True
        rig.life = second = Life(rig, folder)
        await second.begin([peer("here")])
        assert len(rig.sas) == 2
        await rig.until(lambda: not rig.sas)

    run(work)


def test_sas_of_a_tunnel_that_nobody_wants_any_more(folder: Path) -> None:
    """With records the peer is told."""

    async def work(rig: Rig) -> None:
        first = await rig.up(folder)
        first.kill()
        rig.life = second = Life(rig, folder)
        await second.begin([])
        await rig.until(lambda: not rig.sas)
        assert second.happened(IkeSaDown)
        await rig.until(lambda: not rig.there.snapshot())

    run(work)


def test_an_orphan_beside_a_live_child_goes_at_once(folder: Path) -> None:
    async def work(rig: Rig) -> None:
        first = await rig.up(folder)
        sa_id, spec = next(iter(rig.sas.items()))
        left_over = replace(sa_id, spi=4711)
        rig.sas[left_over] = replace(spec, id=left_over)
        first.kill()
        rig.life = second = Life(rig, folder)
        await second.begin([peer("here")])
        await rig.until(lambda: left_over not in rig.sas)
        assert len(rig.sas) == 2
        assert [o for o in second.backend.log if o.name == "delete_sa"] == [
            Operation("delete_sa", left_over)
        ]

    run(work)


def test_policies_that_are_the_same_are_not_touched(folder: Path) -> None:
    async def work(rig: Rig) -> None:
        life = Life(rig, None)
        nets = [TrafficSelector.network(net) for net in NETS.values()]
        out = PolicySpec(
            id=PolicyId(PolicyDirection.OUT, *nets),
            action=PolicyAction.DISCARD,
            priority=5,
            name="default/one",
        )
        other = replace(out, id=PolicyId(PolicyDirection.IN, *nets), name="default/two")
        there = {spec.id: replace(spec, name="") for spec in (out, replace(other, priority=6))}
        found = life.handover.inherit(Inherited({}, there), [out, other])
        assert found == {out.id: out, other.id: replace(other, name="", priority=6)}

    run(work)


def test_a_second_gateway_is_refused(folder: Path) -> None:
    async def work(rig: Rig) -> None:
        await rig.up(folder)
        with pytest.raises(PortConflict, match=f"pid {os.getpid()}"):
            Life(rig, folder).handover.open()

    run(work)


def test_where_no_secrets_may_be_written_there_is_one_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(privatefiles, "file_system", lambda _: "ext4")

    async def work(rig: Rig) -> None:
        first = await rig.up(folder)
        assert len(caplog.records) == 1
        assert "ext4" in caplog.text
        assert first.pump.keep is None

    run(work)
    assert not folder.exists()


def test_a_full_tmpfs_costs_the_records_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(rig: Rig) -> None:
        first = await rig.up(folder)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ResumeFile, "write", full)
        first.pump.tell(lambda engine, now: engine.rekey_child(_inbound(rig), now))
        await rig.until(lambda: len(rig.sas) == 3)
        assert "No space left" in caplog.text
        assert first.pump.engine.records() == []

    run(work)
    assert not folder.exists(), "what is there would be too old"


def test_damage_is_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(rig: Rig) -> None:
        first = await rig.up(folder)
        first.kill()
        journal = folder / "journal"
        journal.write_bytes(journal.read_bytes()[:-40])
        rig.life = second = Life(rig, folder)
        await second.begin([peer("here")])
        await rig.until(lambda: second.happened(IkeSaUp))
        assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
        assert "damaged, or an older copy" in caplog.text

    run(work)
