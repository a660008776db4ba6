"""Looks at what others have on the forward hook, says what drops our traffic, and opens it if told.

Others' rules change without a word, so it looks once a minute, and when the tunnels change.
Chains that cannot drop what nothing accepts are read one by one and no further; of tables of
iptables the text of ``iptables-save`` is read, where that program is installed. Where it is not,
chains of iptables-nft are judged by what nft shows of them, and not opened.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ipsec_gateway.classify import Address
from ipsec_gateway.forward import listed, saved
from ipsec_gateway.forward.chains import Base, Flow
from ipsec_gateway.forward.findings import Blocked, judged
from ipsec_gateway.forward.flows import Wish, flows, wishes
from ipsec_gateway.forward.opening import Command, closing, opening, program
from ipsec_gateway.intent import Intent
from ipsec_gateway.tools import ToolError, run, run_json
from ipsec_gateway.translators import LEGACY, NFT

log = logging.getLogger("ipsec_gateway")

#: Seconds between looks.
INTERVAL: Final = 60.0
#: What a text that is not what we know comes to: others write these rules, with other versions of
#: the programs, and no tunnel ends for that.
_UNREADABLE: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
#: Files with the names of the tables of legacy iptables, by family.
_LEGACY: Final = {"ip": "/proc/net/ip_tables_names", "ip6": "/proc/net/ip6_tables_names"}
_CLOSED: Final = "forwarding cannot be opened"
_LEFT: Final = "rules of ours may be left in others' chains"


class Forwarding:
    """``device`` is what packets are routed into, None where the kernel's SPD protects them.

    ``opens``: rules that let our traffic pass are put into others' chains, and kept there.
    """

    def __init__(self, device: str | None, *, opens: bool, clock: Callable[[], float]) -> None:
        self._device: Final = device
        self._opens: Final = opens
        self._clock: Final = clock
        self._due = float("-inf")
        #: What is to pass, and what it was computed from.
        self._flows: Mapping[str, tuple[Flow, ...]] = {}
        self._basis: tuple[Intent, tuple[Address, ...]] | None = None
        #: What came of the last look, and of which chains; None: they are to be judged anew.
        self._found: Mapping[str, Blocked] = {}
        self._bases: list[Base] | None = None
        #: Whether there may be rules of ours.
        self._traces = True
        self._told: set[str] = set()
        self._warned: set[str] = set()

    async def look(self, intent: Intent, addresses: tuple[Address, ...]) -> Mapping[str, Blocked]:
        """By peer, what may drop its packets. Nothing is claimed where nothing could be read."""
        basis = (intent, addresses)
        if basis != self._basis:
            self._flows = await asyncio.to_thread(flows, intent, self._device, addresses)
            self._basis, self._bases = basis, None
        elif self._clock() < self._due:
            return self._found
        try:
            await self._look()
        except (ToolError, *_UNREADABLE) as exc:
            self._tell(f"what else forwards on this node is not known: {type(exc).__name__}: {exc}")
            self._found, self._bases = {}, None
        self._due = self._clock() + INTERVAL
        return self._found

    async def close(self) -> None:
        """Take our rules out of others' chains; what cannot be taken away is logged."""
        if self._traces:
            try:
                bases = await self._read(everything=True)
            except (ToolError, *_UNREADABLE) as exc:
                log.warning("%s: %s", _LEFT, exc)
            else:
                tried = [await _all(closing(base)) for base in bases]
                for problem in filter(None, tried):
                    log.warning("%s: %s", _LEFT, problem)
                self._traces = any(tried)
        self._basis, self._found = None, {}

    async def _look(self) -> None:
        self._traces = self._traces or self._opens
        bases = await self._read(everything=self._traces)
        changed, done = False, True
        for base in bases:
            wanted = self._wanted(base)
            # A rule that nft puts into a chain of iptables-nft makes that refuse all of it.
            opens = bool(wanted) and base.suspect and not _lacks(base)
            commands = (
                opening(base, wanted, kernel=self._device is None)
                if opens
                else closing(base, wanted)
            )
            changed = changed or bool(commands)
            if problem := await _all(commands):
                done = False
                self._tell(f"{_CLOSED if opens else _LEFT}: {problem}")
        self._traces = self._opens or not done
        if changed:
            bases = await self._read(everything=self._traces)
        if bases != self._bases:
            self._found = await asyncio.to_thread(
                judged, bases, self._flows, kernel=self._device is None, opens=self._opens
            )
            self._warn()
        self._bases = bases

    def _wanted(self, base: Base) -> frozenset[Wish]:
        """What rules of ours are to be in this chain, as far as they are needed there."""
        versions = {flow.version for those in self._flows.values() for flow in those}
        if not self._opens or versions.isdisjoint(base.versions):
            return frozenset()
        return wishes(self._flows)

    async def _read(self, *, everything: bool) -> list[Base]:
        """Foreign chains on the forward hook with their rules; ``everything``: also those that
        cannot drop what nothing accepts."""
        shown = await run_json("nft", "-j", "list", "chains")
        found: list[Base] = []
        for base in listed.bases(shown or {}):
            if base.tool == NFT and not _lacks(base):
                saved_ones = await _saved(base)
                if saved_ones:
                    found += saved_ones
                    continue
                # It is no table of iptables any more: somebody put in what that cannot show.
                base = replace(base, tool=listed.NFTABLES)
            if (full := await _listed(base, everything=everything)) is None:
                continue
            found.append(full)
            if full.tool == NFT and full.suspect:
                self._tell(
                    f"chains of {NFT} are judged by what nft shows of them, and not opened:"
                    " install iptables"
                )
        for family, table in self._legacy():
            found += await _saved(Base(LEGACY, family, table, saved.CHAIN, drops=False))
        return [base for base in found if everything or base.suspect]

    def _legacy(self) -> list[tuple[str, str]]:
        """Families and tables of legacy iptables that filter."""
        found = []
        for family, path in _LEGACY.items():
            try:
                names = Path(path).read_text().split()
            except OSError:
                continue  # no such module, or not ours to see
            found += [(family, name) for name in names if name in listed.IPTABLES_TABLES]
        if found and shutil.which(f"{LEGACY}-save") is None:
            self._tell("what legacy iptables forwards on this node is not known: install iptables")
            return []
        return found

    def _warn(self) -> None:
        """Log each chain once, with the first peer that it concerns; again when it comes back."""
        chains: dict[str, str] = {}
        for peer, blocked in self._found.items():
            for chain in blocked.chains:
                chains.setdefault(chain, peer)
        for peer in dict.fromkeys(p for c, p in chains.items() if c not in self._warned):
            log.warning("%s: forwarding: %s", peer, self._found[peer].message)
        self._warned = set(chains)

    def _tell(self, problem: str) -> None:
        """Once each."""
        if problem not in self._told:
            self._told.add(problem)
            log.warning("%s", problem)


def _lacks(base: Base) -> bool:
    """Whether the iptables that keeps this chain is not installed here."""
    return base.tool != listed.NFTABLES and shutil.which(f"{program(base)}-save") is None


async def _saved(base: Base) -> list[Base]:
    """The same chain with its rules, as its iptables tells it; nothing where that is unable to."""
    text = await run(f"{program(base)}-save", "-t", base.table)
    return saved.bases(text, base.tool, base.family)


async def _listed(base: Base, *, everything: bool) -> Base | None:
    """A chain of nftables with its rules, and those of its table where they matter."""
    where = (base.family, base.table)
    shown: Any = await run_json("nft", "-j", "list", "chain", *where, base.name)
    full = replace(base, rules=listed.rules(shown).get(base.name, ()))
    if not full.suspect:
        return full if everything else None
    # -t: without the elements of sets, which may be many.
    others = listed.rules(await run_json("nft", "-j", "-t", "list", "table", *where))
    return replace(full, others=others)


async def _all(commands: Iterable[Command]) -> ToolError | None:
    """Run them; what went wrong with the first that fails."""
    try:
        for command in commands:
            await run(*command)
    except ToolError as exc:
        return exc
    return None
