"""The gateway's conditions, before they have a time: what is established, what gets through, what
is healthy. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ipsec_api.snapshot import IPsecPolicy
from ipsec_api.templates import unused
from ipsec_api.tunnel import TunnelConfig
from ipsec_api.verdicts import Verdict
from ipsec_gateway.board import Cause, PeerState
from ipsec_gateway.forward.findings import Blocked
from ipsec_gateway.pathprobe.schedule import Health


def established(tunnel: TunnelConfig | None, state: PeerState, expected: list[str]) -> Verdict:
    """Whether the peer has its SAs."""
    if tunnel is None:
        return Verdict("Established", "False", "NotAccepted", "not in force: see Accepted")
    if state.up is None:
        cause = state.cause
        if cause is None:
            where = state.remote or ", ".join(tunnel.addresses)
            cause = (
                Cause("Waiting", "passive: waits for the peer to connect")
                if tunnel.passive
                else Cause("Connecting", f"connecting to {where}")
            )
        return Verdict("Established", "False", cause.reason, cause.message)
    missing = [c for c in expected if not state.children.get(c) or not state.children[c].spis]
    # A passive peer sets up what it needs, when it needs it.
    if missing and not (tunnel.passive and state.installed):
        child = state.children.get(missing[0])
        cause = child.cause if child else None
        if cause is None:
            cause = Cause("Connecting", f"no SA yet for {', '.join(missing[:5])}")
        return Verdict("Established", "False", cause.reason, cause.message)
    if state.refused is not None and not state.installed:
        return Verdict("Established", "False", state.refused.reason, state.refused.message)
    return Verdict("Established", "True", "Established")


def all_true(verdicts: Iterable[Verdict]) -> bool:
    """Whether nothing is wrong."""
    return all(verdict.status == "True" for verdict in verdicts)


def programmed_unused(item: IPsecPolicy) -> Verdict:
    """A template that no peer uses."""
    return Verdict("Programmed", "False", "Unused", unused(item.spec.group))


def forwarding(blocked: Blocked | None) -> list[Verdict]:
    """Whether others on this node drop it; nothing where nobody is seen that may."""
    if blocked is None:
        return []
    status = "False" if blocked.sure else "Unknown"
    return [Verdict("Forwarding", status, "ForwardingBlocked", blocked.message)]


def healthy(health: Health | None) -> list[Verdict]:
    """What the probe says; nothing while it measures nothing."""
    if health is None or (health.ok is None and not health.reason):
        return []
    if health.ok is None:
        return [Verdict("Healthy", "Unknown", health.reason, health.message)]
    return [Verdict("Healthy", str(health.ok), health.reason, health.message)]
