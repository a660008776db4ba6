"""What others do on this node that the gateway has to follow at once: told by the kernel, or looked
for where it tells nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ipsec_gateway.monitor import CHAINS, Monitor
from ipsec_gateway.translators import legacy_tables


class NodeWatch:
    """Calls ``moved`` when addresses or the default route changed, ``translated`` when somebody may
    translate sources who did not before; None: nobody wants to know. ``poll`` is called every few
    seconds."""

    def __init__(
        self,
        moved: Callable[[], None],
        translated: Callable[[], None] | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._translated: Final = translated
        self._monitors: Final = [Monitor(moved, loop)]
        if translated is not None:
            self._monitors.append(Monitor(translated, loop, CHAINS))
        self._legacy = legacy_tables()

    def open(self) -> None:
        """Begin."""
        for monitor in self._monitors:
            monitor.open()

    def close(self) -> None:
        """The end."""
        for monitor in self._monitors:
            monitor.close()

    def poll(self) -> None:
        """Of the tables of legacy iptables the kernel tells nobody."""
        if self._translated is None:
            return
        legacy = legacy_tables()
        if legacy != self._legacy:
            self._legacy = legacy
            self._translated()
