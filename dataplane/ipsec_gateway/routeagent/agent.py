"""The route agent: what gateways say becomes routes of this node.

One loop: take what is known now, say what should be (``plan``), make it so (``kernel``), wait until
something is said that matters. Whatever happens ends in the same turn of the loop, so that it
does not matter in which order things come, or how often.

When it stops, everything stays: traffic goes on, and the next agent goes on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ipsec_gateway import conntrack, privatefiles
from ipsec_gateway.classify import Address, Network
from ipsec_gateway.cluster.api import Api
from ipsec_gateway.cluster.meshclient import MeshClient
from ipsec_gateway.cluster.meshkey import MeshKey
from ipsec_gateway.cluster.meshline import Line
from ipsec_gateway.http import HttpServer, Pages
from ipsec_gateway.monitor import Monitor
from ipsec_gateway.routeagent.facts import node_facts
from ipsec_gateway.routeagent.kernel import Kernel
from ipsec_gateway.routeagent.leases import Gateways, Leases
from ipsec_gateway.routeagent.loose import Loose
from ipsec_gateway.routeagent.memory import checks_of, file_in, gateways_of
from ipsec_gateway.routeagent.metrics import Metrics, Scrape
from ipsec_gateway.routeagent.picture import Carried, Picture, networks
from ipsec_gateway.routeagent.plan import Node, Settings, Wanted, plan
from ipsec_gateway.tools import ToolError

log = logging.getLogger("ipsec_gateway")

#: Seconds between two looks at everything.
LOOK: Final = 30.0
#: Seconds before another attempt at what the kernel refused.
RETRY: Final = 2.0
#: Seconds after which an agent without memory takes away what no gateway has named, even if some
#: gateway has never been heard.
PATIENCE: Final = 60.0
#: Seconds between two attempts at a gateway that is not heard, at the most: a gateway that comes
#: back is called by every node of the cluster.
_LONGEST_WAIT: Final = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the agent is told. ``gateways``: these, and no API server is asked."""

    name: str
    settings: Settings
    key: Path
    state: Path
    mesh_port: int
    addresses: tuple[Address, ...] = ()
    listen: tuple[str, int] | None = None
    api: Api | None = None
    namespace: str = ""
    gateways: Gateways | None = None


class Agent:
    """One agent. ``run`` ends after ``stop``; it raises OSError where it cannot listen, or cannot
    read what an earlier agent left."""

    def __init__(self, options: Options) -> None:
        self._options: Final = options
        self._kernel: Final = Kernel(options.settings)
        self._memory: Final = file_in(options.state)
        self._kept: dict[str, Any] = {}
        self._picture: Final = Picture()
        self._wake: Final = asyncio.Event()
        self._stopped = False
        #: Whether something was said that has not been acted upon.
        self._due = True
        self._timed: object = None
        self._began = 0.0
        self._gateways: Gateways = {}
        self._node: Node | None = None
        self._looked = float("-inf")
        self._loose = Loose()
        self._told: frozenset[str] = frozenset()
        self._applied: Wanted | None = None
        self._carried: dict[str, Carried] = {}
        self._exempted: frozenset[str] = frozenset()
        self._remembered = False
        self._listed = False
        self._trouble = "the first turn is not done yet"
        self._moves = 0
        self._errors = 0
        self._metrics: Final = Metrics()
        self._mesh: Final = MeshClient(
            MeshKey(options.key), options.mesh_port, self._on_line, longest_wait=_LONGEST_WAIT
        )
        self._leases: Leases | None = None

    def stop(self) -> None:
        """Have ``run`` end; routes stay."""
        self._stopped = True
        self._wake.set()

    async def run(self) -> None:
        """Until ``stop``."""
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        server = HttpServer(Pages(lambda: self._trouble, self._render, self._status))
        monitor = Monitor(self._look_again, loop)
        lister: asyncio.Task[None] | None = None
        self._recall(loop.time())
        try:
            if self._options.listen is not None:
                await server.open(*self._options.listen)
            monitor.open()
            if self._options.gateways is not None:
                self._on_gateways(self._options.gateways)
            elif self._options.api is not None:
                self._leases = Leases(self._options.api, self._options.namespace, self._on_gateways)
                lister = asyncio.create_task(self._leases.run(), name="leases")
            while not self._stopped:
                self._wake.clear()
                pause = await self._turn(loop.time())
                if lister is not None and lister.done():
                    lister.result()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause)
        finally:
            if lister is not None:
                lister.cancel()
                await asyncio.gather(lister, return_exceptions=True)
            monitor.close()
            await self._mesh.close()
            if self._options.api is not None:
                await self._options.api.close()
            await server.close()

    async def clean(self) -> None:
        """Take away all that any agent left on this node. Raises ToolError."""
        await self._kernel.clean()
        for problem in Loose(checks_of(privatefiles.read_object(self._memory))).keep(()):
            log.warning("%s", problem)
        self._memory.unlink(missing_ok=True)

    async def _turn(self, now: float) -> float:
        """One turn; returns the seconds until the next at the latest."""
        try:
            if now - self._looked >= LOOK:
                await self._look()
                self._looked = now
                self._due = True
            # Time passes, and for most of it nothing follows from that.
            if self._due or self._picture.timed(now) != self._timed:
                self._due = False
                await self._settle(now)
                self._timed = self._picture.timed(now)
        except ToolError as exc:
            self._errors += 1
            self._trouble = str(exc)
            self._tell([str(exc)])
            # What is there is not known any more.
            self._due = True
            self._looked = float("-inf")
            return RETRY
        self._trouble = ""
        waits = [self._looked + LOOK - now]
        if (change := self._picture.next_change(now)) is not None:
            waits.append(change)
        return max(min(waits), 0.01)

    async def _look(self) -> None:
        every = {a for many in self._gateways.values() for a in many}
        self._node = await node_facts(
            self._options.name, self._options.addresses, every, self._options.settings
        )
        await self._kernel.look()

    async def _settle(self, now: float) -> None:
        assert self._node is not None
        carried = self._picture.carried(now)
        wanted = plan(carried, self._gateways, self._node, self._options.settings)
        prune = self._complete(now)
        await self._kernel.apply(wanted, prune=prune)
        problems = [*wanted.problems, *self._loose.keep(wanted.loose)]
        if wanted.foreign != self._exempted:
            problems += await self._keep_sources(wanted.foreign - self._exempted)
            self._exempted = wanted.foreign
        self._applied = wanted
        self._note_moves(carried)
        problems += self._keep(now)
        self._tell(problems)
        if any(
            each.gateway is None or each.gateway not in self._gateways for each in carried.values()
        ):
            # Somebody may have it whom we do not hear yet.
            self._mesh.hurry()
            if self._leases is not None:
                self._leases.hurry()

    def _complete(self, now: float) -> bool:
        """Whether all is known that may have been asked for by whom."""
        if self._remembered:
            return True
        if now - self._began < PATIENCE:
            return self._listed and all(self._picture.informed(name) for name in self._gateways)
        # Nobody was ever heard: what is there may be what carries the traffic.
        return any(self._picture.informed(name) for name in self._gateways)

    async def _keep_sources(self, fresh: Iterable[str]) -> list[str]:
        """Connections that were masqueraded before their peer was known begin anew."""
        everything = {4: "0.0.0.0/0", 6: "::/0"}
        pairs: list[tuple[Network, Network]] = []
        for remote in networks(fresh):
            pairs += [(local, remote) for local in networks([everything[remote.version]])]
        try:
            if pairs and (count := await asyncio.to_thread(conntrack.flush, pairs)):
                log.info("%d connections keep their source from now on", count)
        except ToolError as exc:
            return [str(exc)]
        return []

    def _note_moves(self, carried: dict[str, Carried]) -> None:
        for peer, each in carried.items():
            before = self._carried.get(peer)
            if before is None or before.gateway != each.gateway:
                who = each.gateway or "nobody"
                log.info("%s is carried by %s", peer, who)
                self._moves += before is not None
        for peer in self._carried.keys() - carried.keys():
            log.info("%s is gone", peer)
        self._carried = carried

    def _on_line(self, line: Line) -> bool:
        new = self._picture.is_new(line)
        if self._picture.said(line, asyncio.get_running_loop().time()):
            self._due = True
            self._wake.set()
        return new

    def _on_gateways(self, gateways: Gateways) -> None:
        changed = dict(gateways) != dict(self._gateways)
        first, self._listed = not self._listed, True
        if changed or first:
            self._gateways = dict(gateways)
            self._follow()
            self._look_again()

    def _look_again(self) -> None:
        self._looked = float("-inf")
        self._wake.set()

    def _recall(self, now: float) -> None:
        kept = privatefiles.read_object(self._memory)
        if kept:
            self._remembered = True
            self._picture.remember(kept.get("picture"), now)
            self._loose = Loose(checks_of(kept))
            if self._options.gateways is None:
                self._gateways = gateways_of(kept)
                self._follow()

    def _follow(self) -> None:
        self._mesh.follow({n: tuple(map(str, at)) for n, at in self._gateways.items()})

    def _keep(self, now: float) -> list[str]:
        known = {
            "picture": self._picture.record(now),
            "gateways": {n: ",".join(map(str, a)) for n, a in self._gateways.items()},
            "rp_filter": dict(self._loose.before),
        }
        if known == self._kept:
            return []
        try:
            privatefiles.write_object(self._memory, known)
        except OSError as exc:
            return [
                f"--state {self._options.state} cannot be written ({exc.strerror}): after a restart"
                " the agent knows nothing until it hears the gateways; mount /run/kube-ipsec"
            ]
        self._kept = known
        return []

    def _tell(self, problems: Iterable[str]) -> None:
        """Log each once, as long as it is there."""
        now = frozenset(problems)
        for problem in sorted(now - self._told):
            log.warning("%s", problem)
        self._told = now

    def _ways(self) -> dict[str, str]:
        """The way to each peer, for people."""
        ways: dict[str, str] = {}
        routes = {r.destination: r for r in (self._applied.routes if self._applied else ())}
        for peer, each in self._carried.items():
            kinds = {
                "none"
                if route is None or route.kind != "unicast"
                else "vxlan"
                if route.device == self._options.settings.device
                else "direct"
                for remote in each.remotes
                for route in (routes.get(str(remote)),)
            }
            local = each.gateway == self._options.name
            ways[peer] = "local" if local else "/".join(sorted(kinds)) or "none"
        return ways

    async def _render(self) -> bytes:
        now = asyncio.get_running_loop().time()
        self._metrics.scrape = Scrape(
            Counter(w.split("/")[0] for w in self._ways().values()),
            {name: self._picture.heard(name, now) for name in self._gateways},
            self._mesh.lines,
            self._kernel.writes,
            self._moves,
            self._errors,
        )
        return self._metrics.render()

    async def _status(self) -> dict[str, Any]:
        now = asyncio.get_running_loop().time()
        ways = self._ways()
        return {
            "node": self._options.name,
            "gateways": {
                name: {
                    "addresses": [str(a) for a in addresses],
                    "heard": self._picture.heard(name, now),
                    "trouble": self._mesh.troubles.get(name, ""),
                }
                for name, addresses in sorted(self._gateways.items())
            },
            "peers": {
                peer: {
                    "gateway": each.gateway,
                    "way": ways[peer],
                    "remotes": [str(n) for n in each.remotes],
                }
                for peer, each in sorted(self._carried.items())
            },
            "problems": sorted(self._told),
        }
