"""What is so on this node right now, as far as the intent depends on it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ipsec_gateway.facts import Facts
from ipsec_gateway.lastgood import InForce
from ipsec_gateway.links import Links
from ipsec_gateway.pathprobe.answering import ProbeResponder
from ipsec_gateway.pump import Pump
from ipsec_gateway.resolve import Resolver
from ipsec_gateway.steering import local_addresses, local_interfaces

if TYPE_CHECKING:
    from ipsec_gateway.options import Options


class Survey:
    """Asks everybody who knows something."""

    def __init__(
        self,
        options: Options,
        resolver: Resolver,
        links: Links,
        pump: Pump,
        responder: ProbeResponder,
    ) -> None:
        self._options: Final = options
        self._resolver: Final = resolver
        self._links: Final = links
        self._pump: Final = pump
        self._responder: Final = responder
        #: Whether some peer comes to us, from an address that is known once it has.
        self.has_passive = False

    async def facts(self, in_force: InForce, now: float) -> Facts:
        """All of it, for these documents. Raises ToolError."""
        options, tunnels = self._options, in_force.tunnels
        facts = replace(
            await self._resolver.facts(
                (*tunnels, *in_force.standby),
                await local_addresses(options.device),
                now,
                self._whereabouts(in_force),
            ),
            encapsulate=options.encapsulate,
            abilities=options.abilities,
            services=options.services,
            responder=self._responder.bind(wanted=bool(tunnels)),
            foreign=await self._links.foreign(tunnels),
            broken=dict(self._links.broken),
        )
        if any(t.local_interface for t in tunnels):
            facts = replace(facts, interfaces=await local_interfaces(options.device))
        return facts

    def _whereabouts(self, in_force: InForce) -> dict[str, str]:
        """The addresses of peers that come to us and whose way there matters, by their keys."""
        waiting = {
            t.key
            for t in in_force.tunnels
            if t.passive and (self._options.kernel or t.routing_table or t.routing_mark)
        }
        self.has_passive = bool(waiting)
        if not waiting:
            return {}
        found = {sa.peer: sa for sa in self._pump.engine.snapshot() if sa.children}
        return {key: sa.remote.address for key, sa in found.items() if key in waiting}
