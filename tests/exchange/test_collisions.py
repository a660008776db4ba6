"""Rekeying, deleting, and both at once: RFC 7296 2.8 and 2.25, message by message.

Left is the initiator of the first IKE SA; arrows to the right are its messages. What an exchange
leaves behind is looked at when nothing is under way any more: one child, the same at both ends.
"""

from __future__ import annotations

from typing import Any

import pytest

from ipsec_ike.config import Lifetime
from ipsec_ike.events import (
    ChildSaDown,
    ChildSaRekeyed,
    ChildSaUp,
    IkeSaDown,
    IkeSaRekeyed,
    PeerMoved,
)
from ipsec_ike.inputs import Expire
from ipsec_ike.numbers import ExchangeType, NotifyType
from ipsec_ike.wire.payloads import DeletePayload, NotifyPayload
from ipsec_lab.simnet_check import owned, same_ike_sas, twins
from ipsec_lab.simnet_network import Packet
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import notified
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm

CREATE = ExchangeType.CREATE_CHILD_SA
INFO = ExchangeType.INFORMATIONAL

#: Longer than the inbound SA of a deleted child is kept for stragglers.
GRACE = 6.0


def up(**changes: Any) -> Pair:
    """Two gateways with an IKE SA and a child, nothing under way."""
    pair = Pair(calm(**changes))
    pair.start()
    pair.flow()
    assert pair.children(LEFT) == pair.children(RIGHT) == [("net0", "installed")]
    return pair


def spi(pair: Pair, name: str) -> int:
    """The inbound SPI of the only, or else the newest child at one end."""
    (sa,) = pair.nodes[name].engine.snapshot()
    return sa.children[-1].spi_in


def rekey_child(pair: Pair, name: str) -> None:
    """Start to rekey the only child."""
    spi_in = spi(pair, name)
    pair.tell(name, lambda engine, now: engine.rekey_child(spi_in, now))


def rekey_ike(pair: Pair, name: str) -> None:
    """Start to rekey the IKE SA."""
    peer = pair.nodes[name].config.name
    pair.tell(name, lambda engine, now: engine.rekey_ike(peer, now))


def delete_child(pair: Pair, name: str) -> None:
    """The hard limit of the only child."""
    sa = pair.nodes[name].dataplane.inbound[spi(pair, name)].id
    pair.tell(name, lambda engine, now: engine.expire(Expire(sa, hard=True), now))


def terminate(pair: Pair, name: str) -> None:
    """End the IKE SA."""
    peer = pair.nodes[name].config.name
    pair.tell(name, lambda engine, now: engine.terminate(peer, now))


def refusals(pair: Pair, packet: Packet) -> list[int]:
    """The error notifications in a message."""
    return [kind for kind in notified(pair.read(packet)) if kind < 16384]


def assert_at_rest(pair: Pair, *, children: int = 1) -> None:
    """When all is over both ends have the same IKE SA and children, and nothing else."""
    pair.flow()
    pair.sleep(GRACE)
    assert pair.states(LEFT) == pair.states(RIGHT) == ["established"]
    expected = [(f"net{number}", "installed") for number in range(children)]
    assert pair.children(LEFT) == pair.children(RIGHT) == expected
    findings = [
        *same_ike_sas(pair.left.engine, pair.right.engine),
        *twins(pair.left.dataplane, pair.right.dataplane),
        *owned(pair.left.engine, pair.left.dataplane),
        *owned(pair.right.engine, pair.right.dataplane),
    ]
    assert findings == []


def assert_passes(pair: Pair) -> None:
    """A packet gets through in both directions, now."""
    for node in (pair.left, pair.right):
        sending = node.dataplane.sending(node.config.children[0].reqid)
        assert sending is not None
        assert sending.id.spi in node.other.dataplane.inbound


class TestRekeyOfAChild:
    @pytest.mark.parametrize("pfs", [False, True])
    @pytest.mark.parametrize("who", [LEFT, RIGHT])
    def test_make_before_break(self, who: str, pfs: bool) -> None:
        pair = up(pfs=pfs)
        other = RIGHT if who == LEFT else LEFT
        first, second = pair.nodes[who].dataplane, pair.nodes[other].dataplane
        old = set(first.inbound), set(second.inbound)
        rekey_child(pair, who)
        # SK { N(REKEY_SA), SA, Ni, [KEi], TSi, TSr } -->
        request = pair.passes(who, CREATE)
        assert notified(pair.read(request))[0] == NotifyType.REKEY_SA
        assert len(second.inbound) == 2
        assert {sa.id.spi for sa in second.all_outbound} == old[0]  # it sends on the old one
        assert_passes(pair)
        # <-- SK { SA, Nr, [KEr], TSi, TSr }
        pair.passes(other, CREATE)
        assert len(first.inbound) == 2
        assert not {sa.id.spi for sa in first.all_outbound} & old[1]
        assert_passes(pair)
        # SK { D(old) } -->
        (delete,) = pair.read(pair.passes(who, INFO))
        assert delete == DeletePayload(3, (next(iter(old[0])).to_bytes(4),))
        assert not {sa.id.spi for sa in second.all_outbound} & old[0]
        assert_passes(pair)
        # <-- SK { D(old) }
        (delete,) = pair.read(pair.passes(other, INFO))
        assert delete == DeletePayload(3, (next(iter(old[1])).to_bytes(4),))
        assert_passes(pair)
        assert_at_rest(pair)
        for name in (LEFT, RIGHT):
            assert len(pair.of(name, ChildSaRekeyed)) == 1
            assert pair.of(name, ChildSaDown) == []

    def test_soft_limit(self) -> None:
        pair = up(child_lifetime=60.0)
        pair.sleep(45.0)  # the soft limit is after 30-42 seconds
        assert pair.of(LEFT, ChildSaRekeyed)
        assert pair.of(RIGHT, ChildSaRekeyed)
        assert pair.of(LEFT, ChildSaDown) == pair.of(RIGHT, ChildSaDown) == []
        assert_at_rest(pair)

    @pytest.mark.parametrize("order", [(LEFT, RIGHT), (RIGHT, LEFT)])
    def test_both_at_once(self, order: tuple[str, str]) -> None:
        """2.8.1: four nonces; the exchange with the lowest one was in vain."""
        for seed in range(4):
            pair = up(seed=seed)
            rekey_child(pair, LEFT)
            rekey_child(pair, RIGHT)
            # SK { N(REKEY_SA), ... } -->    <-- SK { N(REKEY_SA), ... }
            for name in order:
                assert refusals(pair, pair.passes(name, CREATE)) == []
            # <-- SK { SA, ... }    SK { SA, ... } -->
            for name in order:
                assert refusals(pair, pair.passes(name, CREATE)) == []
            assert_passes(pair)
            # each deletes: the loser what it created, the winner the old one
            assert pair.waiting(LEFT)[0].exchange == pair.waiting(RIGHT)[0].exchange == INFO
            assert_at_rest(pair)
            assert pair.of(LEFT, ChildSaDown) == pair.of(RIGHT, ChildSaDown) == []

    def test_late_request(self) -> None:
        """2.25.1: left's rekey is complete when right's request for the same child arrives."""
        pair = up()
        rekey_child(pair, LEFT)
        rekey_child(pair, RIGHT)
        pair.passes(LEFT, CREATE)
        late = pair.take(RIGHT, CREATE)
        assert not Pair.is_response(late)
        pair.passes(RIGHT, CREATE)
        # <-- SK { N(REKEY_SA), ... }  while left is deleting the old child
        pair.deliver(late)
        pair.passes(LEFT, INFO)
        answer = pair.passes(LEFT, CREATE)
        assert refusals(pair, answer) == [NotifyType.TEMPORARY_FAILURE]
        assert_at_rest(pair)
        assert pair.of(LEFT, ChildSaDown) == pair.of(RIGHT, ChildSaDown) == []

    def test_of_one_that_is_gone(self) -> None:
        """2.25.1: CHILD_SA_NOT_FOUND; right, which wants the child, sets up a new one."""
        pair = up()
        rekey_child(pair, RIGHT)
        request = pair.take(RIGHT, CREATE)
        # left deletes the child; right sees the Delete before its own request arrives
        delete_child(pair, LEFT)
        pair.passes(LEFT, INFO)
        pair.passes(RIGHT, INFO)
        pair.deliver(request)
        answer = pair.take(LEFT, CREATE)
        while not Pair.is_response(answer):
            pair.deliver(answer)
            answer = pair.take(LEFT, CREATE)
        assert refusals(pair, answer) == [NotifyType.CHILD_SA_NOT_FOUND]
        pair.deliver(answer)
        assert_at_rest(pair)

    def test_against_a_delete(self) -> None:
        """2.25.1: left rekeys while right deletes; right answers TEMPORARY_FAILURE, left the
        Delete as always."""
        pair = up()
        rekey_child(pair, LEFT)
        delete_child(pair, RIGHT)
        # SK { N(REKEY_SA), ... } -->    <-- SK { D }
        pair.passes(LEFT, CREATE)
        delete = pair.take(RIGHT, INFO)
        answer = pair.take(RIGHT, CREATE)
        assert refusals(pair, answer) == [NotifyType.TEMPORARY_FAILURE]
        pair.deliver(delete)
        (reply,) = pair.read(pair.take(LEFT, INFO))
        assert isinstance(reply, DeletePayload)
        pair.deliver(answer)
        pair.sleep(10.0)
        assert_at_rest(pair)

    def test_delete_against_delete(self) -> None:
        """1.4.1: both delete the same child: neither answers with what it has asked for itself."""
        pair = up()
        delete_child(pair, LEFT)
        delete_child(pair, RIGHT)
        one, other = pair.passes(LEFT, INFO), pair.passes(RIGHT, INFO)
        assert isinstance(pair.read(one)[0], DeletePayload)
        assert isinstance(pair.read(other)[0], DeletePayload)
        assert pair.read(pair.passes(RIGHT, INFO)) == []
        assert pair.read(pair.passes(LEFT, INFO)) == []
        pair.sleep(10.0)
        assert_at_rest(pair)  # it is wanted: left has set it up again

    def test_answer_lost(self) -> None:
        """The answer is repeated octet by octet, and nothing is made twice."""
        pair = up()
        rekey_child(pair, LEFT)
        pair.passes(LEFT, CREATE)
        answer = pair.drops(RIGHT, CREATE)
        pair.run_until(pair.now + 0.6)
        pair.passes(LEFT, CREATE)
        assert pair.passes(RIGHT, CREATE).data == answer.data
        assert_at_rest(pair)

    def test_peer_vanishes(self) -> None:
        """No answer at all: the old child stays until the IKE SA is given up."""
        pair = up()
        rekey_child(pair, LEFT)
        pair.sleep(2.0, deaf=True)
        assert_passes(pair)
        pair.sleep(60.0, deaf=True)
        assert pair.of(LEFT, IkeSaDown)


class TestStragglers:
    def test_esp_in_flight_when_its_child_is_deleted(self) -> None:
        """The inbound SA stays for packets on their way, whatever timers it had before: here the
        soft limit of the old child comes half a second after the child was replaced."""
        pair = Pair(calm())
        pair.change_children(RIGHT, lifetime=Lifetime(seconds=60.0, margin=0.3, jitter=0.0))
        pair.start()
        pair.flow()
        pair.sleep(60.0 * 0.7 - 0.5)
        old = set(pair.right.dataplane.inbound)
        rekey_child(pair, LEFT)
        pair.flow()
        pair.run_until(pair.now + 2.0)
        assert old <= set(pair.right.dataplane.inbound)
        pair.sleep(GRACE)
        assert not old & set(pair.right.dataplane.inbound)

    def test_deleted_before_the_answer_that_created_it_arrives(self) -> None:
        """No sequence of messages leaves an SA that neither side will delete."""
        pair = Pair(calm(on_traffic=True, children=2))
        pair.start()
        pair.left.ping("net0")
        pair.flow()
        pair.left.ping("net1")
        # SK { SA, Ni, TSi, TSr } -->    x-- SK { SA, Nr, TSi, TSr }
        pair.passes(LEFT, CREATE)
        pair.drops(RIGHT, CREATE)
        # <-- SK { D }   of the child that left does not have yet    SK { } -->
        delete_child(pair, RIGHT)
        pair.passes(RIGHT, INFO)
        pair.passes(LEFT, INFO)
        # the request again -->    <-- its answer again
        pair.run_until(pair.now + 0.6)
        pair.passes(LEFT, CREATE)
        pair.passes(RIGHT, CREATE)
        pair.flow()
        pair.sleep(2 * GRACE)
        assert list(twins(pair.left.dataplane, pair.right.dataplane)) == []
        assert pair.children(LEFT) == pair.children(RIGHT)

    def test_the_peer_moves_during_a_collision(self) -> None:
        """2.8.1 and 2.23: the children follow the peer also from the old IKE SA to the new one."""
        pair = up(nat=True)
        assert pair.nat is not None
        rekey_ike(pair, LEFT)
        rekey_ike(pair, RIGHT)
        # SK { SA, Ni, KEi } -->    <-- SK { SA, Nr, KEr }, while right's own request is lost
        pair.passes(LEFT, CREATE)
        pair.drops(RIGHT, CREATE)
        pair.passes(RIGHT, CREATE)
        # SK { D } --x    and again, from another port -->
        pair.drops(LEFT, INFO)
        pair.nat.rebind()
        pair.run_until(pair.now + 0.6)
        pair.passes(LEFT, INFO)
        assert pair.of(RIGHT, PeerMoved)
        pair.flow()
        # right knows where left is now
        rekey_child(pair, RIGHT)
        pair.flow()
        assert len(pair.of(LEFT, ChildSaRekeyed)) == 1
        pair.sleep(90.0)
        assert_at_rest(pair)

    def test_a_child_that_both_create(self) -> None:
        """Two equal children are one too many, also if only one side can see that, and if one of
        them is rekeyed meanwhile."""
        for seed in range(4):
            pair = Pair(calm(seed=seed, on_traffic=True, both_initiate=True, children=2))
            pair.start()
            pair.left.ping("net0")
            pair.flow()
            pair.sleep(60.0)
            for node in (pair.left, pair.right):
                node.ping("net1")
            # SK { SA, ... } --x    <-- SK { SA, ... }  is answered, so right sees no collision
            pair.drops(LEFT, CREATE)
            pair.passes(RIGHT, CREATE)
            pair.passes(LEFT, CREATE)
            pair.sleep(2.0)
            for inbound in tuple(pair.left.dataplane.inbound):
                pair.tell(LEFT, lambda engine, now, spi=inbound: engine.rekey_child(spi, now))
                pair.flow()
            pair.sleep(90.0)
            assert_at_rest(pair, children=2)


class TestRekeyOfTheIkeSa:
    @pytest.mark.parametrize("who", [LEFT, RIGHT])
    def test_children_move(self, who: str) -> None:
        pair = up()
        other = RIGHT if who == LEFT else LEFT
        before = pair.children(LEFT), set(pair.left.dataplane.inbound)
        (old,) = pair.left.engine.snapshot()
        rekey_ike(pair, who)
        # SK { SA, Ni, KEi } -->   <-- SK { SA, Nr, KEr }   SK { D } -->   <-- SK { }
        pair.passes(who, CREATE)
        pair.passes(other, CREATE)
        pair.passes(who, INFO)
        pair.passes(other, INFO)
        pair.sleep(60.0)
        assert (pair.children(LEFT), set(pair.left.dataplane.inbound)) == before
        (new,) = pair.left.engine.snapshot()
        assert (new.spi_i, new.spi_r) != (old.spi_i, old.spi_r)
        assert new.initiator is (who == LEFT)
        assert_at_rest(pair)
        for name in (LEFT, RIGHT):
            assert len(pair.of(name, IkeSaRekeyed)) == 1
            assert pair.of(name, IkeSaDown) == []
            assert len(pair.of(name, ChildSaUp)) == 1

    @pytest.mark.parametrize("order", [(LEFT, RIGHT), (RIGHT, LEFT)])
    def test_both_at_once(self, order: tuple[str, str]) -> None:
        """2.8.1 for IKE SAs: the children go to the one that stays."""
        for seed in range(4):
            pair = up(seed=seed)
            rekey_ike(pair, LEFT)
            rekey_ike(pair, RIGHT)
            for name in order:
                assert refusals(pair, pair.passes(name, CREATE)) == []
            for name in order:
                assert refusals(pair, pair.passes(name, CREATE)) == []
            pair.flow()
            pair.sleep(60.0)
            assert_at_rest(pair)
            assert pair.of(LEFT, IkeSaDown) == pair.of(RIGHT, IkeSaDown) == []
            # and it works
            rekey_child(pair, LEFT)
            assert_at_rest(pair)

    def test_late_request(self) -> None:
        """2.25.2: right's request arrives when left's rekey is complete."""
        pair = up()
        rekey_ike(pair, LEFT)
        rekey_ike(pair, RIGHT)
        pair.passes(LEFT, CREATE)
        late = pair.take(RIGHT, CREATE)
        pair.passes(RIGHT, CREATE)
        pair.deliver(late)
        pair.flow()
        pair.sleep(60.0)
        assert_at_rest(pair)
        assert pair.of(LEFT, IkeSaDown) == pair.of(RIGHT, IkeSaDown) == []

    def test_while_a_child_is_rekeyed(self) -> None:
        """2.25.2: TEMPORARY_FAILURE for a rekey of the IKE SA while a child is under way, and
        for a child while the IKE SA is."""
        pair = up()
        rekey_child(pair, LEFT)
        rekey_ike(pair, RIGHT)
        one, other = pair.passes(LEFT, CREATE), pair.passes(RIGHT, CREATE)
        assert refusals(pair, one) == refusals(pair, other) == []
        assert refusals(pair, pair.passes(RIGHT, CREATE)) == [NotifyType.TEMPORARY_FAILURE]
        assert refusals(pair, pair.passes(LEFT, CREATE)) == [NotifyType.TEMPORARY_FAILURE]
        pair.flow()
        pair.sleep(60.0)
        assert_at_rest(pair)
        assert pair.of(LEFT, ChildSaRekeyed)
        assert pair.of(LEFT, IkeSaRekeyed)
        assert pair.of(LEFT, ChildSaDown) == pair.of(LEFT, IkeSaDown) == []

    def test_while_a_child_is_created(self) -> None:
        pair = Pair(calm(children=2))
        pair.start()
        for _ in range(2):
            pair.passes(LEFT, pair.waiting(LEFT)[0].exchange)
            pair.passes(RIGHT, pair.waiting(RIGHT)[0].exchange)
        # SK { SA, Ni, TSi, TSr } -->  is on its way
        assert pair.waiting(LEFT)[0].exchange == CREATE
        rekey_ike(pair, RIGHT)
        pair.passes(RIGHT, CREATE)
        answer = [p for name, p in pair.flying if name == LEFT and Pair.is_response(p)]
        assert refusals(pair, answer[0]) == [NotifyType.TEMPORARY_FAILURE]
        pair.flow()
        pair.sleep(60.0)
        assert pair.states(LEFT) == pair.states(RIGHT) == ["established"]
        assert pair.children(LEFT) == pair.children(RIGHT)
        assert pair.children(LEFT) == [("net0", "installed"), ("net1", "installed")]

    def test_while_a_child_is_deleted(self) -> None:
        """2.25.2: who is closing a child refuses to rekey its IKE SA for now."""
        pair = up()
        delete_child(pair, LEFT)
        rekey_ike(pair, RIGHT)
        # SK { D } --x    <-- SK { SA, Ni, KEi }    SK { N(TEMPORARY_FAILURE) } -->
        late = pair.take(LEFT, INFO)
        pair.passes(RIGHT, CREATE)
        assert refusals(pair, pair.passes(LEFT, CREATE)) == [NotifyType.TEMPORARY_FAILURE]
        pair.deliver(late)
        pair.flow()
        pair.sleep(60.0)
        assert_at_rest(pair)

    def test_against_a_delete_of_it(self) -> None:
        """2.25.2: who is asked to rekey what it is deleting answers TEMPORARY_FAILURE."""
        pair = up()
        rekey_ike(pair, LEFT)
        terminate(pair, RIGHT)
        pair.passes(LEFT, CREATE)
        answer = [p for name, p in pair.flying if name == RIGHT and Pair.is_response(p)]
        assert refusals(pair, answer[0]) == [NotifyType.TEMPORARY_FAILURE]
        pair.flow()
        pair.sleep(60.0)
        assert_at_rest(pair)  # left initiates again

    def test_delete_against_delete(self) -> None:
        pair = up()
        terminate(pair, LEFT)
        terminate(pair, RIGHT)
        pair.passes(LEFT, INFO)
        pair.passes(RIGHT, INFO)
        pair.flow()
        assert pair.left.dataplane.inbound == pair.right.dataplane.inbound == {}
        assert pair.of(LEFT, IkeSaDown)
        assert pair.of(RIGHT, IkeSaDown)

    def test_soft_limit(self) -> None:
        pair = up(ike_lifetime=40.0)
        pair.sleep(41.0)
        assert pair.of(LEFT, IkeSaRekeyed)
        assert pair.of(LEFT, IkeSaDown) == pair.of(RIGHT, IkeSaDown) == []
        pair.sleep(60.0)
        assert pair.of(LEFT, IkeSaDown) == pair.of(RIGHT, IkeSaDown) == []

    def test_message_ids_start_again(self) -> None:
        """2.18: the new IKE SA counts from 0, for the requests of both."""
        pair = up()
        rekey_ike(pair, RIGHT)
        pair.flow()
        for name, other in ((LEFT, RIGHT), (RIGHT, LEFT)):
            rekey_child(pair, name)
            assert pair.waiting(name)[0].message_id == 0
            pair.passes(name, CREATE)
            pair.passes(other, CREATE)
            assert_at_rest(pair)


def test_rekey_notifies_name_the_child() -> None:
    """1.3.3: protocol and the sender's inbound SPI."""
    pair = up()
    rekey_child(pair, LEFT)
    first = pair.read(pair.take(LEFT, CREATE))[0]
    assert first == NotifyPayload(NotifyType.REKEY_SA, b"", 3, spi(pair, LEFT).to_bytes(4))
