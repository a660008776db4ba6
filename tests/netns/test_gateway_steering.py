"""Steering and guard with a real kernel.

    lan 10.1.0.2 ---- 10.1.0.1 gw 192.0.2.1 ---- 192.0.2.2 wan 10.2.0.0/16, 10.3.0.0/16 (clear text)
        fd00:1::2              |  2001:db8::1         fd00:2::/64
                            kipsec0 (TUN, this test plays the data plane)

``wan`` has the remote addresses itself and forwards nothing: what arrives there is a leak.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from ipsec_gateway.intent import Intent
from ipsec_gateway.ipsec.base import Level, PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.steering import Steering, current, local_addresses
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.netns import Namespace, end_process, enter_namespace

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
        """Run a coroutine in a thread that has entered ``gw``; its children are in there too."""
        result: list[T] = []

        def inside() -> None:
            enter_namespace(self.gw.path)
            result.append(asyncio.run(work()))

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        return result[0]

    def apply(self, *policies: PolicySpec, live: frozenset[int] = frozenset()) -> None:
        intent = Intent(
            policies=policies,
            pairs=tuple(
                (p.id.source.networks[0], p.id.destination.networks[0])
                for p in policies
                if p.action is PolicyAction.ENCRYPT
            ),
        )

        async def work() -> None:
            await self.steering.guard(intent, live=live, mtu=1400)
            await self.steering.route(intent, await local_addresses(DEVICE))
            await self.steering.prune()

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


@pytest.fixture
def rig() -> Iterator[Rig]:
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
    finally:
        for namespace in (lan, gw, wan):
            namespace.delete()


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


def test_protected_traffic_goes_into_the_device_and_nothing_else_does(rig: Rig) -> None:
    assert reaches(rig.lan, "10.2.0.9"), "the rig itself: clear text must pass before the guard"
    rig.apply(PROTECT4, PROTECT6)
    assert not reaches(rig.lan, "10.2.0.9")
    assert not reaches(rig.lan, "fd00:2::9")
    assert [addresses(p) for p in rig.tunnelled()] == [
        ("10.1.0.2", "10.2.0.9"),
        ("fd00:1::2", "fd00:2::9"),
    ]
    assert reaches(rig.lan, "10.3.0.9"), "what no policy matches passes as ever"
    assert rig.tunnelled() == []
    # The gateway's own traffic gets a source address that the policy covers.
    assert not reaches(rig.gw, "10.2.0.9")
    assert not reaches(rig.gw, "fd00:2::9")
    assert [addresses(p) for p in rig.tunnelled()] == [
        ("10.1.0.1", "10.2.0.9"),
        ("fd00:1::1", "fd00:2::9"),
    ]
    # An address that no policy covers takes the usual route.
    assert reaches(rig.gw, "10.2.0.9", "-I", "192.0.2.1")


def test_decrypted_traffic_passes_strict_reverse_path_filters(rig: Rig) -> None:
    rig.apply(PROTECT4)
    before = received(rig.lan)
    rig.inject(echo_request("10.2.0.9", "10.1.0.2"))
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.2", "10.2.0.9")], "the echo reply"
    assert received(rig.lan) == before + 1
    # Also to the gateway itself.
    rig.inject(echo_request("10.2.0.9", "10.1.0.1"))
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.1", "10.2.0.9")]


def test_clear_text_from_a_protected_network_is_dropped_and_counted(rig: Rig) -> None:
    rig.apply(PROTECT4)
    assert not reaches(rig.wan, "10.1.0.2", "-I", "10.2.0.9")
    assert rig.counter("unencrypted_in") == 1
    assert reaches(rig.wan, "10.1.0.2", "-I", "10.3.0.9")


def test_the_guard_outlives_the_device(rig: Rig) -> None:
    """A killed gateway: the device and its routes are gone, nothing may leak."""
    rig.apply(PROTECT4, PROTECT6)
    os.kill(rig.tun.pid, 9)
    rig.tun.wait()
    deadline = time.monotonic() + 5
    while DEVICE in rig.gw.run("ip", "-br", "link") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert DEVICE not in rig.gw.run("ip", "-br", "link")
    for address in ("10.2.0.9", "fd00:2::9"):
        assert not reaches(rig.lan, address)
        assert not reaches(rig.gw, address)
    # The fallback routes refuse; without them too the guard holds.
    for version in ("-4", "-6"):
        rig.gw.run("ip", version, "route", "flush", "table", "4500")
    for address in ("10.2.0.9", "fd00:2::9"):
        assert not reaches(rig.lan, address)
    assert rig.counter("unencrypted_out") == 2


def test_first_match_decides(rig: Rig) -> None:
    rig.apply(
        spec("10.1.0.0/16", "10.2.0.9/32", PolicyAction.NONE),
        spec("10.1.0.0/16", "10.3.0.0/16", PolicyAction.DISCARD),
        PROTECT4,
    )
    assert reaches(rig.lan, "10.2.0.9")
    assert reaches(rig.gw, "10.2.0.9", "-I", "10.1.0.1")
    assert reaches(rig.wan, "10.1.0.2", "-I", "10.2.0.9")
    assert not reaches(rig.lan, "10.3.0.9")
    assert rig.counter("discarded_out") == 1
    assert not reaches(rig.wan, "10.1.0.2", "-I", "10.3.0.9")
    assert rig.counter("discarded_in") == 1
    assert not reaches(rig.lan, "10.2.0.10")
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.2", "10.2.0.10")]


def test_level_use_is_clear_without_an_sa(rig: Rig) -> None:
    rig.apply(spec("10.1.0.0/16", "10.2.0.0/16", level=Level.USE))
    assert reaches(rig.lan, "10.2.0.9")
    rig.apply(spec("10.1.0.0/16", "10.2.0.0/16", level=Level.USE), live=frozenset({7}))
    assert not reaches(rig.lan, "10.2.0.9")
    assert len(rig.tunnelled()) == 1
    # Clear text in is tolerated; the answer is protected.
    assert not reaches(rig.wan, "10.1.0.2", "-I", "10.2.0.9")
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.2", "10.2.0.9")]
    assert rig.counter("unencrypted_in") == 0


def test_only_the_protocol_and_ports_of_the_policy(rig: Rig) -> None:
    rig.apply(
        spec("10.1.0.0/16", "10.2.0.0/16", protocol=17, start_port=7, end_port=9),
        spec("10.1.0.0/16", "10.3.0.0/16", protocol=1),
    )
    assert reaches(rig.lan, "10.2.0.9")
    assert not reaches(rig.lan, "10.3.0.9")
    assert len(rig.tunnelled()) == 1
    send = "import socket,sys;socket.socket(2,2).sendto(b'x',('10.2.0.9',int(sys.argv[1])))"
    rig.lan.run(sys.executable, "-c", send, "10")
    assert rig.tunnelled() == []
    rig.lan.run(sys.executable, "-c", send, "8")
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.2", "10.2.0.9")]


def test_others_masquerade_does_not_touch_protected_traffic(rig: Rig) -> None:
    rig.gw.nft(
        "table ip cni { chain post { type nat hook postrouting priority srcnat; masquerade; }; }"
    )
    rig.apply(PROTECT4)
    assert not reaches(rig.lan, "10.2.0.9")
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.2", "10.2.0.9")]
    with rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("10.1.0.2", 9))
        receiver.settimeout(5)
        rig.inject(ipv4("10.2.0.9", "10.1.0.2", 17, bytes.fromhex("0007000900090000") + b"x"))
        assert receiver.recvfrom(9) == (b"x", ("10.2.0.9", 7)), "seen with its own address"
    assert reaches(rig.lan, "10.3.0.9"), "all other traffic is masqueraded as before"


def test_a_policy_to_everything_leaves_the_gateway_its_own_way_out(rig: Rig) -> None:
    rig.apply(
        spec("10.1.0.0/24", "10.1.0.0/24", PolicyAction.NONE), spec("10.1.0.0/24", "0.0.0.0/0")
    )
    assert reaches(rig.gw, "192.0.2.2")
    assert reaches(rig.gw, "10.1.0.2")
    assert reaches(rig.lan, "10.1.0.1")
    assert rig.tunnelled() == []
    assert not reaches(rig.lan, "10.3.0.9")
    assert not reaches(rig.gw, "10.3.0.9", "-I", "10.1.0.1")
    assert [addresses(p) for p in rig.tunnelled()] == [
        ("10.1.0.2", "10.3.0.9"),
        ("10.1.0.1", "10.3.0.9"),
    ]
    rig.inject(echo_request("198.51.100.1", "10.1.0.2"))
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.2", "198.51.100.1")]


def test_ike_and_esp_to_a_peer_inside_its_own_remote_subnet(rig: Rig) -> None:
    rig.apply(spec("192.0.2.1/32", "192.0.2.2/32"))
    assert not reaches(rig.gw, "192.0.2.2")
    assert len(rig.tunnelled()) == 1
    server = "import socket;s=socket.socket(2,2);s.bind(('192.0.2.2',500));print(1,flush=1);"
    server += "d,a=s.recvfrom(9);s.sendto(d,a)"
    client = "import socket;s=socket.socket(2,2);s.bind(('192.0.2.1',500));s.settimeout(3);"
    client += "s.sendto(b'ike',('192.0.2.2',500));print(s.recv(9).decode())"
    answering = rig.wan.popen([sys.executable, "-c", server], stdout=subprocess.PIPE)
    assert answering.stdout is not None
    with answering.stdout:
        assert answering.stdout.readline() == b"1\n"
        assert rig.gw.run(sys.executable, "-c", client) == "ike\n"
        end_process(answering)
    assert rig.tunnelled() == []


def test_the_same_again_changes_nothing_and_removal_leaves_nothing(rig: Rig) -> None:
    pristine = state(rig)
    rig.apply(PROTECT4, PROTECT6, spec("10.1.0.0/24", "0.0.0.0/0"))
    first = state(rig)
    assert first != pristine
    rig.apply(PROTECT4, PROTECT6, spec("10.1.0.0/24", "0.0.0.0/0"))
    assert state(rig) == first
    # A new process that finds the state of a killed one takes it over.
    rig.steering = Steering(DEVICE)
    rig.apply(PROTECT4, PROTECT6, spec("10.1.0.0/24", "0.0.0.0/0"))
    assert state(rig) == first
    rig.apply(PROTECT4)
    assert "10.2.0.0/16" in state(rig)
    assert "fd00:2::" not in state(rig)
    rig.run(rig.steering.unroute)
    rig.run(rig.steering.unguard)
    assert state(rig) == pristine
    routes = rig.run(current)
    assert not routes.routes
    assert not routes.rules


def test_counters_survive_a_change_of_policies(rig: Rig) -> None:
    rig.apply(PROTECT4)
    assert not reaches(rig.wan, "10.1.0.2", "-I", "10.2.0.9")
    rig.apply(PROTECT4, PROTECT6, spec("10.1.0.0/16", "10.9.0.0/16", PolicyAction.NONE))
    assert rig.counter("unencrypted_in") == 1


def test_mss_is_clamped_to_what_fits_the_device(rig: Rig) -> None:
    rig.apply(PROTECT4)
    connect = "import socket;s=socket.socket();s.settimeout(0.3);s.connect_ex(('10.2.0.9',80))"
    rig.lan.run(sys.executable, "-c", connect)
    (syn,) = {p[20:] for p in rig.tunnelled()}
    assert mss(syn) == 1360


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
    text = rig.gw.run("sh", "-c", show)
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
