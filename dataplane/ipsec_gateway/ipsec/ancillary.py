"""What the kernel says beside a received datagram: offload, TOS, local address, errors."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable

from ipsec_gateway.ipsec import linux


def udp_ancillary(ancillary: Iterable[tuple[int, int, bytes]]) -> tuple[int, int]:
    """(size of the joined datagrams or 0, TOS or traffic class)."""
    segment = tos = 0
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_UDP and kind == linux.UDP_GRO:
            segment = int.from_bytes(data, sys.byteorder)
        elif (level, kind) == (socket.IPPROTO_IP, linux.IP_TOS) or (level, kind) == (
            socket.IPPROTO_IPV6,
            linux.IPV6_TCLASS,
        ):
            tos = int.from_bytes(data, sys.byteorder)
    return segment, tos


def discard_errors(sock: socket.socket) -> None:
    """Empty the error queue, which would otherwise fill the receive buffer."""
    try:
        while True:
            sock.recvmsg(0, 0, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
    except OSError:
        return  # empty; or one more error came up, whose entry waits for the next call


def local_address(ancillary: Iterable[tuple[int, int, bytes]]) -> str:
    """Which of our addresses it was sent to; empty if the kernel did not say."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, linux.IP_PKTINFO):
            return socket.inet_ntop(socket.AF_INET, data[8:12])
        if (level, kind) == (socket.IPPROTO_IPV6, linux.IPV6_PKTINFO):
            return socket.inet_ntop(socket.AF_INET6, data[:16])
    return ""
