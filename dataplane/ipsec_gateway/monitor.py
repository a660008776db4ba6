"""Hears from the kernel that an address came or went, or that the default route changed.

So that tunnels move with the uplink at once, and not with the next look at everything. Our own
routes and addresses are left out, and all routes to less than everything: nodes with a routing
daemon have thousands of changes, and few of them are about the way to a peer (the regular look
finds those).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable
from typing import Final

from ipsec_gateway.marks import ROUTE_PROTOCOL

#: Seconds for which changes are collected: an interface that goes takes several things with it.
DEBOUNCE: Final = 0.1

#: What it listens to.
GROUPS: Final = 0x10 | 0x40 | 0x100 | 0x400  # RTMGRP_IPV{4,6}_{IFADDR,ROUTE}
_HEADER: Final = struct.Struct("=IHHII")
_NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE = 20, 21, 24, 25
#: struct ifaddrmsg: family, prefix length, flags, scope, interface.
_IFADDR: Final = struct.Struct("=BBBBI")
#: struct rtmsg up to the type.
_ROUTE: Final = struct.Struct("=BBBBBBBB")
_SCOPE_GLOBAL: Final = 0


def relevant(data: bytes) -> bool:
    """Whether a datagram of rtnetlink has a change that the way to a peer may depend on."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return False
        body = data[at + _HEADER.size : at + length]
        if kind in (_NEWADDR, _DELADDR) and len(body) >= _IFADDR.size:
            if _IFADDR.unpack_from(body)[3] == _SCOPE_GLOBAL:
                return True
        elif kind in (_NEWROUTE, _DELROUTE) and len(body) >= _ROUTE.size:
            _, prefix, _, _, _, protocol, _, _ = _ROUTE.unpack_from(body)
            if prefix == 0 and protocol != ROUTE_PROTOCOL:
                return True
        at += length + -length % 4
    return False


class Monitor:
    """Calls ``on_change`` after a change. ``open`` and ``close`` belong to the event loop."""

    def __init__(self, on_change: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        self._on_change: Final = on_change
        self._loop: Final = loop
        self._sock: socket.socket | None = None
        self._pending: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begin. A kernel that refuses leaves it to the regular look."""
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        except OSError:
            return
        try:
            sock.bind((0, GROUPS))
        except OSError:
            sock.close()
            return
        sock.setblocking(False)
        self._sock = sock
        self._loop.add_reader(sock, self._readable)

    def close(self) -> None:
        """The end."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    def _readable(self) -> None:
        assert self._sock is not None
        while True:
            try:
                data = self._sock.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                # More happened than fits: something of it may matter.
                self._note()
                continue
            if relevant(data):
                self._note()

    def _note(self) -> None:
        if self._pending is None:
            self._pending = self._loop.call_later(DEBOUNCE, self._tell)

    def _tell(self) -> None:
        self._pending = None
        self._on_change()
