"""xfrm interfaces of routed policies: what they should be, and how to get there. Pure.

A routed policy protects what is routed into its interface and nothing else: its entries of the SPD
and its SAs carry the number of the interface (``if_id``). Who routes is nobody's business here: the
routes that the policy names, an administrator, a routing daemon, or GRE and L2TP on top of it.
Without an SA the kernel drops what comes to the interface, so there is no way into clear text; and
each route that we set has an ``unreachable`` twin with the worst metric, which takes over when
somebody takes the interface away or down.

=============  =====================================================================================
route          where it goes
=============  =====================================================================================
a network      into the main table, beside all others
the default    into a table of its own, behind all of the main table but its default routes, for
route          what is not our own IKE and ESP: those must not go into the tunnel that they carry
=============  =====================================================================================

What is ours is known by the range of its ``if_id`` (interfaces) and by its protocol (routes and
rules), so that a restarted gateway goes on with what is there, and removes what nobody wants.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ipsec_api.tunnel import ObjectRef, TunnelConfig, TunnelPolicy
from ipsec_gateway.classify import Network
from ipsec_gateway.facts import Facts
from ipsec_gateway.ipsec.abilities import Abilities
from ipsec_gateway.ipsec.mtu import INITIAL, MINIMUM
from ipsec_gateway.marks import FALLBACK_METRIC, Numbers, allocate
from ipsec_gateway.outermarks import known_addresses
from ipsec_ike.config import Handling, Offload

#: Numbers of our interfaces have this bit set and the two above it clear.
IF_ID_BASE: Final = 0x20000000
_IF_ID_MASK: Final = IF_ID_BASE - 1
#: ``proto`` of our routes into interfaces, and of the rules for default routes.
ROUTE_PROTOCOL: Final = 81
#: How an alias begins; the policy follows. ``ip link`` shows it.
ALIAS: Final = "kube-ipsec:"

_MAIN: Final = 254
#: RTN_UNREACHABLE, as iproute2 shows it with -N.
_UNREACHABLE: Final = ("unreachable", "7")
_EVERYTHING: Final = {4: "0.0.0.0/0", 6: "::/0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One interface as it is wanted. ``mtu`` 0 is automatic, ``mss`` 0 none of its own.

    ``owner`` is ``namespace/name`` of the policy, ``reqids`` are those of its SAs.
    """

    name: str
    if_id: int
    owner: str
    addresses: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    mtu: int = 0
    mss: int = 0
    reqids: frozenset[int] = frozenset()

    def octets(self, measured: Mapping[int, int], now: int = 0) -> int:
        """Its MTU, where ``measured`` has the largest packets of SAs by reqid, and ``now`` is what
        it has: that stays while there is no SA, over a restart for instance."""
        if self.mtu:
            return self.mtu
        found = min((measured[r] for r in self.reqids if r in measured), default=now or INITIAL)
        six = any(":" in text for text in (*self.addresses, *self.routes))
        return max(found, MINIMUM) if six else found


def if_id_of(key: str, attempt: int = 0) -> int:
    """The number that ``key`` gets if nobody else has it."""
    digest = hashlib.blake2b(f"interface {key}\0{attempt}".encode(), digest_size=8).digest()
    return IF_ID_BASE | (int.from_bytes(digest, "big") & _IF_ID_MASK)


def ours(if_id: int) -> bool:
    """Whether a number is of our range."""
    return IF_ID_BASE <= if_id < 2 * IF_ID_BASE


def allocate_if_ids(keys: Iterable[str]) -> dict[str, int]:
    """One number per key (``marks.allocate``)."""
    return allocate(keys, if_id_of)


def handling(
    tunnel: TunnelConfig, policy: TunnelPolicy, *, interface: int = 0, mark: int = 0
) -> Handling:
    """What the data plane does with the packets of a policy beyond protecting them."""
    return Handling(
        interface=interface,
        copy_dscp=policy.dscp != "Clear",
        keep_outer_dscp=policy.dscp == "CopyBoth",
        ecn=policy.ecn == "Copy",
        copy_df=policy.df == "Copy",
        offload=Offload(tunnel.hw_offload.lower()),
        mark=mark,
    )


def lacking(tunnel: TunnelConfig, policy: TunnelPolicy, abilities: Abilities) -> str:
    """What of a policy's wishes the data plane cannot do, with the remedy; empty if it can."""
    plane = f"the {abilities.dataplane} data plane of this gateway"
    kernel = "use a gateway whose kernel has it (its log says what there is)"
    if policy.interface is not None and not abilities.interfaces:
        return f"spec.mode: {plane} has no xfrm interfaces: set mode: policy, or {kernel}"
    for name, value in (("dscp", policy.dscp), ("ecn", policy.ecn), ("df", policy.df)):
        if value != "Copy" and not abilities.headers:
            return f"spec.{name}: {plane} cannot do {value}: remove it, or {kernel}"
    if tunnel.hw_offload == "Crypto" and not abilities.offload:
        return f"spec.hwOffload of the peer: {plane} uses no network card: set Auto, or {kernel}"
    return ""


@dataclass(slots=True)
class Routed:
    """What becomes of the routed policies on this node. ``problems`` are (whose, reason, text)."""

    if_ids: Mapping[str, int]
    refused: set[ObjectRef] = field(default_factory=set)
    problems: list[tuple[ObjectRef, str, str]] = field(default_factory=list)
    _found: dict[str, Interface] = field(default_factory=dict)

    def if_id(self, policy: TunnelPolicy) -> int:
        """The number of a policy's interface, 0 for one that is not routed."""
        return 0 if policy.interface is None else self.if_ids[_key(policy)]

    def carries(self, policy: TunnelPolicy) -> bool:
        """Whether a policy can be in force. A routed one that cannot blocks nothing: what would be
        routed into its interface has no way there."""
        return policy.interface is None or (
            policy.action == "encrypt" and policy.source not in self.refused
        )

    def interfaces(self, reqids: Iterable[tuple[TunnelPolicy, int]]) -> tuple[Interface, ...]:
        """All that are wanted; ``reqids`` are those of each policy."""
        by_key: dict[str, set[int]] = {}
        for policy, reqid in reqids:
            if policy.interface is not None:
                by_key.setdefault(_key(policy), set()).add(reqid)
        return tuple(
            _with_reqids(each, by_key[key])
            for key, each in sorted(self._found.items())
            if key in by_key
        )


def _with_reqids(interface: Interface, reqids: Iterable[int]) -> Interface:
    return Interface(
        name=interface.name,
        if_id=interface.if_id,
        owner=interface.owner,
        addresses=interface.addresses,
        routes=interface.routes,
        mtu=interface.mtu,
        mss=interface.mss,
        reqids=frozenset(reqids),
    )


def _key(policy: TunnelPolicy) -> str:
    return f"{policy.source.namespace}/{policy.source.name}"


def routed(tunnels: Sequence[TunnelConfig], facts: Facts) -> Routed:
    """What the routed policies of these tunnels come to on this node."""
    asked = [(t, p) for t in tunnels for p in t.policies if p.interface is not None]
    result = Routed(allocate_if_ids(_key(policy) for _, policy in asked))
    routes: dict[str, str] = {}
    for tunnel, policy in asked:
        wanted = policy.interface
        assert wanted is not None
        if _key(policy) in result._found or policy.source in result.refused:
            continue
        able = facts.abilities
        why = lacking(tunnel, policy, able) if able is not None else ""
        reason = "UnsupportedByDataplane"
        if not why and wanted.name in facts.foreign:
            reason = "InterfaceExists"
            why = (
                f"spec.interface.name: this node has an interface {wanted.name} that is not the"
                " gateway's: set another name, or remove it (`ip link`). It is tried again"
            )
        if why:
            result.refused.add(policy.source)
            result.problems.append((policy.source, reason, why))
            continue
        if text := facts.broken.get(_key(policy)):
            result.problems.append((policy.source, "InterfaceError", f"spec.interface: {text}"))
        if tunnel.notrack != "None":
            text = "notrack has no effect on what is routed: set it for peers with other policies"
            result.problems.append((policy.source, "NotTracked", text))
        peers = known_addresses(tunnel, facts.resolved, facts.live)
        kept = []
        for route in wanted.routes:
            if text := _bad_route(route, peers, routes):
                result.problems.append((policy.source, "Overlap", text))
            else:
                routes[route] = str(policy.source)
                kept.append(route)
        result._found[_key(policy)] = Interface(
            name=wanted.name,
            if_id=result.if_ids[_key(policy)],
            owner=_key(policy),
            addresses=wanted.addresses,
            routes=tuple(kept),
            mtu=wanted.mtu or tunnel.mtu or 0,
            mss=tunnel.tcp_mss or 0,
        )
    return result


def _bad_route(route: str, peers: Iterable[str], taken: Mapping[str, str]) -> str:
    if route in taken:
        return f"spec.interface.routes: {route} is a route of {taken[route]}: remove one of the two"
    network = ipaddress.ip_network(route)
    for peer in peers:
        if network.prefixlen and ipaddress.ip_address(peer) in network:
            return (
                f"spec.interface.routes: {route} has the peer's own address {peer} in it, which the"
                " tunnel itself is sent to: name the networks around it, or take the default route"
            )
    return ""


def pairs(policies: Iterable[TunnelPolicy]) -> tuple[tuple[Network, Network], ...]:
    """(local, remote) of what is routed through the node."""
    return tuple(
        (ipaddress.ip_network(s.src), ipaddress.ip_network(s.dst))
        for policy in policies
        if policy.interface is not None
        for s in policy.selectors
    )


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of ours that there is."""

    name: str
    if_id: int
    mtu: int
    up: bool
    multicast: bool
    alias: str = ""
    #: Of global scope, with their prefix lengths.
    addresses: frozenset[str] = frozenset()


def parse_links(shown: Iterable[Mapping[str, Any]]) -> tuple[list[Link], frozenset[str]]:
    """What ``ip -d -j address show`` says: ours, and the names of all others."""
    found: list[Link] = []
    others: set[str] = set()
    for entry in shown:
        if "ifname" not in entry:
            continue
        info = entry.get("linkinfo", {})
        if_id = int(str(info.get("info_data", {}).get("if_id", "0")), 16)
        if info.get("info_kind") != "xfrm" or not ours(if_id):
            others.add(str(entry["ifname"]))
            continue
        flags = entry.get("flags", ())
        found.append(
            Link(
                str(entry["ifname"]),
                if_id,
                int(entry["mtu"]),
                "UP" in flags,
                "MULTICAST" in flags,
                str(entry.get("ifalias", "")),
                frozenset(
                    f"{a['local']}/{a['prefixlen']}"
                    for a in entry.get("addr_info", ())
                    if a.get("scope") == "global"
                ),
            )
        )
    return found, frozenset(others)


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """Lines for ``ip -batch``: ``first`` makes what is wanted, ``later`` removes what is not."""

    first: tuple[str, ...]
    later: tuple[str, ...]


def plan_links(
    wanted: Iterable[Interface], there: Iterable[Link], measured: Mapping[int, int]
) -> LinkPlan:
    """From what is there to what is wanted. The same again gives nothing.

    Addresses of an interface are ours if the policy names any, else they are left to others.
    """
    first: list[str] = []
    by_id = {link.if_id: link for link in there}
    names = {each.name: each.if_id for each in wanted}
    for link in list(by_id.values()):
        # One with another name cannot be renamed while it is up, and two cannot change names.
        moved = link.if_id in names.values() and names.get(link.name) != link.if_id
        if moved or (link.name in names and names[link.name] != link.if_id):
            first.append(f"link delete dev {link.name}")
            del by_id[link.if_id]
    for each in wanted:
        if each.if_id not in by_id:
            first.append(f"link add {each.name} type xfrm if_id {each.if_id:#x}")
        link = by_id.get(each.if_id, Link(each.name, each.if_id, 0, up=False, multicast=False))
        mtu, alias = each.octets(measured, link.mtu), ALIAS + each.owner
        if (link.mtu, link.up, link.multicast, link.alias) != (mtu, True, True, alias):
            first.append(f"link set dev {each.name} alias {alias} mtu {mtu} multicast on up")
        if each.addresses:
            for address in each.addresses:
                if address not in link.addresses:
                    nodad = " nodad" if ":" in address else ""
                    first.append(f"address add {address} dev {each.name}{nodad}")
            stale = sorted(link.addresses - set(each.addresses))
            first += [f"address delete {address} dev {each.name}" for address in stale]
    later = [f"link delete dev {n.name}" for n in by_id.values() if n.if_id not in names.values()]
    return LinkPlan(tuple(first), tuple(later))


@dataclass(frozen=True, slots=True, order=True)
class Way:
    """A route into an interface, or with an empty ``device`` its twin; or one of our rules."""

    version: int
    table: int
    destination: str = ""
    device: str = ""
    #: Of a rule.
    priority: int = 0
    suppress: bool = False

    def arguments(self, numbers: Numbers) -> str:
        """What follows ``ip route`` or ``ip rule`` and the verb."""
        ours = f"proto {ROUTE_PROTOCOL}"
        if self.priority:
            behind = " suppress_prefixlength 0" if self.suppress else ""
            mark = f"fwmark 0/{numbers.bypass:#x}"
            return f"pref {self.priority} {mark} lookup {self.table}{behind} {ours}"
        if not self.device:
            end = f"table {self.table} metric {FALLBACK_METRIC} {ours}"
            return f"unreachable {self.destination} {end}"
        return f"{self.destination} dev {self.device} table {self.table} {ours}"


def ways(wanted: Iterable[Interface], numbers: Numbers) -> frozenset[Way]:
    """Routes and rules of the interfaces."""
    found: set[Way] = set()
    own = numbers.table + 2
    for each in wanted:
        for route in each.routes:
            version = 6 if ":" in route else 4
            default = route == _EVERYTHING[version]
            table = own if default else _MAIN
            found |= {Way(version, table, route, each.name), Way(version, table, route)}
            if default:
                found.add(Way(version, _MAIN, priority=own, suppress=True))
                found.add(Way(version, own, priority=own + 1))
    return frozenset(found)


def parse_ways(
    version: int, routes: Iterable[Mapping[str, Any]], rules: Iterable[Mapping[str, Any]]
) -> set[Way]:
    """Those that are there, out of ``ip -N -j route`` and ``rule``.

    Routes of others have been left out by ``ip``.
    """
    found: set[Way] = set()
    for entry in routes:
        destination = str(entry["dst"])
        if destination == "default":
            destination = _EVERYTHING[version]
        elif "/" not in destination:
            destination += "/32" if version == 4 else "/128"
        refused = str(entry.get("type")) in _UNREACHABLE
        device = "" if refused else str(entry.get("dev", "?"))
        found.add(Way(version, int(entry.get("table", _MAIN)), destination, device))
    for entry in rules:
        if str(entry.get("protocol")) == str(ROUTE_PROTOCOL):
            suppress = "suppress_prefixlen" in entry or "suppress_prefixlength" in entry
            table, priority = int(entry["table"]), int(entry["priority"])
            found.add(Way(version, table, priority=priority, suppress=suppress))
    return found


def plan_ways(
    wanted: frozenset[Way], there: set[Way], numbers: Numbers
) -> dict[int, tuple[tuple[str, ...], tuple[str, ...]]]:
    """By IP version: lines that add, twins first and rules last, and lines that remove, rules first
    and twins last."""
    result = {}
    for version in (4, 6):
        new = sorted(
            (w for w in wanted - there if w.version == version),
            key=lambda w: (bool(w.priority), bool(w.device), w),
        )
        old = sorted(
            (w for w in there - wanted if w.version == version),
            key=lambda w: (not w.priority, not w.device, w),
        )
        result[version] = (
            tuple(_line("add" if w.priority else "replace", w, numbers) for w in new),
            tuple(_line("delete", w, numbers) for w in old),
        )
    return result


def _line(verb: str, way: Way, numbers: Numbers) -> str:
    return f"{'rule' if way.priority else 'route'} {verb} {way.arguments(numbers)}"
