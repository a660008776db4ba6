"""The two sockets of one NAT-traversal port: IKE and ESP share it (RFC 3948, RFC 7296 2.23).

Both are bound to the same wildcard address and port with SO_REUSEPORT. The first of such a group
has index 0, the second index 1, and a classic BPF program, run on each datagram's UDP payload,
says which one gets it:

    payload begins with four zero octets (the non-ESP marker)      0, the IKE socket
    payload shorter than four octets (keepalive, RFC 3948 2.3)     0, the IKE socket
    anything else                                                  1, the ESP socket

So the IKE event loop never sees ESP, and the packet process never parses IKE, but for one
exception: receive offload (GRO) joins datagrams of one flow before the program runs, and the first
datagram decides for all of them. Each side therefore hands over what is not its own: the packet
process with ``IkeFromDataplane``, the IKE side with ``IpsecBackend.deliver_esp``; ``is_ike`` tells
which.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from dataclasses import dataclass
from typing import Final

from ipsec_gateway.ipsec import linux
from ipsec_gateway.ipsec.base import DataplaneError

#: IANA: IPsec NAT-Traversal.
NATT_PORT: Final = 4500
NON_ESP_MARKER: Final = bytes(4)

#: Octets of each socket buffer: some milliseconds of a few Gbit/s.
BUFFER: Final = 8 << 20

# Classic BPF (linux/filter.h), one instruction: code, jump if true, jump if false, operand.
_LD_W_ABS, _JEQ_K, _RET_K = 0x20, 0x15, 0x06
#: A load beyond the end of the payload ends the program with 0.
_PROGRAM: Final = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (_LD_W_ABS, 0, 0, 0),
        (_JEQ_K, 0, 1, 0),
        (_RET_K, 0, 0, 0),
        (_RET_K, 0, 0, 1),
    )
)


@dataclass(frozen=True, slots=True)
class NattPair:
    """Both sockets of one port and family. ``ike`` is for the event loop, ``esp`` for the backend.

    Both deliver the local address as IP_PKTINFO or IPV6_PKTINFO and are non-blocking. ``ike`` gets
    single datagrams; ``esp`` has receive offload on.
    """

    ike: socket.socket
    esp: socket.socket

    def close(self) -> None:
        """Close both. The group ends when the packet processes have closed theirs too."""
        self.ike.close()
        self.esp.close()


def open_natt_pair(family: int, port: int = NATT_PORT) -> NattPair:
    """Bind ``port`` of ``family`` (AF_INET or AF_INET6) on the wildcard address twice.

    Raises DataplaneError if the port is taken or the kernel lacks an option.
    """
    opened: list[socket.socket] = []
    try:
        for _ in range(2):
            sock = socket.socket(family, socket.SOCK_DGRAM)
            opened.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            prepare(sock)
            sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))  # noqa: S104 - source addresses are chosen per datagram
            port = sock.getsockname()[1]
        ike, esp = opened
        _attach(ike)
        esp.setsockopt(socket.IPPROTO_UDP, linux.UDP_GRO, 1)
    except OSError as exc:
        for sock in opened:
            sock.close()
        name = "IPv6" if family == socket.AF_INET6 else "IPv4"
        raise DataplaneError(f"UDP port {port} ({name}) cannot be opened: {exc}") from exc
    return NattPair(ike, esp)


def prepare(sock: socket.socket) -> None:
    """Options that all our outer sockets share: local address, TOS, path MTU, large buffers."""
    sock.setblocking(False)
    if sock.family == socket.AF_INET6:
        if sock.type == socket.SOCK_DGRAM:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, linux.IPV6_RECVPKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, linux.IPV6_RECVTCLASS, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, linux.IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, linux.IP_RECVTOS, 1)
    for forced, plain in (
        (linux.SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (linux.SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
        except PermissionError:
            # Without CAP_NET_ADMIN the system's limit (net.core.*mem_max) applies.
            sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER)


def is_ike(payload: bytes | memoryview) -> bool:
    """Whether a UDP payload of the shared port belongs to IKE: marked, or too short for ESP."""
    return len(payload) < 4 or payload[:4] == NON_ESP_MARKER


def _attach(sock: socket.socket) -> None:
    """SO_ATTACH_REUSEPORT_CBPF: the program steers the whole group that ``sock`` is in."""
    program = ctypes.create_string_buffer(_PROGRAM, len(_PROGRAM))
    header = struct.pack(
        "HxxxxxxP" if struct.calcsize("P") == 8 else "HxxP", 4, ctypes.addressof(program)
    )
    sock.setsockopt(socket.SOL_SOCKET, linux.SO_ATTACH_REUSEPORT_CBPF, header)
