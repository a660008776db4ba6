"""Connections that were translated before their traffic became a tunnel's.

Address translation is decided with the first packet of a connection and then kept, whatever the
chains say later. A connection that was masqueraded while there was no tunnel would have the wrong
source for ever, or until nothing is sent for minutes. So when selectors are new, the entries of the
kernel's connection tracking that translate the source of their traffic are deleted: with its next
packet the connection is a new one, and exempted.

Messages are those of nfnetlink_conntrack (linux/netfilter/nfnetlink_conntrack.h): network byte
order within attributes, the host's in headers.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ipsec_gateway.classify import Network
from ipsec_gateway.tools import ToolError

_NETLINK_NETFILTER: Final = 12
_HEADER: Final = struct.Struct("=IHHII")
_NFGEN: Final = struct.Struct("=BBH")
_ATTRIBUTE: Final = struct.Struct("=HH")

_GET, _DELETE = 0x101, 0x102
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_NESTED: Final = 0x8000

# CTA_*
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _ZONE, _STATUS_MASK = 1, 2, 3, 12, 18, 26
_TUPLE_IP: Final = 1
_IP_SOURCE: Final = {1: 4, 3: 6}
#: IPS_SRC_NAT
_SOURCE_NAT: Final = 1 << 4

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Entry:
    """One connection. Addresses are packed; ``key`` is what finds it again, as the kernel said."""

    version: int
    source: bytes
    destination: bytes
    reply_source: bytes
    reply_destination: bytes
    key: bytes

    @property
    def translated(self) -> bool:
        """Whether its source is rewritten."""
        return self.reply_destination != self.source


class Selectors:
    """Pairs of networks, looked up by addresses: one look-up per pair of prefix lengths in use."""

    def __init__(self, pairs: Iterable[tuple[Network, Network]]) -> None:
        self._pairs: dict[tuple[int, int, int], set[tuple[int, int]]] = {}
        for one, two in pairs:
            key = (
                one.version,
                one.max_prefixlen - one.prefixlen,
                two.max_prefixlen - two.prefixlen,
            )
            self._pairs.setdefault(key, set()).add(
                (int(one.network_address) >> key[1], int(two.network_address) >> key[2])
            )

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def cover(self, version: int, one: bytes, two: bytes) -> bool:
        """Whether some pair has these addresses."""
        a, b = int.from_bytes(one, "big"), int.from_bytes(two, "big")
        return any(
            v == version and (a >> left, b >> right) in members
            for (v, left, right), members in self._pairs.items()
        )


def stale(entries: Iterable[Entry], pairs: Iterable[tuple[Network, Network]]) -> list[Entry]:
    """Those that keep traffic between (local, remote) from having its own source."""
    selectors = Selectors(pairs)
    return [
        e
        for e in entries
        if e.translated
        and (
            # Behind destination NAT, the reply comes from where the packets really went.
            selectors.cover(e.version, e.source, e.reply_source)
            or selectors.cover(e.version, e.reply_source, e.source)
        )
    ]


def flush(pairs: Iterable[tuple[Network, Network]]) -> int:
    """Delete what is ``stale``; returns how many. Blocks. Raises ToolError with errno's text."""
    wanted = list(pairs)
    deleted = 0
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
            sock.bind((0, 0))
            for version in sorted({local.version for local, _ in wanted}):
                found = list(parse(_ask(sock, dump_request(version))))
                for entry in stale(found, wanted):
                    deleted += _delete(sock, entry)
    except OSError as exc:
        if exc.errno in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP):
            return 0  # no connection tracking in this kernel: nothing is translated either
        raise ToolError(
            f"connections from before cannot be looked at ({exc.strerror}): those that were"
            " masqueraded stay so until they end; close them, or run conntrack -F"
        ) from exc
    return deleted


def dump_request(version: int) -> bytes:
    """Ask for all entries of an IP version whose source is translated (older kernels: for all)."""
    mask = _attribute(_STATUS, struct.pack(">I", _SOURCE_NAT))
    mask += _attribute(_STATUS_MASK, struct.pack(">I", _SOURCE_NAT))
    return _message(_GET, _REQUEST | _DUMP, version, mask)


def delete_request(entry: Entry) -> bytes:
    """Delete this entry, and no other one that has taken its place."""
    return _message(_DELETE, _REQUEST | _ACK, entry.version, entry.key)


def parse(messages: Iterable[bytes]) -> Iterator[Entry]:
    """The entries in the bodies of a dump, those without both directions left out."""
    for body in messages:
        found = _attributes(body[4:])
        try:
            original = _addresses(found[_TUPLE_ORIG])
            reply = _addresses(found[_TUPLE_REPLY])
        except KeyError:
            continue
        key = b"".join(
            _attribute(kind | nested, found[kind])
            for kind, nested in ((_TUPLE_ORIG, _NESTED), (_ZONE, 0), (_ID, 0))
            if kind in found
        )
        yield Entry(*original, *reply[1:], key)


def _addresses(tuple_: bytes) -> tuple[int, bytes, bytes]:
    ip = _attributes(_attributes(tuple_)[_TUPLE_IP])
    for source, destination in ((1, 2), (3, 4)):
        if source in ip:
            return _IP_SOURCE[source], ip[source], ip[destination]
    raise KeyError(_TUPLE_IP)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += length + -length % 4
    return found


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def _message(kind: int, flags: int, version: int, attributes: bytes) -> bytes:
    body = _NFGEN.pack(_FAMILIES[version], 0, 0) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body


def _ask(sock: socket.socket, request: bytes) -> Iterator[bytes]:
    """Bodies of what the kernel answers. Raises OSError with what it says."""
    sock.send(request)
    while True:
        data = sock.recv(1 << 18)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                return
            body = data[at + _HEADER.size : at + length]
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -int.from_bytes(body[:4], "little" if _LITTLE else "big", signed=True)
                if code:
                    raise OSError(code, os.strerror(code))
                return
            yield body
            at += length + -length % 4


_LITTLE: Final = struct.pack("=H", 1) == b"\x01\x00"


def _delete(sock: socket.socket, entry: Entry) -> int:
    try:
        for _ in _ask(sock, delete_request(entry)):
            pass
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            return 0  # it ended meanwhile
        raise
    return 1


def describe(entry: Entry) -> str:
    """For the log."""
    address = ipaddress.ip_address
    return f"{address(entry.source)} to {address(entry.destination)}"
