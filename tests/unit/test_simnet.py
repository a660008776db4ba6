"""The simulated network itself: what it checks must be able to fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipsec_ike.actions import AddSa, DeleteSa, SaSpec, UpdateSa
from ipsec_ike.config import Mode
from ipsec_ike.errors import IntegrityFailure
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.identity import Identity
from ipsec_ike.inputs import Endpoint
from ipsec_ike.numbers import ExchangeType, Protocol
from ipsec_ike.proposal import Transform
from ipsec_ike.secret import Secret
from ipsec_ike.wire.payloads import AuthPayload, IdPayload
from ipsec_lab.simnet_dataplane import Broken, KeyLedger, ModelDataplane
from ipsec_lab.simnet_network import Nat, Packet, Weather, seeded
from ipsec_lab.simnet_peer import ScriptedPeer

LEFT, RIGHT = Endpoint("192.0.2.1", 500), Endpoint("192.0.2.2", 500)


def spec(direction: Direction, spi: int, key: bytes, *, reqid: int = 1) -> SaSpec:
    """An SA that protects what left sends to right."""
    return SaSpec(
        id=SaId(direction, Protocol.ESP, spi, RIGHT.address),
        source=LEFT,
        destination=RIGHT,
        encap=False,
        reqid=reqid,
        mode=Mode.TUNNEL,
        encryption=Transform(1, 20, 128),
        encryption_key=Secret(key),
        integrity=None,
        integrity_key=Secret(b""),
        esn=False,
        replay_window=64,
        local_ts=(),
        remote_ts=(),
    )


class TestDataplane:
    def setup_method(self) -> None:
        ledger = KeyLedger()
        self.left = ModelDataplane("left", ledger)
        self.right = ModelDataplane("right", ledger)

    def add(self, spi: int, key: bytes) -> None:
        self.right.perform(AddSa(spec(Direction.IN, spi, key)))
        self.left.perform(AddSa(spec(Direction.OUT, spi, key)))

    def test_a_pair(self) -> None:
        self.add(0x1000, b"k")
        sending = self.left.sending(1)
        assert sending is not None
        assert sending.id.spi in self.right.inbound

    def test_the_newest_sends(self) -> None:
        self.add(0x1000, b"k")
        self.add(0x2000, b"l")
        assert [s.id.spi for s in self.left.all_outbound] == [0x1000, 0x2000]
        sending = self.left.sending(1)
        assert sending is not None
        assert sending.id.spi == 0x2000

    @pytest.mark.parametrize("spi", [0x1000, 0x2000])
    def test_a_key_twice(self, spi: int) -> None:
        self.add(0x1000, b"k")
        self.right.perform(DeleteSa(spec(Direction.IN, 0x1000, b"k").id))
        with pytest.raises(Broken, match="one key"):
            self.right.perform(AddSa(spec(Direction.IN, spi, b"k")))

    def test_a_key_in_both_directions(self) -> None:
        self.left.perform(AddSa(spec(Direction.IN, 0x1000, b"k")))
        with pytest.raises(Broken, match="one key"):
            self.left.perform(AddSa(spec(Direction.OUT, 0x1000, b"k")))

    def test_no_key(self) -> None:
        with pytest.raises(Broken, match="without a key"):
            self.right.perform(AddSa(spec(Direction.IN, 0x1000, b"")))

    def test_reserved_spi(self) -> None:
        with pytest.raises(Broken, match="reserved"):
            self.right.perform(AddSa(spec(Direction.IN, 255, b"k")))

    def test_one_spi_for_two(self) -> None:
        self.right.perform(AddSa(spec(Direction.IN, 0x1000, b"k")))
        with pytest.raises(Broken, match="twice"):
            self.right.perform(AddSa(spec(Direction.IN, 0x1000, b"l")))

    def test_move(self) -> None:
        self.add(0x1000, b"k")
        new = Endpoint("192.0.2.9", 4500)
        old = spec(Direction.OUT, 0x1000, b"k").id
        self.left.perform(UpdateSa(old, LEFT, new, True))
        moved = self.left.sending(1)
        assert moved is not None
        assert (moved.destination, moved.encap, moved.id.destination) == (new, True, "192.0.2.9")
        self.left.perform(DeleteSa(old))  # it is not there any more
        assert self.left.sending(1) is not None
        self.left.perform(DeleteSa(replace(old, destination="192.0.2.9")))
        assert self.left.sending(1) is None

    @pytest.mark.parametrize("direction", Direction)
    def test_move_of_nothing(self, direction: Direction) -> None:
        with pytest.raises(Broken, match="unknown"):
            self.left.perform(UpdateSa(spec(direction, 0x1000, b"k").id, LEFT, RIGHT, False))


class TestNetwork:
    def packet(self, port: int = 4500) -> Packet:
        return Packet(Endpoint("192.168.1.2", port), RIGHT, b"x")

    def nat(self) -> Nat:
        return Nat("192.168.1.2", ("203.0.113.1", "203.0.113.2"), 30.0, seeded("nat"))

    def test_nat(self) -> None:
        nat = self.nat()
        out = nat.outward(self.packet(), 0.0)
        assert out is not None
        assert out.source.address == "203.0.113.1"
        back = nat.inward(Packet(RIGHT, out.source, b"y"), 1.0)
        assert back is not None
        assert back.destination == Endpoint("192.168.1.2", 4500)
        other = nat.outward(self.packet(500), 2.0)
        assert other is not None
        assert other.source != out.source

    def test_nat_forgets(self) -> None:
        nat = self.nat()
        first = nat.outward(self.packet(), 0.0)
        assert first is not None
        assert nat.outward(self.packet(), 29.0) == first
        assert nat.inward(Packet(RIGHT, first.source, b"y"), 60.0) is None
        assert nat.outward(self.packet(), 60.0) != first

    def test_nat_rebinds(self) -> None:
        nat = self.nat()
        first = nat.outward(self.packet(), 0.0)
        assert first is not None
        nat.rebind()
        assert nat.inward(Packet(RIGHT, first.source, b"y"), 1.0) is None
        assert nat.outward(self.packet(), 1.0) != first

    def test_nat_does_not_know_esp(self) -> None:
        bare = replace(self.packet(), encap=False, spi=0x1000)
        assert self.nat().outward(bare, 0.0) is None

    def test_weather(self) -> None:
        rng = seeded("weather")
        weather = Weather(loss=0.5, duplicate=0.5, delay=1.0, jitter=0.5, straggle=0.1)
        arrivals = [weather.arrivals(rng) for _ in range(1000)]
        assert {len(times) for times in arrivals} == {0, 1, 2}
        times = [when for some in arrivals for when in some]
        assert 600 < len(times) < 900
        assert min(times) >= 1.0
        assert 2.0 < max(times) <= 6.0


def test_scripted_peers_understand_each_other() -> None:
    rng = seeded("peers").randbytes
    left = ScriptedPeer(Identity.fqdn("left"), b"psk", rng, initiator=True)
    right = ScriptedPeer(Identity.fqdn("right"), b"psk", rng, initiator=False)
    right.take_init(left.init())
    left.take_init(right.init())
    message = left.protected(ExchangeType.IKE_AUTH, 1, left.auth(), padding=255)
    ident, auth = right.read(message)
    assert isinstance(ident, IdPayload)
    assert isinstance(auth, AuthPayload)
    assert str(ident.identity) == "left"
    answer = right.protected(ExchangeType.IKE_AUTH, 1, [], response=True)
    assert left.read(answer) == []
    with pytest.raises(IntegrityFailure):
        right.read(answer)
