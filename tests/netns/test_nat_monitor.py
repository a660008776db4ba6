"""What the kernel says about addresses and routes wakes the gateway, and our own changes do not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from ipsec_gateway.marks import NFT_TABLE
from ipsec_gateway.monitor import CHAINS, WAYS, Monitor, Topic, foreign_chain, other_way
from ipsec_lab.netns import Namespace


@pytest.fixture
def ns() -> Iterator[Namespace]:
    it = Namespace("monitor")
    try:
        it.ip("link add d0 type veth peer name d1", "link set d0 up", "link set d1 up")
        it.ip("addr add 192.0.2.1/24 dev d0")
        yield it
    finally:
        it.delete()


@pytest.mark.parametrize(
    ("change", "heard"),
    [
        ("addr add 198.51.100.1/24 dev d0", True),
        ("addr del 192.0.2.1/24 dev d0", True),
        ("addr add 2001:db8::1/64 dev d0 nodad", True),
        ("addr add 192.0.0.8/32 dev d1 scope host", False),
        ("route add default via 192.0.2.2", True),
        ("route add 10.9.0.0/16 via 192.0.2.2", False),
        ("route add default via 192.0.2.2 table 4500 proto 79", False),
        ("link set d1 mtu 1400", False),
    ],
)
def test_what_is_heard(ns: Namespace, change: str, heard: bool) -> None:
    assert any(told(ns, WAYS, lambda: ns.ip(change))) is heard


@pytest.mark.parametrize(
    ("change", "heard"),
    [
        ("table ip nat { chain post { type nat hook postrouting priority 100; }\n }", True),
        ("table inet other { chain regular {\n }\n }", True),
        ("table inet other { set s { type ipv4_addr; }\n }", False),
        (f"table inet {NFT_TABLE} {{ chain c {{ type nat hook input priority 0; }}\n }}", False),
    ],
)
def test_what_is_heard_of_chains(ns: Namespace, change: str, heard: bool) -> None:
    assert any(told(ns, CHAINS, lambda: ns.nft(change))) is heard


def told(ns: Namespace, topic: Topic, change: Callable[[], None]) -> list[bool]:
    with ns.socket(socket.AF_NETLINK, socket.SOCK_RAW, topic.protocol) as sock:
        sock.bind((0, topic.groups))
        change()
        # The kernel has queued all of it before the command ended.
        sock.setblocking(False)
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(topic.relevant(sock.recv(1 << 16)))
    return found


def test_a_change_wakes(ns: Namespace) -> None:
    async def work() -> None:
        told = asyncio.Event()
        monitor = Monitor(told.set, asyncio.get_running_loop())
        monitor.open()
        try:
            await asyncio.to_thread(ns.ip, "addr del 192.0.2.1/24 dev d0")
            await asyncio.wait_for(told.wait(), 20)
        finally:
            monitor.close()

    ns.call(lambda: asyncio.run(work()))


def test_what_is_cut_short_is_nothing() -> None:
    for data in (b"", bytes(15), bytes(16), b"\x20\0\0\0\x14\0" + bytes(10), b"\xff" * 40):
        assert not other_way(data)
        assert not foreign_chain(data)
