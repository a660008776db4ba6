"""Probes by UDP: what is sent, and what counts as its echo.

An echo is the very same payload, from where the probe went to, while it is waited for. Anything
else that comes to the port is dropped.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Any, Final

from ipsec_gateway.pathprobe import pinned
from ipsec_gateway.pathprobe.format import datagram, parse
from ipsec_gateway.pathprobe.schedule import Shot
from ipsec_gateway.pathprobe.sockets import ProbeSockets


def is_echo(shot: Shot, data: bytes, sender: str, port: int) -> bool:
    """Whether ``data`` from there is the answer to ``shot``."""
    target = ipaddress.ip_address(shot.target)
    return (
        port == shot.port
        and ipaddress.ip_address(sender) == target
        and data == datagram(target.version, shot.token, shot.size)
    )


class DatagramSockets(ProbeSockets):
    """Probes by UDP. ``pending`` says what is waited for, by its token."""

    def __init__(
        self,
        pending: Callable[[int], Shot | None],
        on_echo: Callable[[int], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(on_echo, loop)
        self._pending: Final = pending

    def _new(self, version: int) -> socket.socket:
        return pinned.udp(socket.AF_INET if version == 4 else socket.AF_INET6, 0)

    def _payload(self, version: int, shot: Shot) -> bytes:
        return datagram(version, shot.token, shot.size)

    def _echo(self, version: int, data: bytes, sender: tuple[Any, ...]) -> int | None:
        token = parse(data)
        shot = None if token is None else self._pending(token)
        if shot is None or not shot.port or not is_echo(shot, data, sender[0], sender[1]):
            return None
        return shot.token
