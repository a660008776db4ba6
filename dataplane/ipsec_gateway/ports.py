"""Who has a UDP port that we need: a name for the error instead of "address in use"."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class PortConflict(Exception):
    """Another process has an IKE port. The message names it and the remedy."""


def conflict(port: int, reason: str) -> PortConflict:
    """The error for a port that cannot be bound."""
    owners = ", ".join(sorted(set(owners_of(port))))
    if owners:
        return PortConflict(
            f"UDP port {port} is in use by {owners}: stop that process, or run the gateway on "
            "another node; two IKE daemons cannot share a node's addresses"
        )
    return PortConflict(
        f"UDP port {port} cannot be bound ({reason}): free it, or run the gateway on another node"
    )


def owners_of(port: int) -> Iterator[str]:
    """``name (pid N)`` of the processes with a UDP socket on ``port``, as far as we may see."""
    inodes = set(_inodes(port))
    if not inodes:
        return
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # The process may have ended, or belong to somebody whose files we may not list.
        with contextlib.suppress(OSError):
            for fd in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(fd) in inodes:
                        yield f"{(entry / 'comm').read_text().strip()} (pid {entry.name})"
                        break


def _inodes(port: int) -> Iterator[str]:
    """``socket:[inode]`` of each UDP socket on ``port`` (proc(5): /proc/net/udp)."""
    for table in ("/proc/net/udp", "/proc/net/udp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for line in lines:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{fields[9]}]"
