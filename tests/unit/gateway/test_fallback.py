"""A peer with several addresses: they are tried in order, and none of them for long."""

from __future__ import annotations

from pydantic import SecretBytes

from ipsec_api.tunnel import (
    ObjectRef,
    TunnelConfig,
    TunnelIdentity,
    TunnelPolicy,
    TunnelProposal,
    TunnelSelector,
)
from ipsec_gateway.facts import Facts
from ipsec_gateway.intent import intent
from ipsec_ike.config import Path, PeerConfig, Retransmission


def peer(*addresses: str, networks: tuple[str, ...] = ()) -> PeerConfig:
    ref = ObjectRef(kind="IPsecPeer", namespace="ns", name="hq")
    selector = TunnelSelector(src="10.1.0.0/16", dst="10.2.0.0/16")
    tunnel = TunnelConfig(
        source=ref,
        addresses=addresses,
        remote_networks=networks,
        ike_proposals=(
            TunnelProposal(encryption=("aes128-gcm",), prf=("sha256",), groups=("x25519",)),
        ),
        identities=(TunnelIdentity(name="x", psk=SecretBytes(b"p" * 16)),),
        policies=(
            TunnelPolicy(
                source=ref,
                priority=1,
                selectors=(selector,),
                proposals=(TunnelProposal(encryption=("aes128-gcm",)),),
            ),
        ),
    )
    resolved = {a: (a,) for a in addresses} | {"b.example.com": ("203.0.113.20", "203.0.113.21")}
    remotes = {a for each in resolved.values() for a in each}
    facts = Facts(resolved=resolved, sources=dict.fromkeys(remotes, "192.0.2.1"))
    (config,) = intent([tunnel], facts).peers
    return config


def test_addresses_are_tried_in_order_and_each_may_call() -> None:
    config = peer("203.0.113.9", "b.example.com", networks=("203.0.113.9/32", "b.example.com"))
    assert config.paths == tuple(
        Path("192.0.2.1", a) for a in ("203.0.113.9", "203.0.113.20", "203.0.113.21")
    )
    assert sorted(map(str, config.remote_networks)) == [
        "203.0.113.20/32",
        "203.0.113.21/32",
        "203.0.113.9/32",
    ]
    assert config.retransmission.tries < Retransmission().tries


def test_a_single_address_gets_all_the_time_there_is() -> None:
    assert peer("203.0.113.9").retransmission == Retransmission()
