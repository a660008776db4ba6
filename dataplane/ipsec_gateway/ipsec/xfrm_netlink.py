"""The way to the kernel's XFRM: one socket for requests, one for events.

A plain AF_NETLINK socket, and not pyroute2's: that one wants each message as an object of its own
classes and waits for each answer in the event loop, while here a batch of finished messages goes
out in one system call. The kernel works on it before ``sendmsg`` returns, so that all answers are
there already and nothing has to be waited for. It also keeps the kernel's own words about an error
(NETLINK_EXT_ACK).

Events have a socket of their own: if nobody reads them for long enough the kernel drops some and
says so once (ENOBUFS). That ends in ``on_lost``, which must look at everything anew.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ipsec_gateway.ipsec import linux
from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.xfrm_attributes import XfrmFormatError, attributes
from ipsec_gateway.ipsec.xfrm_messages import Message, Report, decode_report
from ipsec_gateway.ipsec.xfrm_numbers import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_CAP_ACK,
    NETLINK_EXT_ACK,
    NETLINK_XFRM,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
    Group,
)

log = logging.getLogger(__name__)

#: Messages in one system call.
BATCH: Final = 128
#: Octets of the receive buffers. An answer takes up to 1 KiB of it.
BUFFER: Final = 4 << 20
#: Octets read at once; the kernel's dumps come in pieces of up to 32 KiB.
_READ: Final = 1 << 17
#: Seconds for an answer. It is there at once, unless the kernel loads a module first.
_TIMEOUT: Final = 10.0
#: Times that a dump is begun anew because something changed under it.
_RETRIES: Final = 5
#: Event messages taken before others have their turn.
_DRAIN: Final = 256

_HEADER: Final = struct.Struct("=IHHII")
_ERROR: Final = struct.Struct("=i")
_ATTR_MSG: Final = 1


class XfrmError(DataplaneError):
    """The kernel refused one message. ``number`` is errno, ``detail`` its own words, if any."""

    def __init__(self, number: int, detail: str = "") -> None:
        self.number: Final = number
        self.detail: Final = detail
        name = errno.errorcode.get(number, str(number))
        super().__init__(f"{name}: {detail or os.strerror(number)}")


class XfrmSocket:
    """Requests. All methods are quick and block no longer than the kernel works."""

    def __init__(self) -> None:
        """Raises DataplaneError if this kernel has no XFRM, or we may not use it."""
        self._sock: Final = _open()
        self._sequence = 0

    def close(self) -> None:
        """No more requests."""
        self._sock.close()

    def execute(self, messages: Sequence[Message]) -> list[XfrmError | None]:
        """Carry out all messages in order, whatever becomes of each; one result for each."""
        results: list[XfrmError | None] = []
        for begin in range(0, len(messages), BATCH):
            results += self._batch(messages[begin : begin + BATCH])
        return results

    def call(self, message: Message) -> None:
        """Carry out one message. Raises XfrmError."""
        (error,) = self.execute((message,))
        if error is not None:
            raise error

    def ask(self, message: Message) -> memoryview:
        """Send one message and give the body of the answer. Raises XfrmError."""
        first = self._send((message,))
        for kind, flags, sequence, body in self._receive():
            if sequence == first:
                if kind == NLMSG_ERROR:
                    raise _failure(flags, body) or XfrmError(errno.EPROTO)
                return body
        raise XfrmError(errno.ETIMEDOUT)

    def dump(self, message: Message) -> list[memoryview]:
        """The bodies of all answers to a dump. Raises XfrmError."""
        for _ in range(_RETRIES):
            first = self._send((message,))
            bodies: list[memoryview] = []
            torn = False
            for kind, flags, sequence, body in self._receive():
                if sequence != first:
                    continue
                torn = torn or bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_DONE:
                    break
                if kind == NLMSG_ERROR:
                    raise _failure(flags, body) or XfrmError(errno.EPROTO)
                bodies.append(body)
            if not torn:
                return bodies
        raise XfrmError(errno.EBUSY, "the kernel's table changes faster than it can be read")

    def _batch(self, messages: Sequence[Message]) -> list[XfrmError | None]:
        if not messages:
            return []
        first = self._send(messages)
        results: list[XfrmError | None] = [None] * len(messages)
        missing = len(messages)
        for kind, flags, sequence, body in self._receive():
            index = sequence - first
            if kind != NLMSG_ERROR or not 0 <= index < len(messages):
                continue
            results[index] = _failure(flags, body)
            missing -= 1
            if not missing:
                return results
        raise XfrmError(errno.ETIMEDOUT)

    def _send(self, messages: Sequence[Message]) -> int:
        """Number the messages and send them. Returns the first number."""
        first = self._sequence + 1
        self._sequence += len(messages)
        if self._sequence > 0x7FFFFFFF:
            first, self._sequence = 1, len(messages)
        parts = []
        for number, each in enumerate(messages, start=first):
            length = _HEADER.size + len(each.body)
            header = _HEADER.pack(length, each.kind, each.flags, number, 0)
            parts.append(header + each.body + bytes(-length % 4))
        try:
            self._sock.send(b"".join(parts))
        except OSError as exc:
            raise XfrmError(exc.errno or errno.EIO) from exc
        return first

    def _receive(self) -> Iterator[tuple[int, int, int, memoryview]]:
        while True:
            try:
                data = self._sock.recv(_READ)
            except TimeoutError:
                raise XfrmError(errno.ETIMEDOUT, "the kernel does not answer") from None
            except OSError as exc:
                raise XfrmError(exc.errno or errno.EIO) from exc
            yield from _messages(memoryview(data))


class XfrmEvents:
    """Events, from ``__init__`` to ``close``, in callbacks of the loop.

    ``on_report`` gets each one of the whole network namespace, others' too.
    """

    def __init__(
        self,
        on_report: Callable[[Report], None],
        on_lost: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Raises DataplaneError."""
        self._on_report: Final = on_report
        self._on_lost: Final = on_lost
        self._loop: Final = loop
        self._sock: Final = _open()
        self._sock.setblocking(False)
        for group in Group:
            self._sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        loop.add_reader(self._sock, self._readable)

    def close(self) -> None:
        """No more callbacks."""
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _readable(self) -> None:
        for _ in range(_DRAIN):
            try:
                data = self._sock.recv(_READ)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                self._on_lost()
                continue
            for kind, _, _, body in _messages(memoryview(data)):
                try:
                    report = decode_report(kind, body)
                except XfrmFormatError as exc:
                    log.warning("a message of the kernel cannot be read: %s", exc)
                    continue
                if report is not None:
                    self._on_report(report)


def _open() -> socket.socket:
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM)
    except OSError as exc:
        raise DataplaneError(
            "this kernel has no XFRM (module xfrm_user, CONFIG_XFRM_USER)"
        ) from exc
    try:
        sock.bind((0, 0))
        sock.settimeout(_TIMEOUT)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
            sock.setsockopt(SOL_NETLINK, option, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, linux.SO_RCVBUFFORCE, BUFFER)
        except PermissionError:
            # The first request will say better what is missing.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    except OSError as exc:
        sock.close()
        raise DataplaneError(f"XFRM netlink socket: {exc.strerror}") from exc
    return sock


def _messages(data: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """(type, flags, sequence, body) of each message in one datagram."""
    offset, end = 0, len(data)
    while offset + _HEADER.size <= end:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > end:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _failure(flags: int, body: memoryview) -> XfrmError | None:
    """What an NLMSG_ERROR says; None if it says that all is well."""
    number = -_ERROR.unpack_from(body)[0]
    if not number:
        return None
    detail = ""
    if flags & NLM_F_ACK_TLVS and flags & NLM_F_CAPPED:
        for kind, value in attributes(body[_ERROR.size + _HEADER.size :]):
            if kind == _ATTR_MSG:
                detail = bytes(value).rstrip(b"\0").decode(errors="replace")
    return XfrmError(number, detail)
