"""What a packet socket shows of ESP, and when: docs/lab.md, "A frame that seemed readable".

The two readers see the same frames. One has them copied while the kernel hands them over (a ring in
shared memory), the other copies them when it reads, long after the far gateway has decrypted them.
"""

from __future__ import annotations

import mmap
import socket
import struct
from collections.abc import Iterator

import pytest

from ipsec_lab.guard import Guard
from ipsec_lab.kernel_rig import set_by_hand
from ipsec_lab.sniffer import MARKER
from ipsec_lab.topology import Topology
from ipsec_lab.traffic import ping_until, tcp_transfer

_ALL = socket.htons(3)
_SOL_PACKET, _RX_RING, _RCVBUFFORCE = 263, 5, 33
#: struct tpacket_req: octets of a block, blocks, octets of a frame, frames.
_RING = (1 << 16, 16, 1 << 12, 256)
_ETHERNET, _IP, _ESP, _ICV = 14, 20, 8, 16


def in_ring(ring: mmap.mmap) -> Iterator[bytes]:
    """The frames of a ring (packet(7), tpacket_hdr: status, length, captured, offset)."""
    for at in range(0, _RING[0] * _RING[1], _RING[2]):
        status, _, captured, offset = struct.unpack_from("=QIIH", ring, at)
        if status & 1:
            yield ring[at + offset : at + offset + captured]


def in_queue(queue: socket.socket) -> Iterator[bytes]:
    """The frames that wait in a socket."""
    try:
        while True:
            yield queue.recv(1 << 12, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return


def esp_by_number(frames: Iterator[bytes], size: int) -> dict[bytes, bytes]:
    """The large ESP packets over IPv4 by SPI and sequence number."""
    start = _ETHERNET + _IP
    return {
        frame[start : start + _ESP]: frame[start:]
        for frame in frames
        if frame[12:14] == b"\x08\x00" and frame[23] == 50 and len(frame) > size
    }


@pytest.mark.parametrize("scattered", [False, True], ids=["sg-off", "sg-on"])
def test_what_was_on_the_wire_is_encrypted(
    kernel_topology: Topology, kernel_guard: Guard, scattered: bool, record_property
) -> None:
    """What the far gateway does to pages that it shares with a reader is not on the wire: header,
    IV and ICV of such a frame are those of the encrypted packet."""
    top = kernel_topology
    before = kernel_guard.counters()
    with (
        top.wan.socket(socket.AF_PACKET, socket.SOCK_RAW, _ALL) as at_once,
        top.wan.socket(socket.AF_PACKET, socket.SOCK_RAW, _ALL) as late,
    ):
        try:
            set_by_hand(top)
            ping_until(top.lan_a, top.b.host(), timeout=60)
            if scattered:
                top.gw_a.run("ethtool", "-K", "wan0", "sg", "on")
            at_once.setsockopt(_SOL_PACKET, _RX_RING, struct.pack("=4I", *_RING))
            ring = mmap.mmap(at_once.fileno(), _RING[0] * _RING[1])
            late.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 24)
            for each in (at_once, late):
                each.bind(("to-a", 3))
            # TCP keeps what it sends in pages; a ping is in one piece.
            assert tcp_transfer(top.lan_a, top.lan_b, top.b.host(), octets=1 << 17).intact
        finally:
            top.gw_a.run("ethtool", "-K", "wan0", "sg", "off")
            for gateway in (top.gw_a, top.gw_b):
                gateway.ip("xfrm state flush", "xfrm policy flush")
        wire = esp_by_number(in_ring(ring), 1300)
        seen = esp_by_number(in_queue(late), 1300)
        ring.close()
    assert (kernel_guard.counters() - before).clear == 0
    assert len(wire) > 50
    assert seen.keys() >= wire.keys()
    assert not any(MARKER in frame for frame in wire.values())
    readable = {number for number in wire if MARKER in seen[number]}
    changed = {number for number, frame in wire.items() if frame != seen[number]}
    record_property(
        "measured",
        f"of {len(wire)} frames {len(changed)} have changed until they are read late,"
        f" {len(readable)} are readable then",
    )
    assert readable <= changed
    for number in changed:
        assert seen[number][: 2 * _ESP] == wire[number][: 2 * _ESP]
        assert seen[number][-_ICV:] == wire[number][-_ICV:]
    if not scattered:
        assert not changed
