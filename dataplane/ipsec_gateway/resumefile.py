"""Where the engine's records are kept for the next life of the gateway: two files on tmpfs.

    DIR/journal   one line per record, appended; the last line of a key counts
    DIR/mark      lock, generation, and how much of which journal is valid
    DIR/documents what the tunnels are made from, written whole (``keepsake``)

All are for root alone. A journal that has grown to several times what it holds is written anew and
renamed into place. Appending is one write(2) for all records of a turn of the loop, before any
datagram of that turn goes out.

A state is never used twice, and never one that is older than what went out:

- Two processes at a time: the mark is locked (flock) for as long as a gateway lives.
- Each life gets a generation that no other had, before it reads anything. It is part of the IVs
  that this life makes (``ipsec_ike.v2.resume``). Going on from the same records after a life that
  ended before it wrote any is therefore safe: that life had sent nothing.
- An older copy of the journal, or a shortened one: the mark, mapped into memory, says with every
  write how long the journal is that is valid, and which one. A journal may only be longer, by what
  was written when the process ended: nothing was sent in consequence of that, so it counts if it is
  whole and is cut off if it is not.
- A copy of the whole directory: the mark has its own inode number and the boot ID in it. Neither is
  the same in another directory, on another machine, or after a restart of the machine. Whoever
  overwrites both files in place with an older pair, as root, is not noticed; then only message IDs
  are wrong, and the peer answers nothing until the IKE SA is given up as dead. IVs and the keys of
  children do not repeat even then (``ipsec_ike.v2.resume``).
- A state that breaks the gateway: after some lives in a row that ended early it is not used any
  more.

tmpfs, because the keys in it must not reach a disk; a machine that swaps should encrypt its swap.
The clock of the records is CLOCK_MONOTONIC, which all processes of one boot share; a life in a time
namespace of its own, whose clock is behind, does not go on from them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import secrets
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from ipsec_gateway import privatefiles
from ipsec_gateway.privatefiles import open_private
from ipsec_ike.engine import Record

#: Lives in a row that may end early before the state is taken to be the reason.
MOST_ATTEMPTS: Final = 5

#: The journal is written anew when it has more octets than this and than several times what counts.
_SLACK: Final = 1 << 20
_TIMES: Final = 3

_FORMAT: Final = "kube-ipsec journal 1"
_MAGIC: Final = b"kipsec\x00\x01"
#: Magic, boot ID, inode, PID, generation, attempts, time of the last write, then twice: which
#: journal, octets of it. There are two while one journal replaces the other.
_MARK: Final = struct.Struct("=8s36s4xQQQQdQQQQ")
_JOURNALS: Final = struct.Struct("=QQQQ")
_JOURNALS_AT: Final = _MARK.size - _JOURNALS.size
_LENGTH: Final = struct.Struct("=Q")
_TIME: Final = struct.Struct("=d")
_TIME_AT: Final = _JOURNALS_AT - _TIME.size

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class InUse(Exception):
    """Another gateway keeps its records here. The message names it."""


class ResumeFile:
    """An open directory of records. ``records`` are those of the life before, ``refused`` says why
    there are none although something is there."""

    def __init__(self, directory: Path, now: float) -> None:
        """Lock and read. ``now`` is CLOCK_MONOTONIC in seconds.

        Raises NotPrivate where no secrets may be written, InUse, and OSError.
        """
        self.directory: Final = directory
        privatefiles.prepare(directory)
        self._lock: Final = open_private(directory / "mark", os.O_RDWR | os.O_CREAT)
        self._journal = -1
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _mark(self._lock)[3] if os.fstat(self._lock).st_size >= _MARK.size else 0
            os.close(self._lock)
            raise InUse(f"another gateway (pid {pid}) keeps its state in {directory}") from None
        self.records: dict[str, dict[str, Any]] = {}
        self.refused = ""
        self.generation = 1
        #: Seconds since the life before wrote something.
        self.age = 0.0
        #: Where the line of each key is: offset and length.
        self._index: dict[str, tuple[int, int]] = {}
        self._length = 0
        self._live = 0
        self._id = 0
        attempts = self._read(now)
        os.ftruncate(self._lock, _MARK.size)
        self._map: Final = mmap.mmap(self._lock, _MARK.size)
        mark = (
            *(_MAGIC, _boot_id(), os.fstat(self._lock).st_ino, os.getpid()),
            *(self.generation, attempts + 1, now, self._id, self._length, 0, 0),
        )
        _MARK.pack_into(self._map, 0, *mark)
        self._renew()

    # -- the life before ---------------------------------------------------------------------------

    def _read(self, now: float) -> int:
        """Take what the life before left, if it can be used; how many have ended early."""
        attempts = 0
        valid: dict[int, int] = {}
        if os.fstat(self._lock).st_size >= _MARK.size:
            magic, boot, inode, _, generation, attempts, then, *journals = _mark(self._lock)
            if magic == _MAGIC and boot == _boot_id() and inode == os.fstat(self._lock).st_ino:
                self.generation = generation + 1
                self.age = now - then
                valid = {journals[0]: journals[1], journals[2]: journals[3]}
            else:
                attempts = 0
        try:
            self._journal = open_private(self.directory / "journal", os.O_RDWR)
        except FileNotFoundError:
            return attempts
        data = b""
        while chunk := os.pread(self._journal, 1 << 24, len(data)):
            data += chunk
        try:
            if not valid:
                raise ValueError("it is not of this directory and boot")
            if self.age < 0:
                raise ValueError("its clock is ahead of ours")
            if attempts >= MOST_ATTEMPTS:
                raise ValueError(f"{attempts} lives in a row ended soon after they used it")
            self._take(data, valid)
        except ValueError as exc:
            self.refused = str(exc)
            self.records.clear()
            self._index.clear()
            return 0
        return attempts if self.records else 0

    def _take(self, data: bytes, valid: dict[int, int]) -> None:
        """Read the lines. Raises ValueError if they are not the last state."""
        found = list(_lines(data))
        if not found or not isinstance(found[0][2], list) or found[0][2][0] != _FORMAT:
            raise ValueError("it is of another version, or damaged")
        self._id = int(found[0][2][1])
        end = found[-1][0] + found[-1][1]
        if self._id not in valid:
            raise ValueError("it is an older copy")
        if end < valid[self._id]:
            raise ValueError("it is damaged, or an older copy")
        self._length = end
        for offset, length, (key, plain) in found[1:]:
            if plain is None:
                self.records.pop(key, None)
                self._index.pop(key, None)
            else:
                self.records[key] = plain
                self._index[key] = offset, length

    # -- this life ---------------------------------------------------------------------------------

    def write(self, records: Iterable[Record], now: float) -> None:
        """Keep records; the actions that follow from them may be performed when this returns.

        Raises OSError if it cannot: then call ``remove``, since what is there is too old now.
        """
        parts: list[bytes] = []
        offset = self._length
        for record in records:
            line = _line([record.key, record.data])
            old = self._index.pop(record.key, None)
            if old is not None:
                self._live -= old[1]
            if record.data is not None:
                self._index[record.key] = offset, len(line)
                self._live += len(line)
            parts.append(line)
            offset += len(line)
        if not parts:
            return
        _write(self._journal, b"".join(parts))
        self._length = offset
        _LENGTH.pack_into(self._map, _JOURNALS_AT + 8, offset)
        _TIME.pack_into(self._map, _TIME_AT, now)
        if offset > _SLACK and offset > _TIMES * self._live:
            self._renew()

    def _renew(self) -> None:
        """Write the journal anew, with what counts alone, and put it in place of the old one."""
        path = self.directory / "journal.new"
        path.unlink(missing_ok=True)
        fresh = open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        number = secrets.randbits(62) + 1
        try:
            parts = [_line([_FORMAT, number])]
            offset = len(parts[0])
            index: dict[str, tuple[int, int]] = {}
            for key, (at, length) in sorted(self._index.items(), key=lambda item: item[1]):
                parts.append(os.pread(self._journal, length, at))
                index[key] = offset, length
                offset += length
            _write(fresh, b"".join(parts))
            _JOURNALS.pack_into(self._map, _JOURNALS_AT, self._id, self._length, number, offset)
            path.rename(self.directory / "journal")
        except BaseException:
            os.close(fresh)
            raise
        if self._journal >= 0:
            os.close(self._journal)
        self._journal, self._index, self._id, self._length = fresh, index, number, offset
        self._live = offset
        _JOURNALS.pack_into(self._map, _JOURNALS_AT, number, offset, 0, 0)

    def read_documents(self) -> bytes:
        """What ``write_documents`` of the life before has kept; nothing if it has not. Raises
        OSError where it cannot be read now."""
        return privatefiles.read(self.directory / "documents")

    def write_documents(self, data: bytes) -> None:
        """Keep this in place of what was there. Raises OSError."""
        privatefiles.write(self.directory / "documents", data)

    def settled(self) -> None:
        """This life goes well: what it began with did not break it."""
        values = list(_MARK.unpack_from(self._map))
        values[5] = 0
        _MARK.pack_into(self._map, 0, *values)

    def close(self) -> None:
        """Unlock; the records stay."""
        self._map.close()
        os.close(self._journal)
        os.close(self._lock)

    def remove(self) -> None:
        """Take everything away, and close."""
        for name in ("journal", "journal.new", "documents", "documents.new", "mark"):
            (self.directory / name).unlink(missing_ok=True)
        # It may be a mount point, or hold somebody else's files.
        with contextlib.suppress(OSError):
            self.directory.rmdir()
        self.close()


def _mark(fd: int) -> tuple[Any, ...]:
    return _MARK.unpack(os.pread(fd, _MARK.size, 0))


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()


def _line(plain: Any) -> bytes:
    text = _encode(plain).encode()
    return b"%08x %b\n" % (crc32(text), text)


def _lines(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Offset, length and content of each line, up to the first one that is not whole."""
    at = 0
    while (end := data.find(b"\n", at)) >= 0:
        line = data[at:end]
        try:
            if line[:9] != b"%08x " % crc32(line[9:]):
                return
            plain = json.loads(line[9:])
        except ValueError:
            return
        yield at, end + 1 - at, plain
        at = end + 1


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
