"""Which peers have no fault of their own: the first step of ``compile``. Pure, and total.

Of two with the same address and local address, or the same mark, the older one is accepted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ipsec_api import features, suites
from ipsec_api.credentials import Fault, SecretIndex, entries, resolve
from ipsec_api.marks import TakenMarks
from ipsec_api.peer import Dpd, IPsecPeerSpec, Profile
from ipsec_api.rejection import Advice, Rejection
from ipsec_api.scalars import is_cidr, is_ip, network
from ipsec_api.snapshot import IPsecPeer, Snapshot
from ipsec_api.templates import peer_faults
from ipsec_api.tunnel import ObjectRef, TunnelIdentity


@dataclass(frozen=True, slots=True)
class AcceptedPeer:
    """A peer without a fault of its own."""

    peer: IPsecPeer
    identities: tuple[TunnelIdentity, ...]


def accept(
    snapshot: Snapshot, rejections: list[Rejection], advice: list[Advice]
) -> dict[tuple[str, str], AcceptedPeer]:
    """The peers that have no fault of their own and are not disabled. Faults of the others are
    added to ``rejections``, remarks to ``advice``."""
    accepted: dict[tuple[str, str], AcceptedPeer] = {}
    secrets = SecretIndex.of(snapshot.secrets)
    endpoints: dict[tuple[str, str | None], ObjectRef] = {}
    marks = TakenMarks()
    for peer in sorted(snapshot.peers, key=lambda p: p.metadata.age):
        spec = peer.spec
        if spec.disabled:
            continue
        faults = _unbuilt_of_peer(spec)
        profile = spec.profile or Profile()
        algorithm_faults, warnings = suites.judge(
            suites.profile_names(profile), allow_insecure=spec.allow_insecure, where="this peer"
        )
        faults += [(f"spec.profile.{f}", reason, text) for f, reason, text in algorithm_faults]
        identities, credential_faults = resolve(peer.metadata.namespace, spec, secrets)
        faults += credential_faults
        faults += peer_faults(spec)
        if not faults:
            faults += marks.take(peer.ref, spec.routing)
        endpoint = (endpoint_of(spec), spec.local_address)
        if not faults and endpoint in endpoints:
            message = (
                f"{endpoints[endpoint]} has the same address and localAddress: put the identities"
                " of both into one peer, or set different addresses"
            )
            faults.append(("spec.address", "Overlap", message))
        rejections.extend(Rejection(peer.ref, *fault) for fault in faults)
        if faults:
            continue
        endpoints[endpoint] = peer.ref
        accepted[peer.metadata.key] = AcceptedPeer(peer, tuple(identities))
        warnings = [(f"spec.profile.{f}", reason, text) for f, reason, text in warnings]
        warnings += _ignored_by_ikev2(profile)
        advice.extend(Advice(peer.ref, *warning) for warning in warnings)
    return accepted


def _unbuilt_of_peer(spec: IPsecPeerSpec) -> list[Fault]:
    faults = unbuilt("spec", spec, features.PEER)
    for _, where, entry in entries(spec):
        faults += unbuilt(where, entry, features.AUTHENTICATION)
    return faults


def unbuilt(
    where: str, part: features.T, table: Iterable[features.Unbuilt[features.T]]
) -> list[Fault]:
    """Faults of the fields of ``part`` that nothing is built for yet."""
    return [
        (f"{where}.{row.field}", "NotYetSupported", f"this is not built yet: {row.remedy}")
        for row in table
        if row.asked(part)
    ]


def _ignored_by_ikev2(profile: Profile) -> list[Fault]:
    defaults = Profile()
    dpd = profile.dpd or Dpd()
    ignored = {
        "lifebytes": profile.lifebytes != defaults.lifebytes,
        "proposalCheck": profile.proposal_check != defaults.proposal_check,
        "natTraversal": profile.nat_traversal != defaults.nat_traversal,
        "dpd.maxFailures": dpd.max_failures != Dpd().max_failures,
    }
    return [
        (f"spec.profile.{name}", "Ignored", "IKEv2 has no use for it: remove it")
        for name, asked in ignored.items()
        if asked
    ]


def endpoint_of(spec: IPsecPeerSpec) -> str:
    """Where the peer comes from, in one spelling."""
    address = spec.address
    if address is None:
        return "anywhere"
    if is_cidr(address) or is_ip(address):
        return str(network(address))
    return address.rstrip(".").lower()
