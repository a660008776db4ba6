"""What a network device has switched on, asked with the ioctl that ``ethtool -k`` uses.

``include/uapi/linux/ethtool.h``: names of features are a string set, their values are bits of
32-bit words, in the same order. Asking needs no rights.
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
from typing import Final

#: ESP is computed by the device: keys go there with the SA.
ESP: Final = "esp-hw-offload"
#: It also cuts large TCP segments before it encrypts them.
ESP_SEGMENTS: Final = "tx-esp-segmentation"

_SIOCETHTOOL: Final = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES = 0x1B, 0x37, 0x3A
_SET_OF_FEATURES: Final = 4
_NAME: Final = 32
_SET_INFO: Final = struct.Struct("=IIQI")
_STRINGS: Final = struct.Struct("=III")
_BLOCKS: Final = struct.Struct("=II")
_BLOCK: Final = struct.Struct("=4I")  # available, requested, active, never changed
_REQUEST: Final = struct.Struct("@16sP16x")


def features(device: str) -> frozenset[str]:
    """Names of the features that are active; none for a device that has no such thing, or is gone.

    Raises OSError for what is not about the device.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            return _features(sock.fileno(), device.encode())
        except OSError as exc:
            if exc.errno in (errno.ENODEV, errno.EOPNOTSUPP, errno.ENOTTY):
                return frozenset()
            raise


def _features(handle: int, device: bytes) -> frozenset[str]:
    info = _ask(handle, device, _SET_INFO.pack(_GSSET_INFO, 0, 1 << _SET_OF_FEATURES, 0))
    count = _SET_INFO.unpack(info)[3]
    head = _STRINGS.pack(_GSTRINGS, _SET_OF_FEATURES, count)
    names = _ask(handle, device, head + bytes(count * _NAME))[_STRINGS.size :]
    size = -(-count // 32)
    said = _ask(handle, device, _BLOCKS.pack(_GFEATURES, size) + bytes(size * _BLOCK.size))
    active = [_BLOCK.unpack_from(said, _BLOCKS.size + n * _BLOCK.size)[2] for n in range(size)]
    return frozenset(
        names[n * _NAME : (n + 1) * _NAME].split(b"\0")[0].decode("ascii", "replace")
        for n in range(count)
        if active[n // 32] >> n % 32 & 1
    )


def _ask(handle: int, device: bytes, question: bytes) -> bytes:
    buffer = array.array("B", question)
    fcntl.ioctl(handle, _SIOCETHTOOL, _REQUEST.pack(device[:15], buffer.buffer_info()[0]))
    return buffer.tobytes()
