"""The kernel's SPD as the XFRM back end keeps it; kernels without ESP have it too."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

import pytest

from ipsec_gateway.ipsec import linux
from ipsec_gateway.ipsec.base import (
    DataplaneError,
    Level,
    PolicyAction,
    PolicyDirection,
    PolicyId,
    PolicySpec,
)
from ipsec_gateway.ipsec.xfrm import XfrmBackend
from ipsec_gateway.probe import probe
from ipsec_gateway.udp import bypass
from ipsec_ike.config import Mode
from ipsec_ike.inputs import Acquire
from ipsec_ike.numbers import Protocol
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.netns import Namespace
from ipsec_lab.xfrm_rig import (
    CBC,
    OUTER4,
    REQID,
    V4,
    V6,
    End,
    inside,
    next_event,
    pair,
    policies,
    wire,
)


def test_nothing_leaves_in_clear_without_an_sa(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        # Nobody knows the peer's address; then it is known and there is still no SA.
        for ends in (("", ""), OUTER4):
            await a.backend.put_policies(policies(ends=ends), ())
            async with wire(a) as seen:
                assert not await a.ping("10.2.0.1", "-W", "1")
            assert seen == []

    play(body)


def test_clear_text_is_refused_where_it_must_be_protected(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await b.backend.put_policies(policies(V4[::-1]), ())
        assert not await a.ping("10.2.0.1", "-W", "1")

    play(body)


def test_a_port_range_is_protected_and_its_neighbours_are_not(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        here, there = (TrafficSelector.network(n) for n in V4)
        ports = there._replace(protocol=17, start_port=1000, end_port=1005)
        spec = PolicySpec(
            id=PolicyId(PolicyDirection.OUT, here._replace(protocol=17), ports),
            action=PolicyAction.DISCARD,
            priority=1,
        )
        await a.backend.put_policies([spec], ())
        with inside(a.namespace):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        reached = []
        async with wire(a) as seen:
            for port in (999, 1000, 1003, 1005, 1006):
                before = len(seen)
                with contextlib.suppress(OSError):
                    sock.sendto(b"x", ("10.2.0.1", port))
                await asyncio.sleep(0.1)
                if len(seen) > before:
                    reached.append(port)
        sock.close()
        assert reached == [999, 1006]

    play(body)


def test_the_sysctl_is_set_back(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        assert a.namespace.run("sysctl", "-n", "net.core.xfrm_larval_drop") == "0\n"
        await a.close()
        assert a.namespace.run("sysctl", "-n", "net.core.xfrm_larval_drop") == "1\n"
        await a.start()

    play(body)


def test_a_thousand_policies_in_one_go(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        many = [
            spec
            for i in range(350)
            for spec in policies(("10.1.0.0/24", f"10.{i // 250 + 50}.{i % 250}.0/24"), OUTER4)
        ]
        started = time.monotonic()
        await a.backend.put_policies(many, ())
        print(f"{len(many)} policies in {time.monotonic() - started:.2f} s")  # noqa: T201
        assert a.shown("policy").count("dir ") == len(many)
        await a.backend.put_policies((), [spec.id for spec in many])
        assert a.shown("policy") == ""

    play(body)


def test_the_first_packet_asks_for_an_sa(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await a.backend.put_policies(policies(ends=OUTER4), ())
        async with wire(a) as seen:
            assert not await a.ping("10.2.0.1", "-W", "1")
        wanted = await next_event(a, Acquire)
        assert wanted.reqid == REQID
        packet = [str(ts).partition("[")[0] for ts in (wanted.local, wanted.remote)]
        assert packet == ["10.1.0.1/32", "10.2.0.1/32"]
        assert seen == []

    play(body)


def test_level_use_passes_and_asks_for_nothing(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await a.backend.put_policies(policies(ends=OUTER4, level=Level.USE), ())
        await b.backend.put_policies(policies(V4[::-1], level=Level.USE), ())
        async with wire(a) as seen:
            assert await a.ping("10.2.0.1")
        assert seen == [1]
        assert a.backend._queue.empty()

    play(body)


def test_an_entry_replaces_the_same_one_in_place(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await a.backend.put_policies(policies(ends=OUTER4, priority=5), ())
        before = a.shown("policy")
        await a.backend.put_policies(policies(ends=("192.0.2.3", "192.0.2.2"), priority=3), ())
        after = a.shown("policy")
        assert before.count("dir ") == after.count("dir ") == 3
        assert "tmpl src 192.0.2.3 dst 192.0.2.2" in after
        assert "priority 4102" in after
        assert "priority 4106" not in after

    play(body)


def test_a_second_life_finds_policies_as_they_were_put(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        hosts = ("2001:db8::1/128", "2001:db8::2/128")
        put = [
            *policies(ends=OUTER4, level=Level.UNIQUE),
            *policies(hosts, mode=Mode.TRANSPORT, reqid=REQID + 1, priority=2),
            *policies(("10.3.0.0/16", "10.4.0.0/16"), action=PolicyAction.DISCARD, reqid=0),
            *policies(V6, action=PolicyAction.NONE, reqid=0, flow={"protocol": 6}, priority=4),
            *policies(
                ("10.5.0.0/16", "10.6.0.0/16"),
                protocols=(Protocol.AH,),
                level=Level.USE,
                reqid=REQID + 2,
                mode=Mode.TRANSPORT,
            ),
        ]
        await a.backend.put_policies(put, ())
        left = a.shown("policy")
        await a.close(remove=False)
        assert a.shown("policy") == left
        await a.start()
        assert dict((await a.backend.inherit()).policies) == {spec.id: spec for spec in put}
        # The same again changes nothing, and what is no longer wanted goes.
        await a.backend.put_policies(put, ())
        assert a.shown("policy") == left
        await a.backend.put_policies((), [spec.id for spec in put])
        assert a.shown("policy") == ""

    play(body)


def test_neighbor_discovery_is_not_part_of_a_transport_policy(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        hosts = ("2001:db8::1/128", "2001:db8::2/128")
        await a.backend.put_policies(policies(hosts, mode=Mode.TRANSPORT), ())
        await b.backend.put_policies(policies(hosts[::-1], mode=Mode.TRANSPORT), ())
        for end in (a, b):
            end.namespace.ip("neigh flush all")
        assert not await a.ping("2001:db8::2", "-W", "1")
        with inside(a.namespace):
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            bypass(sock)
        sock.sendto(b"x", ("2001:db8::2", 9))
        await asyncio.sleep(0.3)
        sock.close()
        assert "lladdr" in a.namespace.run("ip", "-6", "neigh", "show", "2001:db8::2")

    play(body)


def test_a_socket_of_ours_passes_every_policy(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        for end, hosts in ((a, ("192.0.2.1/32", "192.0.2.2/32")), (b, ("192.0.2.2/32",) * 2)):
            nets = hosts if end is a else ("192.0.2.2/32", "192.0.2.1/32")
            await end.backend.put_policies(policies(nets, mode=Mode.TRANSPORT), ())
        socks = []
        for end in (a, b):
            with inside(end.namespace):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                bypass(sock)
                sock.bind(("0.0.0.0", 500))
                sock.setblocking(False)
            socks.append(sock)
        socks[0].sendto(b"ike", ("192.0.2.2", 500))
        async with asyncio.timeout(5):
            data = await asyncio.get_running_loop().sock_recv(socks[1], 10)
        assert data == b"ike"
        for sock in socks:
            sock.close()

    play(body)


def test_a_foreign_policy_stays(namespaces: tuple[Namespace, Namespace]) -> None:
    a = namespaces[0]
    line = "xfrm policy add src 10.1.0.0/24 dst 10.9.0.0/24 dir out action block priority 5"
    a.run("ip", *line.split())
    shown = a.run("ip", "xfrm", "policy")

    async def body() -> None:
        end = End(a, XfrmBackend())
        await end.start()
        try:
            with pytest.raises(DataplaneError, match="another program has a policy"):
                await end.backend.put_policies(policies(("10.1.0.0/24", "10.9.0.0/24")), ())
            await end.backend.put_policies(policies(ends=OUTER4), ())
        finally:
            await end.close()

    try:
        asyncio.run(body())
        assert a.run("ip", "xfrm", "policy") == shown
    finally:
        a.run("ip", "xfrm", "policy", "flush")


def test_a_refused_sa_is_told_with_what_the_kernel_lacks(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        with inside(a.namespace):
            if probe().usable:
                pytest.skip("this kernel has ESP")
        out, _ = pair(0x1000, suite=CBC)
        lacking = r"EPROTONOSUPPORT: this kernel has no ESP for IPv4 \(module esp4\)|ENOSYS: .*"
        with pytest.raises(
            DataplaneError, match=rf"^SA 00001000 \(out\) of default/b/net: ({lacking})$"
        ):
            await a.backend.add_sa(out)

    play(body)


def test_dropped_events_are_made_up_for(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def body(a: End, b: End) -> None:
        # In transport mode every destination asks for an SA of its own.
        await a.backend.put_policies(policies(mode=Mode.TRANSPORT), ())
        events = a.backend._events
        assert events is not None
        events._sock.setsockopt(socket.SOL_SOCKET, linux.SO_RCVBUFFORCE, 2048)
        with inside(a.namespace):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for last in range(1, 100):
            sock.sendto(b"x", (f"10.2.0.{last}", 9))
        sock.close()
        # What the kernel could not tell it asks again with the next packet. What it has asked is
        # in the dump, which does not say which packet it was.
        while (await next_event(a, Acquire)) != Acquire(REQID):
            pass

    play(body)
    assert "the kernel dropped events" in caplog.text
