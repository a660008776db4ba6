"""The garbage collector of a process that holds thousands of long-lived SAs."""

from __future__ import annotations

import gc


def settle() -> None:
    """What there is now stays: a collection need not look at it again. SAs are long-lived too, so
    look for garbage more rarely than Python does by itself: cycles are few and small here."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
