"""Interfaces, outer headers and hardware offload of the XFRM back end alone (no IKE)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest

from ipsec_gateway.ipsec.base import DataplaneError, PolicySpec
from ipsec_gateway.ipsec.xfrm_offload import capable
from ipsec_ike.config import Handling, Offload
from ipsec_lab.xfrm_rig import (
    OUTER4,
    V4,
    End,
    connect,
    inside,
    pair,
    policies,
    wire,
)

NUMBER = 0x20000017
ALL4, ALL6 = ("0.0.0.0/0", "0.0.0.0/0"), ("::/0", "::/0")


def on_interface(specs: list[PolicySpec], number: int = NUMBER) -> list[PolicySpec]:
    return [replace(spec, id=replace(spec.id, interface=number)) for spec in specs]


@contextlib.contextmanager
def interfaces(a: End, b: End, number: int = NUMBER) -> Iterator[None]:
    """One at each end, with the ways to the other's networks."""
    for end, far in ((a, 2), (b, 1)):
        end.namespace.ip(
            f"link add x0 type xfrm if_id {number:#x}",
            "link set dev x0 up",
            f"route add 10.{far}.0.0/25 dev x0 src 10.{3 - far}.0.1",
            f"route add fd00:{far}::/65 dev x0 src fd00:{3 - far}::1",
        )
    try:
        yield
    finally:
        for end in (a, b):
            end.namespace.ip("link delete dev x0")


async def routed(a: End, b: End, nets: tuple[str, str] = ALL4, number: int = NUMBER) -> None:
    """Policies and SAs for everything on an interface, at both ends."""
    for end, own, ends in ((a, nets, OUTER4), (b, nets[::-1], OUTER4[::-1])):
        await end.backend.put_policies(on_interface(policies(own, ends), number), ())
    how = Handling(interface=number)
    forth = pair(0x1000, nets=nets, handling=how)
    back = pair(0x1001, OUTER4[::-1], nets=nets[::-1], handling=how)
    for end, sas in ((a, (back[1], forth[0])), (b, (forth[1], back[0]))):
        for spec in sas:
            await end.backend.add_sa(spec)


@pytest.mark.parametrize(
    ("nets", "address"), [(ALL4, "10.2.0.1"), (ALL6, "fd00:2::1")], ids=["IPv4", "IPv6"]
)
def test_what_is_routed_into_the_interface_is_protected(
    play: Callable[..., None], nets: tuple[str, str], address: str
) -> None:
    async def body(a: End, b: End) -> None:
        with interfaces(a, b):
            await routed(a, b, nets)
            async with wire(a) as seen:
                assert await a.ping(address)
                assert await b.ping(address.replace("2", "1", 1))
            assert seen == [50, 50]
            # Policies for everything, and yet nothing else is touched.
            async with wire(a) as seen:
                assert await a.ping("192.0.2.2")
            assert seen == [1]
            assert f"if_id {NUMBER:#x}" in a.shown("state")
        async with wire(a) as seen:
            assert await a.ping(address)
        assert seen in ([1], [58]), "the route went with the interface"

    play(body)


def test_without_an_sa_or_a_policy_nothing_leaves(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        with interfaces(a, b):
            async with wire(a) as seen:
                assert not await a.ping("10.2.0.1", "-W", "1")
                for ends in (("", ""), OUTER4):
                    await a.backend.put_policies(on_interface(policies(ALL4, ends)), ())
                    assert not await a.ping("10.2.0.1", "-W", "1")
            assert seen == []

    play(body)


def test_an_sa_of_another_interface_is_no_way_in(play: Callable[..., None]) -> None:
    """What comes out of an SA must be what a policy of its interface allows."""

    async def body(a: End, b: End) -> None:
        with interfaces(a, b):
            await routed(a, b)
            await b.backend.put_policies((), [s.id for s in on_interface(policies(ALL4))])
            assert not await a.ping("10.2.0.1", "-W", "1")

    play(body)


def test_interfaces_and_addresses_do_not_mix(play: Callable[..., None]) -> None:
    """The same selectors with and without an interface, and a second life finds both."""

    async def body(a: End, b: End) -> None:
        with interfaces(a, b):
            await routed(a, b, V4)
            other = policies(V4, OUTER4, reqid=0x40000009, priority=9)
            await a.backend.put_policies(other, ())
            before = a.shown("policy")
            assert before.count("if_id") == 3
            await a.close(remove=False)
            await a.start()
            found = (await a.backend.inherit()).policies
            assert len(found) == 6
            mine = on_interface(policies(V4, OUTER4))
            assert {replace(found[s.id], name="") for s in mine} == set(mine)
            await a.backend.put_policies(mine, [s.id for s in other])
            assert a.shown("policy").count("if_id") == 3
            assert a.shown("policy").count("dir ") == 3
            assert await a.ping("10.2.0.1")
            await a.backend.put_policies((), [s.id for s in mine])
            assert a.shown("policy") == ""

    play(body)


# --- outer headers ----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def outer(end: End) -> AsyncIterator[list[tuple[int, bool]]]:
    """(TOS octet, DF) of the ESP packets over IPv4 that the end sends."""
    seen: list[tuple[int, bool]] = []
    with inside(end.namespace):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    sock.bind(("wire", 0x0003))
    sock.setblocking(False)
    try:
        yield seen
        await asyncio.sleep(0.05)
        with contextlib.suppress(BlockingIOError):
            while True:
                data, address = sock.recvfrom(2048)
                if address[2] == socket.PACKET_OUTGOING and data[0] >> 4 == 4 and data[9] == 50:
                    seen.append((data[1], bool(data[6] & 0x40)))
    finally:
        sock.close()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Handling(), [(0xBA, True), (0xBA, False)]),
        (Handling(copy_dscp=False), [(0x02, True), (0x02, False)]),
        (Handling(ecn=False), [(0xB8, True), (0xB8, False)]),
        (Handling(copy_df=False), [(0xBA, False), (0xBA, False)]),
    ],
    ids=["as it is", "no DSCP", "no ECN", "no DF"],
)
def test_the_outer_header(
    play: Callable[..., None], how: Handling, expected: list[tuple[int, bool]]
) -> None:
    """Of a packet of DSCP EF with ECT(0), with DF and without."""

    async def body(a: End, b: End) -> None:
        await connect(a, b, handling=how)
        async with outer(a) as seen:
            for df in ("do", "dont"):
                assert await a.ping("10.2.0.1", "-Q", "0xba", "-M", df)
        assert seen == expected

    play(body)


@pytest.mark.parametrize("back", [False, True], ids=["stays outside", "comes back in"])
def test_a_dscp_that_was_changed_on_the_way(play: Callable[..., None], back: bool) -> None:
    async def body(a: End, b: End) -> None:
        await connect(a, b, handling=Handling(keep_outer_dscp=back))
        a.namespace.nft(
            "table ip t { chain o { type filter hook postrouting priority 200;"
            " meta l4proto esp ip dscp set af11; }; }"
        )
        b.namespace.nft(
            "table ip t { chain i { type filter hook input priority 0;"
            " icmp type echo-request ip dscp af11 counter; }; }"
        )
        try:
            assert await a.ping("10.2.0.1", "-Q", "0xb8")
            counted = b.namespace.run("nft", "list", "table", "ip", "t")
            assert f"counter packets {1 if back else 0} " in counted
        finally:
            for end in (a, b):
                end.namespace.nft("delete table ip t")

    play(body)


# --- hardware offload -------------------------------------------------------------------------


@contextlib.contextmanager
def bond(end: End) -> Iterator[None]:
    """A device that says that it computes ESP, and cannot: it has nobody to do it."""
    end.namespace.ip(
        "link add bond9 type bond",
        "link set dev bond9 type bond mode active-backup",
        "link set dev bond9 up",
        "address add 198.51.100.1/24 dev bond9",
    )
    try:
        yield
    finally:
        end.namespace.ip("link delete dev bond9")


FAR = ("198.51.100.1", "198.51.100.2")


def test_a_card_that_refuses_is_told_and_software_takes_over(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def body(a: End, b: End) -> None:
        with bond(a), caplog.at_level(logging.INFO), inside(a.namespace):
            assert capable() == ["bond9"]
            out, _ = pair(0x1000, FAR)
            await a.backend.add_sa(out)
            assert "in software, because bond9 refused it" in caplog.text
            assert "spi 0x00001000" in a.shown("state")
            forced = replace(pair(0x1002, FAR)[0], handling=Handling(offload=Offload.CRYPTO))
            with pytest.raises(DataplaneError, match="hwOffload: the device refuses it"):
                await a.backend.add_sa(forced)
            assert "spi 0x00001002" not in a.shown("state")

    play(body)


def test_a_way_without_a_card(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await connect(a, b, handling=Handling(offload=Offload.AUTO))
        assert await a.ping("10.2.0.1")
        forced = replace(pair(0x1002)[0], handling=Handling(offload=Offload.CRYPTO))
        with pytest.raises(DataplaneError, match="cannot compute ESP"):
            await a.backend.add_sa(forced)
        assert "spi 0x00001002" not in a.shown("state")

    play(body)
