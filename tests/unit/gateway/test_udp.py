"""The IKE sockets over loopback: markers, keepalives, ESP, source addresses, conflicts."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import pytest

from ipsec_gateway.ports import PortConflict, owners_of
from ipsec_gateway.udp import IkeSockets
from ipsec_ike.actions import SendDatagram
from ipsec_ike.inputs import Datagram, Endpoint


class Ends:
    """Sockets on free ports, and a plain client."""

    def __init__(self) -> None:
        self.ike: list[Datagram] = []
        self.esp: list[tuple[bytes, Endpoint, Endpoint]] = []
        self.bursts: list[int] = []
        self.sockets = IkeSockets(
            self.ike.append,
            lambda *packet: self.esp.append(packet),
            lambda: self.bursts.append(len(self.ike)),
            ports=(0, 0),
        )
        self.sockets.open()
        loop = asyncio.get_running_loop()
        self.sockets.attach(loop)
        natt = {pair.ike.getsockname()[1] for pair in self.sockets.pairs}
        (self.natt,) = natt
        (self.plain,) = set(self.sockets.ports) - natt

    async def until(self, reached: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not reached():  # noqa: ASYNC110  # what is waited for is plain data
                await asyncio.sleep(0.005)

        await asyncio.wait_for(wait(), 5)


def with_ends(work) -> None:
    async def main() -> None:
        ends = Ends()
        try:
            await work(ends)
        finally:
            ends.sockets.close(asyncio.get_running_loop())

    asyncio.run(main())


FAMILIES = pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.7"), (socket.AF_INET6, "::1")]
)


@FAMILIES
def test_plain_messages_arrive_with_both_endpoints(family: int, address: str) -> None:
    async def work(ends: Ends) -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.sendto(b"message", (address, ends.plain))
            await ends.until(lambda: len(ends.ike) == 1)
            (got,) = ends.ike
            assert got.data == b"message"
            assert got.local == Endpoint(address, ends.plain)
            assert got.remote.port == client.getsockname()[1]

    with_ends(work)


@FAMILIES
def test_the_shared_port_is_sorted_by_payload(family: int, address: str) -> None:
    async def work(ends: Ends) -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            where = (address, ends.natt)
            client.sendto(b"\xff", where)
            client.sendto(b"\x00\x00\x00\x00", where)
            client.sendto(b"\x00\x00\x00\x00message", where)
            await ends.until(lambda: len(ends.ike) == 1)
            assert ends.ike[0].data == b"message"
            assert ends.sockets.counters["receive: keepalive"] == 1
            assert ends.sockets.counters["receive: too short"] == 1
            # ESP goes to the data plane's socket of the pair, not to ours.
            client.sendto(b"\x00\x00\x01\x00esp-packet", where)
            client.sendto(b"\x00\x00\x00\x00last", where)
            await ends.until(lambda: len(ends.ike) == 2)
            assert not ends.esp
            (pair,) = [p for p in ends.sockets.pairs if p.esp.family == family]
            assert pair.esp.recv(100) == b"\x00\x00\x01\x00esp-packet"

    with_ends(work)


def test_esp_that_offload_joined_to_ike_goes_to_the_data_plane() -> None:
    async def work(ends: Ends) -> None:
        packet = b"\x00\x00\x01\x00" + bytes(20)

        class Joined:
            reads = iter([packet])

            def recvmsg_into(self, buffers, size):
                try:
                    data = next(self.reads)
                except StopIteration:
                    raise BlockingIOError from None
                buffers[0][: len(data)] = data
                info = (socket.IPPROTO_IP, 8, bytes(8) + socket.inet_aton("127.0.0.1"))
                return len(data), [info], 0, ("127.0.0.2", 4500)

        fake = type("Port", (), {})()
        fake.sock, fake.marker, fake.v6 = Joined(), True, False
        fake.endpoints, fake.number = {}, 4500
        ends.sockets._readable(fake)
        assert ends.esp == [(packet, Endpoint("127.0.0.1", 4500), Endpoint("127.0.0.2", 4500))]

    with_ends(work)


@FAMILIES
def test_answers_leave_from_the_address_that_was_asked(family: int, address: str) -> None:
    async def work(ends: Ends) -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
            client.settimeout(5)
            remote = Endpoint(*client.getsockname()[:2])
            for port, encap, data, wire in (
                (ends.plain, False, b"abc", b"abc"),
                (ends.natt, True, b"abc", b"\x00\x00\x00\x00abc"),
                (ends.natt, True, b"", b"\xff"),
            ):
                ends.sockets.send(SendDatagram(Endpoint(address, port), remote, data, encap))
                got, sender = client.recvfrom(100)
                assert got == wire
                assert sender[:2] == (address, port)

    with_ends(work)


def test_what_cannot_be_sent_is_counted() -> None:
    async def work(ends: Ends) -> None:
        nowhere = Endpoint("127.0.0.1", 9)
        ends.sockets.send(SendDatagram(Endpoint("127.0.0.1", 1), nowhere, b"x", False))
        assert ends.sockets.counters["send: no socket"] == 1
        foreign = Endpoint("192.0.2.77", ends.plain)
        ends.sockets.send(SendDatagram(foreign, nowhere, b"x", False))
        assert sum(n for k, n in ends.sockets.counters.items() if k.startswith("send: E")) == 1

    with_ends(work)


def test_icmp_errors_change_nothing() -> None:
    async def work(ends: Ends) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        for _ in range(3):
            action = SendDatagram(
                Endpoint("127.0.0.1", ends.plain), Endpoint("127.0.0.1", port), b"x", False
            )
            ends.sockets.send(action)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"still there", ("127.0.0.1", ends.plain))
            await ends.until(lambda: len(ends.ike) == 1)

    with_ends(work)


def test_a_burst_is_one_burst() -> None:
    async def work(ends: Ends) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for number in range(100):
                client.sendto(b"%d" % number, ("127.0.0.1", ends.plain))
        await ends.until(lambda: len(ends.ike) == 100)
        assert [d.data for d in ends.ike] == [b"%d" % n for n in range(100)]
        assert ends.bursts == [64, 100]

    with_ends(work)


def test_a_port_in_use_names_the_process() -> None:
    async def work(ends: Ends) -> None:
        other = IkeSockets(ends.ike.append, lambda *_: None, lambda: None, ports=(ends.plain, 0))
        with pytest.raises(PortConflict, match=rf"{ends.plain} is in use by .*pid {os.getpid()}"):
            other.open()

    with_ends(work)


def test_a_port_in_use_by_another_group_names_the_process() -> None:
    async def work(ends: Ends) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("0.0.0.0", 0))
            port = stranger.getsockname()[1]
            assert list(owners_of(port))
            other = IkeSockets(ends.ike.append, lambda *_: None, lambda: None, ports=(0, port))
            with pytest.raises(PortConflict, match=str(port)):
                other.open()
            assert other.ports == ()

    with_ends(work)
