"""What a peer says about its gateways, and where else it may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipsec_api.compile import CompileResult
from ipsec_api.tunnel import TunnelConfig, TunnelFailover, TunnelProbe

One = Callable[..., TunnelConfig]


def test_without_a_word_the_defaults_hold(one: One) -> None:
    tunnel = one()
    assert tunnel.failover == TunnelFailover()
    assert tunnel.probe is None


def test_selector_and_failover(one: One) -> None:
    tunnel = one(
        gatewaySelector={"group": "edge", "nodeSelector": {"zone": "a"}},
        failover={"mode": "LeaseOnly", "leaseDuration": "20s", "preempt": True},
    )
    assert tunnel.failover == TunnelFailover(
        group="edge", labels={"zone": "a"}, by_probe=False, patience=20, preempt=True
    )
    assert one(gatewaySelector={"nodeSelector": {"x": "y"}}).failover.group == ""
    assert one(failover={}).failover == TunnelFailover()


def test_probe(one: One) -> None:
    assert one(probe={}).probe == TunnelProbe()
    tunnel = one(
        probe={
            "targets": ["10.20.0.1", "10.20.0.2"],
            "interval": "5s",
            "failureThreshold": 3,
            "sourceAddress": "10.1.0.1",
            "protocol": "UDP",
            "port": 7,
        }
    )
    assert tunnel.probe == TunnelProbe(
        targets=("10.20.0.1", "10.20.0.2"),
        interval=5,
        failure_threshold=3,
        source_address="10.1.0.1",
        protocol="UDP",
        port=7,
    )
    assert one(probe={"enabled": False}).probe == TunnelProbe(enabled=False)


def test_further_addresses_come_after_the_first(one: One) -> None:
    tunnel = one(address="203.0.113.9", fallbackAddresses=["203.0.113.10", "B.Example.com."])
    assert tunnel.addresses == ("203.0.113.9", "203.0.113.10", "b.example.com")
    assert tunnel.remote_networks == ("203.0.113.9/32", "203.0.113.10", "b.example.com")
    tunnel = one(address="vpn.example.com", fallbackAddresses=["203.0.113.10"])
    assert tunnel.addresses == tunnel.remote_networks == ("vpn.example.com", "203.0.113.10")


def test_a_passive_peer_may_come_from_each_of_them(one: One) -> None:
    tunnel = one(passive=True, address="203.0.113.9", fallbackAddresses=["203.0.113.10"])
    assert tunnel.addresses == ()
    assert tunnel.remote_networks == ("203.0.113.9/32", "203.0.113.10")


def test_it_survives_the_rendered_secret(one: One) -> None:
    tunnel = one(gatewaySelector={"nodeSelector": {"x": "y"}}, probe={"targets": ["10.20.0.1"]})
    assert TunnelConfig.from_json(tunnel.to_json()) == tunnel


def test_a_rendered_secret_of_before_is_read(one: One) -> None:
    """An operator that knows nothing of it is upgraded after the gateways."""
    plain: dict[str, Any] = one().model_dump(mode="json", by_alias=True)
    for name in ("failover", "probe"):
        del plain[name]
    assert TunnelConfig.model_validate(plain) == one()


def test_an_overlap_is_found_as_before(
    make: Callable[..., dict[str, Any]], compiled: Callable[..., CompileResult]
) -> None:
    result = compiled(
        make("Secret", "hq-psk"),
        make("IPsecPeer", "a"),
        make("IPsecPeer", "b", fallbackAddresses=["203.0.113.77"]),
    )
    assert [r.field for r in result.rejections] == ["spec.address"]
