"""The cluster side of a gateway: who the others are, which peers are ours, and telling everybody.

Everything that is decided is decided in ``membership``; here are the clock, the tasks and the
files. The gateway proper follows ``source``, which gives the tunnels that are ours, with the others
as standbys, and nothing before this gateway has joined.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ipsec_api.cluster import MESH_KEY_PATH, MESH_PORT
from ipsec_api.ownership import DEFAULT_GROUP, Assignment
from ipsec_api.tunnel import TunnelConfig
from ipsec_gateway.cluster.api import Api
from ipsec_gateway.cluster.apistatus import ApiStatusSink
from ipsec_gateway.cluster.claims import claim_of, remote_subnets, tolerant
from ipsec_gateway.cluster.giveup import GiveUp
from ipsec_gateway.cluster.leases import Leases, Mine
from ipsec_gateway.cluster.membership import Claim, Decision, LeaseFacts, Membership
from ipsec_gateway.cluster.memory import Memory
from ipsec_gateway.cluster.meshclient import MeshClient
from ipsec_gateway.cluster.meshkey import MeshKey
from ipsec_gateway.cluster.meshline import Line, digest_of
from ipsec_gateway.cluster.meshserver import MeshServer
from ipsec_gateway.cluster.source import TunnelSource
from ipsec_gateway.lastgood import InForce, Key

log = logging.getLogger("ipsec_gateway")

#: Seconds between two looks at who lives.
TICK: Final = 0.25
#: Seconds that a hand-over may take.
DRAIN: Final = 3.0
#: The digest of a gateway that does not know yet what it owns, and so says nothing about it: to own
#: nothing would be heard as letting everything go.
_NOTHING_YET: Final = "0"


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Who and where this gateway is. ``addresses`` are the node's, the preferred one first."""

    node: str
    addresses: tuple[str, ...]
    namespace: str
    group: str = DEFAULT_GROUP
    mesh_key: Path = Path(MESH_KEY_PATH)
    mesh_port: int = MESH_PORT
    #: Where what is known is kept for the next life; None: nowhere.
    memory: Path | None = None


class Cluster:
    """``source`` is what the gateway follows: it gives what is ours. ``clock`` gives wall-clock
    time in RFC 3339."""

    def __init__(
        self,
        options: ClusterOptions,
        api: Api,
        *,
        clock: Callable[[], str],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.options: Final = options
        self._now: Final = loop.time
        self._clock: Final = clock
        self._api: Final = api
        self._memory: Final = Memory(options.memory)
        known = self._memory.read()
        self.membership: Final = Membership(
            options.node, self._now(), group=options.group, held=known.held
        )
        self.membership.known(known.gateways, self._now())
        self.source: Final = TunnelSource(
            api,
            options.namespace,
            known=known.tunnels,
            held=lambda: self.held,
            on_tunnels=self._tunnels,
            on_contact=self._contact,
        )
        self.leases: Final = Leases(
            api,
            options.namespace,
            Mine(options.node, options.addresses, options.group),
            on_list=self._leases,
            on_lease=self._lease,
            on_contact=self._contact,
        )
        key = MeshKey(options.mesh_key)
        self.server: Final = MeshServer(key, self._line)
        self.client: Final = MeshClient(key, options.mesh_port, self._heard)
        self.statuses: Final = ApiStatusSink(api, self._uid)
        self._incarnation: Final = secrets.token_hex(8)
        self._seq = 0
        self._claims: dict[str, Claim] = {}
        self._decision = Decision(self._held(), frozenset(), frozenset(), {})
        self._seen: tuple[object, ...] = ()
        self._owned: dict[str, tuple[str, ...]] = {}
        self._use: frozenset[str] = frozenset()
        self._digest = digest_of({})
        self._tick: Final = asyncio.Event()
        self._keep_due = False
        self._drained = False
        self._giveup: Final = GiveUp()
        self._verdicts: dict[str, bool | None] = {}
        self._published: dict[Key, tuple[str, dict[str, Any]]] = {}
        self._uids: dict[Key, str] = {}
        #: Wall-clock time of the last take-over of each peer that we hold.
        self.failovers: dict[str, str] = {}
        #: How often a peer was taken over from another gateway, for metrics.
        self.takeovers = 0
        self._tasks: list[asyncio.Task[None]] = []
        #: Whether we know which tunnels there are; before, nothing can be decided.
        self._informed = bool(known.tunnels)
        self._claim(self.source.tunnels)
        self._own()

    # What the gateway asks.

    @property
    def held(self) -> frozenset[str]:
        """Keys of the peers that are ours."""
        return self._decision.held

    def assignment(self, peer: str) -> Assignment:
        """Who owns it and who would."""
        return self._decision.assignments.get(peer, Assignment())

    def publish(self, changes: Mapping[Key, dict[str, Any] | None], held: InForce) -> None:
        """Statuses of what we hold; what is not in ``held`` any more is another one's to write."""
        owners = {Key.ref(p.source): t.key for t in held.tunnels for p in t.policies}
        owners.update({Key.ref(t.source): t.key for t in held.tunnels})
        for key, status in changes.items():
            peer = owners.get(key)
            if status is None or peer is None:
                self._published.pop(key, None)
                self.statuses.drop(key)
                continue
            self._published[key] = peer, status
            self._put(key)

    def _put(self, key: Key) -> None:
        """Write it, or leave it to the owner. It is kept: the peer may be ours again before the
        gateway has let go of it, and then nothing of it has changed."""
        peer, status = self._published[key]
        if peer not in self.held:
            self.statuses.drop(key)
            return
        more = self._of_peer(peer) if key.kind == "IPsecPeer" else {}
        self.statuses.put(key, {**status, **more})

    def _of_peer(self, peer: str) -> dict[str, Any]:
        found: dict[str, Any] = {"activeGateway": self.options.node}
        standbys = self.assignment(peer).standbys
        if standbys:
            found["standbyGateways"] = list(standbys[:16])
        if peer in self.failovers:
            found["lastFailover"] = self.failovers[peer]
        return found

    def probed(self, verdicts: Mapping[str, bool | None]) -> None:
        """What the probes of our peers have come to; None: nothing that counts."""
        self._verdicts = {peer: ok for peer, ok in verdicts.items() if peer in self.held}
        self._tire()

    def _tire(self) -> None:
        ours = {peer: ok for peer, ok in self._verdicts.items() if peer in self.held}
        self.give_up(self._giveup.update(ours, self._claims, self._now()))

    def give_up(self, peers: frozenset[str]) -> None:
        """We cannot forward for exactly these, of those that we hold or have held."""
        if peers != self.membership.gives_up:
            self.membership.gives_up = peers
            self.membership.epoch += 1
            self._tick.set()
            self.server.kick()

    def view(self) -> dict[str, Any]:
        """For /status."""
        now = self._now()
        member = self.membership
        return {
            "gateway": self.options.node,
            "draining": member.draining,
            "joined": member.joined(now),
            "api": member.api(now),
            "live": sorted(member.live(now)),
            "held": sorted(self.held),
            "givesUp": sorted(member.gives_up),
            "silent": dict(sorted(self.client.troubles.items())),
            "meshLines": dict(self.client.lines),
        }

    # The course of things.

    async def open(self) -> None:
        """Begin to serve the mesh. Raises OSError where the port cannot be bound."""
        await self.server.open(self.options.addresses, self.options.mesh_port)
        work = (
            self._decide_forever(),
            self.leases.renew(),
            self.leases.reflector.run(),
            self.leases.follow_node(self._labels),
            self.statuses.run(),
        )
        self._tasks = [asyncio.create_task(each) for each in work]

    @property
    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        """None of them ends by itself."""
        return tuple(self._tasks)

    async def close(self) -> None:
        """The end. What is held is left to a next life, if one comes soon."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()
        await self.server.close()
        await self._api.close()

    def forget(self) -> None:
        """No next life is to go on with anything."""
        self._memory.forget()

    async def drain(self) -> None:
        """Hand everything over; returns when that is done or ``DRAIN`` has passed. What nobody
        else can take stays."""
        log.info("draining: %d peers are handed over", len(self.held))
        self.membership.draining = self.leases.mine.draining = True
        self.membership.epoch += 1
        self.leases.hurry()
        self.server.kick()
        self._tick.set()
        deadline = self._now() + DRAIN
        while self._now() < deadline:
            await asyncio.sleep(0.05)
            if all(self.assignment(peer).owner is None for peer in self.held):
                break
        self._drained = True
        self._memory.alive(self._held(), drained=True)
        log.info("drained: %d peers stay", len(self.held))

    async def _decide_forever(self) -> None:
        beat = 0.0
        while True:
            self._decide()
            if self._now() >= beat:
                beat = self._now() + 1.0
                self._tire()
                self._memory.alive(self._held(), drained=self._drained)
                if self._keep_due:
                    self._keep_due = False
                    self._remember()
            try:
                await asyncio.wait_for(self._tick.wait(), TICK)
            except TimeoutError:
                continue
            finally:
                self._tick.clear()

    def _decide(self) -> None:
        if not self._informed:
            return
        now, member = self._now(), self.membership
        patiences = sorted({claim.patience for claim in self._claims.values()} | {6.0})
        lives = tuple(frozenset(member.live(now, patience)) for patience in patiences)
        seen = (member.epoch, lives, member.api(now))
        if seen == self._seen and not member.unsettled:
            return
        self._seen = seen
        before = self._decision
        self._decision = after = member.decide(self._claims, now)
        self.client.follow(
            {n: o.lease.addresses for n, o in member.others.items() if o.lease is not None}
        )
        for peer in after.taken:
            self._taken(peer, before.assignments.get(peer, Assignment()))
        for peer in after.dropped:
            self.failovers.pop(peer, None)
            owner = after.assignments.get(peer, Assignment()).owner
            log.info("%s: %s", peer, f"handed over to {owner}" if owner else "let go")
        if after.held != before.held:
            self._own()
            self.server.kick()
            self._memory.alive(after.held, drained=self._drained)
        if not self.source.released.is_set() and member.joined(now):
            log.info("joined: %s", ", ".join(sorted(member.live(now))))
            self.source.released.set()
        for key, (peer, _) in self._published.items():
            moved = (peer in after.held) != (peer in before.held)
            if moved or after.assignments.get(peer) != before.assignments.get(peer):
                self._put(key)
        if after.held != before.held:
            self.source.poke()

    def _taken(self, peer: str, before: Assignment) -> None:
        others = self.membership.others
        previous = [n for n, o in others.items() if peer in o.owned]
        if previous or before.owner not in (None, self.options.node):
            self.failovers[peer] = self._clock()
            self.takeovers += 1
        log.info("%s: taken%s", peer, f" over from {', '.join(previous)}" if previous else "")

    def _own(self) -> None:
        """What we tell of what we hold."""
        held = {t.key: t for t in self.source.tunnels if t.key in self.held}
        self._owned = {key: remote_subnets(tunnel) for key, tunnel in held.items()}
        self._use = frozenset(key for key, tunnel in held.items() if tolerant(tunnel))
        self._digest = digest_of({**self._owned, "use": tuple(self._use)})

    def _line(self, told: str) -> Line:
        self._seq += 1
        line = Line(
            gateway=self.options.node,
            incarnation=self._incarnation,
            seq=self._seq,
            draining=self.membership.draining,
            gives_up=self.membership.gives_up,
            digest=self._digest if self._informed else _NOTHING_YET,
        )
        if line.digest in (told, _NOTHING_YET):
            return line
        now, held = self._now(), self.membership.held
        ages = {peer: now - held.get(peer, now) for peer in self._owned}
        return replace(line, owned=self._owned, ages=ages, use=self._use)

    # What comes in.

    def _contact(self) -> None:
        self.membership.heard_api(self._now())

    def _heard(self, line: Line) -> bool:
        epoch = self.membership.epoch
        fresh = self.membership.line(line, self._now())
        if self.membership.epoch != epoch:
            self._tick.set()
        return fresh

    def _leases(self, found: Mapping[str, LeaseFacts]) -> None:
        self.membership.leases(found, self._now())
        self._keep_due = True
        self._tick.set()

    def _lease(self, node: str, facts: LeaseFacts | None) -> None:
        epoch = self.membership.epoch
        self.membership.lease(node, facts, self._now())
        if self.membership.epoch != epoch:
            self._keep_due = True
            self._tick.set()

    def _labels(self) -> None:
        self.membership.labels = self.leases.mine.labels
        self.membership.epoch += 1
        self._tick.set()

    def _tunnels(self, _: Mapping[str, bytes]) -> None:
        self._informed = True
        self._claim(self.source.tunnels)
        self._keep_due = True
        self._own()
        self.server.kick()
        self._tick.set()

    def _claim(self, tunnels: tuple[TunnelConfig, ...]) -> None:
        self._claims = {tunnel.key: claim_of(tunnel) for tunnel in tunnels}
        refs = (r for t in tunnels for r in (t.source, *(p.source for p in t.policies)))
        before, self._uids = self._uids, {Key.ref(ref): ref.uid for ref in refs}
        for key in self._published:
            # Another object of the same name has no status yet, though nothing else has changed.
            if self._uids.get(key, "") != before.get(key, ""):
                self._put(key)
        self.membership.epoch += 1

    def _held(self) -> frozenset[str]:
        return frozenset(self.membership.held)

    def _remember(self) -> None:
        gateways = {n: o.lease for n, o in self.membership.others.items() if o.lease is not None}
        self._memory.keep(self.source.texts, gateways)

    def _uid(self, key: Key) -> str:
        return self._uids.get(key, "")
