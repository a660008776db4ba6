"""Hears from the kernel what others change on this node.

``WAYS``: an address came or went, or the default route changed, so that tunnels move with the
uplink at once, and not with the next look at everything. Our own routes and addresses are left out,
and all routes to less than everything: nodes with a routing daemon have thousands of changes, and
few of them are about the way to a peer (the regular look finds those).

``CHAINS``: somebody made a chain of nftables, which may translate sources from now on.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from ipsec_gateway.marks import NFT_TABLE, ROUTE_PROTOCOL

#: Seconds for which changes are collected: an interface that goes takes several things with it.
DEBOUNCE: Final = 0.1

_ROUTE_GROUPS: Final = 0x10 | 0x40 | 0x100 | 0x400  # RTMGRP_IPV{4,6}_{IFADDR,ROUTE}
_HEADER: Final = struct.Struct("=IHHII")
_NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE = 20, 21, 24, 25
#: struct ifaddrmsg: family, prefix length, flags, scope, interface.
_IFADDR: Final = struct.Struct("=BBBBI")
#: struct rtmsg up to the type.
_ROUTE: Final = struct.Struct("=BBBBBBBB")
_SCOPE_GLOBAL: Final = 0
_NETLINK_NETFILTER: Final = 12
#: NFNLGRP_NFTABLES, as a bit.
_NFTABLES_GROUP: Final = 1 << 6
#: NFNL_SUBSYS_NFTABLES and NFT_MSG_NEWCHAIN.
_NEWCHAIN: Final = 10 << 8 | 3
#: struct nfgenmsg, then the first attribute: its length, its type, and the table's name.
_NFGEN_SIZE: Final = 4
_ATTRIBUTE: Final = struct.Struct("=HH")
_CHAIN_TABLE: Final = 1


def foreign_chain(data: bytes) -> bool:
    """Whether a datagram of nfnetlink has a new chain in a table that is not ours."""
    for kind, body in _messages(data):
        if kind != _NEWCHAIN or len(body) < _NFGEN_SIZE + _ATTRIBUTE.size:
            continue
        length, attribute = _ATTRIBUTE.unpack_from(body, _NFGEN_SIZE)
        start = _NFGEN_SIZE + _ATTRIBUTE.size
        name = body[start : _NFGEN_SIZE + length].rstrip(b"\0")
        if attribute != _CHAIN_TABLE or name != NFT_TABLE.encode():
            return True
    return False


def other_way(data: bytes) -> bool:
    """Whether a datagram of rtnetlink has a change that the way to a peer may depend on."""
    for kind, body in _messages(data):
        if kind in (_NEWADDR, _DELADDR) and len(body) >= _IFADDR.size:
            if _IFADDR.unpack_from(body)[3] == _SCOPE_GLOBAL:
                return True
        elif kind in (_NEWROUTE, _DELROUTE) and len(body) >= _ROUTE.size:
            _, prefix, _, _, _, protocol, _, _ = _ROUTE.unpack_from(body)
            if prefix == 0 and protocol != ROUTE_PROTOCOL:
                return True
    return False


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message; what is cut off or no netlink ends it."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += length + -length % 4


class Topic(NamedTuple):
    """What to hear of: a netlink protocol, its groups, and which datagrams matter."""

    protocol: int
    groups: int
    relevant: Callable[[bytes], bool]


WAYS: Final = Topic(socket.NETLINK_ROUTE, _ROUTE_GROUPS, other_way)
CHAINS: Final = Topic(_NETLINK_NETFILTER, _NFTABLES_GROUP, foreign_chain)


class Monitor:
    """Calls ``on_change`` after a change. ``open`` and ``close`` belong to the event loop."""

    def __init__(
        self,
        on_change: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        topic: Topic = WAYS,
    ) -> None:
        self._topic: Final = topic
        self._on_change: Final = on_change
        self._loop: Final = loop
        self._sock: socket.socket | None = None
        self._pending: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begin. A kernel that refuses leaves it to the regular look."""
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, self._topic.protocol)
        except OSError:
            return
        try:
            sock.bind((0, self._topic.groups))
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
            if self._topic.relevant(data):
                self._note()

    def _note(self) -> None:
        if self._pending is None:
            self._pending = self._loop.call_later(DEBOUNCE, self._tell)

    def _tell(self) -> None:
        self._pending = None
        self._on_change()
