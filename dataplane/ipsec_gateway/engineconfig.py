"""A tunnel in the engine's terms: the peer, its paths and credentials, its children. Pure."""

from __future__ import annotations

import ipaddress
from typing import Final

from ipsec_api.tunnel import (
    IdentityType,
    TunnelConfig,
    TunnelIdentity,
    TunnelPolicy,
    TunnelSelector,
)
from ipsec_gateway import interfaces
from ipsec_gateway.algorithms import (
    NothingLeft,
    ah_proposals,
    esp_proposals,
    ike_proposals,
    restricted,
)
from ipsec_gateway.classify import Network
from ipsec_gateway.entries import Entry
from ipsec_gateway.facts import Facts, Problem
from ipsec_gateway.identities import identity
from ipsec_gateway.ipsec.abilities import Abilities
from ipsec_gateway.pathprobe.targets import own_responder
from ipsec_gateway.patterns import allowed_templates
from ipsec_ike.config import (
    ChildConfig,
    Childless,
    IdentityConfig,
    Lifetime,
    Mode,
    Path,
    PeerConfig,
    Retransmission,
    Start,
    TemplateConfig,
)
from ipsec_ike.proposal import Proposal
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector

#: With other addresses to try, 6 s without an answer are enough (30 s otherwise).
_IMPATIENT: Final = Retransmission(tries=3)

_ANY: Final = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


def selector_pair(selector: TunnelSelector) -> tuple[TrafficSelector, TrafficSelector]:
    """(ours, the peer's)."""
    ours, theirs = (
        TrafficSelector.network(
            network, protocol=selector.protocol, start_port=ports[0], end_port=ports[1]
        )
        for network, ports in (
            (selector.src, selector.src_port),
            (selector.dst, selector.dst_port),
        )
    )
    return ours, theirs


class Unable(Exception):
    """The data plane of this gateway cannot do what a policy asks for."""


def child_config(
    entry: Entry, reqid: int, abilities: Abilities | None, outer_mark: int, if_id: int = 0
) -> ChildConfig:
    """One CHILD_SA, or what a template makes. Raises UnknownAlgorithm, Unable."""
    policy = entry.policy
    proposals = (ah_proposals if policy.protocol == "ah" else esp_proposals)(policy.proposals)
    if abilities is not None:
        if why := interfaces.lacking(entry.tunnel, policy, abilities):
            raise Unable(why)
        proposals = _possible(policy, proposals, abilities)
    pairs = [selector_pair(selector) for selector in entry.selectors]
    return ChildConfig(
        name=entry.name,
        local_ts=tuple(dict.fromkeys(ours for ours, _ in pairs)),
        remote_ts=tuple(dict.fromkeys(theirs for _, theirs in pairs)),
        proposals=proposals,
        reqid=reqid,
        mode=Mode.TUNNEL if policy.tunnel else Mode.TRANSPORT,
        lifetime=Lifetime(
            seconds=policy.lifetime, bytes=policy.lifebytes, packets=policy.lifepackets
        ),
        start=Start.NEVER if entry.tunnel.passive else Start.NOW,
        replay_window=policy.replay_window,
        handling=interfaces.handling(entry.tunnel, policy, interface=if_id, mark=outer_mark),
    )


def _possible(
    policy: TunnelPolicy, proposals: tuple[Proposal, ...], abilities: Abilities
) -> tuple[Proposal, ...]:
    plane = f"the {abilities.dataplane} data plane of this gateway"
    kernel = "use a gateway whose kernel has it (its log says what there is)"
    if policy.protocol == "ah" and not abilities.ah_integrity:
        raise Unable(f"spec.ipsecProtocols: {plane} has no AH: write [esp], or {kernel}")
    if not policy.tunnel and not abilities.transport:
        raise Unable(f"spec.tunnel: {plane} has no transport mode: set tunnel: true, or {kernel}")
    try:
        return restricted(proposals, abilities)
    except NothingLeft as exc:
        raise Unable(f"spec.proposal: {exc}") from exc


def peer_config(
    tunnel: TunnelConfig,
    children: tuple[ChildConfig, ...],
    templates: tuple[TemplateConfig, ...],
    facts: Facts,
    problems: list[Problem],
) -> PeerConfig:
    """One peer. What of it cannot be now is added to ``problems``. Raises UnknownAlgorithm,
    BadIdentity."""
    return PeerConfig(
        name=tunnel.key,
        identities=tuple(
            _credentials(each, allowed_templates(each, tunnel)) for each in tunnel.identities
        ),
        children=children,
        templates=templates,
        ike_proposals=ike_proposals(tunnel.ike_proposals),
        paths=_paths(tunnel, facts, problems),
        remote_networks=_remote_networks(tunnel, facts),
        remote_port=tunnel.port,
        local_address=tunnel.local_address,
        initiate=not tunnel.passive,
        ike_lifetime=Lifetime(seconds=tunnel.ike_lifetime),
        dpd_interval=float(tunnel.dpd_interval),
        force_encapsulation=facts.encapsulate
        if tunnel.force_encapsulation is None
        else tunnel.force_encapsulation,
        fragmentation=tunnel.fragmentation,
        childless=Childless.PREFER if tunnel.childless else Childless.NEVER,
        send_initial_contact=tunnel.send_initial_contact,
        responder=own_responder(tunnel, facts.addresses, facts.responder),
        retransmission=_IMPATIENT if len(tunnel.addresses) > 1 else Retransmission(),
    )


def _credentials(each: TunnelIdentity, templates: tuple[str, ...]) -> IdentityConfig:
    """``auto`` is our address on our side; of the peer, whoever proves the secret (PSK)."""
    previous = each.psk_previous
    return IdentityConfig(
        name=each.name,
        local_id=identity(IdentityType(each.local_type), each.local_value),
        remote_id=identity(IdentityType(each.remote_type), each.remote_value),
        psk=Secret(each.psk.get_secret_value()),
        psk_previous=None if previous is None else Secret(previous.get_secret_value()),
        templates=templates,
        any_port=each.generate == "port-override",
    )


def _paths(tunnel: TunnelConfig, facts: Facts, problems: list[Problem]) -> tuple[Path, ...]:
    paths: list[Path] = []
    for name in tunnel.addresses:
        remotes = facts.resolved.get(name, ())
        if not remotes:
            problems.append(
                Problem(
                    tunnel.source,
                    "AddressUnresolved",
                    f"address {name} cannot be resolved now; check the name and the DNS servers of "
                    "this node. It is tried again",
                )
            )
        for remote in remotes:
            local = tunnel.local_address or facts.sources.get(remote)
            if local is None:
                problems.append(
                    Problem(
                        tunnel.source,
                        "NoRoute",
                        f"this node has no route to {remote}; check its routing table. "
                        "It is tried again",
                    )
                )
            elif ipaddress.ip_address(local).version == ipaddress.ip_address(remote).version:
                paths.append(Path(local, remote))
    return tuple(dict.fromkeys(paths))


def _remote_networks(tunnel: TunnelConfig, facts: Facts) -> tuple[Network, ...]:
    """Where the peer may come from: as configured, else its addresses, else anywhere."""
    networks: dict[Network, None] = {}
    for name in tunnel.remote_networks or tunnel.addresses:
        try:
            networks[ipaddress.ip_network(name)] = None
        except ValueError:
            networks.update((ipaddress.ip_network(a), None) for a in facts.resolved.get(name, ()))
    if not networks and not tunnel.remote_networks and not tunnel.addresses:
        return _ANY
    return tuple(networks)
