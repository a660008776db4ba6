"""Two gateways whose messages wait until the test lets them pass: for conversations step by step.

    pair = Pair(calm())
    pair.start()
    pair.passes("left", IKE_SA_INIT)     # left --> right
    pair.drops("right", IKE_SA_INIT)     # left  x- right

Time stands still unless ``sleep`` lets it pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeVar

from ipsec_ike.engine import Engine
from ipsec_ike.events import Event
from ipsec_ike.inputs import Datagram
from ipsec_ike.numbers import PayloadType
from ipsec_ike.wire.header import HEADER_LENGTH, Header
from ipsec_ike.wire.message import decode_payloads, open_sk
from ipsec_ike.wire.payloads import Payload
from ipsec_lab.simnet_network import Packet
from ipsec_lab.simnet_profile import LEFT, RIGHT, Profile
from ipsec_lab.simnet_world import Node, Trace, World

E = TypeVar("E", bound=Event)

_LIMIT: Final = 64


class Pair(World):
    """``flying`` are the packets on their way, as (sender, packet), oldest first."""

    def __init__(self, profile: Profile, trace: Trace | None = None) -> None:
        super().__init__(profile, trace)
        self.flying: list[tuple[str, Packet]] = []
        self.events: dict[str, list[Event]] = {LEFT: [], RIGHT: []}
        for node in self.nodes.values():
            node.offset = 0.0

    @property
    def left(self) -> Node:
        """The end that initiates."""
        return self.nodes[LEFT]

    @property
    def right(self) -> Node:
        """The other end."""
        return self.nodes[RIGHT]

    def start(self) -> None:
        """Configure both ends, the one that does not initiate first."""
        self.right.configure(self.right.config)
        self.left.configure(self.left.config)

    def change(self, name: str, **changes: Any) -> None:
        """Change fields of the configuration that a node will get."""
        node = self.nodes[name]
        node.config = replace(node.config, **changes)

    def change_children(self, name: str, **changes: Any) -> None:
        """Change fields of every child that a node will get."""
        children = self.nodes[name].config.children
        self.change(name, children=tuple(replace(child, **changes) for child in children))

    def change_identity(self, name: str, **changes: Any) -> None:
        """Change fields of the identity that a node will get."""
        (identity,) = self.nodes[name].config.identities
        self.change(name, identities=(replace(identity, **changes),))

    def tell(self, name: str, what: Callable[[Engine, float], object]) -> None:
        """Call the engine of a node with its time, and perform what follows."""
        node = self.nodes[name]
        what(node.engine, node.now)
        node.drain()

    # -- the network -------------------------------------------------------------------------

    def send(self, node: Node, packet: Packet) -> None:
        seen: Packet | None = packet
        if self.nat is not None and node.name == LEFT:
            seen = self.nat.outward(packet, self.now)
        if seen is not None:
            self.flying.append((node.name, seen))

    @staticmethod
    def is_response(packet: Packet) -> bool:
        """Whether a packet is an IKE response."""
        return bool(packet.data) and Header.parse(packet.data).response

    def waiting(self, sender: str) -> list[Header]:
        """Headers of the IKE messages of one sender that are on their way."""
        return [Header.parse(p.data) for name, p in self.flying if name == sender and p.data]

    def take(self, sender: str, exchange: int) -> Packet:
        """Remove the oldest IKE message of a sender; it must be of that exchange."""
        for position, (name, packet) in enumerate(self.flying):
            if name == sender and packet.data:
                found = Header.parse(packet.data).exchange
                assert found == exchange, f"{sender} sent a message of exchange {found}"
                del self.flying[position]
                return packet
        raise AssertionError(f"{sender} has sent nothing")

    def passes(self, sender: str, exchange: int) -> Packet:
        """The oldest IKE message of a sender arrives; it must be of that exchange."""
        packet = self.take(sender, exchange)
        self.deliver(packet)
        return packet

    def drops(self, sender: str, exchange: int) -> Packet:
        """The oldest IKE message of a sender is lost; it must be of that exchange."""
        return self.take(sender, exchange)

    def flow(self, *, most: int = 200) -> None:
        """Let everything pass until nothing is on its way."""
        for _ in range(most):
            if not self.flying:
                return
            _, packet = self.flying.pop(0)
            self.deliver(packet)
        raise AssertionError(f"still talking after {most} packets")

    def sleep(self, seconds: float, *, deaf: bool = False) -> None:
        """Let time pass. Messages pass at once, or with ``deaf`` not at all."""
        end = self.now + seconds
        while True:
            if deaf:
                self.flying.clear()
            else:
                self.flow()
            due = [when for node in self.nodes.values() if (when := node.due()) is not None]
            if not due or min(due) > end:
                break
            self.run_until(max(self.now, min(due)))
        self.now = end

    def inject(self, name: str, data: bytes, like: Packet) -> None:
        """A forged IKE message arrives, with the addresses of another packet."""
        node = self.nodes[name]
        node.engine.receive(Datagram(data, like.destination, like.source), node.now)
        node.drain()

    def read(self, packet: Packet) -> list[Payload]:
        """The payloads of a message; keys are taken from either engine. Fragments are not put
        together."""
        header = Header.parse(packet.data)
        if header.next_payload not in (PayloadType.SK, PayloadType.SKF):
            body = memoryview(packet.data)[HEADER_LENGTH:]
            return decode_payloads(header.next_payload, body, limit=_LIMIT)
        for node in self.nodes.values():
            for spi in (header.spi_i, header.spi_r):
                keys = node.engine.host.sas[spi].keys if spi in node.engine.host.sas else None
                if keys is not None:
                    cipher = keys.cipher(initiator=header.initiator)
                    return open_sk(packet.data, header, cipher, limit=_LIMIT)
        raise AssertionError("neither end has keys for this message")

    # -- what happened -----------------------------------------------------------------------

    def happened(self, node: Node, event: Event) -> None:
        self.stats[type(event).__name__] += 1
        self.say(node.name, f"* {event}")
        self.events[node.name].append(event)

    def of(self, name: str, kind: type[E]) -> list[E]:
        """The events of one kind at one end, oldest first."""
        return [event for event in self.events[name] if isinstance(event, kind)]

    def states(self, name: str) -> list[str]:
        """The states of the IKE SAs at one end."""
        return sorted(sa.state.lower() for sa in self.nodes[name].engine.snapshot())

    def children(self, name: str) -> list[tuple[str, str]]:
        """(name, state) of the children at one end, of all IKE SAs."""
        return sorted(
            (child.name, child.state.lower())
            for sa in self.nodes[name].engine.snapshot()
            for child in sa.children
        )

    def keep_promises(self) -> None:
        """A test says itself what it promises."""
