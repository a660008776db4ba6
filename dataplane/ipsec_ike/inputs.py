"""What comes into the engine besides commands: datagrams and reports of the data plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ipsec_ike.identifiers import SaId
from ipsec_ike.selectors import TrafficSelector


class Endpoint(NamedTuple):
    """An IP address as text (no zone, canonical as ``ipaddress`` prints it) and a UDP port."""

    address: str
    port: int

    def __str__(self) -> str:
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )


@dataclass(frozen=True, slots=True)
class InheritedSa:
    """An SA of ours that the data plane has from an earlier life of the gateway.

    Addresses as in SaSpec; ports mean something only with ``encap``.
    """

    reqid: int
    source: Endpoint
    destination: Endpoint
    encap: bool


@dataclass(frozen=True, slots=True)
class Datagram:
    """One IKE message as received, without the non-ESP marker.

    ``local`` is the address and port it was sent to. Port 4500 (or any with ``marker``) means that
    the sender used UDP encapsulation (RFC 7296 2.23).
    """

    data: bytes
    local: Endpoint
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Acquire:
    """A packet matched the policy of ``reqid`` and no SA exists (RFC 4301 4.4.1).

    ``local`` and ``remote`` are the packet's own selectors: they go first in TSi and TSr.
    """

    reqid: int
    local: TrafficSelector | None = None
    remote: TrafficSelector | None = None


@dataclass(frozen=True, slots=True)
class Expire:
    """The data plane counted an SA to its limit. ``id`` is the one it was added under."""

    id: SaId
    hard: bool


@dataclass(frozen=True, slots=True)
class Mapping:
    """ESP that verifies came from a new source: the peer's NAT rebound (RFC 7296 2.23)."""

    spi: int
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class SaFailed:
    """An AddSa action could not be carried out. ``reason`` is for the log and the status."""

    id: SaId
    reason: str


@dataclass(frozen=True, slots=True)
class UnknownSpi:
    """An ESP packet came for an SPI that the data plane does not know (RFC 7296 2.21.4)."""

    spi: int
    remote: Endpoint
