"""Selectors: groups that one CHILD_SA can carry, and the table that finds overlaps."""

from __future__ import annotations

import ipaddress
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from ipsec_api.traffic import Claim, Claims, covers, overlap, products, subnet_pairs
from ipsec_api.tunnel import ObjectRef, TunnelSelector

OWNER = ObjectRef(kind="IPsecPolicy", namespace="default", name="p")

V4 = st.builds(
    lambda base, length: str(ipaddress.ip_network((base << 16, length), strict=False)),
    st.integers(0x0A00, 0x0A07),
    st.sampled_from([8, 14, 15, 16, 24]),
)
V6 = st.builds(
    lambda base, length: str(ipaddress.ip_network((base << 120, length), strict=False)),
    st.integers(0xFC, 0xFF),
    st.sampled_from([6, 7, 8, 48]),
)
NETWORKS = st.one_of(V4, V6)
PORTS = st.sampled_from([(0, 65535), (80, 80), (80, 90), (85, 99)])


@st.composite
def selectors(draw: st.DrawFn) -> TunnelSelector:
    family = draw(st.sampled_from([V4, V6]))
    src, dst = draw(family), draw(family)
    protocol = draw(st.sampled_from([0, 6, 17]))
    ports = PORTS if protocol else st.just((0, 65535))
    return TunnelSelector(
        src=src, dst=dst, protocol=protocol, src_port=draw(ports), dst_port=draw(ports)
    )


def union(group: tuple[TunnelSelector, ...]) -> set[tuple[object, ...]]:
    """What one CHILD_SA with these selectors on both sides would carry, as exact pairs."""
    sides = [((s.src, s.protocol, s.src_port), (s.dst, s.protocol, s.dst_port)) for s in group]
    return {
        (a, b)
        for (a, _), (_, b) in product(sides, sides)
        if (":" in a[0]) == (":" in b[0]) and (a[1] == b[1] or 0 in (a[1], b[1]))
    }


@given(st.lists(selectors(), max_size=8, unique=True))
def test_groups_carry_their_selectors_and_nothing_else(given_: list[TunnelSelector]) -> None:
    groups = products(given_)
    assert sorted(map(str, (s for g in groups for s in g))) == sorted(map(str, given_))
    for group in groups:
        wanted = {((s.src, s.protocol, s.src_port), (s.dst, s.protocol, s.dst_port)) for s in group}
        assert union(group) == wanted


@given(st.lists(NETWORKS, min_size=1, max_size=4), st.lists(NETWORKS, min_size=1, max_size=4))
def test_subnets_of_both_families_share_one_group(local: list[str], remote: list[str]) -> None:
    pairs = subnet_pairs(dict.fromkeys(local), dict.fromkeys(remote))
    assert len(products(pairs)) == (1 if pairs else 0)


def test_any_protocol_does_not_mix_with_a_named_one() -> None:
    anything = TunnelSelector(src="10.1.0.0/24", dst="10.2.0.0/24")
    tcp = TunnelSelector(src="10.3.0.0/24", dst="10.4.0.0/24", protocol=6)
    udp = TunnelSelector(src="10.5.0.0/24", dst="10.6.0.0/24", protocol=17)
    assert products([anything, tcp, udp]) == [(anything,), (tcp, udp)]


@given(st.lists(selectors(), max_size=12), selectors())
def test_the_table_finds_what_a_walk_finds(
    held: list[TunnelSelector], asked: TunnelSelector
) -> None:
    claims = Claims()
    for selector in held:
        claims.add(Claim(selector, 1, OWNER))
    found = sorted(str(c.selector) for c in claims.overlapping(asked))
    assert found == sorted(str(s) for s in held if overlap(s, asked))


@given(selectors(), selectors())
def test_overlap_and_cover(a: TunnelSelector, b: TunnelSelector) -> None:
    assert overlap(a, a)
    assert covers(a, a)
    assert overlap(a, b) == overlap(b, a)
    if covers(a, b):
        assert overlap(a, b)
        assert not covers(b, a) or a == b


def test_overlap_needs_every_part() -> None:
    base = TunnelSelector(
        src="10.1.0.0/16", dst="10.2.0.0/16", protocol=6, src_port=(1, 9), dst_port=(10, 19)
    )

    def changed(**changes: object) -> TunnelSelector:
        return base.model_copy(update=changes)

    assert overlap(base, changed(src="10.1.2.0/24", protocol=0, src_port=(9, 12)))
    assert not overlap(base, changed(src="10.3.0.0/16"))
    assert not overlap(base, changed(dst="fd00::/8"))
    assert not overlap(base, changed(protocol=17))
    assert not overlap(base, changed(src_port=(10, 12)))
    assert not overlap(base, changed(dst_port=(0, 9)))
    assert covers(base, changed(dst="10.2.9.0/24", dst_port=(11, 12)))
    assert not covers(base, changed(protocol=0))
    assert not covers(base, changed(dst_port=(10, 20)))
    assert not covers(base, changed(src_port=(0, 9)))
    assert not covers(base, changed(src="10.0.0.0/8"))
