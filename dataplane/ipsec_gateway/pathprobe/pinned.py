"""Sockets whose packets have the source that each of them names, and one size with DF or without.

For the prober and the responder: which of our addresses a packet comes from decides whether it is
protected at all.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from typing import Final

from ipsec_gateway.ipsec import linux

#: Set DF and send whatever the path MTU is thought to be; follow the path MTU.
_PMTUDISC_PROBE, _PMTUDISC_WANT = 3, 1

_INFO4: Final = struct.Struct("=i4s4s")
_INFO6: Final = struct.Struct("=16si")

# Classic BPF (linux/filter.h): load the number of the device that brought it; 1, the loopback, is
# dropped. Ancillary data is no help: for what is local it names the device that has the address.
_LD_W_ABS, _JEQ_K, _RET_K = 0x20, 0x15, 0x06
_AD_IFINDEX: Final = (-0x1000 + 8) & 0xFFFFFFFF
_PROGRAM: Final = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (_LD_W_ABS, 0, 0, _AD_IFINDEX),
        (_JEQ_K, 0, 1, 1),
        (_RET_K, 0, 0, 0),
        (_RET_K, 0, 0, 0xFFFFFFFF),
    )
)

Control = tuple[int, int, bytes]


def source(address: str) -> Control:
    """Ancillary data by which a packet is sent from this address of ours."""
    own = ipaddress.ip_address(address)
    if own.version == 4:
        return socket.IPPROTO_IP, linux.IP_PKTINFO, _INFO4.pack(0, own.packed, bytes(4))
    return socket.IPPROTO_IPV6, linux.IPV6_PKTINFO, _INFO6.pack(own.packed, 0)


def fragment(sock: socket.socket, *, never: bool) -> None:
    """``never``: set DF and ignore the path MTU; else fragment what the path MTU asks for."""
    mode = _PMTUDISC_PROBE if never else _PMTUDISC_WANT
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, linux.IP_MTU_DISCOVER, mode)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, linux.IPV6_MTU_DISCOVER, mode)


def udp(family: int, port: int, *, outside: bool = False) -> socket.socket:
    """A UDP socket at every address of one IP version that says to which one a datagram came.
    ``outside``: what the node sends to itself never gets there. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if outside:
            _refuse_loopback(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, linux.IPV6_RECVPKTINFO, 1)
            sock.bind(("::", port))
        else:
            sock.setsockopt(socket.IPPROTO_IP, linux.IP_PKTINFO, 1)
            sock.bind(("0.0.0.0", port))  # noqa: S104  # every address of ours may be asked
    except OSError:
        sock.close()
        raise
    return sock


def _refuse_loopback(sock: socket.socket) -> None:
    program = ctypes.create_string_buffer(_PROGRAM, len(_PROGRAM))
    header = struct.pack("@HP", len(_PROGRAM) // 8, ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, linux.SO_ATTACH_FILTER, header)
