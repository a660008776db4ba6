"""What a peer says about its gateways, in the form that a gateway needs it: who may own it, when
another takes over, how the tunnel is probed, and where else the remote end is."""

from __future__ import annotations

from typing import Any

from ipsec_api.peer import IPsecPeerSpec
from ipsec_api.scalars import seconds
from ipsec_api.tunnel import TunnelFailover, TunnelProbe


def gateway_fields(spec: IPsecPeerSpec) -> dict[str, Any]:
    """Fields of TunnelConfig by name."""
    return {"failover": _failover(spec), "probe": _probe(spec)}


def _failover(spec: IPsecPeerSpec) -> TunnelFailover:
    selector, failover = spec.gateway_selector, spec.failover
    labels = selector.node_selector if selector is not None else None
    wish = {
        "group": (selector.group if selector is not None else None) or "",
        "labels": dict(labels or {}),
    }
    if failover is None:
        return TunnelFailover.model_validate(wish)
    return TunnelFailover.model_validate(
        {
            **wish,
            "by_probe": failover.mode == "LeaseAndProbe",
            "patience": seconds(failover.lease_duration),
            "preempt": failover.preempt,
        }
    )


def _probe(spec: IPsecPeerSpec) -> TunnelProbe | None:
    probe = spec.probe
    if probe is None:
        return None
    return TunnelProbe(
        enabled=probe.enabled,
        targets=probe.targets,
        protocol=probe.protocol,
        port=probe.port,
        interval=seconds(probe.interval),
        failure_threshold=probe.failure_threshold,
        source_address=probe.source_address,
    )


def further_endpoints(spec: IPsecPeerSpec) -> tuple[str, ...]:
    """``fallbackAddresses`` in one spelling, in order."""
    return tuple(a.rstrip(".").lower() for a in spec.fallback_addresses)
