"""What really crossed the WAN: a packet socket in the router's namespace.

The guard says what it let pass; the sniffer looks into every frame for the marker that all test
traffic of the lab carries, so that "encrypted" is seen and not only concluded from a port number.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final, Self

from ipsec_lab.netns import Namespace

#: 16 octets that every ping and every transfer of the lab carries again and again.
MARKER: Final = b"kube-ipsec-plain"

_ETH_P_ALL: Final = 3
_PACKET_OUTGOING: Final = 4
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6

_IPV4: Final = 0x0800
_IPV6: Final = 0x86DD
_ARP: Final = 0x0806
_ICMP: Final = 1
_UDP: Final = 17
_ESP: Final = 50
_AH: Final = 51
_ICMPV6: Final = 58
_V6_FRAGMENT: Final = 44

_NOTHING: Final = memoryview(b"")

# The IKE header (RFC 7296 3.1): initiator's SPI, exchange type, R flag.
_IKE_SA_INIT: Final = 34
_IKE_AUTH: Final = 35
_RESPONSE: Final = 0x20


def classify(frame: bytes | memoryview) -> str:
    """What an Ethernet frame is: ``ike``, ``keepalive``, ``esp``, ``esp-in-udp``, ``ah``,
    ``fragment`` (non-first), ``neighbour`` (ARP, ND and other link-local chatter), ``icmp`` or
    ``other``.

    Never raises: what is too short to tell is ``other``.
    """
    return dissect(memoryview(frame))[0]


def dissect(frame: memoryview) -> tuple[str, memoryview]:
    """The class of a frame, and the IKE message in it (empty for every other class)."""
    try:
        return _network(frame)
    except (struct.error, IndexError):
        return "other", _NOTHING


def _network(frame: memoryview) -> tuple[str, memoryview]:
    (kind,) = struct.unpack_from(">H", frame, 12)
    if kind == _ARP:
        return "neighbour", _NOTHING
    if kind == _IPV4:
        header = (frame[14] & 0x0F) * 4
        protocol = frame[23]
        if struct.unpack_from(">H", frame, 20)[0] & 0x1FFF:
            return "fragment", _NOTHING
        return _transport(protocol, frame[14 + header :])
    if kind == _IPV6:
        protocol, rest = frame[20], frame[54:]
        if protocol == 0:  # hop-by-hop, of MLD
            protocol, rest = rest[0], rest[(rest[1] + 1) * 8 :]
        if protocol == _V6_FRAGMENT:
            if struct.unpack_from(">H", rest, 2)[0] & 0xFFF8:
                return "fragment", _NOTHING
            protocol, rest = rest[0], rest[8:]
        return _transport(protocol, rest)
    return "other", _NOTHING


def _transport(protocol: int, data: memoryview) -> tuple[str, memoryview]:
    if protocol == _ESP:
        return "esp", _NOTHING
    if protocol == _AH:
        return "ah", _NOTHING
    if protocol == _ICMP:
        return "icmp", _NOTHING
    if protocol == _ICMPV6:
        return ("neighbour" if 130 <= data[0] <= 143 else "icmp"), _NOTHING
    if protocol == _UDP:
        source, destination, length = struct.unpack_from(">HHH", data)
        if 500 in (source, destination):
            return "ike", data[8:]
        if 4500 in (source, destination):
            if length == 9:
                return "keepalive", _NOTHING
            if bytes(data[8:12]) == bytes(4):
                return "ike", data[12:]
            return "esp-in-udp", _NOTHING
    return "other", _NOTHING


def describe(frame: memoryview) -> str:
    """Addresses, protocol and the first octets of its header, for people."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == _IPV4 and len(frame) >= 34:
        ends, protocol, rest = (frame[26:30], frame[30:34]), frame[23], frame[34:54]
    elif kind == _IPV6 and len(frame) >= 54:
        ends, protocol, rest = (frame[22:38], frame[38:54]), frame[20], frame[54:74]
    else:
        return f"ethertype {kind:#06x}"
    source, destination = (ipaddress.ip_address(bytes(end)) for end in ends)
    return f"{source} > {destination} protocol {protocol}: {rest.hex()}"


@dataclass(frozen=True)
class Sighting:
    """What a sniffer saw: frames by class, frames with the marker, and frames that the kernel had
    to skip because we read too slowly (their content is not known; the guard counted them)."""

    frames: dict[str, int]
    marked: int
    skipped: int
    first_marked: str = ""
    #: The first frames that the guard ought to have dropped, readable.
    clear: tuple[str, ...] = ()

    @property
    def encrypted(self) -> int:
        """Frames of ESP, whatever carries them."""
        return self.frames.get("esp", 0) + self.frames.get("esp-in-udp", 0)


class Sniffer:
    """Counts every frame once, where it enters ``namespace``. A context manager.

    A thread of this process does the reading; at full speed it skips frames, and says so.
    """

    def __init__(self, namespace: Namespace, marker: bytes = MARKER) -> None:
        self._marker: Final = marker
        self._frames: Counter[str] = Counter()
        self._marked = 0
        self._skipped = 0
        self._first = ""
        self._clear: list[str] = []
        self._requested: dict[bytes, float] = {}
        self._handshakes: list[float] = []
        self._ending = threading.Event()
        self._socket: Final = namespace.socket(
            socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        self._socket.settimeout(0.2)
        self._thread: Final = threading.Thread(target=self._read, name="sniffer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._count_skipped()
        self._socket.close()

    def sighting(self) -> Sighting:
        """What was seen so far, or until the end."""
        if not self._ending.is_set():
            self._count_skipped()
        return Sighting(
            dict(self._frames), self._marked, self._skipped, self._first, tuple(self._clear)
        )

    @property
    def handshakes(self) -> tuple[float, ...]:
        """Milliseconds from each answered IKE_SA_INIT request to the response to IKE_AUTH."""
        return tuple(self._handshakes)

    def _follow_handshake(self, message: memoryview) -> None:
        """By the clock of the reading thread, which is microseconds late while it is not busy."""
        if len(message) < 28:
            return
        initiator, exchange, is_response = bytes(message[:8]), message[18], message[19] & _RESPONSE
        if exchange == _IKE_SA_INIT and not is_response and len(self._requested) < 64:
            self._requested[initiator] = time.monotonic()
        elif exchange == _IKE_AUTH and is_response and initiator in self._requested:
            start = self._requested.pop(initiator)
            self._handshakes.append((time.monotonic() - start) * 1e3)

    def _count_skipped(self) -> None:
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._skipped += struct.unpack("II", statistics)[1]  # reading it resets it

    def _read(self) -> None:
        buffer = bytearray(1 << 17)  # receive offload hands over up to 64 KiB at once
        view = memoryview(buffer)
        while not self._ending.is_set():
            try:
                size, address = self._socket.recvfrom_into(buffer)
            except TimeoutError:
                continue
            if address[2] == _PACKET_OUTGOING or address[0] == "lo":
                continue
            kind, message = dissect(view[:size])
            self._frames[kind] += 1
            self._follow_handshake(message)
            if kind in ("other", "icmp") and len(self._clear) < 8:
                self._clear.append(f"{address[0]}: {describe(view[:size])}")
            if buffer.find(self._marker, 0, size) >= 0:
                self._marked += 1
                self._first = self._first or f"{kind} frame of {size} octets on {address[0]}"
