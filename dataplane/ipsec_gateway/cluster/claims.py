"""What a tunnel is to the gateways together: who may have it, and what others send to its owner."""

from __future__ import annotations

from ipaddress import ip_network

from ipsec_api.ownership import DEFAULT_GROUP, Wish
from ipsec_api.tunnel import TunnelConfig
from ipsec_gateway.cluster.membership import Claim


def claim_of(tunnel: TunnelConfig) -> Claim:
    """How its peer is shared among the gateways."""
    failover = tunnel.failover
    return Claim(
        wish=Wish(failover.group or DEFAULT_GROUP, failover.labels),
        patience=float(failover.patience),
        preempt=failover.preempt,
        by_probe=failover.by_probe,
    )


def remote_subnets(tunnel: TunnelConfig) -> tuple[str, ...]:
    """What other nodes send to the owner: of translated networks what our side sees."""
    mapped = [(ip_network(m.original), m.mapped) for m in tunnel.mappings if m.side == "remote"]
    subnets: set[str] = set()
    for selector in (s for p in tunnel.policies if p.action == "encrypt" for s in p.selectors):
        remote = ip_network(selector.dst)
        seen = [
            new for old, new in mapped if old.version == remote.version and old.overlaps(remote)
        ]
        subnets.update(seen or (selector.dst,))
    return tuple(sorted(subnets))


def tolerant(tunnel: TunnelConfig) -> bool:
    """Whether its traffic may go in clear text while nobody carries it."""
    encrypted = [p for p in tunnel.policies if p.action == "encrypt"]
    return bool(encrypted) and all(p.level == "use" for p in encrypted)
