"""First match in order, whatever the sets look like: compared with walking the list."""

from __future__ import annotations

import ipaddress

from hypothesis import given, settings
from hypothesis import strategies as st

from ipsec_gateway.classify import Element, Step, Variant, Verdict, classify
from ipsec_gateway.ipsec.base import Level, PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_ike.selectors import TrafficSelector


def policy(
    src: str,
    dst: str,
    action: PolicyAction = PolicyAction.ENCRYPT,
    *,
    protocol: int = 0,
    port: tuple[int, int] = (0, 65535),
    level: Level = Level.REQUIRE,
    reqid: int = 1,
) -> PolicySpec:
    return PolicySpec(
        id=PolicyId(
            PolicyDirection.OUT,
            TrafficSelector.network(src, protocol=protocol),
            TrafficSelector.network(dst, protocol=protocol, start_port=port[0], end_port=port[1]),
        ),
        action=action,
        priority=1,
        level=level,
        reqid=reqid if action is PolicyAction.ENCRYPT else 0,
    )


def elements(steps: list[Step]) -> list[Element]:
    return [e for step in steps for members in step.sets.values() for e in members]


def test_disjoint_tunnels_are_one_step() -> None:
    steps = classify([policy("10.0.0.0/8", f"172.16.{i}.0/24") for i in range(200)], frozenset())
    assert len(steps) == 1
    assert steps[0].verdict is Verdict.REQUIRE
    assert len(steps[0].sets[4, Variant.ANY]) == 200


def test_an_exception_comes_before_what_it_is_an_exception_of() -> None:
    steps = classify(
        [
            policy("10.0.0.0/8", "172.16.5.0/24", PolicyAction.NONE),
            policy("10.0.0.0/8", "172.16.0.0/12"),
        ],
        frozenset(),
    )
    assert [step.verdict for step in steps] == [Verdict.CLEAR, Verdict.REQUIRE]


def test_what_can_never_match_is_left_out() -> None:
    steps = classify(
        [
            policy("10.0.0.0/8", "172.16.0.0/12"),
            policy("10.1.0.0/16", "172.16.5.0/24", PolicyAction.DISCARD),
        ],
        frozenset(),
    )
    assert len(elements(steps)) == 1


def test_levels() -> None:
    uses = [policy("10.0.0.0/8", "172.16.0.0/12", level=Level.USE, reqid=9)]
    assert classify(uses, frozenset())[0].verdict is Verdict.CLEAR
    assert classify(uses, frozenset({9}))[0].verdict is Verdict.USE
    unique = [policy("10.0.0.0/8", "172.16.0.0/12", level=Level.UNIQUE)]
    assert classify(unique, frozenset())[0].verdict is Verdict.REQUIRE


def test_inbound_policies_are_not_looked_at() -> None:
    spec = policy("10.0.0.0/8", "172.16.0.0/12")
    inward = PolicySpec(
        id=PolicyId(PolicyDirection.IN, spec.id.destination, spec.id.source),
        action=PolicyAction.ENCRYPT,
        priority=1,
    )
    assert classify([inward], frozenset()) == []


# A small world, so that everything overlaps with everything.
NETWORKS = st.sampled_from(
    ["0.0.0.0/0", "10.0.0.0/30", "10.0.0.0/31", "10.0.0.2/31", "10.0.0.0/32", "10.0.0.3/32"]
)
PORTS = st.sampled_from([(0, 65535), (1, 2), (2, 3), (2, 2)])


@st.composite
def policies(draw: st.DrawFn) -> PolicySpec:
    protocol = draw(st.sampled_from([0, 0, 6, 17]))
    return policy(
        draw(NETWORKS),
        draw(NETWORKS),
        draw(st.sampled_from(list(PolicyAction))),
        protocol=protocol,
        port=draw(PORTS) if protocol else (0, 65535),
    )


PACKETS = [
    (ipaddress.ip_address(f"10.0.0.{src}"), ipaddress.ip_address(f"10.0.0.{dst}"), protocol, port)
    for src in range(4)
    for dst in range(4)
    for protocol in (1, 6, 17)
    for port in (1, 2, 3)
]


def matches(element: Element, packet: tuple) -> bool:
    src, dst, protocol, port = packet
    return (
        src in element.src
        and dst in element.dst
        and element.protocol in (0, protocol)
        and element.dst_port[0] <= port <= element.dst_port[1]
    )


@settings(max_examples=300)
@given(st.lists(policies(), max_size=8))
def test_every_packet_gets_the_verdict_of_its_first_policy(listed: list[PolicySpec]) -> None:
    steps = classify(listed, frozenset())
    one_by_one = [step for spec in listed for step in classify([spec], frozenset())]
    for packet in PACKETS:
        expected = next(
            (s.verdict for s in one_by_one if any(matches(e, packet) for e in elements([s]))), None
        )
        found = next(
            (s.verdict for s in steps if any(matches(e, packet) for e in elements([s]))), None
        )
        assert found is expected, packet
    for step in steps:
        for members in step.sets.values():
            for number, one in enumerate(members):
                assert not any(one.overlaps(other) for other in members[number + 1 :])


def test_thousands_of_policies_are_classified_in_linear_time() -> None:
    """No timing: the index must not hand out candidates that have nothing to do with an element."""
    listed = [
        policy(f"10.{i % 100}.0.0/16", f"172.{16 + i // 256 % 16}.{i % 256}.0/24")
        for i in range(3000)
    ]
    assert sum(len(m) for s in classify(listed, frozenset()) for m in s.sets.values()) == 3000
