"""Configurations of both sites for many IKE SAs between two gateways."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final

from ipsec_ike.config import (
    ChildConfig,
    Childless,
    IdentityConfig,
    Path,
    PeerConfig,
    Start,
)
from ipsec_ike.identity import Identity
from ipsec_ike.numbers import Encr, Esn, Group, Prf, Protocol, TransformType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.bench_charon import PSK

_GCM: Final = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
_SHA256: Final = Transform(TransformType.PRF, Prf.HMAC_SHA2_256)
_ESP: Final = Proposal(Protocol.ESP, (_GCM, Transform(TransformType.ESN, Esn.NO_ESN)))
_OWN: Final = ipaddress.ip_network("10.128.0.0/10")
_FAR: Final = ipaddress.ip_network("10.192.0.0/10")
_RESPONDER: Final = Identity.fqdn("b.example")


def initiators(
    count: int,
    addresses: Mapping[str, str],
    *,
    child: bool = True,
    group: int = Group.CURVE25519,
) -> list[PeerConfig]:
    """``count`` peers of site a, ``peer-0`` and so on, which start by command only.

    Each has an identity and, with ``child``, a pair of /32 of its own: an engine keeps one IKE SA
    for a peer. ``addresses`` are those of both sites.
    """
    return [
        _peer(
            f"peer-{number}",
            Identity.fqdn(f"{number}.a.example"),
            _RESPONDER,
            remote=addresses["b"],
            path=Path(addresses["a"], addresses["b"]),
            child=_child(f"{_OWN[number]}/32", f"{_FAR[number]}/32", number + 1) if child else None,
            group=group,
        )
        for number in range(count)
    ]


def responder(
    addresses: Mapping[str, str], *, child: bool = True, group: int = Group.CURVE25519
) -> list[PeerConfig]:
    """The one peer of site b, which takes all of these initiators: so has charon it, too."""
    return [
        _peer(
            "anybody",
            _RESPONDER,
            None,
            remote=addresses["a"],
            path=None,
            child=_child(str(_FAR), str(_OWN), 1) if child else None,
            group=group,
        )
    ]


def _child(local: str, remote: str, reqid: int) -> ChildConfig:
    return ChildConfig(
        name="bench",
        local_ts=(TrafficSelector.network(local),),
        remote_ts=(TrafficSelector.network(remote),),
        proposals=(_ESP,),
        reqid=reqid,
        start=Start.ON_TRAFFIC,
    )


def _peer(
    name: str,
    local_id: Identity,
    remote_id: Identity | None,
    *,
    remote: str,
    path: Path | None,
    child: ChildConfig | None,
    group: int,
) -> PeerConfig:
    identity = IdentityConfig(name="psk", local_id=local_id, remote_id=remote_id, psk=Secret(PSK))
    ike = Proposal(Protocol.IKE, (_GCM, _SHA256, Transform(TransformType.KE, group)))
    return PeerConfig(
        name=name,
        identities=(identity,),
        children=() if child is None else (child,),
        ike_proposals=(ike,),
        paths=() if path is None else (path,),
        remote_networks=(ipaddress.ip_network(remote),),
        initiate=path is not None,
        dpd_interval=0,
        childless=Childless.NEVER if child else Childless.PREFER,
        send_initial_contact=False,
    )
