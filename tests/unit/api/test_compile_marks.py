"""Marks of peers: what they come to, and whose they must not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ipsec_api.compile import CompileResult
from ipsec_api.tunnel import TunnelService

Make = Callable[..., dict[str, Any]]
Compiled = Callable[..., CompileResult]
SNAT = {"nat": {"mode": "SNAT", "snatAddress": "10.9.9.9"}}


def faults(result: CompileResult) -> list[tuple[str, str, str, str]]:
    return [(r.name, r.field, r.reason, r.message) for r in result.rejections]


def test_the_routing_arrives(one: Callable[..., Any]) -> None:
    routing = {"tableID": 9, "routingMark": 7, "connectionMark": 3, "metric": 50}
    services = [{"protocol": "tcp", "port": 22, "endPort": 23}, {"protocol": "47"}]
    tunnel = one(routing=routing, requireIPsec=services, **SNAT)
    assert (tunnel.routing_table, tunnel.routing_mark, tunnel.metric) == (9, 7, 50)
    assert tunnel.connection_mark == 3
    assert tunnel.require_ipsec == (
        TunnelService(protocol=6, ports=(22, 23)),
        TunnelService(protocol=47),
    )


@pytest.mark.parametrize(
    ("routing", "said"),
    [
        ({"routingMark": 0x80}, "the AWS VPC CNI (0x80)"),
        ({"routingMark": 0}, "without a mark"),
    ],
)
def test_bits_of_others_are_refused_by_name(
    make: Make, compiled: Compiled, routing: dict[str, Any], said: str
) -> None:
    result = compiled(make("Secret", "hq-psk"), make("IPsecPeer", routing=routing))
    ((_, field, _, message),) = faults(result)
    assert field == "spec.routing.routingMark"
    assert said in message
    assert not result.tunnels


def test_where_the_owner_does_not_run_they_may_be_had(one: Callable[..., Any]) -> None:
    routing = {"routingMark": 0x4080, "allowMarkConflict": True}
    assert one(routing=routing).routing_mark == 0x4080


@pytest.mark.parametrize("field", ["routingMark", "connectionMark"])
def test_two_peers_with_one_mark(make: Make, compiled: Compiled, field: str) -> None:
    def peers(**second: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        first = make("IPsecPeer", "a", routing={field: 7}, **SNAT)
        other = make(
            "IPsecPeer",
            "b",
            routing={field: 7, **second},
            address="203.0.113.10",
            remoteSubnets=["10.21.0.0/16"],
            **SNAT,
        )
        return first, other

    ((name, where, reason, message),) = faults(compiled(make("Secret", "hq-psk"), *peers()))
    assert (name, where, reason) == ("b", f"spec.routing.{field}", "MarkConflict")
    assert "IPsecPeer default/a has the same mark" in message
    meant = compiled(make("Secret", "hq-psk"), *peers(allowMarkConflict=True))
    assert len(meant.tunnels) == 2
