"""A client for charon's control socket, enough to load a connection and to drive it.

Source: strongSwan, "The VICI protocol" (docs.strongswan.org). A packet is a 32-bit length, an octet
for its kind and, for requests, a name; then a message: key/value pairs, lists and named sections of
them. Values are octet strings. The client is blocking, with one request at a time on a connection.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

#: What a message is made of: keys with a text, a list of texts, or a section.
Message: TypeAlias = Mapping[str, "str | Sequence[str] | Message"]

_LENGTH: Final = struct.Struct(">I")
_SHORT: Final = struct.Struct(">H")


class _Packet(IntEnum):
    CMD_REQUEST = 0
    CMD_RESPONSE = 1
    CMD_UNKNOWN = 2


class _Element(IntEnum):
    SECTION_START = 1
    SECTION_END = 2
    KEY_VALUE = 3
    LIST_START = 4
    LIST_ITEM = 5
    LIST_END = 6


class ViciError(Exception):
    """charon refused a command; the message is its own."""


class Vici:
    """One connection to the control socket at ``path``. Raises OSError if nobody listens.

    ``timeout`` bounds the wait for one answer, in seconds.
    """

    def __init__(self, path: Path, timeout: float = 30.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            # Without a timeout: with one, a full backlog is an error at once.
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._socket.settimeout(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def request(self, command: str, message: Message) -> dict[str, str]:
        """Send a command and wait for its answer: the texts at its top level.

        Raises ViciError where charon does not know the command or answers ``success = no``.
        """
        name = command.encode()
        packet = bytes([_Packet.CMD_REQUEST, len(name)]) + name + encode(message)
        self._socket.sendall(_LENGTH.pack(len(packet)) + packet)
        answer = self._receive(_LENGTH.unpack(self._receive(_LENGTH.size))[0])
        if answer[0] != _Packet.CMD_RESPONSE:
            raise ViciError(f"{command}: no such command")
        values = decode(answer[1:])
        if values.get("success", "yes") != "yes":
            raise ViciError(f"{command}: {values.get('errmsg', 'refused')}")
        return values

    def _receive(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._socket.recv(size - len(parts))
            if not part:
                raise ViciError("charon closed the control socket")
            parts += part
        return bytes(parts)


def encode(message: Message) -> bytes:
    """The message as it goes into a packet."""
    out = bytearray()
    for key, value in message.items():
        name = bytes([len(key.encode())]) + key.encode()
        if isinstance(value, str):
            out += bytes([_Element.KEY_VALUE]) + name + _text(value)
        elif isinstance(value, Mapping):
            out += bytes([_Element.SECTION_START]) + name + encode(value)
            out.append(_Element.SECTION_END)
        else:
            out += bytes([_Element.LIST_START]) + name
            for item in value:
                out += bytes([_Element.LIST_ITEM]) + _text(item)
            out.append(_Element.LIST_END)
    return bytes(out)


def decode(data: bytes) -> dict[str, str]:
    """The key/value pairs at the top level; sections and lists are stepped over.

    Raises ViciError where the octets are no message.
    """
    values: dict[str, str] = {}
    at = depth = 0
    try:
        while at < len(data):
            kind = data[at]
            at += 1
            key = ""
            if kind in (_Element.SECTION_START, _Element.KEY_VALUE, _Element.LIST_START):
                key = data[at + 1 : at + 1 + data[at]].decode()
                at += 1 + data[at]
            if kind in (_Element.KEY_VALUE, _Element.LIST_ITEM):
                (size,) = _SHORT.unpack_from(data, at)
                if kind == _Element.KEY_VALUE and depth == 0:
                    values[key] = data[at + 2 : at + 2 + size].decode(errors="replace")
                at += 2 + size
            depth += kind in (_Element.SECTION_START, _Element.LIST_START)
            depth -= kind in (_Element.SECTION_END, _Element.LIST_END)
    except (IndexError, struct.error, UnicodeDecodeError) as exc:
        raise ViciError("the answer is no vici message") from exc
    return values


def _text(value: str) -> bytes:
    data = value.encode()
    return _SHORT.pack(len(data)) + data
