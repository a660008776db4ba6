"""First match in policy order, as a short list of sets.

Policies are an ordered list in which the first match decides (RFC 4301 4.4.1), and their selectors
may overlap. A set of nftables has no order and refuses overlapping elements. So the list is cut
into *steps*: all elements of a step have one verdict, elements of one set do not overlap, and the
steps are looked up one after the other. An element goes into the earliest step that keeps its
meaning, so that thousands of tunnels with selectors of their own come to one step, that is to one
lookup per packet.

An element must come

- after every earlier one that overlaps and has another verdict (order decides between them);
- in another set than every earlier one that overlaps and has the same verdict;
- nowhere, if one earlier element covers it: it can never match.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ipsec_gateway.ipsec.base import Level, PolicyAction, PolicyDirection, PolicySpec
from ipsec_gateway.marks import Numbers
from ipsec_ike.selectors import TrafficSelector

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


class Verdict(Enum):
    """What a matching packet gets: whether it is steered, and whether it is guarded."""

    #: Protect, and never let it leave in clear text.
    REQUIRE = (True, True)
    #: Protect (``level: use`` with a live SA).
    USE = (True, False)
    #: Drop.
    DISCARD = (False, True)
    #: Let pass in clear text (``none``, or ``level: use`` without an SA).
    CLEAR = (False, False)

    def bits(self, numbers: Numbers) -> int:
        """Its bits of the packet mark."""
        steers, guards = self.value
        return (numbers.steer if steers else 0) | (numbers.guard if guards else 0)


class Variant(Enum):
    """What of a packet a set looks at besides the two addresses."""

    ANY = "any"
    PROTOCOL = "proto"
    PORTS = "ports"


@dataclass(frozen=True, slots=True)
class Element:
    """One pair of prefixes, seen from here: ``src`` is local."""

    src: Network
    dst: Network
    protocol: int = 0
    src_port: tuple[int, int] = (0, 65535)
    dst_port: tuple[int, int] = (0, 65535)
    #: Whose it is, for people.
    name: str = field(default="", compare=False)

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.src.version

    @property
    def variant(self) -> Variant:
        """The set type that can hold it."""
        if not self.protocol:
            return Variant.ANY
        whole = (0, 65535)
        return (
            Variant.PROTOCOL if self.src_port == whole and self.dst_port == whole else Variant.PORTS
        )

    def overlaps(self, other: Element) -> bool:
        """Whether a packet exists that both match."""
        return (
            _nested(self.src, other.src)
            and _nested(self.dst, other.dst)
            and (not self.protocol or not other.protocol or self.protocol == other.protocol)
            and max(self.src_port[0], other.src_port[0]) <= min(self.src_port[1], other.src_port[1])
            and max(self.dst_port[0], other.dst_port[0]) <= min(self.dst_port[1], other.dst_port[1])
        )

    def covers(self, other: Element) -> bool:
        """Whether every packet that ``other`` matches is matched by this element."""
        return (
            _contains(self.src, other.src)
            and _contains(self.dst, other.dst)
            and (not self.protocol or self.protocol == other.protocol)
            and self.src_port[0] <= other.src_port[0]
            and self.src_port[1] >= other.src_port[1]
            and self.dst_port[0] <= other.dst_port[0]
            and self.dst_port[1] >= other.dst_port[1]
        )


@dataclass(slots=True)
class Step:
    """Elements with one verdict, in sets by (IP version, variant)."""

    verdict: Verdict
    sets: dict[tuple[int, Variant], list[Element]] = field(default_factory=dict)


def classify(policies: Iterable[PolicySpec], live: frozenset[int]) -> list[Step]:
    """Steps of the outbound policies, which come in order; ``live`` are reqids that have an SA."""
    steps: list[Step] = []
    index: dict[int, _Index] = {4: _Index(), 6: _Index()}
    for policy in policies:
        if policy.id.direction is not PolicyDirection.OUT:
            continue
        verdict = _verdict(policy, live)
        for element in _elements(policy):
            _place(element, verdict, steps, index[element.version])
    return steps


def _verdict(policy: PolicySpec, live: frozenset[int]) -> Verdict:
    match policy.action:
        case PolicyAction.NONE:
            return Verdict.CLEAR
        case PolicyAction.DISCARD:
            return Verdict.DISCARD
        case PolicyAction.ENCRYPT:
            if policy.level is not Level.USE:
                return Verdict.REQUIRE
            return Verdict.USE if policy.reqid in live else Verdict.CLEAR


def _elements(policy: PolicySpec) -> Iterator[Element]:
    source, destination = policy.id.source, policy.id.destination
    for src in _networks(source.start, source.end):
        for dst in _networks(destination.start, destination.end):
            yield Element(
                src,
                dst,
                source.protocol or destination.protocol,
                (source.start_port, source.end_port),
                (destination.start_port, destination.end_port),
                policy.name,
            )


@lru_cache(maxsize=65536)
def _networks(start: bytes, end: bytes) -> tuple[Network, ...]:
    return TrafficSelector(start, end).networks


def _place(element: Element, verdict: Verdict, steps: list[Step], index: _Index) -> None:
    first = 0
    for other, number in index.overlapping(element):
        if other.covers(element):
            return
        # With another verdict it cannot go into that step anyway.
        first = max(first, number + 1 if other.variant is element.variant else number)
    number = next(
        (n for n in range(first, len(steps)) if steps[n].verdict is verdict),
        len(steps),
    )
    if number == len(steps):
        steps.append(Step(verdict))
    steps[number].sets.setdefault((element.version, element.variant), []).append(element)
    index.add(element, number)


class _Index:
    """Finds what overlaps an element without looking at all of them.

    Prefixes nest or are disjoint, so what overlaps a destination is its supernets (one dict look-up
    per prefix length in use) and its subnets (one run of a list sorted by address).
    """

    def __init__(self) -> None:
        self._by_dst: dict[Network, list[tuple[Element, int]]] = {}
        self._lengths: set[int] = set()
        self._order: list[tuple[int, int]] = []
        self._networks: dict[tuple[int, int], Network] = {}

    def add(self, element: Element, number: int) -> None:
        dst = element.dst
        if dst not in self._by_dst:
            key = (int(dst.network_address), dst.prefixlen)
            self._by_dst[dst] = []
            self._lengths.add(dst.prefixlen)
            self._networks[key] = dst
            insort(self._order, key)
        self._by_dst[dst].append((element, number))

    def overlapping(self, element: Element) -> Iterator[tuple[Element, int]]:
        for network in self._candidates(element.dst):
            for other, number in self._by_dst[network]:
                if other.overlaps(element):
                    yield other, number

    def _candidates(self, dst: Network) -> Sequence[Network]:
        found = [
            net
            for length in self._lengths
            if length < dst.prefixlen and (net := dst.supernet(new_prefix=length)) in self._by_dst
        ]
        low, high = int(dst.network_address), int(dst.broadcast_address)
        at = bisect_left(self._order, (low, dst.prefixlen))
        while at < len(self._order) and self._order[at][0] <= high:
            found.append(self._networks[self._order[at]])
            at += 1
        return found


def _contains(outer: Network, inner: Network) -> bool:
    return (
        outer.prefixlen <= inner.prefixlen
        and outer.network_address <= inner.network_address  # type: ignore[operator]  # one family
        and inner.network_address <= outer.broadcast_address  # type: ignore[operator]  # one family
    )


def _nested(one: Network, two: Network) -> bool:
    return _contains(one, two) or _contains(two, one)
