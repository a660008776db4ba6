"""ICMP echo without any right: the kernel's ping sockets.

A process may open them whose group is in ``net.ipv4.ping_group_range``, which a pod may set for
itself. The kernel chooses the identifier and gives us only the answers to our own requests.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from ipaddress import ip_address
from typing import Final

#: Octets of IP and ICMP header, by IP version.
HEADERS: Final = {4: 28, 6: 48}

_REQUEST: Final = {4: 8, 6: 128}
_REPLY: Final = {4: 0, 6: 129}
#: From linux/in.h and linux/in6.h, which Python does not have: MTU discovery, and its value "do".
_MTU_DISCOVER: Final = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_DO: Final = 2


class NoPing(Exception):
    """No ping socket can be opened; the text says what to do."""


class TooBig(Exception):
    """The way is known not to take packets of this size."""


class Ping:
    """One target. ``size`` is that of the whole packet in octets, at least 64."""

    def __init__(self, address: str, size: int = 84, *, dont_fragment: bool = False) -> None:
        version = ip_address(address).version
        self._address: Final = address
        self._version: Final = version
        self._payload: Final = bytes(max(size, 64) - HEADERS[version])
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
        try:
            self._socket: Final = socket.socket(family, socket.SOCK_DGRAM, protocol)
        except PermissionError:
            raise NoPing(
                "the kernel allows no ping here: sysctl net.ipv4.ping_group_range='0 65535'"
            ) from None
        if dont_fragment:
            self._socket.setsockopt(*_MTU_DISCOVER[version], _DO)

    def __enter__(self) -> Ping:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def once(self, sequence: int, timeout: float) -> float | None:
        """Seconds until the answer came, or None. Raises TooBig."""
        header = struct.pack("!BBHHH", _REQUEST[self._version], 0, 0, 0, sequence)
        began = time.monotonic()
        try:
            self._socket.sendto(header + self._payload, (self._address, 0))
        except OSError as exc:
            if exc.errno == errno.EMSGSIZE:
                raise TooBig from None
            # No route, or an answer that says so.
            return None
        while (left := began + timeout - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                break
            try:
                answer = self._socket.recv(65536)
            except OSError as exc:
                if exc.errno == errno.EMSGSIZE:
                    raise TooBig from None
                return None
            if answer[:1] == bytes([_REPLY[self._version]]) and answer[6:8] == header[6:8]:
                return time.monotonic() - began
        return None


def ping(
    address: str,
    size: int = 84,
    *,
    dont_fragment: bool = False,
    tries: int = 5,
    timeout: float = 2.0,
) -> float | None:
    """Seconds of the first round trip that succeeds, or None. Raises NoPing, TooBig."""
    start = int.from_bytes(os.urandom(1))
    with Ping(address, size, dont_fragment=dont_fragment) as it:
        for sequence in range(start, start + tries):
            if (seconds := it.once(sequence, timeout)) is not None:
                return seconds
    return None
