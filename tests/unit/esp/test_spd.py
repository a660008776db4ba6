"""Which SA a packet takes, numbers and limits of an SA (RFC 4301 4.4.1, RFC 4303 3.3.3)."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gateway.ipsec.base import PolicyAction, PolicyDirection, PolicyId
from ipsec_gateway.ipsec.drops import Drop
from ipsec_gateway.ipsec.packet import Flow, covers
from ipsec_gateway.ipsec.sa import RESERVE, Exhausted, InboundSa, OutboundSa
from ipsec_gateway.ipsec.shared import SharedState, Word
from ipsec_gateway.ipsec.spd import OutboundDatabase
from ipsec_ike.config import Lifetime
from ipsec_ike.identifiers import Direction
from ipsec_ike.inputs import Expire
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.esp_packets import NETS_A, NETS_B, make_spec, policy

FLOW: Flow = (bytes([10, 1, 0, 2]), bytes([10, 2, 0, 2]), 17, 1111, 2222)


@pytest.fixture
def state() -> Iterator[SharedState]:
    state = SharedState.create()
    yield state
    state.close()


def outbound(state: SharedState, slot: int = 0, **changes: Any) -> tuple[OutboundSa, list[Expire]]:
    events: list[Expire] = []
    return OutboundSa(make_spec(**changes), slot, state, events.append), events


def test_the_first_policy_in_order_decides(state: SharedState) -> None:
    database = OutboundDatabase()
    sa, _ = outbound(state)
    database.add(sa)
    assert database.find(FLOW) is Drop.OUT_NO_POLICY
    everything = policy(NETS_A[0], NETS_B[0], priority=20)
    database.put([everything], [])
    assert database.find(FLOW) is sa
    one_port = TrafficSelector.network("10.2.0.0/24", protocol=17, start_port=2222, end_port=2222)
    discard = policy(NETS_A[0], one_port, priority=10, action=PolicyAction.DISCARD, reqid=0)
    database.put([discard], [])
    assert database.find(FLOW) is Drop.OUT_DISCARDED
    assert database.find((*FLOW[:4], 2223)) is sa
    none = policy(NETS_A[0], one_port, priority=10, action=PolicyAction.NONE, reqid=0)
    database.put([none], [])
    assert database.find(FLOW) is Drop.OUT_NOT_FOR_US
    database.put([], [none.id])
    assert database.find(FLOW) is sa


@st.composite
def selectors(draw: st.DrawFn) -> TrafficSelector:
    """Ranges of few addresses, so that they overlap often, of both families."""
    size = draw(st.sampled_from([4, 16]))
    low, high = sorted(draw(st.tuples(st.integers(0, 12), st.integers(0, 12))))
    top = draw(st.booleans())
    prefix = b"\xff" * (size - 1) if top else bytes(size - 1)
    end = 255 if top and high == 12 else high
    port = draw(st.sampled_from([(0, 65535), (5, 9), (7, 7)]))
    return TrafficSelector(
        prefix + bytes([low]), prefix + bytes([end]), draw(st.sampled_from([0, 17])), *port
    )


@given(
    st.lists(st.tuples(selectors(), selectors(), st.integers(0, 5)), max_size=12),
    st.lists(st.tuples(selectors(), selectors(), st.sampled_from([6, 7])), min_size=1, max_size=8),
    st.integers(0, 12),
)
def test_the_index_finds_what_a_look_at_all_policies_finds(
    entries: list[tuple[TrafficSelector, TrafficSelector, int]],
    packets: list[tuple[TrafficSelector, TrafficSelector, int]],
    removed: int,
) -> None:
    database = OutboundDatabase()
    policies = {}
    for number, (src, dst, priority) in enumerate(entries):
        entry = policy(src, dst, priority=priority * 100 + number)
        policies[entry.id] = entry
    database.put(policies.values(), [])
    database.policy(FLOW)
    gone = list(policies)[:removed]
    database.put([], gone)
    for key in gone:
        del policies[key]
    ordered = sorted(policies.values(), key=lambda p: p.priority)
    for src, dst, port in packets:
        flow = (src.start, dst.end, 17, port, port)
        expected = next(
            (
                p
                for p in ordered
                if covers(p.id.source, src.start, 17, port)
                and covers(p.id.destination, dst.end, 17, port)
            ),
            None,
        )
        assert database.policy(flow) == expected


def test_policies_of_other_directions_do_not_count(state: SharedState) -> None:
    database = OutboundDatabase()
    inbound = PolicyId(PolicyDirection.IN, NETS_A[0], NETS_B[0])
    database.put([policy(NETS_A[0], NETS_B[0], id=inbound)], [])
    assert database.find(FLOW) is Drop.OUT_NO_POLICY


def test_a_policy_put_and_deleted_at_once_stays(state: SharedState) -> None:
    database = OutboundDatabase()
    entry = policy(NETS_A[0], NETS_B[0])
    database.put([entry], [entry.id])
    assert database.find(FLOW) is Drop.OUT_NO_SA


def test_the_newest_sa_that_contains_the_packet_is_taken(state: SharedState) -> None:
    database = OutboundDatabase()
    database.put([policy(NETS_A[0], NETS_B[0])], [])
    assert database.find(FLOW) is Drop.OUT_NO_SA
    old, _ = outbound(state)
    database.add(old)
    new, _ = outbound(state, 1)
    database.add(new)
    assert database.find(FLOW) is new
    narrow, _ = outbound(state, 2, remote_ts=(TrafficSelector.network("10.2.0.128/25"),))
    database.add(narrow)
    assert database.find(FLOW) is new, "the newest does not contain it"
    other_reqid, _ = outbound(state, 3, reqid=8)
    database.add(other_reqid)
    assert database.find(FLOW) is new
    database.remove(new)
    assert database.find(FLOW) is old
    database.remove(old)
    database.remove(old)
    assert database.find(FLOW) is Drop.OUT_NO_SA


def test_many_flows_do_not_fill_the_memory(state: SharedState) -> None:
    database = OutboundDatabase()
    database.put([policy(NETS_A[0], NETS_B[0])], [])
    for port in range(10000):
        database.find((*FLOW[:4], port))
    assert len(database._flows) <= 4096


def test_numbers_are_reserved_before_they_are_used(state: SharedState) -> None:
    sa, _ = outbound(state)
    used = [sa.take(1), sa.take(5), sa.take(1)]
    assert used == [1, 2, 7]
    mark = state.words[state.base(0) + Word.MARK]
    assert mark >= 7
    again, _ = outbound(state)  # what a new process makes of it
    first = again.take(1)
    assert first == mark + 1
    assert first <= 8 + RESERVE


def test_a_reservation_is_never_behind(state: SharedState) -> None:
    sa, _ = outbound(state)
    for count in [1, 1023, 1024, 1, 2000, 3, 44] * 20:
        first = sa.take(count)
        assert state.words[state.base(0) + Word.MARK] >= first + count - 1


def test_the_last_number_without_esn(state: SharedState) -> None:
    state.words[state.base(0) + Word.MARK] = 2**32 - 3
    sa, events = outbound(state, esn=False)
    assert sa.take(2) == 2**32 - 2
    with pytest.raises(Exhausted):
        sa.take(1)
    with pytest.raises(Exhausted):
        sa.take(1)
    assert events == [Expire(sa.spec.id, hard=False), Expire(sa.spec.id, hard=True)]
    assert state.words[state.base(0) + Word.MARK] == 2**32 - 1


def test_with_esn_numbers_go_on(state: SharedState) -> None:
    state.words[state.base(0) + Word.MARK] = 2**32 - 2
    sa, events = outbound(state, esn=True)
    assert [sa.take(1) for _ in range(3)] == [2**32 - 1, 2**32, 2**32 + 1]
    assert not events


@pytest.mark.parametrize(
    ("soft", "hard"),
    [
        (Lifetime(bytes=200), Lifetime(bytes=400)),
        (Lifetime(packets=2), Lifetime(packets=4)),
    ],
)
@pytest.mark.parametrize("kind", [OutboundSa, InboundSa])
def test_limits_are_reported_once_each(
    state: SharedState, kind: type[OutboundSa] | type[InboundSa], soft: Lifetime, hard: Lifetime
) -> None:
    events: list[Expire] = []
    sa = kind(make_spec(soft=soft, hard=hard), 0, state, events.append)
    for number, expected in enumerate([[], [False], [False], [False, True], [False, True]], 1):
        sa.count(1, 100, number)
        assert [e.hard for e in events] == expected
    assert sa.expired
    assert state.words[: state.base(1)].tolist()[-8:][1:3] == [500, 5]


def test_inbound_packets_must_be_what_was_negotiated(state: SharedState) -> None:
    sa = InboundSa(make_spec(direction=Direction.IN), 0, state, lambda _: None)
    assert sa.admits(FLOW)
    assert sa.admits(FLOW), "from the cache"
    assert not sa.admits((bytes([10, 9, 0, 2]), *FLOW[1:]))
    assert not sa.admits((FLOW[1], FLOW[0], *FLOW[2:])), "not the way back"
