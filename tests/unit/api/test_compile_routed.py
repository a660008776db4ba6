"""Routed policies: interfaces, names, and selectors that stand in nobody's way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ipsec_api.compile import CompileResult
from ipsec_api.routed import interface_name
from ipsec_api.tunnel import ObjectRef, TunnelInterface, TunnelPolicy

Make = Callable[..., dict[str, Any]]
Compiled = Callable[..., CompileResult]

ALL = [{"src": "0.0.0.0/0", "dst": "0.0.0.0/0"}, {"src": "::/0", "dst": "::/0"}]


@pytest.fixture
def build(make: Make, compiled: Compiled) -> Callable[..., CompileResult]:
    def run(*policies: dict[str, Any], **peer: Any) -> CompileResult:
        return compiled(make("Secret", "hq-psk"), make("IPsecPeer", **peer), *policies)

    return run


def routed_only(result: CompileResult) -> list[TunnelPolicy]:
    return [p for t in result.tunnels for p in t.policies if p.interface is not None]


def test_everything_of_an_interface_arrives(
    build: Callable[..., CompileResult], make: Make
) -> None:
    interface = {
        "name": "office0",
        "addresses": ["169.254.10.1/30", "FD00:0::1/64"],
        "mtu": 1400,
        "routes": ["10.7.0.0/16", "0.0.0.0/0"],
    }
    more = {"dscp": "CopyBoth", "ecn": "Clear", "df": "Clear"}
    policy = make(
        "IPsecPolicy", "office", mode="routed", selectors=ALL, interface=interface, **more
    )
    result = build(policy, hwOffload="Crypto")
    assert not result.rejections
    assert not result.advice
    (got,) = routed_only(result)
    assert got.interface == TunnelInterface(
        name="office0",
        addresses=("169.254.10.1/30", "fd00::1/64"),
        mtu=1400,
        routes=("10.7.0.0/16", "0.0.0.0/0"),
    )
    assert (got.dscp, got.ecn, got.df) == ("CopyBoth", "Clear", "Clear")
    assert [s.src for s in got.selectors] == ["0.0.0.0/0", "::/0"]
    assert result.tunnels[0].hw_offload == "Crypto"


def test_routed_selectors_overlap_with_nothing(
    build: Callable[..., CompileResult], make: Make
) -> None:
    names = ("one", "two")
    result = build(*(make("IPsecPolicy", n, mode="routed", selectors=ALL) for n in names))
    assert not result.rejections
    assert not result.advice
    found = [p.interface.name for p in routed_only(result) if p.interface]
    assert sorted(found) == sorted(interface_name(p.source) for p in routed_only(result))
    assert len(set(found)) == 2
    assert len(result.tunnels[0].policies) == 3, "and remoteSubnets"


def test_the_older_policy_keeps_the_name(build: Callable[..., CompileResult], make: Make) -> None:
    policies = []
    for name, created in (("young", "2026-02-01T00:00:00Z"), ("old", "2026-01-01T00:00:00Z")):
        policy = make("IPsecPolicy", name, mode="routed", interface={"name": "x0"}, selectors=ALL)
        policy["metadata"]["creationTimestamp"] = created
        policies.append(policy)
    result = build(*policies)
    (rejection,) = result.rejections
    assert (rejection.name, rejection.field) == ("young", "spec.interface.name")
    assert "IPsecPolicy default/old has an interface x0 already" in rejection.message
    assert [p.source.name for p in routed_only(result)] == ["old"]


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("hq", "kx-hq-"),
        ("frankfurt-2", "kx-frankfu-"),
        ("fra.eu", "kx-fra-eu-"),
        ("abcdef-x", "kx-abcdef-"),
    ],
)
def test_names_are_short_readable_and_their_own(name: str, begins: str) -> None:
    ours, theirs = (
        interface_name(ObjectRef(kind="IPsecPolicy", namespace=ns, name=name)) for ns in ("a", "b")
    )
    assert ours.startswith(begins)
    assert len(ours) <= 15
    assert ours != theirs
    again = ObjectRef(kind="IPsecPolicy", namespace="a", name=name, uid="other", generation=7)
    assert ours == interface_name(again)
