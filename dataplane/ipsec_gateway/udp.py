"""The IKE sockets: UDP 500 and 4500, IPv4 and IPv6, on the wildcard address.

Port 4500 carries three things, told apart by the payload (RFC 3948 2): IKE behind a non-ESP marker
of four zero octets, keepalives of one octet 0xFF, and ESP. The marker is taken off and put on here;
keepalives end here; ESP goes to the data plane. Answers leave from the address that was asked
(IP_PKTINFO), and ICMP errors change nothing: anybody can forge one (RFC 7296 2.4).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Final

from ipsec_gateway.ipsec import linux
from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.natt import NATT_PORT, NON_ESP_MARKER, NattPair, open_natt_pair, prepare
from ipsec_gateway.ipsec.xfrm_messages import Policy, Selector
from ipsec_gateway.ipsec.xfrm_numbers import IP_XFRM_POLICY, IPV6_XFRM_POLICY, Dir
from ipsec_gateway.marks import DEFAULT, Numbers
from ipsec_gateway.outermarks import OuterMarks
from ipsec_gateway.ports import conflict
from ipsec_ike.actions import SendDatagram
from ipsec_ike.inputs import Datagram, Endpoint

IKE_PORT: Final = 500
KEEPALIVE: Final = b"\xff"
#: Datagrams taken from one socket before others have their turn.
DRAIN: Final = 64

_PKTINFO4: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16si")
_MARK: Final = struct.Struct("=I")
_ANCILLARY: Final = 256


class _Port:
    """One bound socket and what is constant about it."""

    __slots__ = ("control", "endpoints", "marker", "number", "sock", "v6")

    def __init__(self, sock: socket.socket, *, marker: bool) -> None:
        self.sock: Final = sock
        self.number: Final[int] = sock.getsockname()[1]
        self.v6: Final = sock.family == socket.AF_INET6
        self.marker: Final = marker
        #: Local endpoints by packed address, and pktinfo to send from one: few, so kept.
        self.endpoints: Final[dict[bytes, Endpoint]] = {}
        self.control: Final[dict[str, list[tuple[int, int, bytes]]]] = {}


class IkeSockets:
    """All IKE sockets of the gateway.

    ``on_ike`` gets each message, ``on_esp`` each ESP packet that came in here, ``after`` is called
    once per burst. ``ports`` are (IKE, NAT traversal); 0 picks free ones, for tests.
    """

    def __init__(
        self,
        on_ike: Callable[[Datagram], None],
        on_esp: Callable[[bytes, Endpoint, Endpoint], None],
        after: Callable[[], None],
        *,
        ports: tuple[int, int] = (IKE_PORT, NATT_PORT),
        numbers: Numbers = DEFAULT,
    ) -> None:
        self._on_ike = on_ike
        self._on_esp = on_esp
        self._after = after
        self._wanted = ports
        self._numbers: Final = numbers
        #: Marks of messages to peers that have one of their own.
        self.marks = OuterMarks()
        self._ports: dict[tuple[int, bool], _Port] = {}
        self._buffer = bytearray(65535)
        self._view = memoryview(self._buffer)
        #: What was dropped or could not be sent, by reason.
        self.counters: Counter[str] = Counter()
        #: The NAT traversal sockets, whose other half is the data plane's.
        self.pairs: tuple[NattPair, ...] = ()

    def open(self) -> None:
        """Bind everything. Raises PortConflict. A kernel without IPv6 has half of the sockets."""
        ike, natt = self._wanted
        families = [socket.AF_INET]
        if _has_ipv6():
            families.append(socket.AF_INET6)
        pairs: list[NattPair] = []
        try:
            for family in families:
                sock = _bound(family, ike)
                self._add(sock, marker=False)
                ike = sock.getsockname()[1]
                try:
                    pair = open_natt_pair(family, natt)
                except DataplaneError as exc:
                    raise conflict(natt, str(exc)) from exc
                pairs.append(pair)
                self._add(pair.ike, marker=True)
                natt = pair.ike.getsockname()[1]
                for each in (sock, pair.ike, pair.esp):
                    bypass(each, self._numbers.bypass)
        except BaseException:
            for port in self._ports.values():
                port.sock.close()
            for pair in pairs:
                pair.close()
            self._ports.clear()
            raise
        self.pairs = tuple(pairs)

    def _add(self, sock: socket.socket, *, marker: bool) -> None:
        port = _Port(sock, marker=marker)
        self._ports[port.number, port.v6] = port

    @property
    def ports(self) -> tuple[int, ...]:
        """Port numbers that are bound."""
        return tuple(sorted({number for number, _ in self._ports}))

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to read."""
        for port in self._ports.values():
            loop.add_reader(port.sock, self._readable, port)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop reading and close everything, the data plane's halves too."""
        for port in self._ports.values():
            loop.remove_reader(port.sock)
            port.sock.close()
        for pair in self.pairs:
            pair.close()
        self._ports.clear()
        self.pairs = ()

    def send(self, action: SendDatagram) -> None:
        """Send one IKE message or keepalive; what fails is counted, retransmission is for IKE."""
        local, remote, data = action.local, action.remote, action.data
        v6 = ":" in local.address
        port = self._ports.get((local.port, v6))
        if port is None:
            self.counters["send: no socket"] += 1
            return
        if action.encap:
            data = NON_ESP_MARKER + data if data else KEEPALIVE
        control = port.control.get(local.address)
        if control is None:
            control = port.control[local.address] = _source(local.address, v6)
        if mark := self.marks.of(remote.address):
            control = [*control, (socket.SOL_SOCKET, linux.SO_MARK, _MARK.pack(mark))]
        try:
            port.sock.sendmsg((data,), control, 0, remote)
        except OSError as exc:
            self.counters[f"send: {errno.errorcode.get(exc.errno or 0, 'unknown')}"] += 1

    def deliver(self, data: bytes, local: Endpoint, remote: Endpoint) -> None:
        """A message of the shared port that the data plane has read, with its marker or without."""
        if data.startswith(NON_ESP_MARKER):
            self._on_ike(Datagram(data[4:], local, remote))
        elif data != KEEPALIVE:
            self.counters["receive: not IKE"] += 1

    def _readable(self, port: _Port) -> None:
        sock, buffer, view = port.sock, self._buffer, self._view
        received = False
        for _ in range(DRAIN):
            try:
                length, ancillary, _, sender = sock.recvmsg_into((buffer,), _ANCILLARY)
            except BlockingIOError:
                break
            except OSError:
                # An ICMP error of an earlier send: reading on clears it.
                self.counters["receive: ICMP error"] += 1
                continue
            local = self._local(port, ancillary)
            if local is None:
                self.counters["receive: no local address"] += 1
                continue
            remote = Endpoint(sender[0], sender[1])
            if not port.marker:
                self._on_ike(Datagram(bytes(view[:length]), local, remote))
                received = True
            elif buffer.startswith(NON_ESP_MARKER) and length > 4:
                self._on_ike(Datagram(bytes(view[4:length]), local, remote))
                received = True
            elif length == 1 and buffer[0] == 0xFF:
                self.counters["receive: keepalive"] += 1
            elif length < 8:
                self.counters["receive: too short"] += 1
            else:
                self._on_esp(bytes(view[:length]), local, remote)
        if received:
            self._after()

    @staticmethod
    def _local(port: _Port, ancillary: list[tuple[int, int, bytes]]) -> Endpoint | None:
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IP and kind == linux.IP_PKTINFO:
                packed = data[8:12]
            elif level == socket.IPPROTO_IPV6 and kind == linux.IPV6_PKTINFO:
                packed = data[:16]
            else:
                continue
            found = port.endpoints.get(packed)
            if found is None:
                family = socket.AF_INET6 if port.v6 else socket.AF_INET
                found = Endpoint(socket.inet_ntop(family, packed), port.number)
                port.endpoints[packed] = found
            return found
        return None


def _source(address: str, v6: bool) -> list[tuple[int, int, bytes]]:
    if v6:
        packed = socket.inet_pton(socket.AF_INET6, address)
        return [(socket.IPPROTO_IPV6, linux.IPV6_PKTINFO, _PKTINFO6.pack(packed, 0))]
    packed = socket.inet_pton(socket.AF_INET, address)
    return [(socket.IPPROTO_IP, linux.IP_PKTINFO, _PKTINFO4.pack(0, packed, bytes(4)))]


def _bound(family: int, number: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    address = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104  # every address is asked
    try:
        prepare(sock)
        sock.bind((address, number))
    except PermissionError as exc:
        sock.close()
        raise PermissionError(f"UDP port {number} may not be bound") from exc
    except OSError as exc:
        sock.close()
        raise conflict(number, exc.strerror or str(exc)) from exc
    return sock


def bypass(sock: socket.socket, mark: int = DEFAULT.bypass) -> None:
    """Our own packets go the usual route even where a policy covers the peer's own address, and no
    policy of the kernel's SPD asks for their protection (RFC 7296 1.7; `ip xfrm policy` shows it
    as "socket in" and "socket out"). ``mark`` is what all its packets have."""
    v6 = sock.family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
    try:
        sock.setsockopt(socket.SOL_SOCKET, linux.SO_MARK, mark)
        for direction in (Dir.IN, Dir.OUT):
            allow = Policy(selector=Selector(family=int(sock.family)), direction=direction)
            sock.setsockopt(level, IPV6_XFRM_POLICY if v6 else IP_XFRM_POLICY, allow.info())
    except PermissionError:
        # Without CAP_NET_ADMIN there is no steering either that it would have to escape.
        return
    except OSError as exc:
        # A kernel without XFRM has no policies that could apply.
        if exc.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            raise


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True
