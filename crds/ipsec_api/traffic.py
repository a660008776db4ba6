"""Selectors: out of the specs, grouped so that one CHILD_SA can carry them, and their overlaps."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from ipsec_api.policy import IPsecPolicySpec, protocol_number
from ipsec_api.scalars import Network, network
from ipsec_api.tunnel import ObjectRef, TunnelSelector

_ANY = (0, 65535)


def subnet_pairs(local: Iterable[str], remote: Iterable[str]) -> tuple[TunnelSelector, ...]:
    """Every local network with every remote one of its family."""
    remotes = tuple(remote)
    return tuple(
        TunnelSelector(src=src, dst=dst)
        for src in local
        for dst in remotes
        if (":" in src) == (":" in dst)
    )


def policy_pairs(spec: IPsecPolicySpec) -> tuple[TunnelSelector, ...]:
    """The selectors of a policy that names its networks."""
    if spec.src_address is not None and spec.dst_address is not None:
        return (TunnelSelector(src=spec.src_address, dst=spec.dst_address),)
    return tuple(
        TunnelSelector(
            src=s.src,
            dst=s.dst,
            protocol=protocol_number(s.protocol),
            src_port=_ports(s.src_port, s.src_end_port),
            dst_port=_ports(s.dst_port, s.dst_end_port),
        )
        for s in spec.selectors or ()
        if s.src is not None
    )


def _ports(first: int | None, last: int | None) -> tuple[int, int]:
    return _ANY if first is None else (first, first if last is None else last)


def products(pairs: Sequence[TunnelSelector]) -> list[tuple[TunnelSelector, ...]]:
    """Groups in which every source goes with every destination of its family and protocol.

    A CHILD_SA has two lists of selectors and carries whatever matches one of each (RFC 7296 2.9): A
    to X and B to Y in one SA would let A reach Y. Classes that no packet can cross (family,
    protocol) do share an SA, but "any protocol" never does with a named one.
    """
    classes: dict[tuple[bool, int], list[TunnelSelector]] = {}
    for pair in dict.fromkeys(pairs):
        classes.setdefault((":" in pair.src, pair.protocol), []).append(pair)
    merged: dict[tuple[bool, int], list[TunnelSelector]] = {}
    for (_, protocol), members in classes.items():
        for number, group in enumerate(_blocks(members)):
            merged.setdefault((protocol == 0, number), []).extend(group)
    order = {pair: i for i, pair in enumerate(pairs)}
    groups = [tuple(sorted(group, key=order.__getitem__)) for group in merged.values()]
    return sorted(groups, key=lambda group: order[group[0]])


def _blocks(pairs: Sequence[TunnelSelector]) -> Iterator[list[TunnelSelector]]:
    """Sources that go with the same set of destinations form a block."""
    by_source: dict[tuple[str, tuple[int, int]], dict[tuple[str, tuple[int, int]], None]] = {}
    for p in pairs:
        by_source.setdefault((p.src, p.src_port), {})[(p.dst, p.dst_port)] = None
    blocks: dict[frozenset[tuple[str, tuple[int, int]]], list[TunnelSelector]] = {}
    for p in pairs:
        key = frozenset(by_source[(p.src, p.src_port)])
        blocks.setdefault(key, []).append(p)
    yield from blocks.values()


@dataclass(frozen=True, slots=True)
class Claim:
    """A selector that an accepted policy holds. Lower priorities are looked at first."""

    selector: TunnelSelector
    priority: int
    owner: ObjectRef


@dataclass(slots=True)
class Claims:
    """All accepted selectors, found by destination prefix without a walk over all of them."""

    _by_prefix: dict[tuple[int, int, int], list[Claim]] = field(default_factory=dict)
    #: (version, first address, prefix length), sorted.
    _keys: list[tuple[int, int, int]] = field(default_factory=list)
    _lengths: dict[int, set[int]] = field(default_factory=dict)

    def add(self, claim: Claim) -> None:
        key = _key(network(claim.selector.dst))
        if key not in self._by_prefix:
            insort(self._keys, key)
            self._lengths.setdefault(key[0], set()).add(key[2])
        self._by_prefix.setdefault(key, []).append(claim)

    def remove(self, claim: Claim) -> None:
        """Raises ValueError or KeyError where there is no such claim."""
        key = _key(network(claim.selector.dst))
        held = self._by_prefix[key]
        held.remove(claim)
        if not held:
            del self._by_prefix[key]
            del self._keys[bisect_left(self._keys, key)]

    def overlapping(self, selector: TunnelSelector) -> Iterator[Claim]:
        """Claims that some packet matches along with ``selector``."""
        dst = network(selector.dst)
        for key in self._near(dst):
            for claim in self._by_prefix[key]:
                if overlap(claim.selector, selector):
                    yield claim

    def _near(self, dst: Network) -> Iterator[tuple[int, int, int]]:
        """Prefixes in the table that contain ``dst``, or that it contains."""
        for length in sorted(self._lengths.get(dst.version, ())):
            if length < dst.prefixlen:
                key = _key(dst.supernet(new_prefix=length))
                if key in self._by_prefix:
                    yield key
        last = int(dst.broadcast_address)
        start = bisect_left(self._keys, (dst.version, int(dst.network_address), dst.prefixlen))
        for key in self._keys[start:]:
            if key[0] != dst.version or key[1] > last:
                break
            if key[2] >= dst.prefixlen:
                yield key


def _key(net: IPv4Network | IPv6Network) -> tuple[int, int, int]:
    return net.version, int(net.network_address), net.prefixlen


def overlap(a: TunnelSelector, b: TunnelSelector) -> bool:
    """Some packet matches both."""
    return (
        (a.protocol == b.protocol or 0 in (a.protocol, b.protocol))
        and _meet(a.src_port, b.src_port)
        and _meet(a.dst_port, b.dst_port)
        and _nets_meet(a.src, b.src)
        and _nets_meet(a.dst, b.dst)
    )


def covers(a: TunnelSelector, b: TunnelSelector) -> bool:
    """Every packet that matches ``b`` matches ``a``."""
    return (
        a.protocol in (0, b.protocol)
        and a.src_port[0] <= b.src_port[0]
        and a.src_port[1] >= b.src_port[1]
        and a.dst_port[0] <= b.dst_port[0]
        and a.dst_port[1] >= b.dst_port[1]
        and _within(b.src, a.src)
        and _within(b.dst, a.dst)
    )


def _meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _nets_meet(a: str, b: str) -> bool:
    return _within(a, b) or _within(b, a)


def _within(inner: str, outer: str) -> bool:
    x, y = network(inner), network(outer)
    if isinstance(x, IPv4Network) and isinstance(y, IPv4Network):
        return x.subnet_of(y)
    if isinstance(x, IPv6Network) and isinstance(y, IPv6Network):
        return x.subnet_of(y)
    return False
