"""The TSi and TSr payloads (RFC 7296 3.13).

+---------------+-----------------------------------------------+
| Number of TSs |                   RESERVED                    |
+---------------+---------------+-------------------------------+
|    TS Type    |  IP Protocol  |        Selector Length        |
+---------------+---------------+-------------------------------+
|          Start Port           |           End Port            |
+-------------------------------+-------------------------------+
|            Starting Address (4 or 16), Ending Address         |
+---------------------------------------------------------------+
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final, Self

from ipsec_ike.errors import InvalidSyntax, LocalMisuse
from ipsec_ike.numbers import PayloadType, TsType
from ipsec_ike.selectors import TrafficSelector

_SELECTOR: Final = Struct(">BBH")
_PORTS: Final = Struct(">HH")

_TYPE_OF_LENGTH: Final[dict[int, int]] = {4: TsType.IPV4_ADDR_RANGE, 16: TsType.IPV6_ADDR_RANGE}
_LENGTH_OF_TYPE: Final[dict[int, int]] = {kind: size for size, kind in _TYPE_OF_LENGTH.items()}


@dataclass(frozen=True, slots=True)
class TsPayload:
    """The selectors of one side. ``type`` is PayloadType.TSi or TSr.

    A received selector of an unknown type is left out, as one that we cannot match; the payload is
    empty where all are.
    """

    type: PayloadType
    selectors: tuple[TrafficSelector, ...]

    def encode(self) -> bytes:
        """Raises LocalMisuse unless there are 1-255 selectors."""
        if not 0 < len(self.selectors) < 256:
            raise LocalMisuse(f"{len(self.selectors)} traffic selectors in one payload")
        parts = [bytes((len(self.selectors), 0, 0, 0))]
        for ts in self.selectors:
            size = len(ts.start)
            kind = _TYPE_OF_LENGTH.get(size)
            if kind is None or len(ts.end) != size:
                raise LocalMisuse(f"traffic selector with addresses of {size} octets")
            parts += (
                _SELECTOR.pack(kind, ts.protocol, 8 + 2 * size),
                _PORTS.pack(ts.start_port, ts.end_port),
                ts.start,
                ts.end,
            )
        return b"".join(parts)

    @classmethod
    def decode(cls, body: memoryview, kind: PayloadType) -> Self:
        """``kind`` is the payload's own type. Raises InvalidSyntax."""
        end = len(body)
        if end < 4 or body[0] == 0:
            raise InvalidSyntax("TS payload without a selector")
        selectors: list[TrafficSelector] = []
        offset = 4
        for _ in range(body[0]):
            if end - offset < 4:
                raise InvalidSyntax(f"TS payload announces {body[0]} selectors and has fewer")
            ts_type, protocol, length = _SELECTOR.unpack_from(body, offset)
            if length < 4 or length > end - offset:
                raise InvalidSyntax(f"traffic selector has length {length}")
            size = _LENGTH_OF_TYPE.get(ts_type)
            if size is not None:
                if length != 8 + 2 * size:
                    raise InvalidSyntax(f"traffic selector of type {ts_type} has length {length}")
                low, high = _PORTS.unpack_from(body, offset + 4)
                first = bytes(body[offset + 8 : offset + 8 + size])
                last = bytes(body[offset + 8 + size : offset + length])
                if first > last:
                    raise InvalidSyntax("traffic selector whose start address is above its end")
                if low > high and (low, high) != (65535, 0):
                    raise InvalidSyntax(f"traffic selector with ports {low}-{high}")
                selectors.append(TrafficSelector(first, last, protocol, low, high))
            offset += length
        if offset != end:
            raise InvalidSyntax(f"{end - offset} octets after the last traffic selector")
        return cls(kind, tuple(selectors))
