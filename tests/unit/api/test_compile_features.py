"""What is not built yet is refused by name; defaults of the API server change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipsec_api.compile import CompileResult
from ipsec_api.tunnel import TunnelConfig

ROOT = Path(__file__).parents[3]
Make = Callable[..., dict[str, Any]]
Compiled = Callable[..., CompileResult]


def reasons(result: CompileResult) -> list[tuple[str, str, str]]:
    return [(r.name, r.field, r.reason) for r in result.rejections]


# --- not yet supported ------------------------------------------------------------------------

PSK = {"method": "preSharedKey", "secretRef": {"name": "hq-psk"}}
UNBUILT_PEER = [
    ("spec.exchangeMode", {"exchangeMode": "main"}),
    ("spec.exchangeMode", {"exchangeMode": "aggressive", "allowInsecure": True}),
    ("spec.exchangeMode", {"exchangeMode": "base", "allowInsecure": True}),
    ("spec.profileRef", {"profileRef": {"name": "p"}}),
    ("spec.deletionPolicy", {"deletionPolicy": "Force"}),
    ("spec.deletionTimeout", {"deletionTimeout": "9s"}),
    (
        "spec.authentication.method",
        {"authentication": {"method": "certificate", "certificateRef": {"name": "c"}}},
    ),
    (
        "spec.identities[0].method",
        {
            "authentication": None,
            "identities": [{"name": "a", "method": "eap", "secretRef": {"name": "e"}}],
        },
    ),
    (
        "spec.authentication.modeConfigRef",
        {"authentication": {**PSK, "modeConfigRef": {"name": "m"}}},
    ),
    ("spec.profile.dhGroups", {"allowInsecure": True, "profile": {"dhGroups": ["modp1024"]}}),
    ("spec.profile.encAlgorithms", {"profile": {"encAlgorithms": ["camellia256"]}}),
]
HOSTS = [{"src": "10.1.0.1/32", "dst": "10.2.0.1/32"}]
UNBUILT_POLICY = [
    ("spec.ipsecProtocols", {"ipsecProtocols": ["esp", "ah"]}),
    ("spec.proposalRef", {"proposalRef": {"name": "p"}}),
    ("spec.selectors", {"selectors": [{"srcFrom": "PodCIDR", "dst": "10.30.0.0/16"}]}),
]


BUILT_POLICY: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"tunnel": False, "selectors": HOSTS}, {"tunnel": False}),
    ({"level": "unique"}, {"level": "unique", "per_pair": True}),
    ({"level": "use"}, {"level": "use", "per_pair": False}),
    ({"ipsecProtocols": ["ah"]}, {"protocol": "ah"}),
]


@pytest.mark.parametrize(("change", "expected"), BUILT_POLICY)
def test_a_policy_comes_out_as_it_was_written(
    make: Make, compiled: Compiled, change: dict[str, Any], expected: dict[str, Any]
) -> None:
    result = compiled(
        make("Secret", "hq-psk"), make("IPsecPeer"), make("IPsecPolicy", "p", **change)
    )
    assert reasons(result) == []
    (policy,) = [p for p in result.tunnels[0].policies if p.source.kind == "IPsecPolicy"]
    assert {name: getattr(policy, name) for name in expected} == expected


def test_ah_has_one_proposal_without_ciphers(make: Make, compiled: Compiled) -> None:
    proposal = {"encAlgorithms": ["aes256-gcm", "aes128"], "authAlgorithms": ["sha384"]}
    result = compiled(
        make("Secret", "hq-psk"),
        make("IPsecPeer"),
        make("IPsecPolicy", "p", ipsecProtocols=["ah"], proposal=proposal),
    )
    (policy,) = [p for p in result.tunnels[0].policies if p.source.kind == "IPsecPolicy"]
    (only,) = policy.proposals
    assert (only.encryption, only.integrity) == ((), ("sha384",))


@pytest.mark.parametrize(("field", "change"), UNBUILT_PEER)
def test_unbuilt_field_of_a_peer(
    make: Make, compiled: Compiled, field: str, change: dict[str, Any]
) -> None:
    good = make("IPsecPeer", "good", address="192.0.2.9", remoteSubnets=["10.99.0.0/16"])
    result = compiled(make("Secret", "hq-psk"), make("IPsecPeer", **change), good)
    assert [t.source.name for t in result.tunnels] == ["good"]
    assert ("hq", field, "NotYetSupported") in reasons(result)
    assert all("not built yet: " in r.message for r in result.rejections)


@pytest.mark.parametrize(("field", "change"), UNBUILT_POLICY)
def test_unbuilt_field_of_a_policy(
    make: Make, compiled: Compiled, field: str, change: dict[str, Any]
) -> None:
    result = compiled(
        make("Secret", "hq-psk"), make("IPsecPeer"), make("IPsecPolicy", "p", **change)
    )
    assert reasons(result) == [("p", field, "NotYetSupported")]
    assert len(result.tunnels[0].policies) == 1


def test_unbuilt_kind(make: Make, compiled: Compiled) -> None:
    result = compiled(make("Secret", "hq-psk"), make("IPsecPeer"), make("ModeConfig", "m"))
    assert reasons(result) == [("m", "", "NotYetSupported")]
    assert len(result.tunnels) == 1


def test_a_switched_off_probe_is_what_there_is(one: Callable[..., TunnelConfig]) -> None:
    assert one(probe={"enabled": False}, nat={"mode": "Auto"}).policies


# --- as the API server stores it --------------------------------------------------------------


def _with_defaults(schema: dict[str, Any], value: Any) -> Any:
    """What defaulting of the API server makes of a value."""
    if isinstance(value, dict) and "properties" in schema:
        filled = dict(value)
        for name, child in schema["properties"].items():
            if name not in filled and "default" in child:
                filled[name] = child["default"]
            if name in filled:
                filled[name] = _with_defaults(child, filled[name])
        return filled
    if isinstance(value, list):
        return [_with_defaults(schema["items"], item) for item in value]
    return value


def test_defaults_of_the_api_server_change_nothing(make: Make, compiled: Compiled) -> None:
    objects = [
        make("Secret", "hq-psk"),
        make("IPsecPeer", profile={"dpd": {}}, nat={}),
        make("IPsecPolicy", "p", proposal={}),
    ]
    plain = compiled(*objects)
    assert not plain.rejections
    files = {"IPsecPeer": "ipsecpeers", "IPsecPolicy": "ipsecpolicies"}
    for item in objects[1:]:
        crd = yaml.safe_load((ROOT / "crds" / f"{files[item['kind']]}.yaml").read_text())
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        before = len(json.dumps(item["spec"]))
        item["spec"] = _with_defaults(schema, item["spec"])
        assert len(json.dumps(item["spec"])) > before
    stored = compiled(*objects)
    assert stored.tunnels == plain.tunnels
    assert not stored.rejections
