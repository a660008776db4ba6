"""A client for charon's control socket, as far as the lab needs it.

The protocol is described in strongSwan's documentation of the vici plugin: packets of a 32-bit
length, a type, for some types a name, and a message of nested sections, key/value pairs and lists.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Final, Self

from ipsec_lab.netns import LabError

#: Values are text, lists of text, and sections.
Section = dict[str, "str | list[str] | Section"]

_REQUEST: Final = 0
_RESPONSE: Final = 1
_REGISTER: Final = 3
_UNREGISTER: Final = 4
_CONFIRM: Final = 5
_EVENT: Final = 7

_SECTION_START: Final = 1
_SECTION_END: Final = 2
_KEY_VALUE: Final = 3
_LIST_START: Final = 4
_LIST_ITEM: Final = 5
_LIST_END: Final = 6


class ViciError(LabError):
    """charon refused a command; the message is its own."""


def encode(section: Section) -> bytes:
    """A message body."""
    out = bytearray()
    for key, value in section.items():
        name = key.encode()
        head = bytes((len(name),)) + name
        if isinstance(value, dict):
            out += bytes((_SECTION_START,)) + head + encode(value) + bytes((_SECTION_END,))
        elif isinstance(value, list):
            out += bytes((_LIST_START,)) + head
            for item in value:
                out += struct.pack(">BH", _LIST_ITEM, len(item.encode())) + item.encode()
            out.append(_LIST_END)
        else:
            data = value.encode()
            out += bytes((_KEY_VALUE,)) + head + struct.pack(">H", len(data)) + data
    return bytes(out)


def decode(data: bytes) -> Section:
    """The message of a body. Raises ViciError if it is none."""
    root: Section = {}
    stack = [root]
    items: list[str] = []
    pos = 0

    def take(width: int) -> str:
        nonlocal pos
        size = int.from_bytes(data[pos : pos + width], "big")
        pos += width + size
        if pos > len(data):
            raise ViciError("message from charon ends in the middle")
        return data[pos - size : pos].decode("utf-8", "replace")

    while pos < len(data):
        kind = data[pos]
        pos += 1
        if kind == _SECTION_START:
            inner: Section = {}
            stack[-1][take(1)] = inner
            stack.append(inner)
        elif kind == _SECTION_END and len(stack) > 1:
            stack.pop()
        elif kind == _KEY_VALUE:
            key = take(1)
            stack[-1][key] = take(2)
        elif kind == _LIST_START:
            items = []
            stack[-1][take(1)] = items
        elif kind == _LIST_ITEM:
            items.append(take(2))
        elif kind != _LIST_END:
            raise ViciError(f"message from charon has an element of type {kind}")
    return root


class Vici:
    """One connection. A context manager; not for several threads at once.

    Raises LabError if nothing listens at ``path``.
    """

    def __init__(self, path: Path, *, timeout: float = 30.0) -> None:
        self._socket: Final = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except OSError as exc:
            self._socket.close()
            raise LabError(f"charon's control socket {path}: {exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, command: str, message: Section | None = None) -> Section:
        """One command and its answer. Raises ViciError if it says ``success = no``."""
        self._send(_REQUEST, command, encode(message or {}))
        kind, _, body = self._receive()
        while kind == _EVENT:
            kind, _, body = self._receive()
        return self._answer(command, kind, body)

    def stream(self, command: str, event: str, message: Section | None = None) -> list[Section]:
        """A command that answers with a series of events, such as ``list-sas`` with ``list-sa``."""
        self._send(_REGISTER, event)
        self._expect_confirmation(event)
        self._send(_REQUEST, command, encode(message or {}))
        events = []
        while True:
            kind, name, body = self._receive()
            if kind != _EVENT:
                break
            if name == event:
                events.append(decode(body))
        self._send(_UNREGISTER, event)
        self._expect_confirmation(event)
        self._answer(command, kind, body)
        return events

    def _expect_confirmation(self, event: str) -> None:
        kind, _, _ = self._receive()
        while kind == _EVENT:
            kind, _, _ = self._receive()
        if kind != _CONFIRM:
            raise ViciError(f"charon does not know the event {event}")

    @staticmethod
    def _answer(command: str, kind: int, body: bytes) -> Section:
        if kind != _RESPONSE:
            raise ViciError(f"charon does not know the command {command}")
        answer = decode(body)
        if answer.get("success", "yes") != "yes":
            raise ViciError(f"{command}: {answer.get('errmsg', 'failed')}")
        return answer

    def _send(self, kind: int, name: str, body: bytes = b"") -> None:
        packet = bytes((kind, len(name))) + name.encode() + body
        self._socket.sendall(struct.pack(">I", len(packet)) + packet)

    def _receive(self) -> tuple[int, str, bytes]:
        try:
            (size,) = struct.unpack(">I", self._exactly(4))
            packet = self._exactly(size)
        except OSError as exc:
            raise ViciError(f"charon does not answer: {exc}") from exc
        if packet[0] == _EVENT:
            end = 2 + packet[1]
            return packet[0], packet[2:end].decode(), packet[end:]
        return packet[0], "", packet[1:]

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise ConnectionError("connection closed")
            data += piece
        return bytes(data)
