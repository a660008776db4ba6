"""The anti-replay window and the high half of extended sequence numbers (RFC 4303 3.4.3, A2).

The window is an integer used as a bit map: bit 0 stands for ``top``, the highest number seen, bit n
for ``top - n``. RFC 6479 cuts the map into words so that it need not be shifted as a whole; a shift
of a Python integer of 1024 bits costs less than one operation on a list of words, so here it stays
whole. What RFC 6479 asks for otherwise, a window much larger than 64, holds.

Life of a packet: ``infer`` its 64-bit number, ``check`` it, verify the ICV, and only then
``accept``: a forged packet must not move the window.
"""

from __future__ import annotations

from typing import Final

#: Sizes that are accepted; 0 turns the check off.
MINIMUM: Final = 32
MAXIMUM: Final = 4096
_HALF: Final = 1 << 32
_LOW: Final = _HALF - 1


class ReplayWindow:
    """One inbound SA's window.

    ``size`` is rounded to 32..4096, or 0: no check (RFC 4303 3.4.3 allows that for manual keys
    only; with ESN the high half is still inferred). ``restored`` is the highest number that an
    earlier process accepted: everything up to it is refused, seen or not.
    """

    __slots__ = ("_bits", "_mask", "_span", "esn", "size", "top")

    def __init__(self, size: int, *, esn: bool, restored: int = 0) -> None:
        self.size: Final = 0 if size <= 0 else min(MAXIMUM, max(MINIMUM, size))
        self.esn: Final = esn
        self.top = restored
        self._span: Final = self.size or MINIMUM
        self._mask: Final = (1 << self._span) - 1
        self._bits = self._mask if restored else 0

    def infer(self, low: int) -> int:
        """The whole sequence number of a packet that carries ``low``; below 1 if there is none.

        RFC 4303 A2.2: the number closest to the window that its lower edge allows.
        """
        if not self.esn:
            return low
        top_low = self.top & _LOW
        base = self.top - top_low
        bottom = top_low - self._span + 1
        if bottom >= 0:  # the window lies in one subspace
            return base + low if low >= bottom else base + _HALF + low
        # The window spans two subspaces: numbers above its lower edge belong to the one before.
        return base - _HALF + low if low >= bottom + _HALF else base + low

    def check(self, seq: int) -> bool:
        """Whether ``seq`` may be new. 0 is never sent (RFC 4303 3.3.3)."""
        if seq < 1:
            return False
        behind = self.top - seq
        if behind < 0 or not self.size:
            return True
        return behind < self.size and not self._bits >> behind & 1

    def accept(self, seq: int) -> bool:
        """Mark ``seq`` as seen, after its ICV has been verified. False if it was a replay."""
        ahead = seq - self.top
        if ahead > 0:
            self._bits = (self._bits << ahead | 1) & self._mask if ahead < self._span else 1
            self.top = seq
            return True
        if not self.size:
            return True
        if -ahead >= self.size or self._bits >> -ahead & 1:
            return False
        self._bits |= 1 << -ahead
        return True

    def accept_run(self, first: int, count: int) -> None:
        """``accept`` for ``first`` .. ``first + count - 1``, which all lie above ``top``."""
        last = first + count - 1
        ahead = last - self.top
        fresh = (1 << count) - 1
        kept = self._bits << ahead if ahead < self._span else 0
        self._bits = (kept | fresh) & self._mask
        self.top = last
