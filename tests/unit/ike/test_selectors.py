"""Traffic selectors: RFC 7296 2.9 and 3.13."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsec_ike.errors import LocalMisuse
from ipsec_ike.selectors import MOST_SELECTORS, TrafficSelector, narrow

net = TrafficSelector.network


def opaque(cidr: str, protocol: int = 0) -> TrafficSelector:
    return net(cidr, protocol=protocol, start_port=65535, end_port=0)


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (net("10.1.0.0/16"), net("10.1.2.0/24"), net("10.1.2.0/24")),
        (net("10.1.0.0/16"), net("10.2.0.0/16"), None),
        (net("0.0.0.0/0"), net("::/0"), None),
        (net("10.0.0.0/8", protocol=6), net("10.0.0.0/8"), net("10.0.0.0/8", protocol=6)),
        (net("10.0.0.0/8", protocol=6), net("10.0.0.0/8", protocol=17), None),
        (
            net("::/0", protocol=6, start_port=80, end_port=90),
            net("2001:db8::/32", start_port=85),
            net("2001:db8::/32", protocol=6, start_port=85, end_port=90),
        ),
        (
            net("10.0.0.0/8", start_port=80, end_port=80),
            net("10.0.0.0/8", start_port=443, end_port=443),
            None,
        ),
        (opaque("10.0.0.0/8", 6), net("10.0.0.0/8"), opaque("10.0.0.0/8", 6)),
        (opaque("10.0.0.0/8"), opaque("10.0.0.0/8"), opaque("10.0.0.0/8")),
        (opaque("10.0.0.0/8"), net("10.0.0.0/8", start_port=1), None),
    ],
)
def test_narrow(
    one: TrafficSelector, other: TrafficSelector, common: TrafficSelector | None
) -> None:
    assert one.narrow(other) == common
    assert other.narrow(one) == common


@st.composite
def small(draw: st.DrawFn) -> TrafficSelector:
    first, last = sorted((draw(st.integers(0, 7)), draw(st.integers(0, 7))))
    low, high = draw(
        st.one_of(
            st.just((65535, 0)),
            st.just((0, 65535)),
            st.tuples(st.integers(0, 3), st.integers(0, 3)).map(lambda p: (min(p), max(p))),
        )
    )
    return TrafficSelector(
        first.to_bytes(4), last.to_bytes(4), draw(st.sampled_from([0, 6])), low, high
    )


def matches(ts: TrafficSelector, packet: tuple[bytes, int, int]) -> bool:
    """A packet is an address, a protocol and a port; port -1 cannot be seen."""
    address, protocol, port = packet
    ports = ts.any_port or (ts.is_opaque if port < 0 else ts.start_port <= port <= ts.end_port)
    return ts.start <= address <= ts.end and ts.protocol in (0, protocol) and ports


PACKETS = [(n.to_bytes(4), proto, p) for n in range(8) for proto in (6, 17) for p in range(-1, 4)]


@settings(max_examples=300)
@given(small(), small())
def test_intersection_matches_what_both_match(one: TrafficSelector, other: TrafficSelector) -> None:
    common = one.narrow(other)
    both = {p for p in PACKETS if matches(one, p) and matches(other, p)}
    assert {p for p in PACKETS if common is not None and matches(common, p)} == both


@settings(max_examples=200)
@given(st.lists(small(), max_size=4), st.lists(small(), max_size=4))
def test_narrowing_a_list(offered: list[TrafficSelector], ours: list[TrafficSelector]) -> None:
    result = narrow(offered, ours)
    allowed = {
        p
        for p in PACKETS
        if any(matches(ts, p) for ts in offered) and any(matches(ts, p) for ts in ours)
    }
    assert {p for p in PACKETS if any(matches(ts, p) for ts in result)} == allowed
    assert len(set(result)) == len(result)
    assert all(any(ts.contains(r) for ts in ours) for r in result)


def test_narrowing_keeps_the_order_of_the_offer() -> None:
    offer = [net("10.9.0.0/16"), net("10.1.0.0/16")]
    assert narrow(offer, [net("10.0.0.0/8")]) == tuple(offer)


def test_the_packets_own_selector_is_swallowed_by_a_larger_one() -> None:
    """RFC 7296 2.9: the first selector of the initiator is that of the packet."""
    packet = net("10.1.2.3/32", protocol=17, start_port=53, end_port=53)
    assert narrow([packet, net("10.1.0.0/16")], [net("10.0.0.0/8")]) == (net("10.1.0.0/16"),)


def test_long_lists_are_bounded() -> None:
    offer = [net(f"10.{n}.0.0/16") for n in range(255)]
    ours = [net("10.0.0.0/8", protocol=p) for p in range(1, 20)]
    assert len(narrow(offer, ours)) == MOST_SELECTORS


def test_network() -> None:
    assert net("10.1.2.3/16") == TrafficSelector(bytes((10, 1, 0, 0)), bytes((10, 1, 255, 255)))
    with pytest.raises(LocalMisuse):
        net("10.1.2.300")


def test_networks_of_a_range() -> None:
    ts = TrafficSelector(bytes((10, 0, 0, 1)), bytes((10, 0, 0, 3)))
    assert ts.networks == (
        ipaddress.ip_network("10.0.0.1/32"),
        ipaddress.ip_network("10.0.0.2/31"),
    )


@pytest.mark.parametrize(
    ("ts", "text"),
    [
        (net("10.0.0.0/8"), "10.0.0.0/8"),
        (net("2001:db8::/32", protocol=6), "2001:db8::/32[6]"),
        (net("10.0.0.1", protocol=17, start_port=53, end_port=53), "10.0.0.1/32[17/53]"),
        (net("10.0.0.1", start_port=1, end_port=9), "10.0.0.1/32[any/1-9]"),
        (
            TrafficSelector(bytes((10, 0, 0, 1)), bytes((10, 0, 0, 3))),
            "10.0.0.1-10.0.0.3",
        ),
    ],
)
def test_text(ts: TrafficSelector, text: str) -> None:
    assert str(ts) == text
