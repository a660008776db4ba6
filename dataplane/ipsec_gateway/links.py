"""Interfaces of routed policies in the kernel: made first, removed last (``interfaces``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ipsec_api.tunnel import TunnelConfig
from ipsec_gateway.interfaces import (
    ROUTE_PROTOCOL,
    Interface,
    Link,
    Way,
    parse_links,
    parse_ways,
    plan_links,
    plan_ways,
    ways,
)
from ipsec_gateway.marks import DEFAULT, Numbers
from ipsec_gateway.tools import ToolError, run, run_json


class Links:
    """Ours in the network namespace of the caller. All methods raise ToolError.

    ``used`` False: the data plane has no such thing, and nothing is done.
    """

    def __init__(self, numbers: Numbers = DEFAULT, *, used: bool = True) -> None:
        self._numbers: Final = numbers
        self._wanted: tuple[Interface, ...] = ()
        #: What the kernel was last set up for.
        self._done: tuple[tuple[Interface, ...], Mapping[int, int]] | None = None
        #: Whether there is nothing of ours, which most gateways never have.
        self._empty = not used
        self._used: Final = used

    async def foreign(self, tunnels: Iterable[TunnelConfig]) -> frozenset[str]:
        """Names of interfaces that are not ours, if some policy of ``tunnels`` wants one."""
        if self._used and any(p.interface for t in tunnels for p in t.policies):
            return (await _look())[1]
        return frozenset()

    async def apply(
        self, wanted: tuple[Interface, ...], measured: Mapping[int, int], *, again: bool
    ) -> None:
        """Make what is wanted; what is not stays until ``prune``.

        ``measured`` has the octets of the largest packet of SAs by reqid. ``again``: look, even if
        it is the same as the last time.
        """
        if self._empty and not wanted:
            return
        self._empty = False
        sizes = {each.if_id: each.octets(measured) for each in wanted}
        if self._done == (wanted, sizes) and not again:
            return
        there, _ = await _look()
        if wanted or there:
            await _batch(plan_links(wanted, there, measured).first)
        changes = plan_ways(ways(wanted, self._numbers), await _ways(), self._numbers)
        for version, (add, _) in changes.items():
            await _batch(add, version)
        self._wanted, self._done = wanted, (wanted, sizes)

    async def prune(self) -> None:
        """Remove what the last ``apply`` did not want."""
        if self._empty:
            return
        changes = plan_ways(ways(self._wanted, self._numbers), await _ways(), self._numbers)
        for version, (_, delete) in changes.items():
            await _batch(delete, version)
        there, _ = await _look()
        await _batch(plan_links(self._wanted, there, {}).later)
        self._empty = not self._wanted

    async def remove(self) -> None:
        """Everything of ours, that of a killed predecessor included."""
        self._wanted, self._done, self._empty = (), None, not self._used
        await self.prune()


async def _look() -> tuple[list[Link], frozenset[str]]:
    return parse_links(await run_json("ip", "-d", "-j", "address", "show"))


async def _ways() -> set[Way]:
    found: set[Way] = set()
    proto = str(ROUTE_PROTOCOL)
    for version in (4, 6):
        family = f"-{version}"
        rules = await run_json("ip", family, "-N", "-j", "rule", "show")
        try:
            routes = await run_json(
                "ip", family, "-N", "-j", "route", "show", "table", "all", "proto", proto
            )
        except ToolError as exc:
            if "does not exist" not in str(exc):
                raise
            routes = []
        found |= parse_ways(version, routes, rules)
    return found


async def _batch(lines: tuple[str, ...], version: int | None = None) -> None:
    if lines:
        family = () if version is None else (f"-{version}",)
        await run("ip", *family, "-batch", "-", script="\n".join(lines) + "\n")
