"""The looks at others' chains, beside all else that the gateway does: nothing waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from ipsec_gateway.classify import Address
from ipsec_gateway.forward.findings import Blocked
from ipsec_gateway.forward.keeper import Forwarding
from ipsec_gateway.intent import Intent


class ForwardWatch:
    """``found`` is told what may drop the packets of which peer, ``ended`` of each look that has
    ended, well or not."""

    def __init__(
        self,
        keeper: Forwarding,
        found: Callable[[Mapping[str, Blocked]], None],
        ended: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._keeper: Final = keeper
        self._found: Final = found
        self._ended: Final = ended
        self._task: asyncio.Task[None] | None = None

    def look(self, intent: Intent, addresses: tuple[Address, ...]) -> None:
        """Begin a look, if none is under way: what changes meanwhile is for the next one."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(intent, addresses))
            self._task.add_done_callback(self._ended)

    async def settled(self) -> None:
        """No look is under way. One may be changing others' chains: half of that would be hard to
        take away."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def close(self) -> None:
        """Take our rules out of others' chains."""
        await self.settled()
        await self._keeper.close()

    async def _look(self, intent: Intent, addresses: tuple[Address, ...]) -> None:
        self._found(await self._keeper.look(intent, addresses))
