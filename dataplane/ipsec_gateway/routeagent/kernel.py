"""What this node's kernel has of the agent's, and how it gets what it should have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ipsec_gateway.routeagent import packets
from ipsec_gateway.routeagent.changes import changes
from ipsec_gateway.routeagent.plan import (
    PROTOCOL,
    Forwarding,
    Kind,
    Neighbour,
    Route,
    Settings,
    Vxlan,
    Wanted,
)
from ipsec_gateway.routing import DUMMY_ADDRESS
from ipsec_gateway.tools import ToolError, run, run_json

#: rtm_type as iproute2 shows it with -N, and in words.
_KINDS: Final[Mapping[str, Kind]] = {
    "7": "unreachable",
    "unreachable": "unreachable",
    "9": "throw",
    "throw": "throw",
}


@dataclass(frozen=True, slots=True)
class Actual:
    """What is there. ``vxlan`` is None if there is no such device."""

    routes: frozenset[Route] = frozenset()
    rules: frozenset[int] = frozenset()
    vxlan: Vxlan | None = None
    neighbours: frozenset[Neighbour] = frozenset()
    forwarding: frozenset[Forwarding] = frozenset()
    #: The script of the packet table; empty if it is not known what is there.
    packets: str = ""


class Kernel:
    """The shell around ``plan``. All methods raise ToolError."""

    def __init__(self, settings: Settings) -> None:
        self._settings: Final = settings
        self._actual = Actual()
        #: Commands that changed something, since the start.
        self.writes = 0

    @property
    def actual(self) -> Actual:
        """As it was at the last look, with what was changed since."""
        return self._actual

    async def look(self) -> None:
        """Read everything: what a predecessor left, and what somebody else changed."""
        it, table = self._settings, str(self._settings.table)
        routes: set[Route] = set()
        rules: set[int] = set()
        for version in (4, 6):
            shown = await run_json("ip", f"-{version}", "-N", "-j", "rule", "show")
            if has_rule(shown, it):
                rules.add(version)
            listed = await _maybe("ip", f"-{version}", "-N", "-j", "route", "show", "table", table)
            others = [e for e in listed if str(e.get("protocol")) != str(PROTOCOL)]
            if others:
                raise ToolError(
                    f"the route to {others[0]['dst']} in table {table} is of protocol"
                    f" {others[0].get('protocol')}, and the table is the route agent's: move it, or"
                    " give the agent another table (--table)"
                )
            routes |= parse_routes(listed, version)
        device = parse_vxlan(await _maybe("ip", "-d", "-j", "link", "show", "dev", it.device))
        neighbours: set[Neighbour] = set()
        forwarding: set[Forwarding] = set()
        if device is not None:
            listed = await _maybe("ip", "-j", "neigh", "show", "dev", it.device, "nud", "permanent")
            neighbours = {Neighbour(str(e["dst"]), str(e["lladdr"])) for e in listed}
            listed = await _maybe("bridge", "-j", "fdb", "show", "dev", it.device)
            forwarding = {Forwarding(str(e["mac"]), str(e["dst"])) for e in listed if "dst" in e}
        there = await _maybe("nft", "-j", "-t", "list", "table", "inet", packets.TABLE)
        self._actual = Actual(
            frozenset(routes),
            frozenset(rules),
            device,
            frozenset(neighbours),
            frozenset(forwarding),
            self._actual.packets if there else packets.remove(),
        )

    async def apply(self, wanted: Wanted, *, prune: bool) -> int:
        """Make it so; without ``prune`` nothing is taken away. Returns how many commands it took.

        What leads to a gateway is in place before anything is sent there.
        """
        before = self.writes
        await self._device(wanted, prune=prune)
        await self._behind(wanted)
        text = packets.script(wanted)
        if text != self._actual.packets and (prune or text != packets.remove()):
            await self._run("nft", "-f", "-", lines=(text,))
            self._actual = replace(self._actual, packets=text)
        todo = changes(wanted, self._actual.routes, self._actual.rules, self._settings)
        for version in (4, 6):
            await self._run("ip", f"-{version}", "-batch", "-", lines=todo.add[version])
        self._added(wanted)
        if prune:
            for version in (4, 6):
                await self._run("ip", f"-{version}", "-batch", "-", lines=todo.delete[version])
            self._actual = replace(self._actual, routes=wanted.routes, rules=wanted.rules)
            await self._drop_behind(wanted)
            if wanted.vxlan is None and self._actual.vxlan is not None:
                await self._run("ip", "link", "delete", self._settings.device)
                self._actual = replace(
                    self._actual, vxlan=None, neighbours=frozenset(), forwarding=frozenset()
                )
        return self.writes - before

    async def clean(self) -> None:
        """Take away everything, whoever of us made it."""
        await self.look()
        await self.apply(Wanted(), prune=True)

    def _added(self, wanted: Wanted) -> None:
        places = {r.destination for r in wanted.routes}
        kept = {r for r in self._actual.routes if r.destination not in places}
        self._actual = replace(
            self._actual,
            routes=wanted.routes | kept,
            rules=wanted.rules | self._actual.rules,
        )

    async def _device(self, wanted: Wanted, *, prune: bool) -> None:
        it, have = wanted.vxlan, self._actual.vxlan
        if it is None or it == have:
            return
        if have is not None and replace(have, mtu=it.mtu, mac=it.mac) != it:
            # Its number, port and address cannot be changed: routes through it go with it, and are
            # set again right after.
            await self._run("ip", "link", "delete", it.name)
            self._actual = replace(
                self._actual,
                vxlan=None,
                neighbours=frozenset(),
                forwarding=frozenset(),
                routes=frozenset(r for r in self._actual.routes if r.device != it.name),
            )
            have = None
        lines = []
        if have is None:
            lines.append(
                f"link add {it.name} address {it.mac} mtu {it.mtu} type vxlan id {it.vni}"
                f" dstport {it.port} local {it.local} nolearning"
            )
            lines.append(f"link set {it.name} addrgenmode none")
        else:
            lines.append(f"link set {it.name} address {it.mac} mtu {it.mtu}")
        # Loose reverse path checks refuse everything on a device without an address.
        lines.append(f"address replace {DUMMY_ADDRESS} dev {it.name}")
        lines.append(f"link set {it.name} up")
        try:
            await self._run("ip", "-batch", "-", lines=lines)
        except ToolError as exc:
            raise ToolError(
                f"{exc}; the kernel may lack VXLAN (modprobe vxlan), or another device has number"
                f" {it.vni} on port {it.port}: take others (--vni, --vxlan-port)"
            ) from exc
        self._actual = replace(self._actual, vxlan=it)

    async def _behind(self, wanted: Wanted) -> None:
        """Neighbours and forwarding entries that are missing."""
        device = self._settings.device
        missing = wanted.neighbours - self._actual.neighbours
        await self._run(
            "ip",
            "-batch",
            "-",
            lines=[
                f"neigh replace {n.address} lladdr {n.mac} dev {device} nud permanent"
                for n in sorted(missing)
            ],
        )
        # One node per MAC address: a node whose address changed replaces the entry.
        new = wanted.forwarding - self._actual.forwarding
        await self._run(
            "bridge",
            "-batch",
            "-",
            lines=[f"fdb replace {f.mac} dev {device} dst {f.node}" for f in sorted(new)],
        )
        addresses = {n.address for n in wanted.neighbours}
        macs = {f.mac for f in wanted.forwarding}
        self._actual = replace(
            self._actual,
            neighbours=wanted.neighbours
            | {n for n in self._actual.neighbours if n.address not in addresses},
            forwarding=wanted.forwarding
            | {f for f in self._actual.forwarding if f.mac not in macs},
        )

    async def _drop_behind(self, wanted: Wanted) -> None:
        if self._actual.vxlan is None:
            return
        device = self._settings.device
        await self._run(
            "ip",
            "-batch",
            "-",
            lines=[
                f"neigh delete {n.address} dev {device}"
                for n in sorted(self._actual.neighbours - wanted.neighbours)
            ],
        )
        await self._run(
            "bridge",
            "-batch",
            "-",
            lines=[
                f"fdb delete {f.mac} dev {device} dst {f.node}"
                for f in sorted(self._actual.forwarding - wanted.forwarding)
            ],
        )
        self._actual = replace(
            self._actual, neighbours=wanted.neighbours, forwarding=wanted.forwarding
        )

    async def _run(self, *command: str, lines: Iterable[str] = ()) -> None:
        """Run it with these lines, if there are any; a command without a batch always."""
        script = "\n".join(lines)
        if script or command[-1] != "-":
            await run(*command, script=script + "\n")
            self.writes += 1


def has_rule(shown: Iterable[Mapping[str, Any]], settings: Settings) -> bool:
    """Whether our rule is among what ``ip -N -j rule show`` lists."""
    return any(
        e.get("priority") == settings.table
        and str(e.get("table")) == str(settings.table)
        and str(e.get("protocol")) == str(PROTOCOL)
        for e in shown
    )


def parse_routes(shown: Iterable[Mapping[str, Any]], version: int) -> set[Route]:
    """What ``ip -N -j route show table TABLE`` says."""
    found: set[Route] = set()
    for entry in shown:
        destination = str(entry["dst"])
        if "/" not in destination:
            destination += "/32" if version == 4 else "/128"
        kind = _KINDS.get(str(entry.get("type", "")), "unicast")
        if kind != "unicast":
            found.add(Route(destination, kind))
            continue
        via = str(entry.get("gateway") or entry.get("via", {}).get("host", ""))
        metrics = entry.get("metrics") or [{}]
        found.add(
            Route(
                destination,
                "unicast",
                str(entry.get("dev", "?")),
                via,
                str(entry.get("prefsrc", "")),
                int(metrics[0].get("mtu", 0)),
            )
        )
    return found


def parse_vxlan(shown: Iterable[Mapping[str, Any]]) -> Vxlan | None:
    """What ``ip -d -j link show dev NAME`` says; a device that is down counts as another one."""
    for link in shown:
        info = link.get("linkinfo", {})
        data = info.get("info_data", {})
        up = "UP" in link.get("flags", ())
        return Vxlan(
            str(link["ifname"]),
            int(data.get("id", 0)) if info.get("info_kind") == "vxlan" and up else -1,
            int(data.get("port", 0)),
            str(data.get("local") or data.get("local6") or ""),
            str(link.get("address", "")),
            int(link.get("mtu", 0)),
        )
    return None


async def _maybe(*command: str) -> Any:
    """Its JSON; nothing where what it asks for is not there."""
    try:
        return await run_json(*command)
    except ToolError as exc:
        if "does not exist" in str(exc) or "No such file" in str(exc):
            return []
        raise
