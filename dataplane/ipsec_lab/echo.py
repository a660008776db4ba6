"""Echo requests from a socket of our own, where every answer counts.

The ``ping`` program gives up two round trips after its last request, however long ``-W`` says: on a
busy machine that takes an answer for lost that is only late.
"""

from __future__ import annotations

import secrets
import select
import socket
import struct
import time
from typing import Final

from ipsec_lab.netns import Namespace

#: Type of request and of reply by IP version (RFC 792, RFC 4443 4.1).
_TYPES: Final = {4: (8, 0), 6: (128, 129)}
# Not in the socket module of Python 3.11: IP_MTU_DISCOVER, IPV6_MTU_DISCOVER and "do".
_MTU_DISCOVER: Final = {4: 10, 6: 23}
_NEVER_FRAGMENT: Final = 2


def echo(
    namespace: Namespace,
    address: str,
    *,
    count: int,
    interval: float,
    wait: float,
    payload: bytes,
    fragment: bool,
    source: str | None,
) -> dict[int, float]:
    """Send ``count`` requests, ``interval`` seconds apart, and wait until all are answered, but no
    longer than ``wait`` seconds after the last. Round trips in ms by sequence number from 1.

    What cannot be sent (no route, too large without ``fragment``) is a request without an answer.
    """
    version = 6 if ":" in address else 4
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if version == 6 else socket.IPPROTO_ICMP
    identifier = secrets.randbits(16)
    sent: dict[int, float] = {}
    answers: dict[int, float] = {}
    with namespace.socket(family, socket.SOCK_RAW, protocol) as sock:
        if not fragment:
            level = socket.IPPROTO_IPV6 if version == 6 else socket.IPPROTO_IP
            sock.setsockopt(level, _MTU_DISCOVER[version], _NEVER_FRAGMENT)
        if source is not None:
            sock.bind((source, 0))
        begin = time.monotonic()
        end = begin + (count - 1) * interval + wait
        while len(answers) < count:
            now = time.monotonic()
            if len(sent) < count and now >= begin + len(sent) * interval:
                number = len(sent) + 1
                sent[number] = time.perf_counter()
                _send(sock, address, _request(version, identifier, number, payload))
                end = time.monotonic() + wait if number == count else end
                continue
            until = end if len(sent) == count else begin + len(sent) * interval
            if now >= end:
                break
            if not select.select([sock], [], [], max(0.0, until - now))[0]:
                continue
            data, sender = sock.recvfrom(1 << 16)
            number = _answered(version, data, identifier)
            if sender[0] == address and number in sent and number not in answers:
                answers[number] = (time.perf_counter() - sent[number]) * 1000
    return answers


def _send(sock: socket.socket, address: str, packet: bytes) -> None:
    try:
        sock.sendto(packet, (address, 0))
    except OSError:
        # No way there, too large, or refused by a rule: a ping that is lost, which the caller sees.
        return


def _request(version: int, identifier: int, number: int, payload: bytes) -> bytes:
    head = struct.pack(">BBHHH", _TYPES[version][0], 0, 0, identifier, number)
    if version == 6:  # the kernel adds the checksum, which covers the addresses
        return head + payload
    return head[:2] + struct.pack(">H", _checksum(head + payload)) + head[4:] + payload


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _answered(version: int, data: bytes, identifier: int) -> int:
    """The sequence number of an answer to us, else 0."""
    start = (data[0] & 15) * 4 if version == 4 and data else 0
    if len(data) < start + 8:
        return 0
    kind, theirs, number = struct.unpack_from(">B3xHH", data, start)
    return number if (kind, theirs) == (_TYPES[version][1], identifier) else 0
