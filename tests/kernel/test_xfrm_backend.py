"""The XFRM back end on a kernel that has ESP and AH (``ipsec_lab.xfrm_rig``)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ipsec_gateway.ipsec.base import (
    DataplaneError,
    Level,
    PolicyAction,
)
from ipsec_gateway.ipsec.xfrm import XfrmBackend
from ipsec_gateway.probe import probe
from ipsec_ike.actions import UpdateSa
from ipsec_ike.config import Lifetime, Mode
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Acquire, Endpoint, Expire, Mapping
from ipsec_ike.numbers import Encr, Integ, Protocol, TransformType
from ipsec_ike.proposal import Transform
from ipsec_lab.netns import Namespace
from ipsec_lab.xfrm_rig import (
    CBC,
    OUTER4,
    OUTER6,
    REQID,
    V4,
    V6,
    End,
    connect,
    inside,
    next_event,
    pair,
    policies,
    wire,
)

CIPHERS = [
    (Encr.AES_GCM_16, 128, None),
    (Encr.AES_GCM_8, 256, None),
    (Encr.AES_CCM_12, 128, None),
    (Encr.CHACHA20_POLY1305, 0, None),
    (Encr.AES_CBC, 256, Integ.HMAC_SHA2_256_128),
    (Encr.AES_CBC, 128, Integ.HMAC_SHA2_384_192),
    (Encr.AES_CTR, 128, Integ.HMAC_SHA2_512_256),
    (Encr.AES_CBC, 128, Integ.AES_XCBC_96),
    (Encr.AES_CBC, 128, Integ.AES_CMAC_96),
    (Encr.DES3, 0, Integ.HMAC_SHA1_96),
    (Encr.NULL, 0, Integ.HMAC_SHA2_256_128),
]


@pytest.mark.parametrize(("encr", "bits", "integ"), CIPHERS)
def test_a_suite_carries_packets(
    play: Callable[..., None], encr: int, bits: int, integ: int | None
) -> None:
    mac = None if integ is None else Transform(TransformType.INTEG, integ)

    async def body(a: End, b: End) -> None:
        await connect(a, b, suite=(Transform(TransformType.ENCR, encr, bits), mac))
        async with wire(a) as seen:
            assert await a.ping("10.2.0.1")
        assert seen == [50]
        counted = await a.backend.counters()
        # Octets of the inner packet: 20 + 8 + 56.
        assert {sa.direction: (c.packets, c.bytes) for sa, c in counted.items()} == {
            Direction.IN: (1, 84),
            Direction.OUT: (1, 84),
        }

    play(body)


SHAPES: dict[str, tuple[dict[str, Any], str, int]] = {
    "tunnel, IPv6": ({"ends": OUTER6, "nets": V6}, "fd00:2::1", 50),
    "IPv4 in IPv6": ({"ends": OUTER6}, "10.2.0.1", 50),
    "IPv6 in IPv4": ({"nets": V6}, "fd00:2::1", 50),
    "ESN": ({"esn": True, "replay_window": 1024}, "10.2.0.1", 50),
    "ESN, separate integrity": ({"esn": True, "suite": CBC}, "10.2.0.1", 50),
    "window of 4096": ({"replay_window": 4096}, "10.2.0.1", 50),
    "no replay window": ({"replay_window": 0}, "10.2.0.1", 50),
    "transport": (
        {"mode": Mode.TRANSPORT, "nets": ("192.0.2.1/32", "192.0.2.2/32")},
        "192.0.2.2",
        50,
    ),
    "transport, IPv6": (
        {"mode": Mode.TRANSPORT, "nets": ("2001:db8::1/128", "2001:db8::2/128"), "ends": OUTER6},
        "2001:db8::2",
        50,
    ),
    "AH tunnel": ({"protocol": Protocol.AH, "suite": CBC}, "10.2.0.1", 51),
    "AH tunnel, IPv6": (
        {"protocol": Protocol.AH, "suite": CBC, "nets": V6, "ends": OUTER6},
        "fd00:2::1",
        51,
    ),
    "AH transport": (
        {
            "protocol": Protocol.AH,
            "suite": CBC,
            "mode": Mode.TRANSPORT,
            "nets": ("192.0.2.1/32", "192.0.2.2/32"),
        },
        "192.0.2.2",
        51,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_carries_packets(play: Callable[..., None], name: str) -> None:
    how, address, protocol = SHAPES[name]

    async def body(a: End, b: End) -> None:
        await connect(a, b, **how)
        async with wire(a) as seen:
            assert await a.ping(address)
        assert seen == [protocol]

    play(body)


def test_a_bundle_of_esp_and_ah(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        both = {"policy": {"protocols": (Protocol.ESP, Protocol.AH)}}
        await connect(a, b, **both)
        # Selectors are those of the packet as it was before all protection.
        outer = {"mode": Mode.TRANSPORT, "protocol": Protocol.AH, "suite": CBC}
        forth, back = pair(0x2000, **outer), pair(0x2001, OUTER4[::-1], nets=V4[::-1], **outer)
        await a.backend.add_sa(forth[0])
        await a.backend.add_sa(back[1])
        await b.backend.add_sa(forth[1])
        await b.backend.add_sa(back[0])
        whole: list[bytes] = []
        async with wire(a, whole) as seen:
            assert await a.ping("10.2.0.1")
        assert seen == [51]
        # IP without options, AH (RFC 4302 2) with an ICV of 16 octets, then ESP: each with its SPI.
        (packet,) = whole
        assert packet[0] == 0x45
        ah, esp = packet[20 : 20 + 28], packet[20 + 28 :]
        assert (ah[0], int.from_bytes(ah[4:8])) == (50, 0x2000)
        assert int.from_bytes(esp[:4]) == 0x1000
        # Both ends count it in both of their SAs.
        for end in (a, b):
            counters = await end.backend.counters()
            assert sorted(c.packets for c in counters.values()) == [1, 1, 1, 1]

    play(body)


def test_a_bundle_lets_nothing_pass_that_lacks_a_part(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        both = {"policy": {"protocols": (Protocol.ESP, Protocol.AH)}}
        await connect(a, b, **both)
        async with wire(a) as seen:
            assert not await a.ping("10.2.0.1")
        assert seen == []
        # With ESP alone on one side, the other does not take it.
        await a.backend.put_policies(policies(), ())
        async with wire(a) as seen:
            assert not await a.ping("10.2.0.1")
        # Twice where the kernel has kept the first ping, which had no SA.
        assert set(seen) == {50}

    play(body)


def test_esp_in_udp(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await connect(a, b, ports=(4500, 4500))
        async with wire(a) as seen:
            assert await a.ping("10.2.0.1")
        assert seen == [17]
        # IKE still comes through, with its marker.
        with inside(b.namespace):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.sendto(bytes(4) + b"ike message", ("192.0.2.1", 4500))
        sender.close()
        async with asyncio.timeout(5):
            data = await asyncio.get_running_loop().sock_recv(a.natt[0].ike, 100)
        assert data == bytes(4) + b"ike message"

    play(body, encap=True)


def test_a_new_port_is_told_and_taken_in_place(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await connect(a, b, ports=(4500, 4500))
        (out,) = [sa for sa in await a.backend.counters() if sa.direction is Direction.OUT]
        # A NAT in between gives packets of b another source port. ESP in UDP has no checksum, and
        # nft would make a wrong one out of none.
        b.namespace.nft(
            "table ip nat {"
            " chain out { type filter hook postrouting priority 0;"
            " udp sport 4500 udp sport set 40123 udp checksum set 0; };"
            " chain back { type filter hook prerouting priority 0;"
            " udp dport 40123 udp dport set 4500 udp checksum set 0; };"
            "}"
        )
        try:
            assert await a.ping("10.2.0.1")
            moved = await next_event(a, Mapping)
            assert moved == Mapping(0x1001, Endpoint("192.0.2.2", 40123))
            before = a.shown("state")
            here, there = Endpoint("192.0.2.1", 4500), Endpoint("192.0.2.2", 40123)
            for sa in list(await a.backend.counters()):
                pair_of = (here, there) if sa == out else (there, here)
                await a.backend.update_sa(UpdateSa(sa, *pair_of, encap=True))
            assert "dport 40123" in a.shown("state")
            assert before.count("spi") == a.shown("state").count("spi")
            assert await a.ping("10.2.0.1")
            assert (await a.backend.counters())[out].packets == 2
        finally:
            b.namespace.nft("delete table ip nat")

    play(body, encap=True)


def test_a_new_address_of_the_peer_loses_no_packet(play: Callable[..., None]) -> None:
    """b's view: a moves from 192.0.2.1 to 192.0.2.3 while b sends."""

    async def body(a: End, b: End) -> None:
        await connect(a, b, esn=True, replay_window=1024)
        flood = asyncio.create_task(
            asyncio.to_thread(
                b.namespace.run, "ping", "-n", "-i", "0.01", "-c", "200", "-W", "3", "10.1.0.1"
            )
        )
        await asyncio.sleep(0.8)
        old, new = Endpoint("192.0.2.1", 0), Endpoint("192.0.2.3", 0)
        far = Endpoint("192.0.2.2", 0)
        # a receives at both; its inbound SA is at the old address, so it gets one at the new too.
        out_b = SaId(Direction.OUT, Protocol.ESP, 0x1001, old.address)
        in_b = SaId(Direction.IN, Protocol.ESP, 0x1000, far.address)
        extra = pair(0x1001, ("192.0.2.2", "192.0.2.3"), nets=V4[::-1], esn=True)[1]
        await a.backend.add_sa(extra)
        await b.backend.update_sa(UpdateSa(in_b, new, far, encap=False))
        await b.backend.update_sa(UpdateSa(out_b, far, new, encap=False))
        assert "200 received" in await flood
        assert "dst 192.0.2.3" in b.shown("state")
        assert "tmpl src 192.0.2.2 dst 192.0.2.3" in b.shown("policy")
        counted = await b.backend.counters()
        # What left on the old SA while it was being copied is in nobody's count.
        assert 150 <= counted[out_b].packets <= 200
        # It can still be named by its new address, as the engine does.
        await b.backend.delete_sa(replace(out_b, destination=new.address))
        assert "spi 0x00001001" not in b.shown("state")

    play(body)


def test_limits_are_counted_by_the_kernel(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        limits = {"soft": Lifetime(packets=2), "hard": Lifetime(packets=4)}
        await connect(a, b, **limits)
        # The kernel looks before it counts: the third packet finds that there were two.
        for _ in range(3):
            assert await a.ping("10.2.0.1")
        assert (await next_event(a, Expire)).hard is False
        for _ in range(3):
            await a.ping("10.2.0.1", "-W", "1")
        while not (event := await next_event(a, Expire)).hard:
            pass
        assert event.id.spi in (0x1000, 0x1001)

    play(body)


def test_limits_of_octets_and_seconds(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        out, _ = pair(0x3000, soft=Lifetime(seconds=1), hard=Lifetime(seconds=600))
        await a.backend.add_sa(out)
        assert await next_event(a, Expire) == Expire(out.id, hard=False)
        await a.backend.delete_sa(out.id)
        await connect(a, b, soft=Lifetime(bytes=100), hard=Lifetime(bytes=100_000))
        for _ in range(3):
            assert await a.ping("10.2.0.1")
        assert (await next_event(a, Expire)).hard is False

    play(body)


def test_the_first_packet_waits_for_its_sa(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await a.backend.put_policies(policies(ends=OUTER4), ())
        await b.backend.put_policies(policies(V4[::-1]), ())
        async with wire(a) as seen:
            first = asyncio.create_task(a.ping("10.2.0.1", "-W", "10"))
            wanted = await next_event(a, Acquire)
            assert wanted.reqid == REQID
            # ping asks for a route first, with a UDP socket that sends nothing.
            packet = [str(ts).partition("[")[0] for ts in (wanted.local, wanted.remote)]
            assert packet == ["10.1.0.1/32", "10.2.0.1/32"]
            assert seen == []
            forth, back = pair(0x1000), pair(0x1001, OUTER4[::-1], nets=V4[::-1])
            await b.backend.add_sa(forth[1])
            await b.backend.add_sa(back[0])
            await a.backend.add_sa(back[1])
            await a.backend.add_sa(forth[0])
            assert await first
        assert seen == [50]

    play(body)


def test_level_use_passes_clear_text_until_there_is_an_sa(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await a.backend.put_policies(policies(ends=OUTER4, level=Level.USE), ())
        await b.backend.put_policies(policies(V4[::-1], level=Level.USE), ())
        async with wire(a) as seen:
            assert await a.ping("10.2.0.1")
        assert seen == [1]
        await connect(a, b, policy={"level": Level.USE})
        async with wire(a) as seen:
            assert await a.ping("10.2.0.1")
        assert seen == [50]
        # It asked for nothing.
        assert a.backend._queue.empty()

    play(body)


def test_the_first_entry_of_the_list_wins(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await connect(a, b, policy={"priority": 3})
        icmp = policies(
            flow={"protocol": 1}, action=PolicyAction.DISCARD, reqid=0, priority=2, name="x/stop"
        )
        await a.backend.put_policies(icmp, ())
        assert not await a.ping("10.2.0.1", "-W", "1")
        echo = policies(
            flow={"protocol": 1, "start_port": 8 << 8, "end_port": 8 << 8 | 255},
            action=PolicyAction.NONE,
            reqid=0,
            priority=1,
        )
        await a.backend.put_policies(echo, ())
        async with wire(a) as seen:
            await a.ping("10.2.0.1", "-W", "1")
        assert seen == [1]
        await a.backend.put_policies((), [spec.id for spec in (*icmp, *echo)])
        assert await a.ping("10.2.0.1")

    play(body)


def test_the_newest_outbound_sa_is_used(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await connect(a, b)
        assert await a.ping("10.2.0.1")
        out, inward = pair(0x4000)
        await b.backend.add_sa(inward)
        await a.backend.add_sa(out)
        assert await a.ping("10.2.0.1")
        counted = {sa.spi: c.packets for sa, c in (await a.backend.counters()).items()}
        assert counted == {0x1000: 1, 0x4000: 1, 0x1001: 2}
        old = SaId(Direction.OUT, Protocol.ESP, 0x1000, OUTER4[1])
        await a.backend.delete_sa(old)
        await a.backend.delete_sa(old)
        assert await a.ping("10.2.0.1")

    play(body)


def test_outside_of_what_was_agreed_a_packet_asks_again(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await connect(a, b)
        for spi in (0x1000, 0x1001):
            direction = Direction.OUT if spi == 0x1000 else Direction.IN
            address = OUTER4[1] if direction is Direction.OUT else OUTER4[0]
            await a.backend.delete_sa(SaId(direction, Protocol.ESP, spi, address))
        narrow, _ = pair(0x1000, nets=("10.1.0.0/24", "10.2.0.128/25"))
        await a.backend.add_sa(narrow)
        assert not await a.ping("10.2.0.1", "-W", "1")
        assert (await next_event(a, Acquire)).reqid == REQID
        assert (await a.backend.counters())[narrow.id].packets == 0

    play(body)


def test_a_second_life_finds_what_the_first_left(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await connect(a, b, policy={"level": Level.UNIQUE, "name": "default/net"})
        hosts = ("2001:db8::1/128", "2001:db8::2/128")
        more = [
            *policies(hosts, mode=Mode.TRANSPORT, reqid=REQID + 1, priority=2),
            *policies(("10.3.0.0/16", "10.4.0.0/16"), action=PolicyAction.DISCARD, reqid=0),
            *policies(V6, action=PolicyAction.NONE, reqid=0, flow={"protocol": 6}, priority=4),
        ]
        await a.backend.put_policies(more, ())
        before = sorted(await a.backend.counters(), key=str)
        left = a.shown("policy")
        await a.close(remove=False)
        assert await a.ping("10.2.0.1")
        await a.start()
        found = await a.backend.inherit()
        assert sorted(found.sas, key=str) == before
        assert {sa.reqid for sa in found.sas.values()} == {REQID}
        wanted = {s.id: replace(s, name="") for s in (*policies(level=Level.UNIQUE), *more)}
        out = policies()[0].id
        wanted[out] = replace(wanted[out], local=OUTER4[0], remote=OUTER4[1])
        assert dict(found.policies) == wanted
        # The same again changes nothing.
        await a.backend.put_policies([*wanted.values()], ())
        assert a.shown("policy") == left
        await a.backend.put_policies((), list(wanted))
        assert a.shown("policy") == ""
        await a.backend.delete_sa(before[0])

    play(body)


def test_others_are_not_touched(namespaces: tuple[Namespace, Namespace]) -> None:
    a = namespaces[0]
    foreign = (
        "xfrm state add src 192.0.2.1 dst 192.0.2.9 proto esp spi 0x77 mode tunnel reqid 1 aead "
        "rfc4106(gcm(aes)) 0x000102030405060708090a0b0c0d0e0f10111213 128",
        "xfrm policy add src 10.1.0.0/24 dst 10.9.0.0/24 dir out action block priority 5",
    )
    for line in foreign:
        a.run("ip", *line.split())
    states, shown = a.run("ip", "xfrm", "state"), a.run("ip", "xfrm", "policy")

    async def body() -> None:
        end = End(a, XfrmBackend())
        await end.start()
        try:
            with pytest.raises(DataplaneError, match="another program has a policy"):
                await end.backend.put_policies(policies(("10.1.0.0/24", "10.9.0.0/24")), ())
            await end.backend.put_policies(policies(ends=OUTER4), ())
            await end.ping("10.2.0.1", "-W", "1")
        finally:
            await end.close()

    try:
        asyncio.run(body())
        assert a.run("ip", "xfrm", "policy") == shown
        assert a.run("ip", "xfrm", "state") == states
    finally:
        a.run("ip", "xfrm", "state", "flush")
        a.run("ip", "xfrm", "policy", "flush")


def test_an_sa_that_is_there_twice_is_refused_with_its_name(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        out, _ = pair(0x1000)
        await a.backend.add_sa(out)
        with pytest.raises(
            DataplaneError, match=r"SA 00001000 \(out\) of default/b/net: EEXIST: there is an SA"
        ):
            await a.backend.add_sa(out)

    play(body)


def test_lost_events_are_found_again(play: Callable[..., None]) -> None:
    async def body(a: End, b: End) -> None:
        await connect(a, b)
        a.namespace.run("ip", "xfrm", "state", "flush")
        a.backend._resync()
        expired = {(await next_event(a, Expire)).id.spi for _ in range(2)}
        assert expired == {0x1000, 0x1001}

    play(body)


def test_the_probe_finds_what_works(namespaces: tuple[Namespace, Namespace]) -> None:
    with inside(namespaces[0]):
        found = probe()
    assert found.usable, found.lacks
    assert (found.esp, found.ah) == ({4, 6}, {4, 6})
    assert found.encapsulation
    assert found.interfaces
    assert found.abilities.esn
    assert found.abilities.transport
    for number, bits, integ in CIPHERS:
        assert Transform(TransformType.ENCR, number, bits) in found.abilities.encryption
        assert integ is None or integ in found.abilities.esp_integrity
    assert Integ.HMAC_SHA2_256_128 in found.abilities.ah_integrity
    assert namespaces[0].run("ip", "xfrm", "state") == ""
