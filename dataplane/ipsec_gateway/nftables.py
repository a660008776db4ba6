"""The nftables table of the gateway: what it should be.

The rules are rendered from one template; addresses live in sets. How the kernel's table becomes
this one is in ``nftscripts``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

import jinja2

from ipsec_gateway.classify import Element, Network, Step, Variant, Verdict
from ipsec_gateway.interfaces import Interface
from ipsec_gateway.marks import DEFAULT, Numbers
from ipsec_gateway.nat import Translation
from ipsec_gateway.protected import ProtectedService

#: Named counters of the table, in the order (unencrypted, discarded) by direction.
COUNTERS: Final = ("unencrypted_out", "unencrypted_in", "discarded_out", "discarded_in")

#: Elements of the sets that are asked before the sets of pairs.
_MOST_REMOTES: Final = 64

_FIELDS: Final = {
    Variant.ANY: "",
    Variant.PROTOCOL: " . inet_proto",
    Variant.PORTS: " . inet_proto . inet_service . inet_service",
}


_MEANING: Final = {
    Verdict.REQUIRE: "protected, never in clear text",
    Verdict.USE: "protected, clear text is tolerated",
    Verdict.DISCARD: "dropped",
    Verdict.CLEAR: "left alone: action none, or level use without an SA",
}


class NftSet(NamedTuple):
    """A named set: its nft type, and its elements as nft writes them, each with a comment."""

    type: str
    elements: Mapping[str, str]
    comment: str


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The whole table. ``body`` is everything but the sets, which it asks as ``@name``."""

    body: str
    sets: Mapping[str, NftSet]


class _Rule(NamedTuple):
    """One look-up of the policies."""

    version: int
    variant: Variant
    set: str
    #: The mark bits of the verdict.
    bits: str
    verdict: Verdict

    @property
    def steers(self) -> bool:
        """Whether a tunnel carries it."""
        return self.verdict in (Verdict.REQUIRE, Verdict.USE)

    @property
    def drops(self) -> str:
        """The chains that drop it in clear text, or anyway; empty if nothing does."""
        return {Verdict.REQUIRE: "protected", Verdict.DISCARD: "discarded"}.get(self.verdict, "")

    def match(self, reverse: bool) -> str:
        """The expression; ``reverse`` looks at a packet from the other direction."""
        ip = "ip" if self.version == 4 else "ip6"
        a, b = ("daddr", "saddr") if reverse else ("saddr", "daddr")
        key = f"{ip} {a} . {ip} {b}"
        if self.variant is not Variant.ANY:
            key += " . meta l4proto"
        if self.variant is Variant.PORTS:
            key += " . th dport . th sport" if reverse else " . th sport . th dport"
        return f"{key} @{self.set}"


def ruleset(
    steps: Iterable[Step],
    *,
    device: str | None,
    mtu: int | None = None,
    clamps: Mapping[int, Iterable[Network]] | None = None,
    translations: Iterable[Translation] = (),
    untracked: Iterable[Step] = (),
    untracked_own: Iterable[Step] = (),
    services: Iterable[ProtectedService] = (),
    interfaces: Iterable[Interface] = (),
    numbers: Numbers = DEFAULT,
    keep: bool = True,
) -> Ruleset:
    """The table for these steps.

    ``device`` is what packets to be protected are routed into, or None if the kernel's SPD encrypts
    them on their way. ``mtu`` is the largest inner packet in octets; ``clamps`` are remote networks
    by the TCP MSS they get. ``translations`` are what has other addresses inside its tunnel;
    ``untracked`` skips connection tracking, ``untracked_own`` also where it is this node's own.
    ``services`` are reached out of SAs only; ``interfaces`` carry what is routed into them.
    ``keep`` is whether sources are kept from others' translation, which has the kernel track all
    connections.
    """
    translations = tuple(translations)
    sets: dict[str, NftSet] = {}
    steps = tuple(steps)
    remotes = _remotes(steps, sets)
    rules = _rules("step", steps, sets, numbers)
    notrack = _rules("untracked", untracked, sets, numbers)
    notrack_own = _rules("untracked_own", untracked_own, sets, numbers)
    mss: list[tuple[int, str]] = []
    for value, networks in sorted((clamps or {}).items()):
        for version in (4, 6):
            members = {str(n): "" for n in networks if n.version == version}
            if members:
                sets[f"mss{value}{version}"] = NftSet(
                    f"ipv{version}_addr", members, f"remote networks whose TCP MSS is {value}"
                )
                mss.append((value, "" if version == 4 else "6"))
    only: list[tuple[str, str, str]] = []
    for number, service in enumerate(services):
        only.append(("fib daddr type local", service.match, service.name))
        for version in (4, 6):
            members = {str(n): "" for n in service.networks if n.version == version}
            if members:
                name = f"service{number}_{version}"
                sets[name] = NftSet(
                    f"ipv{version}_addr", members, "local networks with a service for tunnels only"
                )
                ip = "ip" if version == 4 else "ip6"
                only.append((f"{ip} daddr @{name}", service.match, service.name))
    routed = sorted(interfaces, key=lambda i: i.name)
    body = _template().render(
        interfaces=routed,
        names=", ".join(f'"{each.name}"' for each in routed),
        only=only,
        remotes=remotes,
        rules=rules,
        notrack=notrack,
        notrack_own=notrack_own,
        translations=translations,
        device=device,
        mtu=mtu,
        clamps=mss,
        keep=keep or bool(translations),
        others=hex(numbers.keep),
        mask=hex(numbers.mask),
        both=hex(numbers.steer | numbers.guard),
        neither=hex(0xFFFFFFFF & ~(numbers.steer | numbers.guard)),
        guard=hex(numbers.guard),
        bypass=hex(numbers.bypass),
    )
    return Ruleset(body, sets)


def _remotes(steps: Iterable[Step], sets: dict[str, NftSet]) -> list[tuple[str, str]]:
    """(ip or ip6, name) of the sets that hold every remote network, which are added to ``sets``.

    Sets of pairs are slow to look up, these are fast: who is in none of their networks is done.
    """
    found: list[tuple[str, str]] = []
    for version, ip in ((4, "ip"), (6, "ip6")):
        networks = {
            element.dst
            for step in steps
            for (which, _), elements in step.sets.items()
            if which == version
            for element in elements
        }
        if networks:
            name = f"remote{version}"
            members = {str(network): "" for network in _covering(version, networks)}
            sets[name] = NftSet(f"ipv{version}_addr", members, "where all remote networks are")
            found.append((ip, name))
    return found


def _covering(version: int, networks: Iterable[Network]) -> Iterator[Network]:
    """Networks that hold all of these, none inside another one. Wider ones where there are many: to
    look at the pairs once more is cheap, and kernels before 6.3 take seconds for thousands of
    elements. Neighbours are not merged: then one that comes or goes would have others replaced."""
    kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    found = {(int(n.network_address), n.prefixlen) for n in networks}
    bits = length = 32 if version == 4 else 128
    while len(found) > _MOST_REMOTES:
        length -= 1
        first = -1 << (bits - length)
        found = {(a & first, length) if wide > length else (a, wide) for a, wide in found}
    last = -1
    for address, wide in sorted(found):
        end = address + (1 << (bits - wide)) - 1
        if end > last:
            last = end
            yield kind((address, wide))


def _rules(
    prefix: str, steps: Iterable[Step], sets: dict[str, NftSet], numbers: Numbers
) -> list[_Rule]:
    """Look-ups of these steps, whose sets are added to ``sets``."""
    rules: list[_Rule] = []
    for number, step in enumerate(steps):
        for (version, variant), elements in sorted(
            step.sets.items(), key=lambda item: (item[0][0], item[0][1].value)
        ):
            name = f"{prefix}{number}_{variant.value}{version}"
            address = f"ipv{version}_addr"
            sets[name] = NftSet(
                f"{address} . {address}{_FIELDS[variant]}",
                {_element(e): e.name for e in elements},
                f"local . remote, {_MEANING[step.verdict]}",
            )
            bits = hex(step.verdict.bits(numbers))
            rules.append(_Rule(version, variant, name, bits, step.verdict))
    return rules


def _element(element: Element) -> str:
    text = f"{element.src} . {element.dst}"
    if element.variant is not Variant.ANY:
        text += f" . {element.protocol}"
    if element.variant is Variant.PORTS:
        text += f" . {_ports(element.src_port)} . {_ports(element.dst_port)}"
    return text


def _ports(span: tuple[int, int]) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ipsec_gateway"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  # nft script, not HTML; every value is ours or parsed
    )
    return environment.get_template("kube_ipsec.nft.j2")
