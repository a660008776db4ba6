"""Two XFRM back ends, one at each end of a wire.

::

      a                                              b
    lo 10.1.0.1, fd00:1::1                         lo 10.2.0.1, fd00:2::1
    wire 192.0.2.1, .3, 2001:db8::1 ------------- wire 192.0.2.2, 2001:db8::2

No IKE: the keys are made here. What goes over the wire is seen by a socket on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ipsec_gateway.ipsec.base import PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.ipsec.natt import NattPair, open_natt_pair
from ipsec_gateway.ipsec.xfrm import XfrmBackend
from ipsec_ike.actions import SaSpec
from ipsec_ike.config import Mode
from ipsec_ike.crypto.transforms import encr_key_octets, integ_key_octets
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Endpoint
from ipsec_ike.numbers import Encr, Integ, Protocol, TransformType
from ipsec_ike.proposal import Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.netns import Namespace, enter_namespace

REQID = 0x40000007
GCM = Transform(TransformType.ENCR, Encr.AES_GCM_16, 256), None
CBC = (
    Transform(TransformType.ENCR, Encr.AES_CBC, 128),
    Transform(TransformType.INTEG, Integ.HMAC_SHA2_256_128),
)
Suite = tuple[Transform, Transform | None]
V4, V6 = ("10.1.0.0/24", "10.2.0.0/24"), ("fd00:1::/64", "fd00:2::/64")
OUTER4, OUTER6 = ("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")


@contextlib.contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """Sockets that are opened in here belong to the namespace."""
    with contextlib.ExitStack() as stack:
        home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        stack.callback(os.close, home)
        enter_namespace(namespace.path)
        try:
            yield
        finally:
            enter_namespace(Path(f"/proc/self/fd/{home}"))


@dataclass
class End:
    """One namespace with its back end."""

    namespace: Namespace
    backend: XfrmBackend
    natt: tuple[NattPair, ...] = ()

    async def start(self, *, encap: bool = False) -> None:
        with inside(self.namespace):
            if encap:
                self.natt = (open_natt_pair(socket.AF_INET, 4500),)
            self.backend = XfrmBackend(natt=self.natt)
            await self.backend.start()

    async def close(self, *, remove: bool = True) -> None:
        with inside(self.namespace):
            await self.backend.close(remove=remove)
        for pair in self.natt:
            pair.close()
        self.natt = ()

    async def ping(self, address: str, *more: str) -> bool:
        """Whether one ping is answered."""
        command = ("ping", "-n", "-c", "1", "-W", "3", *more, address)
        done = await asyncio.to_thread(self.namespace.run, *command, check=False)
        return " 1 received" in done

    def shown(self, kind: str) -> str:
        return self.namespace.run("ip", "xfrm", kind)


@contextlib.contextmanager
def wired() -> Iterator[tuple[Namespace, Namespace]]:
    """The two namespaces."""
    a, b = Namespace("xa"), Namespace("xb")
    try:
        a.ip(f"link add wire type veth peer name wire netns {b.name}")
        for ns, own, far in ((a, 1, 2), (b, 2, 1)):
            extra = ("address add 192.0.2.3/24 dev wire",) if own == 1 else ()
            ns.ip(
                f"address add 192.0.2.{own}/24 dev wire",
                f"address add 2001:db8::{own}/64 dev wire nodad",
                *extra,
                f"address add 10.{own}.0.1/24 dev lo",
                f"address add fd00:{own}::1/64 dev lo nodad",
                "link set dev wire up",
                f"route add 10.{far}.0.0/24 via 192.0.2.{far} src 10.{own}.0.1",
                f"route add fd00:{far}::/64 via 2001:db8::{far} src fd00:{own}::1",
            )
        yield a, b
    finally:
        a.delete()
        b.delete()


Body = Callable[[End, End], Coroutine[Any, Any, None]]


def player(namespaces: tuple[Namespace, Namespace]) -> Callable[..., None]:
    """What runs a test with both back ends, and sees to it that they leave nothing behind."""

    def run(body: Body, *, encap: bool = False) -> None:
        asyncio.run(_play(namespaces, body, encap))
        for namespace in namespaces:
            assert namespace.run("ip", "xfrm", "state") == ""
            assert namespace.run("ip", "xfrm", "policy") == ""

    return run


async def _play(namespaces: tuple[Namespace, Namespace], body: Body, encap: bool) -> None:
    ends = End(namespaces[0], XfrmBackend()), End(namespaces[1], XfrmBackend())
    try:
        for end in ends:
            await end.start(encap=encap)
        await body(*ends)
    finally:
        for end in ends:
            await end.close()


def pair(
    spi: int,
    ends: tuple[str, str] = OUTER4,
    *,
    suite: Suite = GCM,
    nets: tuple[str, str] = V4,
    protocol: Protocol = Protocol.ESP,
    ports: tuple[int, int] = (0, 0),
    **more: Any,
) -> tuple[SaSpec, SaSpec]:
    """(the outbound SA of the first end, the inbound SA of the second)."""
    encryption, integrity = suite
    secret = Secret(bytes(range(spi % 32, spi % 32 + encr_key_octets(encryption))))
    integrity_key = Secret(bytes(range(integ_key_octets(integrity))))
    source, destination = (Endpoint(a, p) for a, p in zip(ends, ports, strict=True))
    local, remote = ((TrafficSelector.network(n),) for n in nets)
    out = SaSpec(
        id=SaId(Direction.OUT, protocol, spi, ends[1]),
        source=source,
        destination=destination,
        encap=bool(ports[0]),
        reqid=more.pop("reqid", REQID),
        mode=more.pop("mode", Mode.TUNNEL),
        encryption=encryption,
        encryption_key=secret,
        integrity=integrity,
        integrity_key=integrity_key,
        esn=more.pop("esn", False),
        replay_window=more.pop("replay_window", 64),
        local_ts=local,
        remote_ts=remote,
        peer="default/b",
        child="net",
        **more,
    )
    inward = replace(
        out, id=replace(out.id, direction=Direction.IN), local_ts=remote, remote_ts=local
    )
    return out, inward


def policies(
    nets: tuple[str, str] = V4,
    ends: tuple[str, str] = ("", ""),
    *,
    flow: dict[str, int] | None = None,
    **more: Any,
) -> list[PolicySpec]:
    """All three directions of one entry, seen from the first of ``nets``."""
    here, there = (TrafficSelector.network(n, **(flow or {})) for n in nets)
    base = PolicySpec(
        id=PolicyId(PolicyDirection.OUT, here, there),
        action=more.pop("action", PolicyAction.ENCRYPT),
        priority=more.pop("priority", 1),
        reqid=more.pop("reqid", REQID),
        **more,
    )
    out = replace(base, local=ends[0], remote=ends[1])
    inward = (PolicyDirection.IN, PolicyDirection.FORWARD)
    return [out, *(replace(base, id=PolicyId(d, there, here)) for d in inward)]


async def connect(a: End, b: End, *, spi: int = 0x1000, policy: Any = None, **more: Any) -> None:
    """SAs in both directions and the policies for them."""
    nets = more.get("nets", V4)
    ends = more.pop("ends", OUTER4)
    policy = {"mode": more.get("mode", Mode.TUNNEL)} | (policy or {})
    if "protocol" in more:
        policy["protocols"] = (more["protocol"],)
    await a.backend.put_policies(policies(nets, **policy), ())
    await b.backend.put_policies(policies(nets[::-1], **policy), ())
    forth = pair(spi, ends, **more)
    more["nets"] = nets[::-1]
    back = pair(spi + 1, ends[::-1], **more)
    await a.backend.add_sa(back[1])
    await a.backend.add_sa(forth[0])
    await b.backend.add_sa(forth[1])
    await b.backend.add_sa(back[0])


@contextlib.asynccontextmanager
async def wire(end: End, whole: list[bytes] | None = None) -> AsyncIterator[list[int]]:
    """IP protocols of the packets that the end puts on the wire, but for what IPv6 itself says.
    ``whole`` gets the packets.

    What comes in is no proof of anything: the kernel shows it once more after decryption.
    """
    seen: list[int] = []
    with inside(end.namespace):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    sock.bind(("wire", 0x0003))
    sock.setblocking(False)
    loop = asyncio.get_running_loop()

    def readable() -> None:
        data, address = sock.recvfrom(2048)
        if address[2] != socket.PACKET_OUTGOING or data[0] >> 4 not in (4, 6):
            return
        number = data[9] if data[0] >> 4 == 4 else data[6]
        # Neighbor Discovery, and reports of multicast listeners behind a hop-by-hop header.
        if number and (number != 58 or data[40] < 133):
            seen.append(number)
            if whole is not None:
                whole.append(data)

    loop.add_reader(sock, readable)
    try:
        yield seen
    finally:
        await asyncio.sleep(0.05)
        loop.remove_reader(sock)
        sock.close()


async def next_event(end: End, kind: type[Any]) -> Any:
    async with asyncio.timeout(20):
        async for event in end.backend.events():
            if isinstance(event, kind):
                return event
    raise AssertionError
