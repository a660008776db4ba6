"""Loose reverse path checks on single interfaces (RFC 3704 section 2.4), put back afterwards.

What a peer sends reaches a pod the CNI's way, while the route to the peer leads to the gateway by
another interface: a strict check would drop it. Only interfaces where the check is strict are
changed. It is done by rtnetlink, which needs CAP_NET_ADMIN alone: a container that is not
privileged has /proc/sys read-only. IPv6 has no such check.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_CONF: Final = Path("/proc/sys/net/ipv4/conf")
_STRICT, _LOOSE = 1, 2

_HEADER: Final = struct.Struct("=IHHII")
#: struct ifinfomsg: family, pad, type, index, flags, change.
_IFINFO: Final = struct.Struct("=BxHiII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_SETLINK, _ERROR = 19, 2
_REQUEST, _ACK = 1, 4
_AF_SPEC, _INET_CONF = 26, 1
#: IPV4_DEVCONF_RP_FILTER of linux/ip.h.
_RP_FILTER: Final = 8


def request(index: int, value: int) -> bytes:
    """The message that sets ``rp_filter`` of the interface with this index."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    conf = _attribute(_RP_FILTER, struct.pack("=I", value))
    body += _attribute(_AF_SPEC, _attribute(socket.AF_INET, _attribute(_INET_CONF, conf)))
    return _HEADER.pack(_HEADER.size + len(body), _SETLINK, _REQUEST | _ACK, 1, 0) + body


def set_rp_filter(device: str, value: int) -> None:
    """Set it. Raises OSError; an interface that is gone is none."""
    try:
        index = socket.if_nametoindex(device)
    except OSError:
        return
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, 0))
        sock.send(request(index, value))
        answer = sock.recv(4096)
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    code = -struct.unpack_from("=i", answer, _HEADER.size)[0] if kind == _ERROR else 0
    if code and code != errno.ENODEV:
        raise OSError(code, os.strerror(code))


class Loose:
    """Which interfaces we changed, with what they had before. All methods but ``keep`` are pure of
    the clock; they read /proc/sys and write by rtnetlink."""

    def __init__(self, before: dict[str, int] | None = None, *, conf: Path = _CONF) -> None:
        self._before: Final[dict[str, int]] = dict(before or {})
        self._conf: Final = conf

    @property
    def before(self) -> dict[str, int]:
        """Values by interface, for the next agent."""
        return dict(self._before)

    def keep(self, devices: Iterable[str]) -> list[str]:
        """Have exactly these interfaces not strict because of us. Returns what was refused."""
        problems: list[str] = []
        wanted = set(devices)
        everywhere = self._read("all")
        for device in sorted(wanted):
            own = self._read(device)
            # The kernel takes the larger of the two.
            if own is None or max(own, everywhere or 0) != _STRICT:
                continue
            try:
                set_rp_filter(device, _LOOSE)
            except OSError as exc:
                problems.append(
                    f"reverse path checks on {device} are strict and cannot be loosened"
                    f" ({exc.strerror}): on the node, run sysctl -w"
                    f" net.ipv4.conf.{device}.rp_filter=2"
                )
            else:
                self._before.setdefault(device, own)
        for device in sorted(self._before.keys() - wanted):
            # Somebody else's later value stays.
            if self._read(device) == _LOOSE:
                try:
                    set_rp_filter(device, self._before[device])
                except OSError as exc:
                    problems.append(
                        f"net.ipv4.conf.{device}.rp_filter stays 2 and was"
                        f" {self._before[device]}: {exc.strerror}"
                    )
            del self._before[device]
        return problems

    def _read(self, device: str) -> int | None:
        try:
            return int((self._conf / device / "rp_filter").read_text())
        except (OSError, ValueError):
            # The interface has just gone.
            return None


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)
