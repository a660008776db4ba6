"""The runtime with a data plane that carries nothing, on ports of its own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipsec_api.compile import compile as compile_snapshot
from ipsec_api.documents import collect
from ipsec_gateway import reports, runtime
from ipsec_gateway.forward.findings import Blocked
from ipsec_gateway.forward.watch import ForwardWatch
from ipsec_gateway.intent import Intent
from ipsec_gateway.ipsec.base import PolicyDirection
from ipsec_gateway.ipsec.recording import Operation, RecordingBackend
from ipsec_gateway.lastgood import InForce
from ipsec_gateway.options import Options
from ipsec_gateway.ports import PortConflict
from ipsec_gateway.privatefiles import MEMORY, file_system
from ipsec_gateway.runtime import Gateway
from ipsec_gateway.sources.directory import DirectorySource, NoSource


class Rig:
    """A gateway on a folder. ``backends`` are those that it has made, newest last."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        #: What a data plane that outlives the gateway holds; None: it ends with it.
        self.kernel: tuple[dict[Any, Any], dict[Any, Any]] | None = None
        (folder / "manifests").mkdir()
        self.backends: list[RecordingBackend] = []
        self.refuse = ""
        self.options = Options(state=folder / "state", ports=(0, 0), name="test", **options)

    def write(self, *documents: dict[str, Any]) -> None:
        fresh = self.folder / "new"
        fresh.write_text(yaml.safe_dump_all(documents))
        fresh.replace(self.folder / "manifests" / "all.yaml")

    def condition(self, kind: str) -> dict[str, Any]:
        path = self.folder / "state/status/ipsecpeer/default/hq.yaml"
        if not path.exists():
            return {}
        conditions = yaml.safe_load(path.read_text())["status"]["conditions"]
        (found,) = [c for c in conditions if c["type"] == kind]
        return found

    async def until(self, reached: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not reached():  # noqa: ASYNC110  # what is waited for is plain data and files
                await asyncio.sleep(0.01)

    def make(self, _: object) -> RecordingBackend:
        backend = RecordingBackend(refuse_start=self.refuse)
        if self.kernel is not None:
            backend = RecordingBackend(persistent=True, sas=self.kernel[0], policies=self.kernel[1])
        self.backends.append(backend)
        return backend

    def run(self, work: Callable[[Gateway], Awaitable[None]]) -> None:
        """Run ``work`` beside a running gateway, which is then stopped."""

        async def main() -> None:
            source = DirectorySource(self.folder / "manifests", interval=0.02, settle=0.01)
            gateway = Gateway(self.options, source, self.make)
            running = asyncio.create_task(gateway.run())
            try:
                await work(gateway)
            finally:
                gateway.stop()
                await running

        asyncio.run(main())


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(runtime, "RETRY", 0.05)
    monkeypatch.setattr(reports, "DEBOUNCE", 0.01)
    return Rig(tmp_path)


def test_the_data_plane_comes_and_goes_with_the_tunnels(rig: Rig, make) -> None:
    async def work(gateway: Gateway) -> None:
        await rig.until(lambda: gateway._reports.ready)
        assert rig.backends == []
        rig.write(make.secret(), make.peer(passive=True))
        await rig.until(lambda: rig.backends and rig.backends[0].policies)
        directions = {p.direction for p in rig.backends[0].policies}
        assert directions == set(PolicyDirection)
        await rig.until(lambda: rig.condition("Programmed").get("status") == "True")
        assert rig.condition("Established")["reason"] == "Waiting"
        rig.write(make.secret(), make.peer(passive=True, remoteSubnets=["10.3.0.0/16"]))
        await rig.until(
            lambda: (
                {str(p.destination) for p in rig.backends[0].policies}
                == {"10.3.0.0/16", "10.1.0.0/16"}
            )
        )
        log = [o.name for o in rig.backends[0].log if o.name.endswith("_policy")]
        assert log == ["put_policy"] * 6 + ["delete_policy"] * 3, "puts before deletes"
        rig.write(make.secret())
        await rig.until(lambda: not rig.backends[0].running)
        await rig.until(lambda: not rig.condition("Ready"))
        rig.write(make.secret(), make.peer(passive=True))
        await rig.until(lambda: len(rig.backends) == 2 and rig.backends[1].policies)

    rig.run(work)
    assert [b.running for b in rig.backends] == [False, False]
    assert [b.log[-1].argument for b in rig.backends] == [True, True], "everything is removed"


def test_a_standbys_data_plane_goes_with_the_last_peer(rig: Rig, make) -> None:
    text = yaml.safe_dump_all([make.secret(), make.peer()])
    tunnels = tuple(compile_snapshot(collect({"all.yaml": text}).snapshot).tunnels)
    assert tunnels

    class Others:
        """Everything is another gateway's, and then gone."""

        def __init__(self) -> None:
            self.gone = asyncio.Event()

        def refresh(self) -> None:
            pass

        async def snapshots(self) -> AsyncIterator[InForce]:
            yield InForce(standby=tunnels)
            await self.gone.wait()
            yield InForce()
            await asyncio.Event().wait()

    async def main() -> None:
        source = Others()
        gateway = Gateway(rig.options, source, rig.make)
        running = asyncio.create_task(gateway.run())
        try:
            await rig.until(lambda: rig.backends and rig.backends[0].running)
            source.gone.set()
            await rig.until(lambda: not rig.backends[0].running)
            assert rig.backends[0].log[-1].argument is True, "everything is removed"
        finally:
            gateway.stop()
            await running

    asyncio.run(main())
    assert len(rig.backends) == 1


def test_a_data_plane_that_does_not_start_is_tried_again(rig: Rig, make) -> None:
    rig.refuse = "/dev/net/tun cannot be opened"
    rig.write(make.secret(), make.peer(passive=True))

    async def work(_: Gateway) -> None:
        await rig.until(lambda: rig.condition("Programmed").get("reason") == "DataplaneError")
        assert rig.condition("Programmed")["message"] == rig.refuse
        assert rig.condition("Ready")["status"] == "False"
        rig.refuse = ""
        await rig.until(lambda: rig.condition("Programmed").get("status") == "True")

    rig.run(work)


def test_what_breaks_in_a_callback_ends_the_gateway(
    rig: Rig, make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig.write(make.secret(), make.peer(passive=True))

    async def work(gateway: Gateway) -> None:
        await rig.until(lambda: gateway._reports.ready)

        def broken(*_: object) -> None:
            raise ZeroDivisionError("for the test")

        gateway.pump.receive = broken  # type: ignore[method-assign]
        gateway._sockets._on_ike = broken
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for each in gateway._sockets.ports:
                client.sendto(b"\0\0\0\0message", ("127.0.0.1", each))
        await rig.until(gateway._stop.is_set)

    with pytest.raises(ZeroDivisionError):
        rig.run(work)
    assert "broken: ZeroDivisionError: for the test" in caplog.text
    assert rig.backends[0].log[-1].argument is False, "the guard and what it guards stay"


def test_pages(tmp_path: Path, make) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rig = Rig(tmp_path, listen=("127.0.0.1", port))
    rig.write(make.secret(), make.peer(passive=True))

    async def get(path: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        return int(head.split()[1]), body

    async def work(gateway: Gateway) -> None:
        await rig.until(lambda: gateway._reports.ready)
        assert await get("/readyz") == (200, "ok\n")
        gateway._reports.ready = False
        assert (await get("/readyz"))[0] == 503
        assert (await get("/healthz"))[0] == 200
        code, text = await get("/metrics")
        assert code == 200
        assert 'ipsec_peer_up{gateway="test",namespace="default",peer="hq"} 0.0' in text
        _, text = await get("/status")
        document = json.loads(text)
        assert document["dataplane"] == "recording"
        (found,) = document["objects"]
        assert found["name"] == "hq"
        assert "correct horse" not in text
        assert (await get("/nonsense"))[0] == 404
        # A second gateway cannot have the same address, and takes nothing down when it gives up.
        other = Gateway(
            Options(ports=(0, 0), listen=("127.0.0.1", port)),
            DirectorySource(tmp_path),
            None,  # type: ignore[arg-type]
        )
        with pytest.raises(PortConflict, match=str(port)):
            await other.run()

    rig.run(work)


def test_what_outlives_the_gateway_is_left_to_the_next_one(tmp_path: Path, make) -> None:
    """SIGTERM leaves everything, the next one touches nothing of it, good-bye takes it away."""
    resume = Path(f"/dev/shm/kube-ipsec-runtime-{os.getpid()}")
    rig = Rig(tmp_path, resume=resume)
    rig.kernel = ({}, {})
    rig.write(make.secret(), make.peer(passive=True))

    async def until_programmed(gateway: Gateway) -> None:
        await rig.until(lambda: gateway._reports.ready)

    rig.run(until_programmed)
    assert len(rig.kernel[1]) == 3
    assert rig.backends[-1].log[-1] == Operation("close", False)
    if file_system(Path("/dev/shm")) in MEMORY:
        assert (resume / "journal").exists()

    rig.run(until_programmed)
    assert [o.name for o in rig.backends[-1].log] == ["start", "inherit", "close"]

    async def none(gateway: Gateway) -> None:
        gateway.stop()

    before = len(rig.backends)
    rig.run(none)
    assert len(rig.backends) == before, "stopped before it took over: nothing happens"
    assert len(rig.kernel[1]) == 3

    async def goodbye(gateway: Gateway) -> None:
        await until_programmed(gateway)
        gateway.stop(goodbye=True)

    rig.run(goodbye)
    assert rig.kernel == ({}, {})
    assert not resume.exists()


def test_cleanup(tmp_path: Path, make) -> None:
    """Without any documents, what a stopped gateway has left is taken away."""
    resume = Path(f"/dev/shm/kube-ipsec-cleanup-{os.getpid()}")
    rig = Rig(tmp_path, resume=resume)
    rig.kernel = ({}, {})
    rig.write(make.secret(), make.peer(passive=True))

    async def until_programmed(gateway: Gateway) -> None:
        await rig.until(lambda: gateway._reports.ready)

    rig.run(until_programmed)
    assert rig.kernel[1]
    rig.options = replace(rig.options, goodbye=True, state=None)

    async def main() -> None:
        await asyncio.wait_for(Gateway(rig.options, NoSource(), rig.make).run(), 10)

    asyncio.run(main())
    assert rig.kernel == ({}, {})
    assert not resume.exists()


class SlowLook:
    """A look at others' chains that takes as long as it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked: list[Intent] = []
        self.log: list[str] = []
        self.problem: Exception | None = None

    def take_place(self, gateway: Gateway) -> None:
        gateway._forwarding = ForwardWatch(  # type: ignore[misc]  # a constant
            self,  # type: ignore[arg-type]  # as far as it is used
            gateway._forwarded,
            gateway._on_done,
        )

    async def look(self, wanted: Intent, _: object) -> dict[str, Blocked]:
        self.asked.append(wanted)
        await asyncio.wait_for(self.go.wait(), 20)
        self.log.append("looked")
        if self.problem is not None:
            raise self.problem
        return {"default/hq": Blocked(sure=True, message="a chain drops it")}

    async def close(self) -> None:
        self.log.append("closed")


def peers(intents: list[Intent]) -> list[int]:
    return [len(each.peers) for each in intents]


def test_nothing_waits_for_the_look_at_others_chains_but_the_end(rig: Rig, make) -> None:
    slow = SlowLook()

    async def work(gateway: Gateway) -> None:
        slow.take_place(gateway)
        here = gateway._here
        here.wanted = lambda: replace(here._static)  # type: ignore[method-assign]
        rig.write(make.secret(), make.peer(passive=True))
        await rig.until(lambda: slow.asked)
        two = make.peer("two", "203.0.113.10", passive=True, remoteSubnets=["10.3.0.0/16"])
        rig.write(make.secret(), make.peer(passive=True), two)
        await rig.until(lambda: len(rig.backends[0].policies) == 6)
        gateway._wake_up()
        await asyncio.sleep(0)
        assert peers(slow.asked) == [1], "one at a time"
        slow.go.set()
        status = rig.folder / "state/status/ipsecpeer/default/hq.yaml"
        await rig.until(lambda: "a chain drops it" in status.read_text())
        gateway._wake_up()
        await rig.until(lambda: peers(slow.asked) == [1, 2])
        assert slow.asked[-1] is gateway._intent, "without what comes of templates"
        await rig.until(lambda: len(slow.log) == 2)
        slow.go.clear()
        gateway._wake_up()
        await rig.until(lambda: len(slow.asked) == 3)
        asyncio.get_running_loop().call_later(0.05, slow.go.set)

    rig.run(work)
    assert slow.log[-2:] == ["looked", "closed"], (
        "rules are taken away when none is put in any more"
    )


def test_the_last_tunnel_goes_after_the_look_at_others_chains(rig: Rig, make) -> None:
    slow = SlowLook()

    async def work(gateway: Gateway) -> None:
        slow.take_place(gateway)
        rig.write(make.secret(), make.peer(passive=True))
        await rig.until(lambda: slow.asked)
        rig.write(make.secret())
        await rig.until(lambda: gateway._in_force and not gateway._in_force.tunnels)
        asyncio.get_running_loop().call_later(0.05, slow.go.set)
        await rig.until(lambda: not rig.backends[0].running)
        assert slow.log == ["looked", "closed"]

    rig.run(work)


def test_a_look_is_ended_where_everything_is_left_to_the_next_gateway(tmp_path: Path, make) -> None:
    rig = Rig(tmp_path, resume=tmp_path / "resume")
    rig.kernel = ({}, {})
    slow = SlowLook()

    async def work(gateway: Gateway) -> None:
        slow.take_place(gateway)
        rig.write(make.secret(), make.peer(passive=True))
        await rig.until(lambda: slow.asked)
        asyncio.get_running_loop().call_later(0.05, slow.go.set)

    rig.run(work)
    assert slow.log == ["looked"]


def test_what_breaks_in_the_look_at_others_chains_ends_the_gateway(rig: Rig, make) -> None:
    slow = SlowLook()
    slow.problem = ZeroDivisionError()
    slow.go.set()

    async def work(gateway: Gateway) -> None:
        slow.take_place(gateway)
        rig.write(make.secret(), make.peer(passive=True))
        await rig.until(lambda: gateway._failure)

    with pytest.raises(ZeroDivisionError):
        rig.run(work)
