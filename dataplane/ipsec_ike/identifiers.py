"""What finds an SA, in what the engine is told and in what it wants done."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Direction(Enum):
    """Seen from this gateway."""

    IN = "in"
    OUT = "out"


@dataclass(frozen=True, slots=True)
class SaId:
    """What finds an SA: direction, protocol (numbers.Protocol ESP or AH), SPI and destination."""

    direction: Direction
    protocol: int
    spi: int
    destination: str

    def __hash__(self) -> int:
        # Several tables are kept by these; the SPI alone tells nearly all of them apart.
        return self.spi
