"""The two directions of the userspace data plane with sockets in place of device and network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ipsec_gateway.ipsec import linux
from ipsec_gateway.ipsec.outer import Outer
from ipsec_gateway.ipsec.receive import Receiver
from ipsec_gateway.ipsec.shared import SharedState
from ipsec_gateway.ipsec.transmit import Transmitter
from ipsec_gateway.ipsec.tun import VNET_LENGTH, VNET_NONE
from ipsec_ike.actions import SaSpec
from ipsec_ike.identifiers import Direction
from ipsec_ike.inputs import Endpoint
from ipsec_lab.esp_packets import NETS_A, NETS_B, make_spec, policy


@dataclass
class Wire:
    """A transmitter (a) and a receiver (b) with a UDP socket between, and both ends of the TUNs.

    ``sent`` lists what a emitted, ``reported`` what b emitted.
    """

    state: SharedState
    tun_a: socket.socket
    tun_b: socket.socket
    inner_a: socket.socket
    inner_b: socket.socket
    sock_a: socket.socket
    sock_b: socket.socket
    vector: bool = True
    sent: list[Any] = field(default_factory=list)
    reported: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.new_transmitter()
        self.new_receiver()

    def new_transmitter(self) -> None:
        """What a new outbound process begins with: only the shared memory stays."""
        self.out = Transmitter(
            self.tun_a.fileno(),
            lambda failed, report: Outer([self.sock_a], failed, report),
            self.state,
            self.sent.append,
            vector=self.vector,
        )

    def new_receiver(self) -> None:
        """The same for the inbound one."""
        self.into = Receiver(
            self.tun_b.fileno(), self.state, self.reported.append, vector=self.vector
        )

    def spec(self, suite: str = "gcm16-128", **changes: Any) -> SaSpec:
        """An SA from a to b with the ports of the sockets."""
        ends = {
            "source": Endpoint(*self.sock_a.getsockname()),
            "destination": Endpoint(*self.sock_b.getsockname()),
        }
        return make_spec(suite, **{**ends, **changes})

    def connect(self, suite: str = "gcm16-128", slot: int = 0, **changes: Any) -> None:
        """One SA from a to b and the policy that leads to it."""
        pairs = zip(NETS_A, NETS_B, strict=True)
        self.out.put_policies([policy(one, other) for one, other in pairs], [])
        self.into.add_sa(self.spec(suite, direction=Direction.IN, **changes), slot + 1)
        self.out.add_sa(self.spec(suite, **changes), slot)

    def send(self, packet: bytes, header: bytes = VNET_NONE) -> None:
        """The kernel routes a packet into the TUN device of a."""
        self.inner_a.send(header + packet)

    def carry(self) -> None:
        """a encrypts, b decrypts."""
        self.out.drain()
        self.into.drain_udp(self.sock_b)

    def received(self) -> list[tuple[bytes, bytes]]:
        """(virtio header, packet) of all that b gave to its TUN device."""
        found: list[tuple[bytes, bytes]] = []
        while True:
            try:
                data = self.inner_b.recv(1 << 17)
            except BlockingIOError:
                return found
            found.append((data[:VNET_LENGTH], data[VNET_LENGTH:]))

    def packets(self) -> list[bytes]:
        """``received`` without the virtio headers."""
        return [packet for _, packet in self.received()]

    def captured(self) -> list[bytes]:
        """What is on the wire, taken off it."""
        found: list[bytes] = []
        while True:
            try:
                found.append(self.sock_b.recv(1 << 16))
            except BlockingIOError:
                return found

    def inject(self, datagram: bytes) -> None:
        """Somebody sends ``datagram`` to b from a's address."""
        self.sock_a.sendto(datagram, self.sock_b.getsockname())

    def drops(self) -> dict[int, int]:
        """Packets by ``Drop``, those that are not zero."""
        return {reason: count for reason, count in enumerate(self.state.drops()) if count}


@contextmanager
def open_wire(*, gro: bool = True, vector: bool = True) -> Iterator[Wire]:
    """Needs no privileges. ``gro``: b's socket joins datagrams; ``vector``: bursts by matrix."""
    tuns = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    udp = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in udp:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.setsockopt(socket.IPPROTO_IP, linux.IP_RECVTOS, 1)
    if gro:
        udp[1].setsockopt(socket.IPPROTO_UDP, linux.UDP_GRO, 1)
    everything = [*tuns[0], *tuns[1], *udp]
    for sock in everything:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    (inner_a, tun_a), (inner_b, tun_b) = tuns
    wire = Wire(SharedState.create(), tun_a, tun_b, inner_a, inner_b, udp[0], udp[1], vector)
    try:
        yield wire
    finally:
        for sock in everything:
            sock.close()
        del wire.out, wire.into
        wire.state.close()
