"""Two gateways, the network between them and one virtual clock.

While it runs the promises of ``simnet_dataplane`` are checked with every action, and these:

- Make before break: once packets of a child have a way from one end to the other they keep it. That
  also means that nobody sends on a new SA beside an old one before the other end has it. Only an
  event that says so (IkeSaDown, ChildSaDown), or a command that means it, may end that. Where there
  is no way yet the responder sends at once: nothing that would have passed is lost by it.
- In a gentle run (``simnet_profile``) no child goes down and no IKE SA ends, but for one of two
  where both ends initiated: nothing in RFC 7296 prevents that there are two at first.
- A timer that fired is not due at once again for ever.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from ipsec_ike.actions import AddSa, DeleteSa, SendDatagram, UpdateSa
from ipsec_ike.config import PeerConfig, Start
from ipsec_ike.engine import Action, Engine
from ipsec_ike.events import ChildSaDown, Event, IkeSaDown
from ipsec_ike.inputs import Acquire, Datagram, Mapping, UnknownSpi
from ipsec_ike.numbers import ExchangeType
from ipsec_ike.wire.header import Header
from ipsec_lab.simnet_dataplane import Broken, KeyLedger, ModelDataplane
from ipsec_lab.simnet_network import Nat, Packet, seeded
from ipsec_lab.simnet_profile import LEFT, PUBLIC, RIGHT, Profile

#: After something broke on purpose, traffic is promised nothing for so long: what is left of the
#: old SAs goes away in its own time.
HOLD: Final = 60.0
#: How often a timer may fire without virtual time passing.
_SPIN: Final = 200

Trace = Callable[[str], None]


class Node:
    """One gateway. ``offset`` is how far its clock is ahead of the simulation's."""

    def __init__(self, world: World, name: str, start: float) -> None:
        self.world = world
        self.name = name
        self.address = world.profile.address(name)
        self.config = world.profile.peer(name)
        self.offset = start
        self.lives = 0
        self.boot()

    def boot(self) -> None:
        """Start without any memory of an earlier life."""
        self.lives += 1
        rng = seeded(f"engine {self.world.profile.seed} {self.name} {self.lives}")
        self.engine = Engine(rng=rng.randbytes, limits=self.world.profile.limits(self.name))
        self.dataplane = ModelDataplane(self.name, self.world.ledger)

    @property
    def now(self) -> float:
        """Its own clock."""
        return self.world.now + self.offset

    @property
    def other(self) -> Node:
        """The other end."""
        return self.world.nodes[RIGHT if self.name == LEFT else LEFT]

    def due(self) -> float | None:
        """When its engine wants to be called, in the simulation's time."""
        when = self.engine.next_timer()
        return None if when is None else when - self.offset

    def configure(self, config: PeerConfig) -> None:
        """Apply a configuration and perform what follows."""
        self.config = config
        self.engine.configure([config], self.now)
        self.drain()

    def drain(self) -> None:
        """Perform the engine's actions in their order."""
        for action in self.engine.take_actions():
            self.perform(action)
        self.world.keep_promises()

    def perform(self, action: Action) -> None:
        """One action."""
        match action:
            case SendDatagram():
                self.world.send(
                    self, Packet(action.local, action.remote, action.data, marker=action.encap)
                )
            case AddSa() | UpdateSa() | DeleteSa():
                self.world.say(self.name, _describe(action))
                self.dataplane.perform(action)
            case _:
                self.world.happened(self, action)

    def receive(self, packet: Packet) -> None:
        """A packet arrives."""
        if packet.spi:
            self._receive_esp(packet)
        elif not packet.is_keepalive:
            if packet.marker != (packet.destination.port != 500):
                raise Broken(f"{self.name}: non-ESP marker and port {packet.destination.port}")
            self.engine.receive(Datagram(packet.data, packet.destination, packet.source), self.now)
        self.drain()

    def _receive_esp(self, packet: Packet) -> None:
        spec = self.dataplane.inbound.get(packet.spi)
        if spec is None:
            if packet.promised and not self.world.held:
                raise Broken(f"{self.name}: ESP in flight met an unknown SPI {packet.spi:08x}")
            self.world.stats["unknown ESP"] += 1
            self.engine.unknown_spi(UnknownSpi(packet.spi, packet.source), self.now)
            return
        if spec.encryption_key.reveal() != packet.key or spec.encap != packet.encap:
            raise Broken(f"{self.name}: ESP {packet.spi:08x} came under another key or framing")
        self.world.stats["ESP"] += 1
        self.engine.inbound_seen(packet.spi, self.now)
        if packet.encap and packet.source != spec.source:
            self.engine.mapping(Mapping(packet.spi, packet.source), self.now)

    def ping(self, child: str) -> bool:
        """Send one packet of a child, or ask for an SA. Whether there was one."""
        config = next((c for c in self.config.children if c.name == child), None)
        if config is None:
            return False
        spec = self.dataplane.sending(config.reqid)
        if spec is None:
            if config.start is Start.ON_TRAFFIC:
                self.engine.acquire(Acquire(config.reqid), self.now)
                self.drain()
            return False
        self.world.send(
            self,
            Packet(
                spec.source,
                spec.destination,
                spi=spec.id.spi,
                key=spec.encryption_key.reveal(),
                encap=spec.encap,
                promised=(self.name, child) in self.world.promised,
            ),
        )
        return True


class World:
    """Two nodes, the network between them, and one virtual clock."""

    node_type: type[Node] = Node

    def __init__(self, profile: Profile, trace: Trace | None = None) -> None:
        self.profile = profile
        self.now = 0.0
        self.ledger = KeyLedger()
        self.stats: Counter[str] = Counter()
        self.promised: set[tuple[str, str]] = set()
        self._held_until = 0.0
        self._trace = trace
        self.rng = seeded(f"world {profile.seed}")
        self.weather = profile.weather
        self.parted = False
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self.in_flight = 0
        self.recent: deque[Packet] = deque(maxlen=48)
        self.nat: Nat | None = None
        if profile.nat:
            self.nat = Nat(
                profile.address(LEFT), PUBLIC, profile.nat_timeout, seeded(f"nat {profile.seed}")
            )
        self.nodes: dict[str, Node] = {}
        for name in (LEFT, RIGHT):
            self.nodes[name] = self.node_type(self, name, self.rng.uniform(0, 1e6))

    def say(self, who: str, what: str) -> None:
        """One line of the trace."""
        if self._trace is not None:
            self._trace(f"{self.now:10.3f} {who:>5} {what}")

    # -- time --------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do something at a virtual time."""
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, what))

    def run_until(self, end: float) -> None:
        """Let time pass. Raises Broken."""
        spins = 0
        while True:
            timer, node = min(
                ((due, name) for name, n in self.nodes.items() if (due := n.due()) is not None),
                default=(None, ""),
            )
            if self._heap and (timer is None or self._heap[0][0] <= timer):
                if self._heap[0][0] > end:
                    break
                when, _, what = heapq.heappop(self._heap)
                self.now = max(self.now, when)
                what()
            elif timer is None or timer > end:
                break
            else:
                spins = spins + 1 if timer <= self.now else 0
                if spins > _SPIN:
                    raise Broken(f"{node}: the timer fires again and again at {self.now:.3f}")
                self.now = max(self.now, timer)
                self.nodes[node].engine.on_timer(self.nodes[node].now)
                self.nodes[node].drain()
        self.now = end

    # -- packets -----------------------------------------------------------------------------

    def send(self, node: Node, packet: Packet) -> None:
        """Give a packet to the network."""
        if packet.source.address != node.address:
            raise Broken(f"{node.name}: sends from {packet.source}, which is not its own")
        seen: Packet | None = packet
        if self.nat is not None and node.name == LEFT:
            seen = self.nat.outward(packet, self.now)
        arrivals = [] if seen is None or self.parted else self.weather.arrivals(self.rng)
        self.say(node.name, f"{text(packet)}{'' if arrivals else '  [lost]'}")
        for delay in arrivals:
            assert seen is not None
            self._schedule(seen, delay)

    def _schedule(self, packet: Packet, delay: float) -> None:
        ike = not packet.spi
        self.in_flight += ike

        def arrive() -> None:
            self.in_flight -= ike
            self.recent.append(packet)
            self.deliver(packet)

        self.at(self.now + delay, arrive)

    def deliver(self, packet: Packet) -> None:
        seen: Packet | None = packet
        if self.nat is not None and packet.destination.address in PUBLIC:
            seen = self.nat.inward(packet, self.now)
        if seen is None:
            return
        for node in self.nodes.values():
            if node.address == seen.destination.address:
                node.receive(seen)

    def ping_all(self) -> None:
        """One packet of every child from both ends."""
        for node in self.nodes.values():
            for child in node.config.children:
                node.ping(child.name)

    # -- promises ----------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether something broke a moment ago, so that nothing is promised."""
        return self.now < self._held_until

    def release(self) -> None:
        """Something ends that is allowed to end: nothing is promised for a while."""
        self.promised.clear()
        self._held_until = self.now + HOLD

    def keep_promises(self) -> None:
        """Packets that had a way must have one."""
        if self.held:
            return
        for node in self.nodes.values():
            for child in node.config.children:
                spec = node.dataplane.sending(child.reqid)
                passes = spec is not None and spec.id.spi in node.other.dataplane.inbound
                if passes:
                    self.promised.add((node.name, child.name))
                elif (node.name, child.name) in self.promised:
                    what = "no SA" if spec is None else f"{spec.id.spi:08x}, gone at the other end"
                    raise Broken(f"{node.name}: {child.name} lost its way: {what}")

    def happened(self, node: Node, event: Event) -> None:
        """An event of an engine."""
        self.stats[type(event).__name__] += 1
        self.say(node.name, f"* {event}")
        if not isinstance(event, IkeSaDown | ChildSaDown):
            return
        if not self.profile.gentle:
            self.release()
        elif isinstance(event, ChildSaDown) or not self._one_of_two(node):
            raise Broken(f"{node.name}: {event} although nothing went wrong")

    def _one_of_two(self, node: Node) -> bool:
        """Both ends have set up an IKE SA: one of the two has to go."""
        return self.profile.twofold and any(
            sa.state in ("established", "rekeying") for sa in node.engine.snapshot()
        )


def _describe(action: AddSa | UpdateSa | DeleteSa) -> str:
    match action:
        case AddSa(spec):
            return f"+ {spec.id.direction.value:3} {spec.id.spi:08x} {spec.child}"
        case UpdateSa(ident, source, destination):
            return f"~ {ident.direction.value:3} {ident.spi:08x} {source} > {destination}"
        case DeleteSa(ident):
            return f"- {ident.direction.value:3} {ident.spi:08x}"


def text(packet: Packet) -> str:
    way = f"{packet.source} > {packet.destination}"
    if packet.spi:
        return f"{way} ESP {packet.spi:08x}"
    if packet.is_keepalive:
        return f"{way} keepalive"
    header = Header.parse(packet.data)
    kind = "response" if header.response else "request"
    side = "I" if header.initiator else "R"
    return (
        f"{way} {ExchangeType(header.exchange).name} {kind} {header.message_id} of {side}, "
        f"{header.spi_i.hex()[:4]}/{header.spi_r.hex()[:4]}, {len(packet.data)} octets"
    )
