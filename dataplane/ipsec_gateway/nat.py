"""Traffic whose addresses are other ones inside its tunnel: 1:1 mappings and source NAT. Pure.

Each translated pair of networks has two views. Hosts on our side see ``local`` and ``remote``; the
peer, the selectors and the SPD see ``wire_local`` and ``wire_remote``. A mapping of one side
changes one of them, networks that both sides use need one for each side. Prefixes of the same
length are mapped 1:1 in both directions; into a single address everything goes with its port
changed, and nothing comes in that was not asked for.

Both views are told apart before any address is rewritten (``kube_ipsec.nft.j2``), since after it
the networks of both sides may be the same. So policies of translated traffic are looked at before
all others, and cannot be narrowed to protocols or ports.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ipsec_api.tunnel import TunnelConfig, TunnelMapping, TunnelPolicy, TunnelSelector
from ipsec_gateway.classify import Network
from ipsec_ike.selectors import TrafficSelector

_WHOLE: Final = 0xFFFFFFFF


class Untranslatable(Exception):
    """A tunnel asks for what cannot be. The message names the networks and the remedy."""


@dataclass(frozen=True, slots=True)
class Translation:
    """One pair in both views. ``name`` is the peer's, for comments.

    ``mark`` (value, mask) has only connections that carry this mark; ``exempt`` are destinations
    that are left alone where ``remote`` covers them.
    """

    name: str
    local: Network
    remote: Network
    wire_local: Network
    wire_remote: Network
    mark: tuple[int, int] | None = None
    exempt: tuple[Network, ...] = ()

    @property
    def ip(self) -> str:
        """The keyword of nft."""
        return "ip" if self.local.version == 4 else "ip6"

    @property
    def one_to_one(self) -> bool:
        """Whether the peer can begin a connection too."""
        return self.local.prefixlen == self.wire_local.prefixlen


def source_nat(
    name: str,
    address: str,
    remotes: Iterable[Network],
    *,
    sources: Iterable[Network] = (),
    mark: tuple[int, int] | None = None,
) -> list[Translation]:
    """Dynamic source NAT: what is from ``sources``, or on connections with ``mark`` (value, mask),
    and goes to ``remotes``, gets ``address``. To everything: but not from source to source.
    """
    own = ipaddress.ip_network(address)
    listed = [n for n in sources if n.version == own.version]
    if mark is not None:
        listed = [ipaddress.ip_network("0.0.0.0/0" if own.version == 4 else "::/0")]
    return [
        Translation(
            name,
            source,
            remote,
            own,
            remote,
            mark,
            () if remote.prefixlen or mark else tuple(listed),
        )
        for remote in remotes
        if remote.version == own.version
        for source in listed
    ]


def on_the_wire(
    tunnel: TunnelConfig, address: str | None
) -> tuple[TunnelConfig, tuple[Translation, ...]]:
    """The tunnel with selectors as the peer sees them, and what has to be translated for it.

    ``address`` is ours towards the peer, which ``nat.mode: Masquerade`` uses. Raises
    Untranslatable.
    """
    if not tunnel.mappings and tunnel.nat_mode not in ("Masquerade", "SNAT"):
        return tunnel, ()
    translations: dict[Translation, None] = {}
    policies: list[TunnelPolicy] = []
    for policy in tunnel.policies:
        selectors: dict[TunnelSelector, None] = {}
        for selector in policy.selectors:
            wire = selector
            if policy.action == "encrypt" and policy.interface is None:
                found = _translation(tunnel, selector, address)
                if found is not None:
                    translations[found] = None
                    wire = TunnelSelector(src=str(found.wire_local), dst=str(found.wire_remote))
            selectors[wire] = None
        policies.append(policy.model_copy(update={"selectors": tuple(selectors)}))
    return tunnel.model_copy(update={"policies": tuple(policies)}), tuple(translations)


def blocked(tunnel: TunnelConfig) -> TunnelConfig:
    """The tunnel with what is to be kept from leaving in clear text where ``on_the_wire`` refuses
    it: what our side sees of the other one.

    A network that our side knows under a mapped prefix may be ours as well, and blocking it would
    cut this node off; nobody here means the other side's when sending there. So is what policies
    have in common with our own networks.
    """
    mappings = [m for m in tunnel.mappings if m.side == "remote"]
    policies: list[TunnelPolicy] = []
    for policy in tunnel.policies:
        selectors: dict[TunnelSelector, None] = {}
        for selector in policy.selectors:
            if policy.action != "encrypt":
                selectors[selector] = None
                continue
            local, remote = ipaddress.ip_network(selector.src), ipaddress.ip_network(selector.dst)
            seen: list[Network] = [remote]
            for mapping in mappings:
                original = ipaddress.ip_network(mapping.original)
                mapped = ipaddress.ip_network(mapping.mapped)
                if _overlap(original, remote):
                    seen = [mapped, *_without(seen, original)]
            if mappings:
                seen = _without(seen, local)
            for each in seen:
                wider = selector.model_copy(update={"dst": str(each)})
                selectors[wider] = None
        if selectors:
            policies.append(policy.model_copy(update={"selectors": tuple(selectors)}))
    return tunnel.model_copy(update={"policies": tuple(policies)})


def _overlap(one: Network, two: Network) -> bool:
    return one.version == two.version and one.overlaps(two)


def _without(networks: Iterable[Network], hole: Network) -> list[Network]:
    """What is left of these networks."""
    left: list[Network] = []
    for network in networks:
        if not _overlap(network, hole):
            left.append(network)
        elif network.prefixlen < hole.prefixlen:
            left.extend(network.address_exclude(hole))  # type: ignore[arg-type]  # one family
    return left


def wire_selectors(translation: Translation) -> tuple[TrafficSelector, TrafficSelector]:
    """As policies have it: local, remote."""
    return (
        TrafficSelector.network(str(translation.wire_local)),
        TrafficSelector.network(str(translation.wire_remote)),
    )


def _translation(
    tunnel: TunnelConfig, selector: TunnelSelector, address: str | None
) -> Translation | None:
    local, remote = ipaddress.ip_network(selector.src), ipaddress.ip_network(selector.dst)
    wire_local = _mapped(local, [m for m in tunnel.mappings if m.side == "local"])
    # The policy has what our side sees or what the peer has: both are clear.
    seen, real = _both(remote, [m for m in tunnel.mappings if m.side == "remote"])
    if wire_local == local and tunnel.nat_mode in ("Masquerade", "SNAT"):
        own = tunnel.snat_address if tunnel.nat_mode == "SNAT" else address
        if own is None:
            raise Untranslatable(
                "nat.mode Masquerade needs our address towards the peer, which is not known yet:"
                " set localAddress, or nat.mode SNAT with snatAddress"
            )
        wire_local = ipaddress.ip_network(own)
        if wire_local.version != local.version:
            raise Untranslatable(
                f"{local} cannot be sent from {own}, which is of another IP version: take it out"
                " of the policy, or use another snatAddress"
            )
    if wire_local == local and seen == real:
        return None
    if selector.protocol:
        raise Untranslatable(
            f"{local} to {remote} is translated and cannot be narrowed to a protocol or port:"
            " remove protocol and ports from the policy"
        )
    exempt = () if remote.prefixlen else (local,)
    mark = None if tunnel.connection_mark is None else (tunnel.connection_mark, _WHOLE)
    return Translation(tunnel.key, local, seen, wire_local, real, mark, exempt)


def _mapped(network: Network, mappings: Iterable[TunnelMapping]) -> Network:
    """The part of the mapped prefix that stands for ``network``."""
    for mapping in mappings:
        original = ipaddress.ip_network(mapping.original)
        if original.version == network.version and original.overlaps(network):
            return _shifted(network, original, ipaddress.ip_network(mapping.mapped))
    return network


def _both(network: Network, mappings: Iterable[TunnelMapping]) -> tuple[Network, Network]:
    """What our side sees and what the peer has, whichever of them ``network`` is."""
    for mapping in mappings:
        original = ipaddress.ip_network(mapping.original)
        mapped = ipaddress.ip_network(mapping.mapped)
        if network.version == original.version:
            if original.overlaps(network):
                return _shifted(network, original, mapped), network
            if mapped.overlaps(network):
                return network, _shifted(network, mapped, original)
    return network, network


def _shifted(network: Network, original: Network, mapped: Network) -> Network:
    if network.prefixlen < original.prefixlen:
        raise Untranslatable(
            f"{network} is larger than {original}, which subnetMapping maps to {mapped}: map all"
            " of it, or name the networks one by one"
        )
    offset = int(network.network_address) - int(original.network_address)
    kind = type(network)
    return kind((int(mapped.network_address) + offset, network.prefixlen))
