"""The network between two gateways: it loses, repeats, delays, reorders and translates.

    left (192.168.1.2 or 198.51.100.1) --- [NAT 203.0.113.x] --- right (192.0.2.2)

All randomness comes from one generator, so that a seed gives the same network again. The NAT keeps
one public port for each inside endpoint (endpoint independent), forgets it when no packet passed
for a while or when told to rebind, and lets nothing in that has no mapping. ESP without UDP does
not pass it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from ipsec_ike.inputs import Endpoint


def seeded(label: str) -> Random:
    """A generator that gives the same numbers for the same label."""
    return Random(label)  # noqa: S311  a simulation must be repeatable, and protects nothing


@dataclass(frozen=True, slots=True)
class Packet:
    """IKE if ``spi`` is 0 (``marker``: with the non-ESP marker), else ESP under ``key``.

    ``encap``: inside UDP; IKE always is. ``promised``: whoever gets it must know the SPI.
    """

    source: Endpoint
    destination: Endpoint
    data: bytes = b""
    marker: bool = False
    spi: int = 0
    key: bytes = b""
    encap: bool = True
    promised: bool = False

    @property
    def is_keepalive(self) -> bool:
        """RFC 3948 2.3: one octet that only keeps the NAT's mapping."""
        return not self.data and not self.spi


@dataclass(slots=True)
class Weather:
    """What happens to a packet in one direction. Probabilities 0-1, times in seconds.

    ``jitter`` is the largest extra delay; ``straggle`` is the probability of one up to ten times
    that.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.01
    jitter: float = 0.0
    straggle: float = 0.0

    def arrivals(self, rng: Random) -> list[float]:
        """The delays after which copies of one packet arrive."""
        copies = 1 + (rng.random() < self.duplicate)
        return [self._delay(rng) for _ in range(copies) if rng.random() >= self.loss]

    def _delay(self, rng: Random) -> float:
        extra = self.jitter * rng.random()
        if rng.random() < self.straggle:
            extra *= 10
        return self.delay + extra


class Nat:
    """Translates what ``inside`` sends. ``timeout`` seconds without a packet end a mapping."""

    def __init__(self, inside: str, pool: tuple[str, ...], timeout: float, rng: Random) -> None:
        self.inside = inside
        self._pool = pool
        self._public = pool[0]
        self._timeout = timeout
        self._rng = rng
        self._ports: dict[int, int] = {}  # inside port: public port
        self._used: dict[int, float] = {}  # public port: time of the last packet

    @property
    def pool(self) -> tuple[str, ...]:
        """The public addresses."""
        return self._pool

    def rebind(self) -> None:
        """Lose all state, as when the device restarts; it may come back with another address."""
        self._ports.clear()
        self._used.clear()
        self._public = self._rng.choice(self._pool)

    def outward(self, packet: Packet, now: float) -> Packet | None:
        """The packet as the outside sees it, or None if it cannot pass."""
        if not packet.encap:
            return None
        port = self._ports.get(packet.source.port)
        if port is None or now - self._used[port] > self._timeout:
            port = self._rng.randrange(1024, 65536)
            while port in self._used:
                port = self._rng.randrange(1024, 65536)
            self._ports[packet.source.port] = port
        self._used[port] = now
        return replace(packet, source=Endpoint(self._public, port))

    def inward(self, packet: Packet, now: float) -> Packet | None:
        """The packet as the inside sees it, or None if there is no mapping."""
        if not packet.encap or packet.destination.address != self._public:
            return None
        for inside, port in self._ports.items():
            if port == packet.destination.port and now - self._used[port] <= self._timeout:
                self._used[port] = now
                return replace(packet, destination=Endpoint(self.inside, inside))
        return None
