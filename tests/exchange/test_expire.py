"""What follows when the data plane has counted an SA to its limit, and which child that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ipsec_gateway.ipsec.sa import OutboundSa
from ipsec_gateway.ipsec.shared import SharedState
from ipsec_ike.actions import SaSpec
from ipsec_ike.config import Lifetime
from ipsec_ike.events import ChildSaDown, ChildSaRekeyed, ChildSaUp, Reason
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Expire, SaFailed
from ipsec_ike.numbers import ExchangeType, Protocol
from ipsec_lab.simnet_check import twins
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm
from ipsec_lab.simnet_script import Script, errors

CREATE = ExchangeType.CREATE_CHILD_SA


@pytest.fixture
def state() -> Iterator[SharedState]:
    state = SharedState.create()
    yield state
    state.close()


def limited(**limits: int) -> Pair:
    """Two gateways with a child whose SAs carry so much and no more."""
    pair = Pair(calm())
    for name in (LEFT, RIGHT):
        pair.change_children(name, lifetime=Lifetime(margin=0.25, jitter=0.0, **limits))
    pair.start()
    pair.flow()
    return pair


def sending(pair: Pair, name: str) -> SaSpec:
    (spec,) = pair.nodes[name].dataplane.all_outbound
    return spec


def carry(pair: Pair, name: str, state: SharedState, packets: int) -> None:
    """The SA that is in use at one end protects packets of 100 octets; it reports its limits."""

    def report(expire: Expire) -> None:
        pair.tell(name, lambda engine, now: engine.expire(expire, now))

    sa = OutboundSa(sending(pair, name), 0, state, report)
    for number in range(packets):
        if not sa.expired:
            sa.count(1, 100, number)


@pytest.mark.parametrize("limits", [{"bytes": 1000}, {"packets": 10}])
@pytest.mark.parametrize("who", [LEFT, RIGHT])
def test_the_hard_limit(limits: dict[str, int], who: str, state: SharedState) -> None:
    """The child goes, with its cause, and is set up anew at once."""
    pair = limited(**limits)
    old = sending(pair, who)
    with pytest.MonkeyPatch.context() as patch:
        # The soft limit passes unseen.
        patch.setattr(OutboundSa, "soften", lambda _: None)
        carry(pair, who, state, 9)
        assert sending(pair, who) is old
        state.words[:] = memoryview(bytes(8 * len(state.words))).cast("Q")
        carry(pair, who, state, 10)
    assert pair.nodes[who].dataplane.all_outbound == []
    (down,) = pair.of(who, ChildSaDown)
    assert (down.reason, down.child) == (Reason.EXPIRED, "net0")
    assert "hard" in down.message
    pair.flow()
    pair.sleep(10.0)
    assert pair.children(LEFT) == pair.children(RIGHT) == [("net0", "installed")]
    assert sending(pair, who).id != old.id
    assert len(pair.of(LEFT, ChildSaUp)) == 2
    assert list(twins(pair.left.dataplane, pair.right.dataplane)) == []


@pytest.mark.parametrize("limits", [{"bytes": 1000}, {"packets": 10}])
@pytest.mark.parametrize("who", [LEFT, RIGHT])
def test_the_soft_limit(limits: dict[str, int], who: str, state: SharedState) -> None:
    """The child is replaced before its end."""
    pair = limited(**limits)
    carry(pair, who, state, 8)
    assert pair.waiting(who)[0].exchange == CREATE
    pair.flow()
    for name in (LEFT, RIGHT):
        assert len(pair.of(name, ChildSaRekeyed)) == 1
        assert pair.of(name, ChildSaDown) == []


def two_children_that_share_a_number() -> tuple[Script, int]:
    """The outbound SPI of net1 is the inbound SPI of net0; the peer chooses the former."""
    talk = Script(initiator=True, profile=calm(children=2))
    assert errors(talk.establish()) == []
    (spi,) = talk.engine.dataplane.inbound
    again = talk.peer.child(spi.to_bytes(4), "10.1.1.0/24", "10.2.1.0/24", nonce=bytes(32))
    _, answer = talk.request(CREATE, *again)
    assert errors(answer) == []
    assert talk.pair.children(RIGHT) == [("net0", "installed"), ("net1", "installed")]
    return talk, spi


def outbound(spi: int) -> SaId:
    return SaId(Direction.OUT, Protocol.ESP, spi, calm().address(LEFT))


def test_the_direction_tells_which_child_ends() -> None:
    talk, spi = two_children_that_share_a_number()
    expire = Expire(outbound(spi), hard=True)
    talk.pair.tell(RIGHT, lambda engine, now: engine.expire(expire, now))
    assert [down.child for down in talk.pair.of(RIGHT, ChildSaDown)] == ["net1"]
    inbound = Expire(replace(expire.id, direction=Direction.IN), hard=True)
    talk.pair.tell(RIGHT, lambda engine, now: engine.expire(inbound, now))
    assert [down.child for down in talk.pair.of(RIGHT, ChildSaDown)] == ["net1", "net0"]


def test_the_direction_tells_which_child_failed() -> None:
    talk, spi = two_children_that_share_a_number()
    failed = SaFailed(outbound(spi), "no room")
    talk.pair.tell(RIGHT, lambda engine, now: engine.sa_failed(failed, now))
    assert [down.child for down in talk.pair.of(RIGHT, ChildSaDown)] == ["net1"]


def test_an_sa_that_nobody_has() -> None:
    talk, spi = two_children_that_share_a_number()
    expire = Expire(outbound(spi ^ 1), hard=True)
    talk.pair.tell(RIGHT, lambda engine, now: engine.expire(expire, now))
    assert talk.pair.of(RIGHT, ChildSaDown) == []
