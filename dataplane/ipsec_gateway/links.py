"""Interfaces of routed policies in the kernel: made first, removed last (``interfaces``)."""

from __future__ import annotations

import logging
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

log = logging.getLogger("ipsec_gateway")


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
        #: What could not be set up of whose interface, by ``namespace/name`` of the policy.
        self.broken: Mapping[str, str] = {}

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
        it is the same as the last time. What the kernel refuses of one interface stops no other:
        ``broken`` has it then, and it is tried again the next time.
        """
        if self._empty and not wanted:
            return
        self._empty = False
        sizes = {each.if_id: each.octets(measured) for each in wanted}
        if self._done == (wanted, sizes) and not again and not self.broken:
            return
        there, _ = await _look()
        refusals = [await _try(plan_links(wanted, there, measured).first)]
        changes = plan_ways(ways(wanted, self._numbers), await _ways(), self._numbers)
        for version, (add, _) in changes.items():
            refusals.append(await _try(add, version))
        self._wanted, self._done = wanted, (wanted, sizes)
        why = "; ".join(text for text in refusals if text)
        broken = await self._missing(wanted, measured) if why else ()
        self.broken = {owner: f"{what} cannot be set up: {why}" for owner, what in broken}
        for owner, text in self.broken.items():
            log.error("interface of %s: %s", owner, text)

    async def _missing(
        self, wanted: tuple[Interface, ...], measured: Mapping[int, int]
    ) -> list[tuple[str, str]]:
        """(owner, what) of all that is not as it should be."""
        there, _ = await _look()
        ways_there = await _ways()
        found = []
        for each in wanted:
            own = [link for link in there if link.if_id == each.if_id]
            lines = plan_links((each,), own, measured).first
            routes = ways((each,), self._numbers) - ways_there
            what = [*lines, *(way.destination for way in sorted(routes) if way.device)]
            if what:
                found.append((each.owner, f"{each.name} ({what[0]})"))
        return found

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
        self.broken = {}
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


async def _try(lines: tuple[str, ...], version: int | None = None) -> str:
    """Carry out what can be; gives what was said about the rest."""
    try:
        await _batch(lines, version)
    except ToolError as exc:
        # Some of it is done; what is repeated of that is refused, and does no harm.
        family = () if version is None else (f"-{version}",)
        script = "\n".join(lines) + "\n"
        await run("ip", *family, "-force", "-batch", "-", script=script, check=False)
        return str(exc)
    return ""


async def _batch(lines: tuple[str, ...], version: int | None = None) -> None:
    if lines:
        family = () if version is None else (f"-{version}",)
        await run("ip", *family, "-batch", "-", script="\n".join(lines) + "\n")
