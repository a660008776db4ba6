"""One side is a message ahead of the other: what it says must neither be lost nor break anything.

Each of these was found by a seed of the simulated network. Left is the initiator of the first IKE
SA; arrows to the right are its messages.
"""

from __future__ import annotations

from dataclasses import replace

from ipsec_ike.config import Lifetime
from ipsec_ike.events import ChildSaDown, ChildSaRekeyed, ChildSaUp, IkeSaDown, PeerMoved
from ipsec_ike.inputs import Expire
from ipsec_ike.numbers import ExchangeType, NotifyType
from ipsec_lab.simnet_check import same_ike_sas, twins
from ipsec_lab.simnet_network import Packet
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import notified
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm

INIT = ExchangeType.IKE_SA_INIT
AUTH = ExchangeType.IKE_AUTH
CREATE = ExchangeType.CREATE_CHILD_SA
INFO = ExchangeType.INFORMATIONAL


def refusals(pair: Pair, packet: Packet) -> list[int]:
    """The error notifications in a message."""
    return [kind for kind in notified(pair.read(packet)) if kind < 16384]


def newest(pair: Pair, name: str) -> int:
    """The inbound SPI of the newest child at one end."""
    return next(reversed(pair.nodes[name].dataplane.inbound))


def rekey(pair: Pair, name: str, spi: int) -> None:
    pair.tell(name, lambda engine, now: engine.rekey_child(spi, now))


def at_rest(pair: Pair, *names: str) -> None:
    """One IKE SA, and each child once, the same at both ends."""
    pair.sleep(60.0)
    for name in (LEFT, RIGHT):
        assert pair.states(name) == ["established"]
        assert pair.children(name) == [(child, "installed") for child in names]
    assert list(same_ike_sas(pair.left.engine, pair.right.engine)) == []
    assert list(twins(pair.left.dataplane, pair.right.dataplane)) == []


def test_rekey_of_a_child_whose_creation_is_not_answered_yet() -> None:
    """CHILD_SA_NOT_FOUND would have the peer delete a child that comes to life a moment later."""
    pair = Pair(calm(children=2, on_traffic=True))
    pair.start()
    pair.left.ping("net0")
    pair.flow()
    pair.left.ping("net1")
    # SK { SA, Ni, TSi, TSr } -->    x-- SK { SA, Nr, TSi, TSr }
    pair.passes(LEFT, CREATE)
    pair.drops(RIGHT, CREATE)
    # <-- SK { N(REKEY_SA), ... }    SK { N(TEMPORARY_FAILURE) } -->
    rekey(pair, RIGHT, newest(pair, RIGHT))
    pair.passes(RIGHT, CREATE)
    assert refusals(pair, pair.passes(LEFT, CREATE)) == [NotifyType.TEMPORARY_FAILURE]
    at_rest(pair, "net0", "net1")
    assert pair.of(LEFT, ChildSaDown) == pair.of(RIGHT, ChildSaDown) == []


def test_a_child_that_both_create_is_rekeyed_before_the_second_request_arrives() -> None:
    """The answer to it makes a second equal child; who asked knows the first one by its heir."""
    pair = Pair(calm(children=2, both_initiate=True, on_traffic=True))
    pair.start()
    pair.left.ping("net0")
    pair.flow()
    pair.sleep(5.0)  # right leaves the first seconds to the initiator
    pair.left.ping("net1")
    pair.drops(LEFT, CREATE)
    pair.right.ping("net1")
    pair.passes(RIGHT, CREATE)
    pair.passes(LEFT, CREATE)
    rekey(pair, RIGHT, newest(pair, RIGHT))
    pair.passes(RIGHT, CREATE)
    pair.passes(LEFT, CREATE)
    pair.passes(RIGHT, INFO)
    pair.passes(LEFT, INFO)
    assert not pair.waiting(LEFT)
    at_rest(pair, "net0", "net1")


def test_delete_of_the_old_child_on_an_ike_sa_that_may_still_lose() -> None:
    """Who uses one of two successors for anything knows that it has won."""
    pair = Pair(calm())
    pair.start()
    pair.flow()
    old = newest(pair, LEFT)
    # SK { N(REKEY_SA), ... } -->    the answer is kept
    rekey(pair, LEFT, old)
    pair.passes(LEFT, CREATE)
    answer = pair.take(RIGHT, CREATE)
    pair.tell(LEFT, lambda engine, now: engine.rekey_ike("right", now))
    pair.tell(RIGHT, lambda engine, now: engine.rekey_ike("left", now))
    pair.drops(RIGHT, CREATE)
    # <-- SK { SA, ... }    SK { SA, Ni, KEi } -->    <-- SK { SA, Nr, KEr }
    pair.deliver(answer)
    pair.passes(LEFT, CREATE)
    pair.passes(RIGHT, CREATE)
    # the Delete of the child overtakes that of the old IKE SA
    (first, second) = [packet for name, packet in pair.flying if name == LEFT]
    pair.flying.clear()
    pair.deliver(first)
    assert all(spec.id.spi != old for spec in pair.right.dataplane.all_outbound)
    pair.deliver(second)
    pair.flow()
    pair.sleep(6.0)
    assert old not in pair.left.dataplane.inbound
    at_rest(pair, "net0")


def test_reconfigured_while_a_child_waits_to_be_asked_for() -> None:
    """A request for a child as it was configured is not sent, and not missed."""
    pair = Pair(calm())
    pair.start()
    pair.flow()
    # SK { D } --x    the new child waits for the answer to this
    sa = pair.left.dataplane.inbound[newest(pair, LEFT)].id
    pair.tell(LEFT, lambda engine, now: engine.expire(Expire(sa, hard=True), now))
    pair.drops(LEFT, INFO)
    _lifetime(pair, 600.0)
    pair.left.configure(pair.left.config)
    at_rest(pair, "net0")
    (sa,) = pair.left.engine.snapshot()
    assert sa.children[0].expires_at == sa.children[0].created_at + 600.0


def test_reconfigured_while_a_child_is_rekeyed() -> None:
    """The new child is what is configured now, and there is no second one."""
    pair = Pair(calm())
    pair.start()
    pair.flow()
    rekey(pair, LEFT, newest(pair, LEFT))
    pair.passes(LEFT, CREATE)
    _lifetime(pair, 600.0)
    pair.left.configure(pair.left.config)
    at_rest(pair, "net0")
    (sa,) = pair.left.engine.snapshot()
    assert sa.children[0].expires_at == sa.children[0].created_at + 600.0
    assert len(pair.of(LEFT, ChildSaUp)) == 1


def test_a_child_removed_while_it_is_created() -> None:
    pair = Pair(calm(children=2))
    pair.start()
    pair.passes(LEFT, INIT)
    pair.passes(RIGHT, INIT)
    pair.passes(LEFT, AUTH)
    pair.passes(RIGHT, AUTH)
    pair.passes(LEFT, CREATE)
    config = pair.left.config
    pair.left.configure(replace(config, children=config.children[:1]))
    pair.sleep(60.0)
    assert pair.children(LEFT) == pair.children(RIGHT) == [("net0", "installed")]


def test_fragments_repeated_from_another_port() -> None:
    """RFC 7383 2.6.1: the answer goes to where the repeated request came from, if it verifies."""
    pair = Pair(calm(nat=True, small_fragments=True))
    pair.start()
    pair.flow()
    assert pair.nat is not None
    rekey(pair, LEFT, newest(pair, LEFT))
    # SK { N(REKEY_SA), ... } in two fragments -->    its answer is lost, and so is the mapping
    pair.passes(LEFT, CREATE)
    pair.passes(LEFT, CREATE)
    pair.flying.clear()
    pair.nat.rebind()
    pair.sleep(1.0)
    at_rest(pair, "net0")
    assert pair.of(RIGHT, PeerMoved)
    assert pair.of(LEFT, IkeSaDown) == pair.of(RIGHT, IkeSaDown) == []


def _lifetime(pair: Pair, seconds: float) -> None:
    life = Lifetime(seconds=seconds, margin=0.1, jitter=0.0)
    pair.change_children(LEFT, lifetime=life)


def _deleted_before_the_answer(seed: int) -> tuple[Pair, Packet] | None:
    """Both create net1. Left's exchange was in vain, which it knows first: its Delete arrives at
    right before the answer that brings the child that stays. None: it is right's with this seed."""
    pair = Pair(calm(seed=seed, children=2, both_initiate=True, on_traffic=True))
    pair.start()
    pair.left.ping("net0")
    pair.flow()
    pair.sleep(5.0)  # right leaves the first seconds to the initiator
    for node in (pair.left, pair.right):
        node.ping("net1")
    # SK { SA, ... } -->    <-- SK { SA, ... }    <-- SK { SA, ... }    and left's answer is kept
    pair.passes(LEFT, CREATE)
    pair.passes(RIGHT, CREATE)
    answer = pair.take(LEFT, CREATE)
    pair.passes(RIGHT, CREATE)
    if ("net1", "deleting") in pair.children(LEFT):
        return None
    # SK { D } -->
    pair.passes(LEFT, INFO)
    assert ("net1", "installed") not in pair.children(RIGHT)
    return pair, answer


def test_the_loser_of_two_is_deleted_before_the_answer_brings_the_winner() -> None:
    """2.8.1 orders no messages of two exchanges: right has got a successor, no loss."""
    found = [each for seed in range(12) if (each := _deleted_before_the_answer(seed))]
    assert found
    for pair, answer in found:
        pair.deliver(answer)
        (rekeyed,) = pair.of(RIGHT, ChildSaRekeyed)
        assert (rekeyed.child, rekeyed.spi_in) == ("net1", newest(pair, RIGHT))
        at_rest(pair, "net0", "net1")
        assert pair.of(LEFT, ChildSaDown) == pair.of(RIGHT, ChildSaDown) == []


def test_the_loser_of_two_is_deleted_and_no_answer_comes() -> None:
    """Then it is a loss after all, and told once."""
    found = [each for seed in range(12) if (each := _deleted_before_the_answer(seed))]
    assert found
    for pair, _ in found:
        pair.sleep(100.0, deaf=True)
        downs = [down.spi_in for down in pair.of(RIGHT, ChildSaDown) if down.child == "net1"]
        ups = [up.spi_in for up in pair.of(RIGHT, ChildSaUp) if up.child == "net1"]
        assert downs == ups
        assert len(ups) == 1
