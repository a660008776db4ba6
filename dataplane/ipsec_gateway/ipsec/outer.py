"""How ESP packets leave: UDP from the shared port (RFC 3948) or IP protocol 50, IPv4 and IPv6.

A burst for one destination is one ``UDP_SEGMENT`` send. All sockets ask for DF and a path MTU
(IP_PMTUDISC_DO); a packet that does not fit is sent in fragments all the same, so that it is not
lost, and the path MTU is reported, so that the tunnel's MTU can be lowered and it stays the last.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ipsec_gateway.ipsec import linux
from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.mtu import path_mtu
from ipsec_ike.inputs import Endpoint

_PKTINFO4: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16si")
_INT: Final = struct.Struct("=i")
_MARK: Final = struct.Struct("=I")
_U16: Final = struct.Struct("=H")
#: Milliseconds to wait for room in a full socket buffer before the packet is dropped.
_PATIENCE: Final = 100
#: What the kernel says when UDP_SEGMENT cannot be used for this packet or on this device.
_NO_OFFLOAD: Final = frozenset({errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP})

Control = list[tuple[int, int, bytes]]


@dataclass(frozen=True, slots=True)
class PathMtu:
    """A packet did not fit: the path to ``destination`` is known to carry ``mtu`` octets."""

    destination: str
    mtu: int


class Path:
    """From one of our addresses to one of a peer's. Made anew when an SA moves."""

    __slots__ = (
        "_address",
        "_constant",
        "_control",
        "batches",
        "destination",
        "sock",
        "source",
    )

    def __init__(
        self,
        sock: socket.socket,
        source: Endpoint,
        destination: Endpoint,
        *,
        encap: bool,
        mark: int = 0,
    ) -> None:
        self.sock: Final = sock
        self.source: Final = source
        self.destination: Final = destination
        #: Whether several packets can be sent at once.
        self.batches = encap
        v6 = sock.family == socket.AF_INET6
        port = destination.port if encap else 0
        self._address: Final = (destination.address, port)
        packed = socket.inet_pton(sock.family, source.address)
        constant: Control = [
            (socket.IPPROTO_IPV6, linux.IPV6_PKTINFO, _PKTINFO6.pack(packed, 0))
            if v6
            else (socket.IPPROTO_IP, linux.IP_PKTINFO, _PKTINFO4.pack(0, packed, bytes(4)))
        ]
        if mark:
            constant.append((socket.SOL_SOCKET, linux.SO_MARK, _MARK.pack(mark)))
        self._constant: Final = tuple(constant)
        self._control: Final[dict[tuple[int, int], Control]] = {}

    def send(self, data: memoryview, tos: int, segment: int = 0) -> None:
        """One packet, or several of ``segment`` octets (the last may be shorter). OSError."""
        control = self._control.get((tos, segment))
        if control is None:
            control = self._build(tos, segment)
        self.sock.sendmsg((data,), control, 0, self._address)

    def _build(self, tos: int, segment: int) -> Control:
        v6 = self.sock.family == socket.AF_INET6
        control: Control = [*self._constant]
        level, kind = (
            (socket.IPPROTO_IPV6, linux.IPV6_TCLASS) if v6 else (socket.IPPROTO_IP, linux.IP_TOS)
        )
        if tos:
            control.append((level, kind, _INT.pack(tos)))
        if segment:
            control.append((socket.IPPROTO_UDP, linux.UDP_SEGMENT, _U16.pack(segment)))
        if len(self._control) >= 256:
            self._control.clear()
        self._control[tos, segment] = control
        return control

    def discover(self, mode: int) -> None:
        """Set the path MTU discovery of the socket."""
        if self.sock.family == socket.AF_INET6:
            self.sock.setsockopt(socket.IPPROTO_IPV6, linux.IPV6_MTU_DISCOVER, mode)
        else:
            self.sock.setsockopt(socket.IPPROTO_IP, linux.IP_MTU_DISCOVER, mode)


class Senders:
    """The sockets that SAs can send from, by family and, for UDP, port."""

    __slots__ = ("_raw", "_udp")

    def __init__(self, sockets: Iterable[socket.socket]) -> None:
        self._udp: Final[dict[tuple[bool, int], socket.socket]] = {}
        self._raw: Final[dict[bool, socket.socket]] = {}
        for sock in sockets:
            v6 = sock.family == socket.AF_INET6
            if sock.type == socket.SOCK_DGRAM:
                self._udp[v6, sock.getsockname()[1]] = sock
            else:
                self._raw[v6] = sock

    def find(self, source: Endpoint, destination: Endpoint, *, encap: bool) -> socket.socket:
        """The socket of an SA. Raises DataplaneError if none can send from there."""
        v6 = ":" in destination.address
        sock = self._udp.get((v6, source.port)) if encap else self._raw.get(v6)
        if sock is None:
            what = f"UDP port {source.port}" if encap else "ESP"
            raise DataplaneError(f"no {'IPv6' if v6 else 'IPv4'} socket for {what}")
        if (":" in source.address) != v6:
            raise DataplaneError(f"{source.address} cannot send to {destination.address}")
        return sock


class Outer:
    """All sending sockets of this gateway.

    ``failed`` is called with the number of packets that the kernel refused, ``report`` with path
    MTUs.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        failed: Callable[[int], None],
        report: Callable[[PathMtu], None],
    ) -> None:
        self._senders: Final = Senders(sockets)
        self._failed: Final = failed
        self._report: Final = report

    def path(self, source: Endpoint, destination: Endpoint, *, encap: bool, mark: int = 0) -> Path:
        """The path of an SA, whose packets have this mark (0: as the socket has it). Raises
        DataplaneError if no socket can send from there."""
        sock = self._senders.find(source, destination, encap=encap)
        path = Path(sock, source, destination, encap=encap, mark=mark)
        path.discover(linux.IP_PMTUDISC_DO)
        return path

    def send(self, path: Path, data: memoryview, tos: int, segment: int = 0) -> None:
        """Send one packet or a burst; what the kernel refuses is counted, never raised."""
        single = not segment or segment >= len(data)
        if not single and not path.batches:
            for start in range(0, len(data), segment):
                self.send(path, data[start : start + segment], tos)
            return
        try:
            path.send(data, tos, 0 if single else segment)
        except BlockingIOError:
            self._send_later(path, data, tos, segment)
        except OSError as exc:
            if not single and exc.errno in _NO_OFFLOAD:
                if exc.errno != errno.EMSGSIZE and exc.errno != errno.EINVAL:
                    path.batches = False  # the device cannot, not this packet
                for start in range(0, len(data), segment):
                    self.send(path, data[start : start + segment], tos)
            elif exc.errno == errno.EMSGSIZE:
                self._send_fragmented(path, data, tos)
            elif path.sock.type == socket.SOCK_RAW:
                # It may be an ICMP error about an earlier packet; asking has cleared it.
                self._send_later(path, data, tos, segment)
            else:
                self._failed(1 if single else -(-len(data) // segment))

    def _send_later(self, path: Path, data: memoryview, tos: int, segment: int) -> None:
        """Once more, when there is room in the socket's buffer."""
        waiting = select.poll()
        waiting.register(path.sock, select.POLLOUT)
        waiting.poll(_PATIENCE)
        single = not segment or segment >= len(data)
        try:
            path.send(data, tos, 0 if single else segment)
        except OSError:
            self._failed(1 if single else -(-len(data) // segment))

    def _send_fragmented(self, path: Path, data: memoryview, tos: int) -> None:
        try:
            path.discover(linux.IP_PMTUDISC_DONT)
            try:
                path.send(data, tos)
            finally:
                path.discover(linux.IP_PMTUDISC_DO)
        except OSError:
            self._failed(1)
        mtu = path_mtu(path.source.address, path.destination.address)
        if mtu:
            self._report(PathMtu(path.destination.address, mtu))


def outer_families() -> list[int]:
    """AF_INET, and AF_INET6 unless this kernel is without IPv6."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return [socket.AF_INET]
    return [socket.AF_INET, socket.AF_INET6]


def open_raw(family: int) -> socket.socket:
    """A socket for IP protocol 50. Raises DataplaneError without CAP_NET_RAW."""
    try:
        sock = socket.socket(family, socket.SOCK_RAW, linux.IPPROTO_ESP)
        if family == socket.AF_INET6:
            # Only so does the kernel learn path MTUs for an unconnected raw socket in IPv6. The
            # price is that other ICMP errors come up in send and receive (``Outer``, ``Receiver``).
            sock.setsockopt(socket.IPPROTO_IPV6, linux.IPV6_RECVERR, 1)
        return sock
    except OSError as exc:
        raise DataplaneError(f"no socket for IP protocol 50 (ESP): {exc}; CAP_NET_RAW?") from exc
