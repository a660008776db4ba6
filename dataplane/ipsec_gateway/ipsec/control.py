"""What the gateway and its packet processes say to each other, over a socket pair.

Frames of four octets of length and a pickle, or an SA as ``packed`` has it. Both ends are the same
program of the same user, the socket pair is inherited and has no name, and keys are part of what is
said: they are never in argv, in the environment or in a file.

The gateway sends ``Request``; each gets one ``Reply`` with its number once it is done, except those
with number 0, of which only a refused SA is answered, with ``Refused``. Everything else that a
process sends is an event.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ipsec_gateway.ipsec.base import DataplaneEvent, IkeFromDataplane, PolicyId, PolicySpec
from ipsec_gateway.ipsec.outer import PathMtu
from ipsec_gateway.ipsec.packed import PackedSa
from ipsec_ike.actions import SaSpec, UpdateSa
from ipsec_ike.identifiers import SaId
from ipsec_ike.inputs import Endpoint

_LENGTH: Final = struct.Struct("!I")
#: In front of an SA: _SA, number of the request, slot. A pickle begins with 0x80.
_ADD: Final = struct.Struct("!BII")
_SA: Final = 1


@dataclass(frozen=True, slots=True)
class AddSa:
    """Install an SA; ``slot`` is its place in the shared memory. It arrives as PackedSa."""

    spec: SaSpec | PackedSa
    slot: int


@dataclass(frozen=True, slots=True)
class PutPolicies:
    """A difference of the SPD."""

    put: tuple[PolicySpec, ...]
    delete: tuple[PolicyId, ...]


@dataclass(frozen=True, slots=True)
class DeliverEsp:
    """ESP that came in on an IKE socket."""

    data: bytes
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""


Body = AddSa | UpdateSa | SaId | PutPolicies | DeliverEsp | Ping


@dataclass(frozen=True, slots=True)
class Request:
    """``body`` SaId deletes that SA."""

    number: int
    body: Body


@dataclass(frozen=True, slots=True)
class Reply:
    """``error`` is empty where it was done. Number 0 is said once, when the process is ready."""

    number: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """An SA of a request with number 0 that could not be installed."""

    id: SaId
    error: str


Message = Request | Reply | Refused | DataplaneEvent | IkeFromDataplane | PathMtu


def encode(message: Message) -> bytes:
    """One frame."""
    if type(message) is Request and type(message.body) is AddSa:
        number, spec, slot = message.number, message.body.spec, message.body.slot
        packed = spec if isinstance(spec, PackedSa) else PackedSa.of(spec)
        data = _ADD.pack(_SA, number, slot) + packed.octets
    else:
        data = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(data)) + data


class Decoder:
    """Frames out of a stream of octets."""

    def __init__(self) -> None:
        self._pending: Final = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that ``data`` completes."""
        pending = self._pending
        pending += data
        while len(pending) >= 4:
            end = 4 + _LENGTH.unpack_from(pending)[0]
            if len(pending) < end:
                return
            data = bytes(pending[4:end])
            del pending[:end]
            yield _decode(data)


def _decode(data: bytes) -> Message:
    if data[0] == _SA:
        _, number, slot = _ADD.unpack_from(data)
        return Request(number, AddSa(PackedSa(data[_ADD.size :]), slot))
    message: Message = pickle.loads(data)  # noqa: S301 - see above
    return message
