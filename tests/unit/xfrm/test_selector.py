"""Traffic selectors in the kernel's form: prefixes, and ports under masks."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.xfrm_messages import Selector
from ipsec_gateway.ipsec.xfrm_selector import kernel_selectors, masks, traffic_selectors
from ipsec_ike.selectors import TrafficSelector

A, B = TrafficSelector.network("10.1.0.0/16"), TrafficSelector.network("10.2.0.0/24")


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 65535))
def test_masks_match_the_range_and_nothing_else(one: int, two: int, port: int) -> None:
    first, last = sorted((one, two))
    matched = sum(port & mask == value for value, mask in masks(first, last, 16))
    assert matched == (first <= port <= last)


def test_a_prefix_is_one_selector_and_comes_back() -> None:
    (selector,) = kernel_selectors(A, B)
    assert selector == Selector(
        family=socket.AF_INET,
        source="10.1.0.0",
        source_length=16,
        destination="10.2.0.0",
        destination_length=24,
    )
    assert traffic_selectors(selector) == (A, B)
    assert Selector.decode(selector.encode()) == selector


def test_a_range_that_is_no_prefix_is_several() -> None:
    odd = A._replace(start=bytes((10, 1, 0, 1)), end=bytes((10, 1, 0, 6)))
    found = [(s.source, s.source_length) for s in kernel_selectors(odd, B)]
    assert found == [("10.1.0.1", 32), ("10.1.0.2", 31), ("10.1.0.4", 31), ("10.1.0.6", 32)]


@pytest.mark.parametrize("number", [1, 58])
@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 65535, [((0, 0), (0, 0))]),
        (0x0800, 0x08FF, [((8, 0xFFFF), (0, 0))]),
        (0x0304, 0x0304, [((3, 0xFFFF), (4, 0xFFFF))]),
        (0x03FF, 0x0400, [((3, 0xFFFF), (255, 0xFFFF)), ((4, 0xFFFF), (0, 0xFFFF))]),
        (
            0x8500,
            0x89FF,
            [((133, 0xFFFF), (0, 0)), ((134, 0xFFFE), (0, 0)), ((136, 0xFFFE), (0, 0))],
        ),
    ],
)
def test_icmp_has_type_and_code_for_ports(
    number: int, start: int, end: int, expected: list[tuple[tuple[int, int], tuple[int, int]]]
) -> None:
    ts = [ts._replace(protocol=number, start_port=start, end_port=end) for ts in (A, B)]
    found = kernel_selectors(ts[0], ts[1])
    assert [
        ((s.source_port, s.source_mask), (s.destination_port, s.destination_mask)) for s in found
    ] == expected


@given(st.sampled_from([6, 17, 132]), st.integers(0, 65535), st.integers(0, 65535))
def test_one_port_comes_back(protocol: int, sport: int, dport: int) -> None:
    source = A._replace(protocol=protocol, start_port=sport, end_port=sport)
    destination = B._replace(protocol=protocol, start_port=dport, end_port=dport)
    (selector,) = kernel_selectors(source, destination)
    assert traffic_selectors(selector) == (source, destination)


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        (A._replace(protocol=6, start_port=65535, end_port=0), B, "OPAQUE"),
        (A._replace(protocol=6), B._replace(protocol=17), "two protocols"),
    ],
)
def test_what_the_kernel_cannot_match_is_refused(
    one: TrafficSelector, two: TrafficSelector, words: str
) -> None:
    with pytest.raises(DataplaneError, match=words):
        kernel_selectors(one, two)
