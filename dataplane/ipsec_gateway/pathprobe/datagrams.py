"""Probes by UDP: what is sent, and what counts as its echo.

An echo is the very same payload, from where the probe went to, while it is waited for. Anything
else that comes to the port is dropped.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import Final

from ipsec_gateway.pathprobe import pinned
from ipsec_gateway.pathprobe.format import datagram, parse
from ipsec_gateway.pathprobe.schedule import Shot

log = logging.getLogger("ipsec_gateway")

#: Datagrams taken in one go.
_BURST: Final = 64


def is_echo(shot: Shot, data: bytes, sender: str, port: int) -> bool:
    """Whether ``data`` from there is the answer to ``shot``."""
    target = ipaddress.ip_address(shot.target)
    return (
        port == shot.port
        and ipaddress.ip_address(sender) == target
        and data == datagram(target.version, shot.token, shot.size)
    )


class DatagramSockets:
    """Both IP versions, opened with the first use. ``pending`` says what is waited for by its
    token, ``on_echo`` gets tokens."""

    def __init__(
        self,
        pending: Callable[[int], Shot | None],
        on_echo: Callable[[int], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._pending: Final = pending
        self._on_echo: Final = on_echo
        self._loop: Final = loop
        self._sockets: dict[int, socket.socket] = {}

    def send(self, shot: Shot) -> bool:
        """Whether it went out."""
        version = ipaddress.ip_address(shot.target).version
        try:
            sock = self._sockets.get(version) or self._open(version)
            pinned.fragment(sock, never=shot.large)
            data = datagram(version, shot.token, shot.size)
            sock.sendmsg([data], [pinned.source(shot.source)], 0, (shot.target, shot.port))
        except OSError as exc:
            if exc.errno not in (errno.EMSGSIZE, errno.ENETUNREACH, errno.EHOSTUNREACH):
                log.debug("probe of %s: %s", shot.target, exc)
            return False
        return True

    def close(self) -> None:
        """No more probes."""
        for sock in self._sockets.values():
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()

    def _open(self, version: int) -> socket.socket:
        sock = pinned.udp(socket.AF_INET if version == 4 else socket.AF_INET6, 0)
        self._loop.add_reader(sock, self._readable, sock)
        self._sockets[version] = sock
        return sock

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                data, sender = sock.recvfrom(65535)
            except OSError:
                # Nothing more, or an ICMP error of an earlier probe.
                return
            token = parse(data)
            shot = None if token is None else self._pending(token)
            if shot is not None and shot.port and is_echo(shot, data, sender[0], sender[1]):
                self._on_echo(shot.token)
