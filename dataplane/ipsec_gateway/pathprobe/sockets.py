"""The sockets of the prober: one for each IP version, whatever the probes are made of."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

from ipsec_gateway.pathprobe import pinned
from ipsec_gateway.pathprobe.schedule import Shot

log = logging.getLogger("ipsec_gateway")

#: Datagrams taken in one go: others get their turn.
BURST: Final = 64
#: What the network says while it does not get there.
_NO_WAY: Final = frozenset({errno.EMSGSIZE, errno.ENETUNREACH, errno.EHOSTUNREACH})


class ProbeSockets:
    """Opened with the first use. ``on_echo`` gets tokens. What is sent and what comes back is said
    by the kinds of probes: ``icmp`` and ``datagrams``."""

    def __init__(self, on_echo: Callable[[int], None], loop: asyncio.AbstractEventLoop) -> None:
        self._on_echo: Final = on_echo
        self._loop: Final = loop
        self._sockets: dict[int, socket.socket] = {}

    def send(self, shot: Shot) -> bool:
        """Whether it went out."""
        version = ipaddress.ip_address(shot.target).version
        try:
            sock = self._sockets.get(version) or self._open(version)
            pinned.fragment(sock, never=shot.large)
            data, source = self._payload(version, shot), pinned.source(shot.source)
            sock.sendmsg([data], [source], 0, (shot.target, shot.port))
        except OSError as exc:
            if exc.errno not in _NO_WAY:
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
        sock = self._new(version)
        self._loop.add_reader(sock, self._readable, version, sock)
        self._sockets[version] = sock
        return sock

    def _readable(self, version: int, sock: socket.socket) -> None:
        for _ in range(BURST):
            try:
                data, sender = sock.recvfrom(65535)
            except OSError:
                # Nothing more, or an ICMP error of an earlier probe.
                return
            token = self._echo(version, data, sender)
            if token is not None:
                self._on_echo(token)

    def _new(self, version: int) -> socket.socket:
        """A socket that does not block."""
        raise NotImplementedError

    def _payload(self, version: int, shot: Shot) -> bytes:
        """What is sent."""
        raise NotImplementedError

    def _echo(self, version: int, data: bytes, sender: tuple[Any, ...]) -> int | None:
        """The token of what came, if it is an echo of ours."""
        raise NotImplementedError
