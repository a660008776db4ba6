"""``--dry-run``: what a folder of manifests comes to, without touching anything."""

from __future__ import annotations

from pathlib import Path

from ipsec_gateway.facts import Facts
from ipsec_gateway.intent import Intent, intent
from ipsec_gateway.ipsec.base import PolicyDirection
from ipsec_gateway.lastgood import InForce, LastGood
from ipsec_gateway.sources.directory import DirectorySource


def report(folder: Path) -> tuple[bool, str]:
    """Whether every document is accepted, and a text for people. Names are not resolved."""
    in_force = LastGood().take(DirectorySource(folder).read_once().files)
    names = {n for t in in_force.tunnels for n in t.addresses}
    # Every address counts as reachable: this machine need not be the gateway.
    facts = Facts(
        resolved={n: (n,) for n in names if n[0].isdigit() or ":" in n},
        sources={n: "::" if ":" in n else "0.0.0.0" for n in names},  # noqa: S104  # bound nowhere
    )
    wanted = intent(in_force.tunnels, facts)
    faults = [str(f) for f in (*in_force.errors, *in_force.rejections)]
    lines = [*_tunnels(in_force, wanted)]
    lines += [f"rejected: {fault}" for fault in faults]
    lines += [f"note: {remark}" for remark in (*in_force.advice, *in_force.warnings)]
    return not faults, "\n".join(lines) or "no documents"


def _tunnels(in_force: InForce, wanted: Intent) -> list[str]:
    lines: list[str] = []
    for tunnel in in_force.tunnels:
        where = ", ".join(tunnel.addresses) or "whoever connects"
        lines.append(f"IPsecPeer {tunnel.key}: {where}")
        peer = next((p for p in wanted.peers if p.name == tunnel.key), None)
        lines += [f"  {proposal}" for proposal in (peer.ike_proposals if peer else ())]
    lines += [
        f"policy {spec.priority}: {spec.id.source} to {spec.id.destination}: "
        f"{spec.action.value} ({spec.name})"
        for spec in wanted.policies
        if spec.id.direction is PolicyDirection.OUT
    ]
    return lines
