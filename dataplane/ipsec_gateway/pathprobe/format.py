"""What is in a probe by UDP, which its target sends back as it came (RFC 862 is enough for that).

magic "kips" (4) | version 1 (1) | zeros (3) | sequence number (4) | zeros up to the size
"""

from __future__ import annotations

import struct
from typing import Final

_HEAD: Final = struct.Struct("!4sB3sI")
_MAGIC: Final = b"kips"
_VERSION: Final = 1
_ZEROS: Final = bytes(3)

#: Octets before a probe's own: IP header and UDP header.
OVERHEAD: Final = {4: 28, 6: 48}


def datagram(version: int, token: int, size: int) -> bytes:
    """A probe that is ``size`` octets with its headers, or the shortest one."""
    head = _HEAD.pack(_MAGIC, _VERSION, _ZEROS, token)
    return head + bytes(max(0, size - OVERHEAD[version] - len(head)))


def parse(data: bytes) -> int | None:
    """The sequence number; None for what is no probe of ours to the last octet."""
    if len(data) < _HEAD.size:
        return None
    magic, version, zeros, token = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or zeros != _ZEROS or data[_HEAD.size :].strip(b"\0"):
        return None
    return int(token)
