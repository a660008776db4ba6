"""Two replicas and one Lease, by their own clocks."""

import asyncio
from typing import Any

import pytest
from kubernetes.aio.client import Configuration

from ipsec_api.tunnel import ObjectRef
from ipsec_lab.kubeapi import ApiServer, serving
from ipsec_operator import events, leader
from ipsec_operator.api import Api
from ipsec_operator.events import Events
from ipsec_operator.leader import Leadership, LostLease
from ipsec_operator.runtime import precisely


class World:
    """An API server and a clock that a test moves."""

    def __init__(self, server: ApiServer, url: str) -> None:
        self.server = server
        self.now = 1000.0
        self.leads: list[str] = []
        config = Configuration()
        config.host = url
        self.api = Api(config)

    def replica(self, name: str) -> Leadership:
        return Leadership(self.api, "kube-ipsec", name, lambda: self.now, precisely)

    def start(self, replica: Leadership, name: str) -> "asyncio.Task[None]":
        async def lead() -> None:
            self.leads.append(name)
            await asyncio.Event().wait()

        return asyncio.ensure_future(replica.run(lead))

    async def until_leads(self, name: str) -> None:
        while name not in self.leads:  # noqa: ASYNC110 - what a test waits for has no event
            await asyncio.sleep(0.005)

    def holder(self) -> Any:
        lease = self.server.one("leases", "kube-ipsec", "kube-ipsec-operator")
        return lease["spec"]["holderIdentity"]


@pytest.fixture
def in_world(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(leader, "OPERATOR_RETRY_PERIOD", 0.01)

    async def run(body: Any) -> None:
        async with serving() as (server, url):
            world = World(server, url)
            async with world.api:
                await body(world)

    return lambda body: asyncio.run(run(body))


async def stopped(task: "asyncio.Task[None]") -> BaseException | None:
    task.cancel()
    (result,) = await asyncio.gather(task, return_exceptions=True)
    return result


def test_one_leads_and_gives_the_lease_back(in_world: Any) -> None:
    async def body(world: World) -> None:
        one, two = world.replica("one"), world.replica("two")
        first = world.start(one, "one")
        await world.until_leads("one")
        second = world.start(two, "two")
        await asyncio.sleep(0.1)
        assert world.leads == ["one"]
        assert (one.leading, two.leading, two.holder) == (True, False, "one")
        # Nobody's clock moved: it was given back, not waited for.
        await stopped(first)
        await world.until_leads("two")
        assert world.holder() == "two"
        await stopped(second)
        assert world.holder() == ""

    in_world(body)


def test_a_silent_holder_is_followed_after_the_lease_whatever_its_clock_says(
    in_world: Any,
) -> None:
    async def body(world: World) -> None:
        world.server.add(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": "kube-ipsec-operator", "namespace": "kube-ipsec"},
                "spec": {"holderIdentity": "dead", "renewTime": "1999-01-01T00:00:00.000000Z"},
            }
        )
        task = world.start(world.replica("one"), "one")
        await asyncio.sleep(0.1)
        assert world.leads == []
        world.now += 9.9
        await asyncio.sleep(0.1)
        assert world.leads == []
        world.now += 0.2
        await world.until_leads("one")
        await stopped(task)

    in_world(body)


def test_who_cannot_renew_stops_in_time(in_world: Any) -> None:
    async def body(world: World) -> None:
        task = world.start(world.replica("one"), "one")
        await world.until_leads("one")
        world.server.refuse = lambda call: 503 if call.plural == "leases" else None
        await asyncio.sleep(0.05)
        assert not task.done()
        world.now += 7.1
        with pytest.raises(LostLease, match="no renewal"):
            await task

    in_world(body)


def test_who_sees_another_holder_stops_at_once(in_world: Any) -> None:
    async def body(world: World) -> None:
        task = world.start(world.replica("one"), "one")
        await world.until_leads("one")
        lease = world.server.one("leases", "kube-ipsec", "kube-ipsec-operator")
        world.server.add(lease | {"spec": lease["spec"] | {"holderIdentity": "two"}})
        with pytest.raises(LostLease, match="two has the Lease"):
            await task
        assert world.holder() == "two"

    in_world(body)


def test_events_are_no_flood(in_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RATE", 1e6)

    async def body(world: World) -> None:
        ref = ObjectRef(kind="IPsecPeer", namespace="default", name="p")
        teller = Events(world.api, lambda: world.now, lambda: "2026-01-01T00:00:00Z", "host")
        writer = asyncio.ensure_future(teller.run())
        for _ in range(5):
            teller.tell(ref, "Warning", "Overlap", "the same cause")
        for number in range(30):
            teller.tell(ref, "Normal", "Rekey", f"change {number}")
        while len(world.server.all("events")) < events.BURST:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.005)
        assert teller.suppressed == 31 - events.BURST
        world.now += events.REFILL
        teller.tell(ref, "Normal", "Rekey", "a later change")
        while len(world.server.all("events")) < events.BURST + 1:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.005)
        said = [e["message"] for e in world.server.all("events")]
        assert said.count("the same cause") == 1
        assert "a later change" in said
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)

    in_world(body)


def test_a_warning_for_which_there_was_no_room_may_come_again(
    in_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "RATE", 1e6)

    async def body(world: World) -> None:
        teller = Events(world.api, lambda: world.now, lambda: "2026-01-01T00:00:00Z", "host")
        for number in range(events.WAITING):
            other = ObjectRef(kind="IPsecPeer", namespace="default", name=f"p-{number}")
            teller.tell(other, "Normal", "Rendered", "rendered")
        ref = ObjectRef(kind="IPsecPeer", namespace="default", name="p")
        teller.tell(ref, "Warning", "Overlap", "the cause")
        assert teller.suppressed == 1
        writer = asyncio.ensure_future(teller.run())
        while len(world.server.all("events")) < events.WAITING:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.005)
        teller.tell(ref, "Warning", "Overlap", "the cause")
        while len(world.server.all("events")) <= events.WAITING:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.005)
        assert "the cause" in {e["message"] for e in world.server.all("events")}
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)

    in_world(body)
