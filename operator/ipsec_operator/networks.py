"""Networks of the cluster, and remote networks that must not be theirs. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import collapse_addresses
from typing import Final

from ipsec_api.rejection import Rejection
from ipsec_api.scalars import Network, network
from ipsec_api.snapshot import IPsecPeer, IPsecPolicy
from ipsec_api.traffic import policy_pairs

#: Longest list of networks that a message proposes.
_PROPOSED: Final = 8


@dataclass(frozen=True, slots=True)
class ClusterNetworks:
    """CIDRs in canonical form. ``origin`` says where each list comes from, for people."""

    pods: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    origin: str = ""

    @property
    def local(self) -> tuple[str, ...]:
        """What ``localSubnets`` of a peer is where it says nothing."""
        return tuple(dict.fromkeys((*self.pods, *self.services)))

    def holding(self, subnet: str) -> tuple[str, str] | None:
        """(the cluster's network that meets ``subnet``, whose it is), or None.

        A default route meets nothing: who allows one (``allowDefaultRoute``) means the rest.
        """
        net = network(subnet)
        if net.prefixlen == 0:
            return None
        for whose in ("pods", "services", "nodes"):
            for ours in getattr(self, whose):
                if _meet(network(ours), net):
                    return ours, whose
        return None


def checked_peer(peer: IPsecPeer, networks: ClusterNetworks) -> tuple[IPsecPeer, Rejection | None]:
    """The peer without its ``remoteSubnets`` if they are not remote, and the reason."""
    spec = peer.spec
    if spec.disabled or spec.remote_subnets is None:
        return peer, None
    translated = [network(m.remote) for m in spec.subnet_mapping if m.remote is not None]
    for subnet in spec.remote_subnets:
        if any(_within(network(subnet), t) for t in translated):
            continue
        if message := _overlap(subnet, networks):
            stripped = spec.model_copy(update={"remote_subnets": None})
            rejection = Rejection(peer.ref, "spec.remoteSubnets", "Overlap", message)
            return replace(peer, spec=stripped), rejection
    return peer, None


def checked_policy(policy: IPsecPolicy, networks: ClusterNetworks) -> Rejection | None:
    """Why the policy would take the cluster's own traffic into a tunnel, or None."""
    spec = policy.spec
    if spec.disabled or spec.template or spec.action != "encrypt" or not spec.tunnel:
        return None
    if spec.mode == "routed":
        return None
    where = "spec.selectors" if spec.selectors else "spec.dstAddress"
    for pair in policy_pairs(spec):
        if message := _overlap(pair.dst, networks):
            return Rejection(policy.ref, where, "Overlap", message)
    return None


def _overlap(subnet: str, networks: ClusterNetworks) -> str | None:
    found = networks.holding(subnet)
    if found is None:
        return None
    ours, whose = found
    remote, local = network(subnet), network(ours)
    remedy = "correct it, or translate the addresses with subnetMapping"
    if _within(local, remote):
        rest = ", ".join(_without(remote, local))
        remedy = f"write {rest} instead" if rest else "name the remote networks without it"
    what = "addresses of nodes" if whose == "nodes" else f"the network of the cluster's {whose}"
    return f"{subnet} meets {ours}, {what}, whose traffic would be lost in the tunnel: {remedy}"


def _without(whole: Network, part: Network) -> list[str]:
    """``whole`` without ``part``, if that is a short list."""
    if part.prefixlen - whole.prefixlen > _PROPOSED or part == whole:
        return []
    rest = whole.address_exclude(part)  # type: ignore[arg-type]  # one family: one is in the other
    return [str(n) for n in sorted(rest)]


def _meet(one: Network, other: Network) -> bool:
    return _within(one, other) or _within(other, one)


def _within(inner: Network, outer: Network) -> bool:
    return (
        inner.version == outer.version
        and outer.prefixlen <= inner.prefixlen
        and inner.network_address in outer
    )


def collapse(subnets: tuple[str, ...]) -> tuple[str, ...]:
    """The same addresses in as few networks as possible, IPv4 first."""
    fours = [n for s in subnets if (n := network(s)).version == 4]
    sixes = [n for s in subnets if (n := network(s)).version == 6]
    return tuple(
        str(n)
        for family in (fours, sixes)
        for n in collapse_addresses(family)  # type: ignore[type-var]  # one family each
    )
