"""The TUN device that carries inner packets, with segmentation and checksums left to us (virtio).

A read gives a virtio header and one packet: an ordinary one, or up to 64 KiB of one TCP stream that
the kernel did not segment (TSO). A write takes the same. What goes out by default is the kernel's
choice of route; who routes into the device is the gateway's business.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from typing import Final

from ipsec_gateway.ipsec import linux
from ipsec_gateway.ipsec.base import DataplaneError

_CLONE: Final = "/dev/net/tun"
#: struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
VNET: Final = struct.Struct("=BBHHHH")
VNET_LENGTH: Final = VNET.size
#: A packet that is ready to go.
VNET_NONE: Final = bytes(VNET_LENGTH)

#: Packets the kernel keeps for us while we are busy.
QUEUE: Final = 1000

_IFREQ: Final = struct.Struct("16sH22x")
_IFREQ_INT: Final = struct.Struct("16si20x")
_OFFLOADS: Final = linux.TUN_F_CSUM | linux.TUN_F_TSO4 | linux.TUN_F_TSO6 | linux.TUN_F_TSO_ECN


def open_tun(name: str) -> int:
    """Create the device ``name`` and return its descriptor, non-blocking.

    Raises DataplaneError that says what is missing: the device node, CAP_NET_ADMIN, a free name.
    """
    try:
        fd = os.open(_CLONE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        hint = "is the tun module loaded and the device node mounted into the container?"
        raise DataplaneError(f"{_CLONE} cannot be opened: {exc.strerror}; {hint}") from exc
    try:
        flags = linux.IFF_TUN | linux.IFF_NO_PI | linux.IFF_VNET_HDR
        fcntl.ioctl(fd, linux.TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        fcntl.ioctl(fd, linux.TUNSETVNETHDRSZ, struct.pack("=i", VNET_LENGTH))
        fcntl.ioctl(fd, linux.TUNSETOFFLOAD, _OFFLOADS)
    except OSError as exc:
        os.close(fd)
        hint = " (CAP_NET_ADMIN is missing)" if isinstance(exc, PermissionError) else ""
        raise DataplaneError(f"TUN device {name}: {exc.strerror}{hint}") from exc
    return fd


def bring_up(name: str, mtu: int) -> None:
    """Set MTU and queue length and bring the device up. Raises DataplaneError.

    IPv6 gets no link-local address: nothing but what is routed here shall come out.
    """
    try:
        set_mtu(name, mtu)
        # Root of a user namespace may not; the kernel's default of 500 then has to do.
        with contextlib.suppress(PermissionError):
            _interface_ioctl(linux.SIOCSIFTXQLEN, name, QUEUE)
        _no_link_local(name)
        flags = _interface_ioctl(linux.SIOCGIFFLAGS, name, 0) & 0xFFFF
        _interface_ioctl(linux.SIOCSIFFLAGS, name, flags | linux.IFF_UP)
    except OSError as exc:
        raise DataplaneError(f"TUN device {name} cannot be set up: {exc.strerror}") from exc


def _no_link_local(name: str) -> None:
    path = f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write("1")
    except OSError:
        # No IPv6 in this kernel, or /proc/sys is read-only in the container: then the device has
        # a link-local address and sends a few router solicitations, which no policy matches.
        return


def set_mtu(name: str, mtu: int) -> None:
    """Change the MTU of the running device. Raises OSError."""
    _interface_ioctl(linux.SIOCSIFMTU, name, mtu)


def get_mtu(name: str) -> int:
    """The MTU of a device. Raises OSError."""
    return _interface_ioctl(linux.SIOCGIFMTU, name, 0)


def _interface_ioctl(request: int, name: str, value: int) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, request, _IFREQ_INT.pack(name.encode(), value))
    return int(_IFREQ_INT.unpack(answer)[1])
