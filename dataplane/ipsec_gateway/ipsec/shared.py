"""State that outlives a packet process: sequence numbers, counters, drops; in shared memory.

The gateway makes one anonymous memory file and hands it to both packet processes. Every SA has a
slot of 8 words; each word is written by one process only, whole (an aligned 8-octet store), so that
readers need no lock and a killed process leaves nothing half done. What it must never lose is the
MARK:

- outbound, no number above it has ever been used; numbers are reserved before they are used, so a
  new process that begins above the mark repeats neither a sequence number nor an IV;
- inbound, the highest number accepted; a new process refuses everything up to it.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum
from typing import Final

from ipsec_gateway.ipsec.drops import DROP_SLOTS

#: SAs that fit; the memory behind unused slots is never touched, so never allocated.
SLOTS: Final = 65536
SLOT_WORDS: Final = 8
_HEADER_WORDS: Final = 64
SIZE: Final = (_HEADER_WORDS + SLOTS * SLOT_WORDS) * 8


class Word(IntEnum):
    """Words of a slot. LAST_SEEN is CLOCK_MONOTONIC in nanoseconds, 0 for never."""

    MARK = 0
    BYTES = 1
    PACKETS = 2
    REPLAYED = 3
    INTEGRITY = 4
    LAST_SEEN = 5


class SharedState:
    """The mapping, as the gateway (``create``) or as a packet process (``attach``) sees it."""

    def __init__(self, fd: int) -> None:
        self.fd: Final = fd
        self._map: Final = mmap.mmap(fd, SIZE)
        #: All words. Slot ``n`` begins at ``base(n)``, drops at 0.
        self.words: Final = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls) -> SharedState:
        """A new, zeroed state."""
        fd = os.memfd_create("kube-ipsec-sas", os.MFD_CLOEXEC)
        os.ftruncate(fd, SIZE)
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> SharedState:
        """The state behind an inherited descriptor."""
        return cls(fd)

    def close(self) -> None:
        """Unmap and close; the memory goes with its last user."""
        self.words.release()
        self._map.close()
        os.close(self.fd)

    @staticmethod
    def base(slot: int) -> int:
        """Index of the first word of a slot."""
        return _HEADER_WORDS + slot * SLOT_WORDS

    def clear(self, slot: int) -> None:
        """Zero a slot before an SA gets it."""
        base = self.base(slot)
        for word in range(base, base + SLOT_WORDS):
            self.words[word] = 0

    def drops(self) -> list[int]:
        """How many packets were dropped, by the numbers of ``Drop``."""
        return self.words[:DROP_SLOTS].tolist()
