"""Bringing packets to the data plane, and keeping them from leaving in clear text.

A data plane with a device (userspace ESP) gets its packets by marks and routes; where the kernel's
SPD encrypts, only what it cannot do itself is left: guard, NAT exemption, MSS, source addresses.
The order in which things are set up and taken down is the point: the guard is first and last, so
that at no moment, and not after a crash either, a protected packet finds an open way. What is set
up is in ``classify``, ``nftables`` and ``routing``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ipsec_gateway import clashes, conntrack, nftables, nftscripts, plan, translators
from ipsec_gateway.classify import Address, Network, Step, classify
from ipsec_gateway.intent import Intent
from ipsec_gateway.ipsec.base import PolicySpec
from ipsec_gateway.marks import DEFAULT, NFT_TABLE, Numbers
from ipsec_gateway.routing import (
    DUMMY_ADDRESS,
    Route,
    Routing,
    Rule,
    Way,
    Wishes,
    kernel_routing,
    parse_routes,
    parse_rules,
    parse_ways,
    routing,
)
from ipsec_gateway.subnets import collapsed
from ipsec_gateway.sysctls import Sysctls, forwards
from ipsec_gateway.tools import ToolError, run, run_json

log = logging.getLogger("ipsec_gateway")


@dataclass(frozen=True, slots=True)
class Counted:
    """One named counter of the nftables table."""

    packets: int
    bytes: int


class Steering:
    """The kernel's side of one data plane. All methods raise ToolError.

    ``device`` is what packets are routed into, or None if the kernel's SPD encrypts them.
    """

    def __init__(
        self,
        device: str | None,
        sysctls: Sysctls | None = None,
        numbers: Numbers = DEFAULT,
        lazy: bool = False,
    ) -> None:
        """``lazy``: sources are kept from others' translation once somebody translates, and not
        before: the kernel need not track connections where nobody does. ``suspect`` says that
        somebody may have begun; what he gets hold of meanwhile is dropped by the guard."""
        self.device = device
        self._keep = not lazy
        #: Whether somebody may translate who did not when it was looked at.
        self._suspected = True
        self.numbers = numbers
        self.sysctls = sysctls or Sysctls()
        self._told: set[str] = set()
        #: Pairs whose connections from before have been looked at.
        self._flushed: frozenset[tuple[Network, Network]] = frozenset()
        self._guard: nftscripts.Installed | None = None
        #: What the guard was made from.
        self._basis: tuple[object, ...] = ()
        self._stale: Routing | None = None

    async def guard(
        self,
        intent: Intent,
        *,
        live: frozenset[int],
        mtu: int | None = None,
        retained: tuple[PolicySpec, ...] = (),
        measured: Mapping[int, tuple[Network, ...]] | None = None,
    ) -> None:
        """Put the nftables table in place.

        ``live`` are reqids that have an SA, ``mtu`` is the largest inner packet in octets.
        ``retained`` are policies that are about to go: they stay, after all others, until what they
        protect is gone. ``measured`` has remote networks by the TCP MSS that their SAs come to.
        """
        clamps = dict(intent.clamps)
        for mss, nets in (measured or {}).items():
            clamps[mss] = collapsed((*clamps.get(mss, ()), *nets))
        views = (intent.translations, intent.untracked, intent.services, intent.interfaces)
        if self._suspected and not self._keep:
            self._suspected = False
            try:
                self._keep = await self.translators() != translators.NONE
            except ToolError:
                self._keep = True  # not known: tracking costs less than what the guard would drop
            # What they have translated meanwhile starts anew.
            self._flushed = frozenset()
        basis = (intent.policies, clamps, live, mtu, retained, views, self._keep)
        if self._guard is not None and basis == self._basis:
            return
        desired = nftables.ruleset(
            classify(
                (
                    p
                    for p in (*intent.policies, *retained)
                    if p.id not in intent.translated and not p.id.interface
                ),
                live,
            ),
            device=self.device,
            mtu=mtu,
            clamps=clamps,
            translations=intent.translations,
            untracked=_untracked(intent, own=False),
            untracked_own=_untracked(intent, own=True),
            services=intent.services,
            interfaces=intent.interfaces,
            numbers=self.numbers,
            keep=self._keep,
        )
        await self._put(desired)
        self._basis = basis

    async def _put(self, desired: nftables.Ruleset) -> None:
        """Make it the kernel's table. What is protected before and afterwards is so meanwhile."""
        if self._guard is not None:
            try:
                await self._apply(nftscripts.change(desired, self._guard))
                return
            except ToolError:
                # Elements that overlap with what goes, or somebody else changed the table.
                self._guard = None
        there = await _found()
        if there is not None:
            # It is refused where a chain of another version is elsewhere: then all of it at once.
            with contextlib.suppress(ToolError):
                await self._apply(nftscripts.install(desired, there))
                return
        try:
            await self._apply(nftscripts.replace(desired))
        except ToolError as exc:
            raise ToolError(nftscripts.explained(str(exc))) from exc

    async def _apply(self, change: nftscripts.Change) -> None:
        for script in change.scripts:
            await run("nft", "-f", "-", script=script)
        self._guard = change.then

    async def verify_guard(self) -> bool:
        """Whether the table is still there; if not, the next ``guard`` sets it up anew. That looks
        for who translates sources, too: a kernel need not tell of them."""
        self._suspected = True
        if await _found() is None:
            self._guard = None
        return self._guard is not None

    async def route(self, intent: Intent, addresses: tuple[Address, ...]) -> bool:
        """Add what is missing of routes and rules; the device must exist.

        What is no longer wanted stays until ``prune``. Returns whether anything was added.
        """
        desired = await self._desired(intent, addresses)
        actual, trouble = await _look(self.numbers)
        if trouble:
            raise ToolError("; ".join(trouble))
        changes = plan.routing(desired, actual)
        self._stale = desired
        await _batch(changes.add)
        if self.device is not None:
            await run("ip", "address", "replace", *DUMMY_ADDRESS.split(), "dev", self.device)
            self._loosen()
        seen = ((t.local, t.remote) for t in intent.translations)
        carried = (*intent.pairs, *seen, *intent.routed)
        self._tell(self.sysctls.apply(forwards(carried, addresses)))
        return any(changes.add.values())

    async def settle(self, intent: Intent) -> None:
        """Have connections that were translated before they became a tunnel's start anew.

        After everything else is in place, since what they send next is judged by it.
        """
        pairs = frozenset(intent.pairs)
        fresh = pairs - self._flushed
        if fresh:
            shown = await run_json("nft", "-j", "list", "flowtables")
            self._tell(clashes.of_flowtables(shown or {}))
            try:
                count = await asyncio.to_thread(conntrack.flush, fresh)
            except ToolError as exc:
                self._tell([str(exc)])
            else:
                if count:
                    log.info("%d connections keep their source from now on", count)
        self._flushed = pairs

    def _tell(self, problems: Iterable[str]) -> None:
        """Log each once."""
        for problem in problems:
            if problem not in self._told:
                self._told.add(problem)
                log.warning("%s", problem)

    async def _desired(self, intent: Intent, addresses: tuple[Address, ...]) -> Routing:
        it = await self._steered(intent, addresses)
        return Routing(it.routes, it.rules | frozenset(intent.detours))

    async def _steered(self, intent: Intent, addresses: tuple[Address, ...]) -> Routing:
        if self.device is not None:
            return routing(
                intent.pairs,
                device=self.device,
                addresses=addresses,
                wishes=Wishes(intent.mtus, intent.metrics),
                translations=intent.translations,
                numbers=self.numbers,
            )
        return kernel_routing(
            intent.pairs,
            ways=await _ways(intent, self.numbers),
            addresses=addresses,
            wishes=Wishes(intent.mtus, intent.metrics),
            translations=intent.translations,
            numbers=self.numbers,
        )

    def _loosen(self) -> None:
        """Strict reverse path checks would refuse what the main table does not route into us."""
        try:
            Path(f"/proc/sys/net/ipv4/conf/{self.device}/rp_filter").write_text("2")
        except OSError as exc:
            # A container may mount /proc/sys read-only. It matters only where "all" is strict.
            if Path("/proc/sys/net/ipv4/conf/all/rp_filter").read_text().strip() == "1":
                raise ToolError(
                    f"net.ipv4.conf.all.rp_filter is 1 (strict) and cannot be loosened for "
                    f"{self.device} ({exc.strerror}): set it to 2 or 0 on the node"
                ) from exc

    async def prune(self) -> None:
        """Delete routes and rules that the last ``route`` did not want."""
        if self._stale is not None:
            await _batch(plan.routing(self._stale, await current(self.numbers)).delete)

    async def unroute(self) -> None:
        """Take routes, rules and the device's address away; the guard stays."""
        await _batch(plan.routing(Routing(), await current(self.numbers)).delete)
        if self.device is not None and await device_mtu(self.device) is not None:
            await run("ip", "address", "flush", "dev", self.device, "to", DUMMY_ADDRESS.split()[0])
        self._stale = None
        self._flushed = frozenset()
        self._tell(self.sysctls.restore())

    async def unguard(self) -> None:
        """Take the guard away: the last of all steps."""
        await run("nft", "-f", "-", script=nftscripts.remove())
        self._guard = None

    def suspect(self) -> bool:
        """Somebody may translate sources from now on: the next ``guard`` looks. Returns whether
        that would change anything."""
        self._suspected = True
        return not self._keep

    async def translators(self) -> str:
        """Who else translates sources on this node."""
        shown = await run_json("nft", "-j", "list", "chains")
        return translators.backend(shown or {}, translators.legacy_tables())

    async def counters(self) -> dict[str, Counted]:
        """Packets and octets that the guard dropped, by counter name."""
        shown = await run_json("nft", "-j", "list", "counters", "table", "inet", NFT_TABLE)
        counters = [entry["counter"] for entry in shown["nftables"] if "counter" in entry]
        return {c["name"]: Counted(c["packets"], c["bytes"]) for c in counters}


async def _found() -> nftscripts.Found | None:
    """What a table of ours has, such as that of a killed gateway; None without one."""
    try:
        shown = await run_json("nft", "-t", "-j", "list", "table", "inet", NFT_TABLE)
    except ToolError:
        return None
    return nftscripts.found(shown)


async def current(numbers: Numbers = DEFAULT) -> Routing:
    """Routes and rules of ours that the kernel has, those of a killed predecessor included, also
    if it had other numbers."""
    return (await _look(numbers))[0]


async def _look(numbers: Numbers) -> tuple[Routing, list[str]]:
    """The same, and who else uses our numbers."""
    routes: set[Route] = set()
    rules: set[Rule] = set()
    trouble: list[str] = []
    for version in (4, 6):
        shown = await run_json("ip", f"-{version}", "-N", "-j", "rule", "show")
        found = parse_rules(shown, version)
        rules |= found
        trouble += clashes.of_rules(shown, numbers)
        # Those that are not of ours are looked at for what an earlier life left in them.
        for table in sorted({*numbers.tables, *(rule.table for rule in found)}):
            try:
                shown = await run_json(
                    "ip", f"-{version}", "-N", "-j", "route", "show", "table", str(table)
                )
            except ToolError as exc:
                if "does not exist" not in str(exc):
                    raise
                continue
            if table in numbers.tables:
                trouble += clashes.of_routes(shown, table)
            routes |= parse_routes((e for e in shown if not clashes.foreign(e)), table, version)
    return Routing(frozenset(routes), frozenset(rules)), trouble


def _untracked(intent: Intent, *, own: bool) -> list[Step]:
    """What skips connection tracking, as sets without overlaps."""
    wanted = {policy for policy, all_of_it in intent.untracked.items() if all_of_it is own}
    return classify((p for p in intent.policies if p.id in wanted), frozenset())


async def _ways(intent: Intent, numbers: Numbers) -> dict[Network, Way]:
    """How the node reaches the peer of each remote subnet, those without a route left out."""
    # With the mark of our own packets: the way to a peer must not be that into its own tunnel.
    script = "".join(
        f"route get {peer} mark {intent.outer.of(peer) or numbers.bypass:#x}\n"
        for peer in sorted(set(intent.ends.values()))
    )
    if not script:
        return {}
    shown = await run("ip", "-j", "-force", "-batch", "-", script=script, check=False)
    ways = dict(parse_ways(shown))
    return {network: ways[peer] for network, peer in intent.ends.items() if peer in ways}


async def device_mtu(device: str) -> int | None:
    """The MTU in octets, or None if there is no such device."""
    try:
        shown = await run_json("ip", "-j", "link", "show", "dev", device)
    except ToolError as exc:
        if "does not exist" not in str(exc):
            raise
        return None
    return int(shown[0]["mtu"])


async def local_addresses(exclude: str | None) -> tuple[Address, ...]:
    """The node's own addresses of global scope, without those of the device ``exclude``."""
    return tuple(a for each in (await local_interfaces(exclude)).values() for a in each)


async def local_interfaces(exclude: str | None) -> dict[str, tuple[Address, ...]]:
    """The same by interface, in the kernel's order."""
    return {
        str(link["ifname"]): tuple(
            ipaddress.ip_address(info["local"])
            for info in link.get("addr_info", ())
            if info.get("scope") == "global" and not info.get("deprecated")
        )
        for link in await run_json("ip", "-j", "address", "show")
        if "ifname" in link and link["ifname"] != exclude
    }


async def _batch(commands: Mapping[int, tuple[str, ...]]) -> None:
    for version, lines in commands.items():
        if lines:
            await run("ip", f"-{version}", "-batch", "-", script="\n".join(lines) + "\n")
