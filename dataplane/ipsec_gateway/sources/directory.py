"""A folder of manifests, followed while it changes.

A set of files is taken only when two looks in a row, a moment apart, saw the same: a file that is
being written, or a ConfigMap volume in the middle of its ``..data`` swap, is not read in halves.
A look costs one ``stat`` per file; only files that changed are read and parsed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipsec_api.documents import DocumentError, Documents, parse

#: Seconds between looks, and between the two looks at a change.
INTERVAL: Final = 0.5
SETTLE: Final = 0.1

#: What tells whether a file is still the same: inode (of the link's target), size, mtime.
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Files:
    """What the folder holds: the documents of each file, by its name."""

    files: Mapping[str, Documents]


class NoSource:
    """Nothing is wanted."""

    def refresh(self) -> None:
        """There is nothing to look at."""

    async def snapshots(self) -> AsyncIterator[Files]:
        """Once, and no document in it."""
        yield Files({})
        await asyncio.Event().wait()


class DirectorySource:
    """Follows the ``*.yaml`` and ``*.yml`` files of one folder; subfolders are not read."""

    def __init__(self, folder: Path, *, interval: float = INTERVAL, settle: float = SETTLE) -> None:
        self._folder: Final = folder
        self._interval: Final = interval
        self._settle: Final = settle
        self._again = asyncio.Event()
        self._parsed: dict[str, tuple[_Stamp, Documents]] = {}

    def refresh(self) -> None:
        """Look at once, and read every file again (SIGHUP)."""
        self._parsed.clear()
        self._again.set()

    async def snapshots(self) -> AsyncIterator[Files]:
        """The contents now, and again whenever they have changed; never ends by itself."""
        taken: dict[str, _Stamp] | None = None
        while True:
            forced = self._again.is_set()
            self._again.clear()
            seen = await asyncio.to_thread(_look, self._folder)
            while seen != taken or forced:
                await asyncio.sleep(self._settle)
                before, seen = seen, await asyncio.to_thread(_look, self._folder)
                if seen != before:
                    continue
                files = await asyncio.to_thread(self._read, seen)
                # A change while it was read starts over; what was read stays in memory.
                if await asyncio.to_thread(_look, self._folder) == seen:
                    taken, forced = seen, False
                    yield files
            try:
                await asyncio.wait_for(self._again.wait(), self._interval)
            except TimeoutError:
                continue

    def read_once(self) -> Files:
        """The contents now, without following."""
        return self._read(_look(self._folder))

    def _read(self, seen: Mapping[str, _Stamp]) -> Files:
        """Parse what changed. Faults of the folder and of files are errors of documents."""
        fresh: dict[str, tuple[_Stamp, Documents]] = {}
        for name, stamp in sorted(seen.items()):
            known = self._parsed.get(name)
            if known is not None and known[0] == stamp:
                fresh[name] = known
            else:
                fresh[name] = (stamp, _parse(self._folder / name, name))
        self._parsed = fresh
        files = {name: documents for name, (_, documents) in fresh.items()}
        if not seen and (fault := _fault(self._folder)):
            message = f"folder {self._folder} {fault}"
            files[""] = Documents(errors=(DocumentError("", 0, "", "", "", "", message),))
        return Files(files)


def _look(folder: Path) -> dict[str, _Stamp]:
    found: dict[str, _Stamp] = {}
    try:
        entries = [e for e in folder.iterdir() if e.suffix in (".yaml", ".yml")]
    except OSError:
        return found
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            stat = entry.stat()
        except OSError:
            # It went away between the two calls, or is a link to nothing: reading says so.
            found[entry.name] = (0, 0, 0)
            continue
        found[entry.name] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


def _fault(folder: Path) -> str | None:
    """Why the folder cannot be read, or None."""
    try:
        next(folder.iterdir(), None)
    except OSError as exc:
        return f"cannot be read ({exc.strerror}): make it a folder that this process may read"
    return None


def _parse(path: Path, name: str) -> Documents:
    try:
        text = path.read_bytes().decode()
    except OSError as exc:
        fault = f"cannot be read ({exc.strerror}): make it readable, or remove it"
    except UnicodeDecodeError:
        fault = "is not UTF-8 text: save it as UTF-8"
    else:
        return parse(text, file=name)
    return Documents(errors=(DocumentError(name, 0, "", "", "", "", fault),))
