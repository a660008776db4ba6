"""Echo requests and replies (RFC 792, RFC 4443), and the raw sockets that they take.

The kernel computes the checksum of ICMPv6; that of ICMP is ours. A socket sees all echo replies of
the node: those that are not ours are told by the identifier and the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from ipsec_gateway.pathprobe.schedule import Shot
from ipsec_gateway.pathprobe.sockets import ProbeSockets

_HEADER: Final = struct.Struct("!BBHHH")
_TOKEN: Final = struct.Struct("!4sI")
_MAGIC: Final = b"kips"
_IP: Final = {4: 20, 6: 40}
_REQUEST: Final = {4: 8, 6: 128}
_REPLY: Final = {4: 0, 6: 129}

_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER = 255, 1, 1


def request(version: int, ident: int, token: int, size: int) -> bytes:
    """An echo request that is ``size`` octets with its IP header."""
    room = max(0, size - _IP[version] - _HEADER.size - _TOKEN.size)
    body = _TOKEN.pack(_MAGIC, token) + bytes(room)
    plain = _HEADER.pack(_REQUEST[version], 0, 0, ident, token & 0xFFFF) + body
    if version == 6:
        return plain
    return plain[:2] + struct.pack("!H", checksum(plain)) + plain[4:]


def reply(version: int, data: bytes, ident: int) -> int | None:
    """The token of an echo reply to us; ``data`` as the raw socket gives it, in IPv4 with the IP
    header."""
    if version == 4:
        if len(data) < _IP[4]:
            return None
        data = data[(data[0] & 15) * 4 :]
    if len(data) < _HEADER.size + _TOKEN.size:
        return None
    kind, code, _, theirs, _ = _HEADER.unpack_from(data)
    magic, token = _TOKEN.unpack_from(data, _HEADER.size)
    ours = kind == _REPLY[version] and code == 0 and theirs == ident and magic == _MAGIC
    return int(token) if ours else None


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class EchoSockets(ProbeSockets):
    """Probes by ICMP. ``ident`` is the identifier of our requests."""

    def __init__(
        self, ident: int, on_echo: Callable[[int], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(on_echo, loop)
        self._ident: Final = ident

    def _new(self, version: int) -> socket.socket:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            if version == 4:
                blocked = struct.pack("=I", 0xFFFFFFFF & ~(1 << _REPLY[4]))
                sock.setsockopt(_SOL_RAW, _ICMP_FILTER, blocked)
            else:
                words = [0xFFFFFFFF] * 8
                words[_REPLY[6] >> 5] &= ~(1 << (_REPLY[6] & 31)) & 0xFFFFFFFF
                sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *words))
            undo.pop_all()
        return sock

    def _payload(self, version: int, shot: Shot) -> bytes:
        return request(version, self._ident, shot.token, shot.size)

    def _echo(self, version: int, data: bytes, sender: tuple[Any, ...]) -> int | None:
        return reply(version, data, self._ident)
