"""NAT detection and the ports that follow from it (RFC 7296 2.23, RFC 3948)."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha1
from ipaddress import ip_address
from typing import Final

from ipsec_ike.inputs import Endpoint

#: The IKE port without and with UDP encapsulation of ESP.
IKE_PORT: Final = 500
NATT_PORT: Final = 4500


@lru_cache(maxsize=4096)
def packed(address: str) -> bytes:
    """The octets of an address. Raises ValueError if the text is none."""
    return ip_address(address).packed


def detection_hash(spi_i: bytes, spi_r: bytes, endpoint: Endpoint) -> bytes:
    """Data of NAT_DETECTION_*_IP: SHA-1(SPIi | SPIr | address | port).

    SHA-1 hides nothing and protects nothing here: it is what the RFC says.
    """
    octets = spi_i + spi_r + packed(endpoint.address) + endpoint.port.to_bytes(2)
    return sha1(octets, usedforsecurity=False).digest()


def encapsulated(local: Endpoint) -> bool:
    """Whether IKE from this endpoint has the non-ESP marker: everything but port 500."""
    return local.port != IKE_PORT
