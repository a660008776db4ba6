"""The simulated network with gateways whose processes end without a word and go on from their
records: `python -m ipsec_lab.simnet_crash --seed N --trace`.

A process ends at one of three moments: between two things that happen, in the middle of what it
was about to do (its records are kept, some of the actions are not performed), or before its records
are kept. The data plane stays and carries packets. The next life takes it over. What has to hold in
addition to ``simnet``:

- No two messages of one sender under one IKE SA have the same IV, unless they are the same message.
- In a gentle run traffic keeps its way over the restart.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from ipsec_ike.actions import DeleteSa, SaSpec
from ipsec_ike.config import PeerConfig
from ipsec_ike.engine import Action, Engine
from ipsec_ike.events import ChildSaRekeyed, ChildSaUp
from ipsec_ike.identifiers import SaId
from ipsec_ike.inputs import InheritedSa
from ipsec_ike.numbers import PayloadType
from ipsec_ike.wire.header import FLAG_INITIATOR, HEADER_LENGTH, Header
from ipsec_lab.simnet import main
from ipsec_lab.simnet_dataplane import Broken
from ipsec_lab.simnet_network import Packet, seeded
from ipsec_lab.simnet_profile import LEFT, Profile
from ipsec_lab.simnet_world import Node, Trace, World

#: Seconds after which SAs that the new life does not know are removed at the latest.
ORPHANS: Final = 60.0

_BETWEEN, _DURING, _BEFORE = "between", "during", "before"


class Mortal(Node):
    """A gateway that keeps records. ``records`` is its file."""

    def boot(self) -> None:
        self.down = False
        self.strike = ""
        self.records: dict[str, Any] = {}
        self.orphans: dict[SaId, int] = {}
        super().boot()
        self.engine.keep_records()

    def due(self) -> float | None:
        return None if self.down else super().due()

    def configure(self, config: PeerConfig) -> None:
        if self.down:
            self.config = config
        else:
            super().configure(config)

    def receive(self, packet: Packet) -> None:
        if not self.down:
            super().receive(packet)
        elif packet.spi and packet.spi in self.dataplane.inbound:
            self.world.stats["ESP while down"] += 1

    def drain(self) -> None:
        if self.down:
            return
        if self.strike == _BEFORE and self.engine.host.actions:
            self.engine.take_actions()
            self.die()
            return
        records = self.engine.records()
        for record in records:
            if record.data is None:
                self.records.pop(record.key, None)
            else:
                self.records[record.key] = json.loads(json.dumps(record.data))
        if self.strike == _DURING and len(self.engine.host.actions) > 1:
            actions = self.engine.take_actions()
            self.world.release()
            for action in actions[: self.world.rng.randrange(len(actions))]:
                self.perform(action)
            self.die()
            return
        super().drain()

    def perform(self, action: Action) -> None:
        super().perform(action)
        if isinstance(action, ChildSaUp | ChildSaRekeyed):
            self.sweep(action.reqid)

    # -- the end and the next life -----------------------------------------------------------------

    def die(self) -> None:
        """The process is gone."""
        self.world.say(self.name, f"! dies ({self.strike or _BETWEEN})")
        self.world.stats["deaths"] += 1
        self.down, self.strike = True, ""
        self.engine.host.actions.clear()

    def resume(self) -> None:
        """The next life of the gateway."""
        if not self.down:
            return
        self.down = False
        self.lives += 1
        rng = seeded(f"engine {self.world.profile.seed} {self.name} {self.lives}")
        self.engine = Engine(rng=rng.randbytes, limits=self.world.profile.limits(self.name))
        self.engine.keep_records()
        specs = [*self.dataplane.inbound.values(), *self.dataplane.all_outbound]
        installed = {spec.id: _inherited(spec) for spec in specs}
        resumed = self.engine.resume(self.records, [self.config], installed, self.lives, self.now)
        self.world.say(self.name, f"! resumes {resumed}")
        self.world.stats["resumed"] += resumed.ike_sas
        self.world.stats["missing"] += resumed.missing
        if resumed.unreadable:
            raise Broken(f"{self.name}: {resumed.unreadable} records cannot be read")
        self.orphans = {i: sa.reqid for i, sa in installed.items() if i not in resumed.sas}
        life = self.lives
        self.world.at(self.world.now + ORPHANS, lambda: self.sweep(None, life))
        self.drain()

    def sweep(self, reqid: int | None, life: int | None = None) -> None:
        """Remove what nobody knows: of a child that is up, or all of it."""
        if life is not None and life != self.lives:
            return
        for sa in [i for i, of in self.orphans.items() if reqid in (None, of)]:
            del self.orphans[sa]
            super().perform(DeleteSa(sa))


class MortalWorld(World):
    """Where gateways die."""

    node_type = Mortal

    def __init__(self, profile: Profile, trace: Trace | None = None) -> None:
        self._ivs: dict[tuple[bytes, bytes, bool, bytes], bytes] = {}
        super().__init__(profile, trace)
        rng = seeded(f"crash {profile.seed}")
        for _ in range(rng.randint(1, 4)):
            down = rng.uniform(0.0, 3.0) if profile.gentle else rng.choice((0.0, 1.0, 8.0, 60.0))
            when = rng.uniform(2.0, max(3.0, profile.active - down - 1.0))
            kinds = (_BETWEEN, _BEFORE) if profile.gentle else (_BETWEEN, _BEFORE, _DURING)
            self._plan(rng.choice((LEFT, "right")), rng.choice(kinds), when, down)

    def _plan(self, name: str, kind: str, when: float, down: float) -> None:
        def strike() -> None:
            node = self.nodes[name]
            assert isinstance(node, Mortal)
            if node.down or not self._ripe():
                return
            if not self.profile.gentle:
                self.release()
            if kind == _BETWEEN:
                node.die()
            else:
                node.strike = kind
            self.at(when + down, resume)

        def resume() -> None:
            node = self.nodes[name]
            assert isinstance(node, Mortal)
            node.strike = ""
            node.resume()

        self.at(when, strike)

    def _ripe(self) -> bool:
        """A handshake that is interrupted begins anew, and its other end is told so: that is no
        promise broken, but the gentle runs are too simple to know."""
        states = {sa.state for node in self.nodes.values() for sa in node.engine.snapshot()}
        return not self.profile.gentle or states == {"established"}

    def send(self, node: Node, packet: Packet) -> None:
        """Check the IV before the message goes out."""
        if packet.data:
            self._check_iv(node, packet.data)
        super().send(node, packet)

    def _check_iv(self, node: Node, data: bytes) -> None:
        header = Header.parse(data)
        if header.next_payload not in (PayloadType.SK, PayloadType.SKF):
            return
        at = HEADER_LENGTH + (4 if header.next_payload == PayloadType.SK else 8)
        key = (header.spi_i, header.spi_r, bool(header.flags & FLAG_INITIATOR), data[at : at + 8])
        if self._ivs.setdefault(key, data) != data:
            raise Broken(f"{node.name}: IV {key[3].hex()} is used for two messages")


def _inherited(spec: SaSpec) -> InheritedSa:
    return InheritedSa(spec.reqid, spec.source, spec.destination, spec.encap)


if __name__ == "__main__":
    sys.exit(main(kind=MortalWorld, module="ipsec_lab.simnet_crash", description=__doc__))
