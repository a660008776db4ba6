"""Templates: what the identities of a peer get of them, and what is said about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ipsec_api.compile import CompileResult
from ipsec_api.tunnel import TunnelConfig

Make = Callable[..., dict[str, Any]]
Compiled = Callable[..., CompileResult]

PSK = {"method": "preSharedKey", "secretRef": {"name": "hq-psk"}}
ASKS = {**PSK, "generatePolicy": "port-strict", "policyTemplateGroup": "warriors"}
POOL = [{"src": "10.1.0.0/24", "dst": "10.99.0.0/24"}]


def peer(make: Make, name: str = "hq", /, **changes: Any) -> dict[str, Any]:
    spec = {"address": None, "passive": True, "remoteSubnets": None, "localSubnets": None}
    return make("IPsecPeer", name, **{**spec, "authentication": ASKS, **changes})


def template(make: Make, name: str = "t", /, **changes: Any) -> dict[str, Any]:
    spec = {"peerRef": None, "template": True, "group": "warriors", "selectors": POOL}
    return make("IPsecPolicy", name, **{**spec, **changes})


def test_a_peer_gets_the_templates_of_its_group(make: Make, compiled: Compiled) -> None:
    result = compiled(
        make("Secret", "hq-psk"),
        peer(make),
        template(make, "mine", level="use", priority=7, proposal={"lifetime": "1h"}),
        template(make, "another", group="default"),
        template(make, "off", disabled=True),
    )
    assert (result.rejections, result.advice) == ([], [])
    (tunnel,) = result.tunnels
    assert tunnel.policies == ()
    assert (tunnel.identities[0].generate, tunnel.identities[0].template_group) == (
        "port-strict",
        "warriors",
    )
    (only,) = tunnel.templates
    assert (only.source.name, only.group, only.level, only.priority) == (
        "mine",
        "warriors",
        "use",
        7,
    )
    assert (only.lifetime, only.default_route, only.per_pair) == (3600, False, False)
    assert [(s.src, s.dst) for s in only.selectors] == [("10.1.0.0/24", "10.99.0.0/24")]
    assert TunnelConfig.from_json(tunnel.to_json()) == tunnel


def test_who_does_not_generate_gets_none(make: Make, compiled: Compiled) -> None:
    result = compiled(make("Secret", "hq-psk"), make("IPsecPeer"), template(make))
    assert result.tunnels[0].templates == ()
    assert result.tunnels[0].identities[0].generate == "no"


def test_selectors_that_share_no_sa_are_templates_of_their_own(
    make: Make, compiled: Compiled
) -> None:
    pairs = [*POOL, {"src": "10.2.0.0/24", "dst": "10.98.0.0/24"}]
    result = compiled(
        make("Secret", "hq-psk"), peer(make), template(make, selectors=pairs, level="unique")
    )
    found = [(t.index, len(t.selectors), t.per_pair) for t in result.tunnels[0].templates]
    assert found == [(0, 1, False), (1, 1, False)]


def test_two_identities_with_two_groups(make: Make, compiled: Compiled) -> None:
    identities = [
        {"name": "a", **ASKS, "remoteID": {"type": "fqdn", "value": "a.example"}},
        {
            "name": "b",
            **ASKS,
            "policyTemplateGroup": "others",
            "generatePolicy": "port-override",
            "remoteID": {"type": "fqdn", "value": "b.example"},
        },
        {"name": "c", **ASKS, "remoteID": {"type": "fqdn", "value": "c.example"}},
    ]
    result = compiled(
        make("Secret", "hq-psk"),
        peer(make, authentication=None, identities=identities),
        template(make, "one"),
        template(make, "two", group="others", allowDefaultRoute=True),
    )
    (tunnel,) = result.tunnels
    assert [(t.source.name, t.group, t.default_route) for t in tunnel.templates] == [
        ("one", "warriors", False),
        ("two", "others", True),
    ]
    asked = [i.generate for i in tunnel.identities]
    assert asked == ["port-strict", "port-override", "port-strict"]


def test_an_empty_group_is_told(make: Make, compiled: Compiled) -> None:
    result = compiled(make("Secret", "hq-psk"), peer(make), template(make, group="default"))
    assert [t.templates for t in result.tunnels] == [()]
    (advice,) = result.advice
    assert (advice.kind, advice.field, advice.condition) == (
        "IPsecPeer",
        "spec.authentication.policyTemplateGroup",
        "ResolvedRefs",
    )
    assert "group: warriors" in advice.message


def test_whoever_may_claim_any_network_is_told(make: Make, compiled: Compiled) -> None:
    everything = template(make, selectors=[{"src": "10.1.0.0/24", "dst": "0.0.0.0/0"}])
    result = compiled(make("Secret", "hq-psk"), peer(make), everything)
    (advice,) = result.advice
    assert (advice.name, advice.field) == ("t", "spec.selectors")
    assert "any remote network" in advice.message


def test_a_peer_that_may_not_have_a_template_goes_without(make: Make, compiled: Compiled) -> None:
    weak = template(make, proposal={"encAlgorithms": ["aes256"], "authAlgorithms": ["sha1"]})
    result = compiled(
        make("Secret", "hq-psk"),
        peer(make, "careful"),
        peer(make, "bold", address="192.0.2.0/24", allowInsecure=True),
        weak,
    )
    assert result.rejections == []
    assert {t.source.name: len(t.templates) for t in result.tunnels} == {"bold": 1, "careful": 0}
    said = [a.message for a in result.advice]
    assert any("IPsecPeer default/careful goes without it" in text for text in said)


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"proposal": {"encAlgorithms": ["camellia256"]}}, "proposal.encAlgorithms", ""),
        ({"ipsecProtocols": ["esp", "ah"]}, "ipsecProtocols", ""),
        ({"selectors": [{"srcFrom": "PodCIDR", "dst": "10.9.0.0/24"}]}, "selectors", ""),
    ],
)
def test_a_template_with_a_fault_is_given_to_nobody(
    make: Make, compiled: Compiled, change: dict[str, Any], field: str, reason: str
) -> None:
    result = compiled(make("Secret", "hq-psk"), peer(make), template(make, **change))
    assert [(r.name, r.field, r.reason) for r in result.rejections] == [
        ("t", f"spec.{field}", "NotYetSupported")
    ]
    assert result.tunnels[0].templates == ()


@pytest.mark.parametrize(
    "change",
    [
        {"subnetMapping": [{"local": "10.1.0.0/24", "mapped": "10.7.0.0/24"}]},
        {"nat": {"mode": "Masquerade"}},
    ],
)
def test_translated_peers_cannot_generate(
    make: Make, compiled: Compiled, change: dict[str, Any]
) -> None:
    result = compiled(make("Secret", "hq-psk"), peer(make, **change), template(make))
    assert [(r.name, r.field, r.reason) for r in result.rejections] == [
        ("hq", "spec.authentication.generatePolicy", "NotYetSupported")
    ]


def test_what_is_discarded_comes_last_of_the_same_priority(make: Make, compiled: Compiled) -> None:
    """R17: a generic discard policy needs no priority of its own."""
    result = compiled(
        make("Secret", "hq-psk"),
        make("IPsecPeer", remoteSubnets=None, localSubnets=None),
        make("IPsecPolicy", "drop", action="discard", **_pair("10.1.0.0/16", "10.0.0.0/8")),
        make("IPsecPolicy", "keep", **_pair("10.1.0.0/16", "10.30.0.0/16")),
    )
    assert result.rejections == []
    (same,) = compiled(
        make("Secret", "hq-psk"),
        make("IPsecPeer", remoteSubnets=None, localSubnets=None),
        make("IPsecPolicy", "a", **_pair("10.1.0.0/16", "10.30.0.0/16")),
        make("IPsecPolicy", "b", action="discard", **_pair("10.1.0.0/16", "10.30.0.0/16")),
    ).rejections
    assert (same.name, same.reason) == ("b", "Overlap")
    assert "IPsecPolicy default/a" in same.message


def _pair(src: str, dst: str) -> dict[str, Any]:
    return {"selectors": [{"src": src, "dst": dst}]}
