"""Two engines back to back, without a network: what one sends the other receives, in order.

`left` is 192.0.2.1, `right` is 192.0.2.2. `Pair.run` moves messages until both are quiet;
`Pair.pass_time`
lets the clock run and fires timers. A tap can drop or keep messages.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from math import inf

import pytest

from ipsec_ike.actions import AddSa, DeleteSa, SendDatagram, UpdateSa
from ipsec_ike.config import ChildConfig, IdentityConfig, Limits, Path, PeerConfig
from ipsec_ike.engine import Action, Engine
from ipsec_ike.events import Event
from ipsec_ike.identifiers import Direction
from ipsec_ike.identity import Identity
from ipsec_ike.inputs import Datagram, Endpoint
from ipsec_ike.numbers import Encr, Esn, Group, Prf, Protocol, TransformType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector

GCM = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
PRF = Transform(TransformType.PRF, Prf.HMAC_SHA2_256)
X25519 = Transform(TransformType.KE, Group.CURVE25519)
P256 = Transform(TransformType.KE, Group.ECP_256)
ESN = Transform(TransformType.ESN, Esn.ESN)
NO_ESN = Transform(TransformType.ESN, Esn.NO_ESN)

IKE = Proposal(Protocol.IKE, (GCM, PRF, X25519, P256))
ESP = Proposal(Protocol.ESP, (GCM, X25519, P256, ESN, NO_ESN))

ADDRESS = {"left": "192.0.2.1", "right": "192.0.2.2"}
OTHER = {"left": "right", "right": "left"}
SUBNET = {"left": "10.1.{}.0/24", "right": "10.2.{}.0/24"}


def child(side: str, number: int = 0, **changes: object) -> ChildConfig:
    """Child number n joins 10.1.n.0/24 and 10.2.n.0/24."""
    config = ChildConfig(
        name=f"net{number}",
        local_ts=(TrafficSelector.network(SUBNET[side].format(number)),),
        remote_ts=(TrafficSelector.network(SUBNET[OTHER[side]].format(number)),),
        proposals=(ESP,),
        reqid=number + 1,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def peer(side: str, **changes: object) -> PeerConfig:
    """How `side` sees the other; only left initiates unless told otherwise."""
    config = PeerConfig(
        name=OTHER[side],
        identities=(
            IdentityConfig(
                name="psk",
                local_id=Identity.fqdn(side),
                remote_id=Identity.fqdn(OTHER[side]),
                psk=Secret(b"a secret that both know"),
            ),
        ),
        children=(child(side),),
        ike_proposals=(IKE,),
        paths=(Path(ADDRESS[side], ADDRESS[OTHER[side]]),),
        remote_networks=(ip_network(ADDRESS[OTHER[side]]),),
        initiate=side == "left",
    )
    return replace(config, **changes)  # type: ignore[arg-type]


Tap = Callable[[SendDatagram], SendDatagram | None]


class Side:
    """One engine with what it has done so far."""

    def __init__(self, name: str, rng: random.Random, limits: Limits | None = None) -> None:
        self.name = name
        self.address = ADDRESS[name]
        self.engine = Engine(rng=rng.randbytes, limits=limits)
        self.log: list[Action] = []
        self.outbox: list[SendDatagram] = []
        #: The data plane: SPI -> spec, by direction.
        self.sad: dict[tuple[Direction, int], AddSa] = {}
        self.keys: set[bytes] = set()

    def collect(self) -> None:
        for action in self.engine.take_actions():
            self.log.append(action)
            if isinstance(action, SendDatagram):
                self.outbox.append(action)
            elif isinstance(action, AddSa):
                sa = action.spec.id
                assert (sa.direction, sa.spi) not in self.sad
                self.sad[sa.direction, sa.spi] = action
            elif isinstance(action, DeleteSa):
                self.sad.pop((action.id.direction, action.id.spi), None)
            elif isinstance(action, UpdateSa):
                assert (action.id.direction, action.id.spi) in self.sad

    def events(self, kind: type[Event] = Event) -> list[Event]:
        return [a for a in self.log if isinstance(a, kind)]

    def spis(self, direction: Direction) -> set[int]:
        return {spi for d, spi in self.sad if d is direction}


class Pair:
    """Both sides and the clock."""

    def __init__(self, seed: int = 1, limits: Limits | None = None) -> None:
        rng = random.Random(seed)
        self.left = Side("left", rng)
        self.right = Side("right", rng, limits)
        self.now = 1000.0
        self.tap: Tap = lambda message: message

    def side(self, name: str) -> Side:
        return self.left if name == "left" else self.right

    def configure(self, left: PeerConfig | None = None, right: PeerConfig | None = None) -> None:
        self.right.engine.configure([peer("right") if right is None else right], self.now)
        self.left.engine.configure([peer("left") if left is None else left], self.now)

    def up(self, left: PeerConfig | None = None, right: PeerConfig | None = None) -> Pair:
        """Configure both and run until they are quiet."""
        self.configure(left, right)
        self.run()
        return self

    def step(self) -> bool:
        """Deliver one message of each side; False if there was none."""
        moved = False
        for side in (self.left, self.right):
            side.collect()
            if side.outbox:
                moved = True
                self.deliver(side.outbox.pop(0))
        return moved

    def deliver(self, message: SendDatagram) -> None:
        sent = self.tap(message)
        if sent is None:
            return
        target = self.left if sent.remote.address == self.left.address else self.right
        target.engine.receive(Datagram(sent.data, sent.remote, sent.local), self.now)

    def run(self) -> None:
        for _ in range(1000):
            if not self.step():
                return
        raise AssertionError("the two do not come to rest")

    def pass_time(self, seconds: float) -> None:
        """Let the clock run; messages take no time."""
        end = self.now + seconds
        while True:
            self.run()
            timers = [s.engine.next_timer() for s in (self.left, self.right)]
            when = min((t for t in timers if t is not None), default=inf)
            if when > end:
                break
            self.now = max(self.now, when)
            for side in (self.left, self.right):
                side.engine.on_timer(self.now)
        self.now = end
        self.run()

    def assert_mirrored(self) -> None:
        """What one sends on, the other receives on, with the same keys."""
        for one, other in ((self.left, self.right), (self.right, self.left)):
            for (direction, spi), add in one.sad.items():
                if direction is not Direction.OUT:
                    continue
                twin = other.sad[Direction.IN, spi].spec
                assert add.spec.encryption_key == twin.encryption_key
                assert add.spec.integrity_key == twin.integrity_key
                assert add.spec.esn == twin.esn
                assert (add.spec.local_ts, add.spec.remote_ts) == (twin.remote_ts, twin.local_ts)


def endpoint(side: str, port: int = 500) -> Endpoint:
    return Endpoint(ADDRESS[side], port)


@pytest.fixture
def pair() -> Pair:
    return Pair()


class Kit:
    """The names above, for tests: tests are no package and cannot import each other."""

    Pair = Pair
    child = staticmethod(child)
    peer = staticmethod(peer)
    endpoint = staticmethod(endpoint)
    IKE, ESP = IKE, ESP
    GCM, PRF, X25519, P256, ESN, NO_ESN = GCM, PRF, X25519, P256, ESN, NO_ESN


@pytest.fixture
def kit() -> type[Kit]:
    return Kit
