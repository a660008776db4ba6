"""The recording data plane holds what a real one would, and says how it came about."""

import asyncio

import pytest

from ipsec_gateway.ipsec.base import (
    DataplaneError,
    IpsecBackend,
    PolicyAction,
    PolicyDirection,
    PolicyId,
    PolicySpec,
)
from ipsec_gateway.ipsec.recording import RecordingBackend
from ipsec_ike.actions import SaSpec, UpdateSa
from ipsec_ike.config import Mode
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Acquire, Endpoint
from ipsec_ike.numbers import Encr, Protocol, TransformType
from ipsec_ike.proposal import Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector

NET_A = TrafficSelector.network("10.1.0.0/24")
NET_B = TrafficSelector.network("10.2.0.0/24")


def spec(spi: int, direction: Direction = Direction.OUT) -> SaSpec:
    return SaSpec(
        id=SaId(direction, Protocol.ESP, spi, "192.0.2.2"),
        source=Endpoint("192.0.2.1", 4500),
        destination=Endpoint("192.0.2.2", 4500),
        encap=True,
        reqid=7,
        mode=Mode.TUNNEL,
        encryption=Transform(TransformType.ENCR, Encr.AES_GCM_16, 128),
        encryption_key=Secret(bytes(20)),
        integrity=None,
        integrity_key=Secret(b""),
        esn=True,
        replay_window=64,
        local_ts=(NET_A,),
        remote_ts=(NET_B,),
    )


def test_sas_are_added_moved_and_deleted() -> None:
    async def run() -> None:
        backend = RecordingBackend()
        as_interface: IpsecBackend = backend
        await as_interface.start()
        old, new = spec(1), spec(2)
        await backend.add_sa(old)
        await backend.add_sa(new)
        assert backend.outbound(7) == new
        moved_to = Endpoint("192.0.2.99", 4501)
        await backend.update_sa(UpdateSa(new.id, new.source, moved_to, True))
        assert backend.sas[new.id].destination == moved_to
        with pytest.raises(DataplaneError, match="exists"):
            await backend.add_sa(old)
        await backend.delete_sa(new.id)
        await backend.delete_sa(new.id)
        assert backend.outbound(7) == old
        with pytest.raises(DataplaneError, match="no such SA"):
            await backend.update_sa(UpdateSa(new.id, new.source, moved_to, True))
        assert set(await backend.counters()) == {old.id}
        await backend.close(remove=True)
        assert not backend.sas
        assert [op.name for op in backend.log][:3] == ["start", "add_sa", "add_sa"]

    asyncio.run(run())


def test_a_policy_put_and_deleted_in_one_difference_stays() -> None:
    async def run() -> None:
        backend = RecordingBackend()
        ids = [PolicyId(d, NET_A, NET_B) for d in (PolicyDirection.OUT, PolicyDirection.IN)]
        await backend.put_policies(
            [PolicySpec(id=i, action=PolicyAction.DISCARD, priority=1) for i in ids], []
        )
        changed = PolicySpec(id=ids[0], action=PolicyAction.NONE, priority=2)
        await backend.put_policies([changed], ids)
        assert backend.policies == {ids[0]: changed}

    asyncio.run(run())


def test_refusals_and_reports() -> None:
    async def run() -> None:
        with pytest.raises(DataplaneError, match="no TUN"):
            await RecordingBackend(refuse_start="no TUN").start()
        backend = RecordingBackend(refuse={5})
        with pytest.raises(DataplaneError, match="00000005"):
            await backend.add_sa(spec(5))
        assert not backend.sas
        backend.report(Acquire(7))
        await backend.close(remove=False)
        assert [event async for event in backend.events()] == [Acquire(7)]

    asyncio.run(run())
