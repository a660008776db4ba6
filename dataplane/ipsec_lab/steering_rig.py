"""A gateway between a LAN and a WAN, with a test as its data plane.

    lan 10.1.0.2 ---- 10.1.0.1 gw 192.0.2.1 ---- 192.0.2.2 wan 10.2.0.0/16, 10.3.0.0/16 (clear text)
        fd00:1::2              |  2001:db8::1         fd00:2::/64
                            kipsec0 (TUN, this test plays the data plane)

``wan`` has the remote addresses itself and forwards nothing: what arrives there is a leak.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ipsec_gateway.intent import Intent
from ipsec_gateway.ipsec.base import Level, PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.steering import Steering, local_addresses
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.netns import Namespace, end_process

T = TypeVar("T")
DEVICE = "kipsec0"

TUN = """
import fcntl, os, select, struct, sys
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"kipsec0", 0x1001))
os.system("ip link set kipsec0 up mtu 1400")
print("up", flush=True)
while True:
    ready, _, _ = select.select([fd, 0], [], [])
    if fd in ready:
        print(os.read(fd, 65535).hex(), flush=True)
    if 0 in ready:
        line = sys.stdin.readline()
        if not line:
            break
        os.write(fd, bytes.fromhex(line))
"""


@dataclass
class Rig:
    lan: Namespace
    gw: Namespace
    wan: Namespace
    tun: subprocess.Popen[bytes]
    steering: Steering

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in ``gw``."""
        return self.gw.call(lambda: asyncio.run(work()))

    def apply(
        self, *policies: PolicySpec, live: frozenset[int] = frozenset(), settle: bool = True
    ) -> None:
        intent = Intent(
            policies=policies,
            pairs=tuple(
                (p.id.source.networks[0], p.id.destination.networks[0])
                for p in policies
                if p.action is PolicyAction.ENCRYPT
            ),
        )

        self.apply_intent(intent, live=live, settle=settle)

    def apply_intent(
        self, intent: Intent, *, live: frozenset[int] = frozenset(), settle: bool = True
    ) -> None:
        """The steering for an intent."""

        async def work() -> None:
            await self.steering.guard(intent, live=live, mtu=1400)
            await self.steering.route(intent, await local_addresses(DEVICE))
            await self.steering.prune()
            if settle:
                await self.steering.settle(intent)

        self.run(work)

    def counter(self, name: str) -> int:
        return self.run(self.steering.counters)[name].packets

    def tunnelled(self) -> list[bytes]:
        """Packets that the data plane has got since the last call, without IPv6 chatter."""
        assert self.tun.stdout is not None
        pipe = self.tun.stdout.fileno()
        text = b""
        while select.select([pipe], [], [], 0.2)[0]:
            text += os.read(pipe, 65536)
        packets = [bytes.fromhex(line) for line in text.decode().splitlines()]
        return [p for p in packets if p[0] >> 4 == 4 or (p[24] != 0xFF and p[8:10] != b"\xfe\x80")]

    def inject(self, packet: bytes) -> None:
        assert self.tun.stdin is not None
        self.tun.stdin.write(packet.hex().encode() + b"\n")
        self.tun.stdin.flush()


@contextlib.contextmanager
def gateway_between() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """The namespaces ``lan``, ``gw`` and ``wan`` of the picture, without a data plane."""
    lan, gw, wan = (Namespace(label) for label in ("lan", "gw", "wan"))
    try:
        gw.ip(
            f"link add lan0 type veth peer name eth0 netns {lan.name}",
            f"link add wan0 type veth peer name eth0 netns {wan.name}",
            "link set lan0 up",
            "link set wan0 up",
            "addr add 10.1.0.1/24 dev lan0",
            "addr add 192.0.2.1/24 dev wan0",
            "addr add fd00:1::1/64 dev lan0 nodad",
            "addr add 2001:db8::1/64 dev wan0 nodad",
            "route add default via 192.0.2.2",
            "route add default via 2001:db8::2",
        )
        lan.ip(
            "link set eth0 up",
            "addr add 10.1.0.2/24 dev eth0",
            "addr add fd00:1::2/64 dev eth0 nodad",
            "route add default via 10.1.0.1",
            "route add default via fd00:1::1",
        )
        wan.ip(
            "link set eth0 up",
            "addr add 192.0.2.2/24 dev eth0",
            "addr add 10.2.0.9/32 dev lo",
            "addr add 10.3.0.9/32 dev lo",
            "addr add 2001:db8::2/64 dev eth0 nodad",
            "addr add fd00:2::9/128 dev lo nodad",
            "route add 10.1.0.0/24 via 192.0.2.1",
            "route add fd00:1::/64 via 2001:db8::1",
        )
        # ARP would ask with the tested source address, which a strict filter may refuse.
        wan.sysctl({"ipv4.conf.all.arp_announce": 2})
        gw.sysctl(
            {
                "ipv4.ip_forward": 1,
                "ipv6.conf.all.forwarding": 1,
                # The strictest setting that a distribution may have.
                "ipv4.conf.all.rp_filter": 1,
                "ipv4.conf.default.rp_filter": 1,
            }
        )
        yield lan, gw, wan
    finally:
        for namespace in (lan, gw, wan):
            namespace.delete()


@contextlib.contextmanager
def steering_rig() -> Iterator[Rig]:
    """Everything of the picture above, and nothing left of it afterwards."""
    with gateway_between() as (lan, gw, wan):
        tun = gw.popen([sys.executable, "-c", TUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert tun.stdout is not None
        assert tun.stdout.readline() == b"up\n"
        try:
            yield Rig(lan, gw, wan, tun, Steering(DEVICE))
        finally:
            end_process(tun)
            for pipe in (tun.stdin, tun.stdout):
                if pipe is not None:
                    pipe.close()


def spec(
    src: str,
    dst: str,
    action: PolicyAction = PolicyAction.ENCRYPT,
    level: Level = Level.REQUIRE,
    **ports: int,
) -> PolicySpec:
    return PolicySpec(
        id=PolicyId(
            PolicyDirection.OUT,
            TrafficSelector.network(src, protocol=ports.get("protocol", 0)),
            TrafficSelector.network(dst, **ports),
        ),
        action=action,
        priority=1,
        level=level,
        reqid=7 if action is PolicyAction.ENCRYPT else 0,
    )


PROTECT4 = spec("10.1.0.0/16", "10.2.0.0/16")
PROTECT6 = spec("fd00:1::/64", "fd00:2::/64")


def reaches(ns: Namespace, address: str, *options: str) -> bool:
    return " 0% packet loss" in ns.run(
        "ping", "-c", "1", "-W", "0.3", "-n", *options, address, check=False
    )


def addresses(packet: bytes) -> tuple[str, str]:
    if packet[0] >> 4 == 4:
        src, dst = packet[12:16], packet[16:20]
    else:
        src, dst = packet[8:24], packet[24:40]
    return str(ipaddress.ip_address(src)), str(ipaddress.ip_address(dst))


def mss(segment: bytes) -> int:
    options = segment[20 : (segment[12] >> 4) * 4]
    assert options[0] == 2, "the MSS is the first option that Linux writes"
    return int.from_bytes(options[2:4], "big")


def received(ns: Namespace) -> int:
    """Echo requests that ``ns`` has got (InEchos of /proc/net/snmp)."""
    names, values = (
        line.split()
        for line in ns.run("cat", "/proc/net/snmp").splitlines()
        if line.startswith("Icmp: ")
    )
    return int(values[names.index("InEchos")])


def state(rig: Rig) -> str:
    show = (
        "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list ruleset"
    )
    # A gateway that takes over gives the sets of the table other names: nftscripts.
    text = re.sub(r"\b((?:remote|step\d+_\w+?)[46])_\d+\b", r"\1", rig.gw.run("sh", "-c", show))
    return "\n".join(
        line for line in text.splitlines() if "fe80" not in line and "ff00" not in line
    )


def checksum(data: bytes) -> int:
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(src: str, dst: str, protocol: int, payload: bytes) -> bytes:
    head = bytes.fromhex("4500") + (20 + len(payload)).to_bytes(2, "big")
    head += bytes.fromhex("0001000040") + bytes([protocol, 0, 0])
    head += ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def echo_request(src: str, dst: str) -> bytes:
    icmp = b"\x08\x00\x00\x00\x12\x34\x00\x01" + bytes(8)
    return ipv4(src, dst, 1, icmp[:2] + checksum(icmp).to_bytes(2, "big") + icmp[4:])
