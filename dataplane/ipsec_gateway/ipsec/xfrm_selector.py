"""Traffic selectors to the kernel's and back. Pure.

A TrafficSelector has ranges of addresses and ports; the kernel has prefixes, and ports under masks.
What is a prefix and any or one port, which is nearly always, becomes one selector; other ranges
become several. For ICMP and ICMPv6 the "port" is type and code (RFC 7296 3.13.1), which the kernel
keeps as source and destination port.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final

from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.xfrm_messages import Selector
from ipsec_ike.selectors import TrafficSelector

ICMP: Final = (1, 58)
#: (value, mask) of any port.
_ANY: Final = (0, 0)
_Ports = tuple[tuple[int, int], tuple[int, int]]


def kernel_selectors(source: TrafficSelector, destination: TrafficSelector) -> list[Selector]:
    """Selectors that together match what the pair matches.

    Raises DataplaneError for OPAQUE ports and for two different protocols.
    """
    if source.is_opaque or destination.is_opaque:
        raise DataplaneError(f"{source} to {destination}: the kernel cannot match OPAQUE ports")
    if source.protocol and destination.protocol and source.protocol != destination.protocol:
        raise DataplaneError(f"{source} to {destination}: two protocols in one selector")
    protocol = source.protocol or destination.protocol
    ports = list(_ports(source, destination, protocol))
    return [
        Selector(
            family=socket.AF_INET if src.version == 4 else socket.AF_INET6,
            source=str(src.network_address),
            source_length=src.prefixlen,
            destination=str(dst.network_address),
            destination_length=dst.prefixlen,
            protocol=protocol,
            source_port=sport,
            source_mask=smask,
            destination_port=dport,
            destination_mask=dmask,
        )
        for src in source.networks
        for dst in destination.networks
        for (sport, smask), (dport, dmask) in ports
    ]


def _ports(
    source: TrafficSelector, destination: TrafficSelector, protocol: int
) -> Iterator[_Ports]:
    if protocol in ICMP:
        yield from _icmp(destination if source.any_port else source)
        return
    for one in masks(source.start_port, source.end_port, 16):
        for two in masks(destination.start_port, destination.end_port, 16):
            yield one, two


def _icmp(ts: TrafficSelector) -> Iterator[_Ports]:
    """Type and code of a range ``type << 8 | code``."""
    if ts.any_port:
        yield _ANY, _ANY
        return
    first, low = divmod(ts.start_port, 256)
    last, high = divmod(ts.end_port, 256)
    if first == last:
        for code in masks(low, high, 8):
            yield (first, 0xFFFF), code
        return
    if low:
        for code in masks(low, 255, 8):
            yield (first, 0xFFFF), code
        first += 1
    if high != 255:
        for code in masks(0, high, 8):
            yield (last, 0xFFFF), code
        last -= 1
    if first <= last:
        for kind in masks(first, last, 8):
            yield kind, _ANY


def masks(first: int, last: int, bits: int) -> list[tuple[int, int]]:
    """(value, mask) pairs that match first to last and nothing else, of numbers with ``bits``."""
    if first == 0 and last == (1 << bits) - 1:
        return [_ANY]
    found = []
    while first <= last:
        # The largest aligned block that begins at ``first`` and does not reach beyond ``last``.
        size = first & -first or 1 << bits
        while size > last - first + 1:
            size >>= 1
        found.append((first, 0xFFFF & ~(size - 1)))
        first += size
    return found


def traffic_selectors(selector: Selector) -> tuple[TrafficSelector, TrafficSelector] | None:
    """(source, destination) of a kernel selector; None for one that is not of our making."""
    if selector.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    source = _range(selector.source_port, selector.source_mask)
    destination = _range(selector.destination_port, selector.destination_mask)
    if source is None or destination is None:
        return None
    if selector.protocol in ICMP:
        source = destination = _icmp_range(selector)
    return (
        TrafficSelector.network(
            f"{selector.source}/{selector.source_length}",
            protocol=selector.protocol,
            start_port=source[0],
            end_port=source[1],
        ),
        TrafficSelector.network(
            f"{selector.destination}/{selector.destination_length}",
            protocol=selector.protocol,
            start_port=destination[0],
            end_port=destination[1],
        ),
    )


def _range(value: int, mask: int) -> tuple[int, int] | None:
    size = 0x10000 - mask
    if size & (size - 1):
        return None
    return value, value + size - 1


def _icmp_range(selector: Selector) -> tuple[int, int]:
    if not selector.source_mask:
        return 0, 65535
    kinds = _range(selector.source_port, selector.source_mask) or (0, 255)
    codes = _range(selector.destination_port, selector.destination_mask) or (0, 255)
    if not selector.destination_mask:
        codes = 0, 255
    return kinds[0] << 8 | codes[0], kinds[1] << 8 | codes[1]
