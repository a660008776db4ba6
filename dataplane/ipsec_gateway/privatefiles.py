"""Files for us alone: what one life of a process leaves to the next, keys among it.

A file is written whole, beside the old one, and put in its place, so that a reader, or a life that
ends meanwhile, sees one or the other. A file that somebody else owns or may read is none of ours:
it is told, not used, and replaced. What only cannot be read now is an error, so that nobody goes on
without it and replaces it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

log = logging.getLogger("ipsec_gateway")

#: File systems that are never on a disk.
MEMORY: Final = frozenset({"tmpfs", "ramfs"})


class NotPrivate(OSError):
    """No secrets may be kept here. The message has the reason and the remedy."""


def prepare(directory: Path) -> None:
    """Have a directory for keys. Raises NotPrivate, and OSError where it cannot be made."""
    kind = file_system(directory if directory.exists() else directory.parent)
    if kind not in MEMORY:
        raise NotPrivate(
            f"{directory} is on {kind}: keys are kept on tmpfs only; mount one there, or name"
            " another directory"
        )
    directory.mkdir(mode=0o700, exist_ok=True)
    info = directory.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise NotPrivate(
            f"{directory} is not a directory of our own: remove it, or name another one"
        )
    directory.chmod(0o700)


def file_system(path: Path) -> str:
    """The type of the file system that ``path`` is on (proc(5): /proc/self/mountinfo)."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == number:
            return fields[fields.index("-", 6) + 1]
    return "an unknown file system"


def open_private(path: Path, flags: int) -> int:
    """As ``os.open``, with no link followed. Raises NotPrivate, and OSError."""
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise NotPrivate(f"{path} is a link: remove it") from exc
        raise
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        os.close(fd)
        raise NotPrivate(f"{path} is not a file for us alone: remove it")
    return fd


def read(path: Path) -> bytes:
    """What ``write`` has left; nothing where there is no such file, or none for us alone, which is
    logged. Raises OSError where it cannot be read now."""
    try:
        fd = open_private(path, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    except (NotPrivate, PermissionError) as exc:
        log.warning("what an earlier process left is not used: %s", exc)
        return b""
    with os.fdopen(fd, "rb") as file:
        return file.read()


def write(path: Path, data: bytes) -> None:
    """Keep this in place of what was there; ``NAME.new`` meanwhile. Raises OSError."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fd = open_private(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    fresh.replace(path)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where ``read`` finds none, or something else. Raises
    OSError as ``read``."""
    try:
        document = json.loads(read(path))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def write_object(path: Path, document: Mapping[str, Any]) -> None:
    """The reverse. Makes the folder, too. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(path, json.dumps(document).encode())
