"""The packet processes themselves, with sockets in place of device and network: no privileges."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.control import (
    AddSa,
    Body,
    Decoder,
    DeliverEsp,
    Message,
    Ping,
    PutPolicies,
    Reply,
    Request,
    encode,
)
from ipsec_gateway.ipsec.packed import PackedSa
from ipsec_gateway.ipsec.supervisor import Supervisor
from ipsec_ike.actions import SaSpec, UpdateSa
from ipsec_ike.identifiers import Direction
from ipsec_ike.inputs import Acquire, Endpoint
from ipsec_lab.esp_packets import NETS_A, NETS_B, policy, udp4
from ipsec_lab.esp_wire import Wire


class Told:
    """What a supervisor tells its process, and what comes back."""

    def __init__(self) -> None:
        self.bodies: list[Body] = []
        self.events: asyncio.Queue[Message] = asyncio.Queue()
        self.restarts: asyncio.Queue[str] = asyncio.Queue()

    def snapshot(self) -> Iterable[Body]:
        return list(self.bodies)


@asynccontextmanager
async def running(direction: str, wire: Wire, told: Told) -> AsyncIterator[Supervisor]:
    tun, sock = (wire.tun_a, wire.sock_a) if direction == "out" else (wire.tun_b, wire.sock_b)
    supervisor = Supervisor(
        direction,
        (tun.fileno(), wire.state.fd),
        [sock.fileno()],
        snapshot=told.snapshot,
        on_event=told.events.put_nowait,
        on_restart=told.restarts.put_nowait,
    )
    await supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.close()


async def arrives(sock: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1 << 16), 20)


def shown_by_proc(pid: int | None) -> list[bytes]:
    return [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]


def outbound(wire: Wire, **changes: Any) -> list[Body]:
    return [PutPolicies((policy(NETS_A[0], NETS_B[0]),), ()), AddSa(wire.spec(**changes), 0)]


def test_a_killed_process_is_replaced_and_numbers_go_on(wire: Wire) -> None:
    async def run() -> None:
        told = Told()
        async with running("out", wire, told) as supervisor:
            for body in outbound(wire):
                told.bodies.append(body)
                await supervisor.request(body)
            numbers = []
            for _ in range(3):
                wire.send(udp4())
                numbers.append(int.from_bytes((await arrives(wire.sock_b))[4:8], "big"))
                first = supervisor.pid
                assert first is not None
                os.kill(first, signal.SIGKILL)
                # Under way while the process is dead: done when this returns.
                await supervisor.request(Ping())
                assert supervisor.pid != first
                assert "killed by SIGKILL" in await asyncio.wait_for(told.restarts.get(), 20)
            wire.send(udp4())
            numbers.append(int.from_bytes((await arrives(wire.sock_b))[4:8], "big"))
            assert numbers == sorted(set(numbers))
            assert numbers[0] == 1

    asyncio.run(run())


def test_a_process_that_does_not_answer_is_replaced(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipsec_gateway.ipsec.supervisor.REPLY_TIMEOUT", 3.0)

    async def run() -> None:
        told = Told()
        async with running("in", wire, told) as supervisor:
            assert supervisor.pid is not None
            os.kill(supervisor.pid, signal.SIGSTOP)
            await supervisor.request(Ping())
            assert "killed by SIGKILL" in await asyncio.wait_for(told.restarts.get(), 20)

    asyncio.run(run())


def test_refusals_and_events_come_back(wire: Wire) -> None:
    async def run() -> None:
        told = Told()
        async with running("out", wire, told) as supervisor:
            await supervisor.request(PutPolicies((policy(NETS_A[0], NETS_B[0]),), ()))
            wire.send(udp4())
            event = await asyncio.wait_for(told.events.get(), 20)
            assert isinstance(event, Acquire)
            await supervisor.request(AddSa(wire.spec(), 0))
            assert (await arrives(wire.sock_b))[:4] == bytes.fromhex("00001000")
            spec = wire.spec()
            elsewhere = UpdateSa(spec.id, Endpoint("127.0.0.1", 9), spec.destination, encap=True)
            with pytest.raises(DataplaneError, match="no IPv4 socket for UDP port 9"):
                await supervisor.request(elsewhere)

    asyncio.run(run())


def test_what_is_told_is_there_for_whatever_comes_later(wire: Wire) -> None:
    async def run() -> None:
        told = Told()
        async with running("in", wire, told) as supervisor:
            wire.out.put_policies([policy(NETS_A[0], NETS_B[0])], [])
            for slot in range(0, 20, 2):
                sa_id = replace(wire.spec().id, spi=0x1000 + slot)
                inbound = replace(sa_id, direction=Direction.IN)
                body = AddSa(wire.spec(direction=Direction.IN, id=inbound), slot + 1)
                told.bodies.append(body)
                supervisor.tell(body)
                wire.out.add_sa(wire.spec(id=sa_id), slot)
                wire.send(udp4())
                wire.out.drain()
                assert (await arrives(wire.inner_b))[10:] == udp4()
            assert told.events.empty()

    asyncio.run(run())


def test_what_is_told_while_no_process_runs_is_done_by_the_next(wire: Wire) -> None:
    async def run() -> None:
        told = Told()
        async with running("out", wire, told) as supervisor:
            policies, add = outbound(wire)
            told.bodies.append(policies)
            await supervisor.request(policies)
            process = supervisor._running()
            process.kill()
            await asyncio.wait([process._listener])
            # Too late for a snapshot that has been taken already: so it is in none here.
            supervisor.tell(add)
            await supervisor.request(Ping())
            wire.send(udp4())
            assert (await arrives(wire.sock_b))[:4] == bytes.fromhex("00001000")

    asyncio.run(run())


def test_what_goes_while_a_process_starts_is_gone_from_it(wire: Wire) -> None:
    async def run() -> None:
        told = Told()
        async with running("out", wire, told) as supervisor:
            for body in outbound(wire):
                told.bodies.append(body)
                await supervisor.request(body)
            assert supervisor.pid is not None
            os.kill(supervisor.pid, signal.SIGKILL)
            # As if the snapshot had been taken just before: the SA is still in it.
            await supervisor.request(wire.spec().id)
            wire.send(udp4())
            assert isinstance(await asyncio.wait_for(told.events.get(), 20), Acquire)

    asyncio.run(run())


def test_the_inbound_process(wire: Wire) -> None:
    async def run() -> None:
        told = Told()
        async with running("in", wire, told) as supervisor:
            await supervisor.request(AddSa(wire.spec(direction=Direction.IN), 1))
            wire.out.put_policies([policy(NETS_A[0], NETS_B[0])], [])
            wire.out.add_sa(wire.spec(), 0)
            wire.send(udp4())
            wire.out.drain()
            assert (await arrives(wire.inner_b))[10:] == udp4()
            spec: SaSpec = wire.spec()
            supervisor.post(DeliverEsp(b"\x00\x00\x00\x09" + bytes(40), spec.source))
            event = await asyncio.wait_for(told.events.get(), 20)
            assert getattr(event, "spi", None) == 9

    asyncio.run(run())


def test_no_key_is_in_the_command_line_or_the_environment(wire: Wire) -> None:
    async def run() -> None:
        told = Told()
        async with running("out", wire, told) as supervisor:
            for body in outbound(wire):
                await supervisor.request(body)
            key = wire.spec().encryption_key.reveal()
            for seen in shown_by_proc(supervisor.pid):
                assert key not in seen
                assert key.hex().encode() not in seen

    asyncio.run(run())


def test_processes_end_with_the_gateway(wire: Wire) -> None:
    async def run() -> int | None:
        async with running("in", wire, Told()) as supervisor:
            pid = supervisor.pid
        return pid

    pid = asyncio.run(run())
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)


def test_a_process_that_cannot_run_is_an_error(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")

    async def run() -> None:
        with pytest.raises(DataplaneError, match="did not come up"):
            async with running("in", wire, Told()):
                pass

    asyncio.run(run())


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_messages_survive_any_cutting(piece: int) -> None:
    messages: list[Message] = [Request(1, Ping()), Reply(1, "no"), Acquire(7), Reply(2)]
    messages.append(Request(0, AddSa(PackedSa(bytes(20)), 3)))
    stream = b"".join(map(encode, messages))
    decoder = Decoder()
    found = []
    for start in range(0, len(stream), piece):
        found += list(decoder.feed(stream[start : start + piece]))
    assert found == messages
