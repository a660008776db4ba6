"""SINGLE_PAIR_REQUIRED: the responder takes one selector of each side per child (RFC 7296 2.9).

Ours takes as many as are offered, so the one here is told to be picky.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ipsec_ike.config import Start
from ipsec_ike.errors import SinglePairRequired
from ipsec_ike.events import ChildSaDown, Reason
from ipsec_ike.inputs import Acquire
from ipsec_ike.numbers import ExchangeType, NotifyType
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.v2 import negotiate
from ipsec_ike.wire.payloads import Payload, TsPayload
from ipsec_lab.simnet_check import twins
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import notified
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm

AUTH = ExchangeType.IKE_AUTH
CREATE = ExchangeType.CREATE_CHILD_SA

NETS = {
    LEFT: tuple(map(TrafficSelector.network, ("10.1.0.0/24", "10.1.1.0/24"))),
    RIGHT: tuple(map(TrafficSelector.network, ("10.2.0.0/24", "10.2.1.0/24"))),
}


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many selectors of a side the responder takes."""
    limit = {"selectors": 1}
    answer = negotiate.answer

    def picky(sa: Any, payloads: Sequence[Payload], *args: Any, **options: Any) -> Any:
        for payload in payloads:
            if isinstance(payload, TsPayload) and len(payload.selectors) > limit["selectors"]:
                raise SinglePairRequired("one pair at a time")
        return answer(sa, payloads, *args, **options)

    monkeypatch.setattr(negotiate, "answer", picky)
    return limit


def wide(start: Start) -> Pair:
    """Two gateways with a child of two networks at each end; it has no SA yet."""
    pair = Pair(calm(both_initiate=False))
    for name, other in ((LEFT, RIGHT), (RIGHT, LEFT)):
        pair.change_children(name, start=start, local_ts=NETS[name], remote_ts=NETS[other])
    pair.start()
    return pair


def selectors(pair: Pair, name: str) -> list[tuple[tuple[TrafficSelector, ...], ...]]:
    return [
        (child.local_ts, child.remote_ts)
        for sa in pair.nodes[name].engine.snapshot()
        for child in sa.children
    ]


def packet(pair: Pair, local: str, remote: str) -> None:
    """A packet between two hosts finds no SA at the left end."""
    (config,) = pair.left.config.children
    one, other = (TrafficSelector.network(host, protocol=6) for host in (local, remote))
    acquire = Acquire(config.reqid, one, other)
    pair.tell(LEFT, lambda engine, now: engine.acquire(acquire, now))


@pytest.mark.usefixtures("most")
def test_of_the_first_child() -> None:
    """Refused in IKE_AUTH, which sets up the IKE SA all the same, and asked for again at once."""
    pair = wide(Start.NOW)
    pair.passes(LEFT, ExchangeType.IKE_SA_INIT)
    pair.passes(RIGHT, ExchangeType.IKE_SA_INIT)
    # SK { IDi, AUTH, SA, TSi (2), TSr (2) } -->    <-- SK { IDr, AUTH, N(SINGLE_PAIR_REQUIRED) }
    pair.passes(LEFT, AUTH)
    assert NotifyType.SINGLE_PAIR_REQUIRED in notified(pair.read(pair.passes(RIGHT, AUTH)))
    assert pair.states(LEFT) == pair.states(RIGHT) == ["established"]
    # SK { SA, Ni, TSi (1), TSr (1) } -->    <-- SK { SA, Nr, TSi, TSr }
    pair.passes(LEFT, CREATE)
    pair.passes(RIGHT, CREATE)
    assert selectors(pair, LEFT) == [(NETS[LEFT][:1], NETS[RIGHT][:1])]
    assert selectors(pair, RIGHT) == [(NETS[RIGHT][:1], NETS[LEFT][:1])]
    pair.sleep(30.0)
    assert pair.children(LEFT) == pair.children(RIGHT) == [("net0", "installed")]
    assert pair.of(LEFT, ChildSaDown) == []
    assert list(twins(pair.left.dataplane, pair.right.dataplane)) == []


@pytest.mark.usefixtures("most")
def test_every_pair_gets_its_child() -> None:
    """The pair is the packet's own: one child each for packets that none of them carries."""
    pair = wide(Start.ON_TRAFFIC)
    flows = (("10.1.0.7/32", "10.2.1.9/32"), ("10.1.1.7/32", "10.2.0.9/32"))
    for count, flow in enumerate(flows, 1):
        packet(pair, *flow)
        pair.flow()
        assert len(pair.children(LEFT)) == len(pair.children(RIGHT)) == count
    expected = [
        tuple((TrafficSelector.network(host, protocol=6),) for host in flow) for flow in flows
    ]
    assert selectors(pair, LEFT) == expected
    # A packet for which there is one asks for nothing.
    packet(pair, *flows[0])
    assert pair.waiting(LEFT) == []
    pair.sleep(60.0)
    assert len(pair.children(LEFT)) == 2
    assert list(twins(pair.left.dataplane, pair.right.dataplane)) == []


def test_not_even_one_pair(most: dict[str, int]) -> None:
    """Who refuses a single pair as well is not asked again and again."""
    most["selectors"] = 0
    pair = wide(Start.NOW)
    pair.flow()
    assert pair.states(LEFT) == ["established"]
    (down,) = pair.of(LEFT, ChildSaDown)
    assert (down.reason, down.child) == (Reason.TS_UNACCEPTABLE, "net0")
    assert pair.waiting(LEFT) == []
