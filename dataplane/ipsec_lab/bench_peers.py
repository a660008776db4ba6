"""Configurations of many tunnels between two gateways, each with its identities and networks."""

from __future__ import annotations

import ipaddress

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

_GCM = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
_SHA256 = Transform(TransformType.PRF, Prf.HMAC_SHA2_256)


def peers(
    side: str,
    count: int,
    *,
    addresses: dict[str, str],
    networks: dict[str, str],
    child: bool = True,
    group: int = Group.CURVE25519,
) -> list[PeerConfig]:
    """``count`` peers of site ``side``, ``a`` (initiates) or ``b``, named ``peer-0`` and so on.

    ``addresses`` and ``networks`` are those of both sites. The first child is between the networks,
    as the stream needs it; the others are between /32 outside of them, so that no two have the
    same policy. Nothing starts by itself or asks for signs of life; lifetimes are the defaults.
    """
    other = "b" if side == "a" else "a"
    made = []
    for number in range(count):
        spare = (
            ipaddress.ip_address("10.128.0.0") + number,
            ipaddress.ip_address("10.192.0.0") + number,
        )
        own_net, far_net = (f"{spare[side == 'b']}/32", f"{spare[side == 'a']}/32")
        if number == 0:
            own_net, far_net = networks[side], networks[other]
        identity = IdentityConfig(
            name="psk",
            local_id=Identity.fqdn(f"{number}.{side}.example"),
            remote_id=Identity.fqdn(f"{number}.{other}.example"),
            psk=Secret(PSK),
        )
        one_child = ChildConfig(
            name="bench",
            local_ts=(TrafficSelector.network(own_net),),
            remote_ts=(TrafficSelector.network(far_net),),
            proposals=(Proposal(Protocol.ESP, (_GCM, Transform(TransformType.ESN, Esn.NO_ESN))),),
            reqid=number + 1,
            start=Start.NEVER,
        )
        made.append(
            PeerConfig(
                name=f"peer-{number}",
                identities=(identity,),
                children=(one_child,) if child else (),
                ike_proposals=(
                    Proposal(Protocol.IKE, (_GCM, _SHA256, Transform(TransformType.KE, group))),
                ),
                paths=(Path(addresses[side], addresses[other]),) if side == "a" else (),
                remote_networks=(ipaddress.ip_network(addresses[other]),),
                initiate=side == "a",
                dpd_interval=0,
                childless=Childless.NEVER if child else Childless.PREFER,
                send_initial_contact=False,
            )
        )
    return made
