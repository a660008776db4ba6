"""IPsecPeers to TunnelConfigs: what each field means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipsec_api import compile as compiler
from ipsec_api.compile import CompileResult
from ipsec_api.documents import collect
from ipsec_api.tunnel import IdentityType, TunnelConfig, TunnelPolicy, TunnelProposal

ROOT = Path(__file__).parents[3]
Make = Callable[..., dict[str, Any]]
Compiled = Callable[..., CompileResult]

GROUPS = ("x25519", "ecp256", "ecp384", "modp2048", "modp3072", "modp4096")
HASHES = ("sha256", "sha384", "sha512")


def reasons(result: CompileResult) -> list[tuple[str, str, str]]:
    return [(r.name, r.field, r.reason) for r in result.rejections]


def pairs(policy: TunnelPolicy) -> list[tuple[str, str]]:
    return [(s.src, s.dst) for s in policy.selectors]


# --- the minimal peer -------------------------------------------------------------------------


def test_minimal_peer(make: Make, compiled: Compiled, secret_text: str) -> None:
    peer = make("IPsecPeer", localSubnets=None)
    lines = yaml.safe_dump(peer["spec"], default_flow_style=None).splitlines()
    assert len(lines) <= 5 + 1  # a list may take a line of its own
    result = compiled(
        make("Secret", "hq-psk"), peer, discovered_subnets=["10.42.0.0/16", "fd42::/56"]
    )
    assert not result.rejections
    assert not result.advice
    (tunnel,) = result.tunnels
    assert tunnel.key == "default/hq"
    assert tunnel.addresses == ("203.0.113.9",)
    assert tunnel.remote_networks == ("203.0.113.9/32",)
    assert (tunnel.port, tunnel.passive, tunnel.ike_lifetime) == (500, False, 28800)
    assert (tunnel.dpd_interval, tunnel.dpd_max_failures) == (8, 4)
    assert tunnel.ike_proposals == (
        TunnelProposal(encryption=("aes256-gcm", "aes128-gcm"), prf=HASHES, groups=GROUPS),
        TunnelProposal(
            encryption=("aes256", "aes128"), integrity=HASHES, prf=HASHES, groups=GROUPS
        ),
    )
    (identity,) = tunnel.identities
    assert identity.psk.get_secret_value() == secret_text.encode()
    assert identity.local_type is identity.remote_type is IdentityType.AUTO
    (policy,) = tunnel.policies
    assert str(policy.source) == "IPsecPeer default/hq"
    assert pairs(policy) == [("10.42.0.0/16", "10.20.0.0/16")]
    assert (policy.action, policy.level, policy.priority) == ("encrypt", "require", 0x20000)
    assert (policy.lifetime, policy.replay_window, policy.per_pair) == (1800, 1024, False)
    assert policy.proposals == (
        TunnelProposal(encryption=("aes256-gcm", "aes128-gcm"), groups=GROUPS, esn=(True, False)),
        TunnelProposal(
            encryption=("aes256", "aes128"), integrity=HASHES, groups=GROUPS, esn=(True, False)
        ),
    )


def test_without_a_cluster_local_subnets_are_needed(make: Make, compiled: Compiled) -> None:
    result = compiled(make("Secret", "hq-psk"), make("IPsecPeer", localSubnets=None))
    assert not result.tunnels
    assert reasons(result) == [("hq", "spec.localSubnets", "Invalid")]
    assert "no cluster" in result.rejections[0].message
    assert "set localSubnets" in result.rejections[0].message


def test_discovered_subnets_must_be_of_the_family(make: Make, compiled: Compiled) -> None:
    peer = make("IPsecPeer", localSubnets=None, remoteSubnets=["10.20.0.0/16", "fd00:9::/64"])
    result = compiled(make("Secret", "hq-psk"), peer, discovered_subnets=["10.42.0.0/16"])
    assert reasons(result) == [("hq", "spec.localSubnets", "Invalid")]
    assert "fd00:9::/64" in result.rejections[0].message


@pytest.mark.parametrize("folder", ["site-to-site/east", "site-to-site/west"])
def test_the_example_compiles(folder: str) -> None:
    files = {p.name: p.read_text() for p in (ROOT / "examples" / folder).glob("*.yaml")}
    found = collect(files)
    assert not found.errors
    assert not found.warnings
    result = compiler.compile(found.snapshot)
    assert not result.rejections
    assert not result.advice
    assert len(result.tunnels) == 1


def test_the_two_sites_of_the_example_mirror_each_other() -> None:
    def site(name: str) -> TunnelConfig:
        path = ROOT / "examples/site-to-site" / name / "peer.yaml"
        return compiler.compile(collect({"f": path.read_text()}).snapshot).tunnels[0]

    east, west = site("east"), site("west")
    assert (east.addresses, west.addresses) == (("198.51.100.1",), ("192.0.2.1",))
    assert east.identities == west.identities
    assert pairs(east.policies[0]) == [(d, s) for s, d in pairs(west.policies[0])]
    assert pairs(east.policies[0]) == [
        ("10.1.0.0/24", "10.2.0.0/24"),
        ("fd00:1::/64", "fd00:2::/64"),
    ]


def test_the_minimal_example_is_valid() -> None:
    found = collect({"f": (ROOT / "examples/minimal.yaml").read_text()})
    assert not found.errors
    assert compiler.compile(found.snapshot, discovered_subnets=["10.42.0.0/16"]).tunnels


# --- the peer ---------------------------------------------------------------------------------


def test_every_field_of_a_peer_arrives(one: Callable[..., TunnelConfig]) -> None:
    tunnel = one(
        address="VPN.example.com.",
        port=4500,
        localAddress="192.0.2.7",
        sendInitialContact=False,
        mtu=1400,
        tcpMSS=1300,
        profile={
            "encAlgorithms": ["aes256", "chacha20poly1305", "aes128-gcm-12", "aes128-ctr"],
            "hash": "sha384",
            "prf": "aes-cmac",
            "dhGroups": ["modp3072", "brainpool256"],
            "lifetime": "1h1s",
            "dpd": {"interval": "1m30s", "maxFailures": 2},
            "forceEncapsulation": True,
            "childless": True,
        },
    )
    assert (tunnel.addresses, tunnel.remote_networks) == (("vpn.example.com",), ())
    assert (tunnel.port, tunnel.local_address) == (4500, "192.0.2.7")
    assert (tunnel.send_initial_contact, tunnel.mtu, tunnel.tcp_mss) == (False, 1400, 1300)
    assert (tunnel.ike_lifetime, tunnel.dpd_interval, tunnel.dpd_max_failures) == (3601, 90, 2)
    assert (tunnel.force_encapsulation, tunnel.childless) == (True, True)
    prf, groups = ("aes-cmac",), ("modp3072", "brainpool256")
    # The order of preference stays, and no proposal mixes the two kinds of ciphers.
    assert tunnel.ike_proposals == (
        TunnelProposal(encryption=("aes256",), integrity=("sha384",), prf=prf, groups=groups),
        TunnelProposal(encryption=("chacha20poly1305", "aes128-gcm-12"), prf=prf, groups=groups),
        TunnelProposal(encryption=("aes128-ctr",), integrity=("sha384",), prf=prf, groups=groups),
    )
    assert tunnel.policies[0].proposals[0].groups == groups


@pytest.mark.parametrize(
    ("address", "passive", "addresses", "networks"),
    [
        ("192.0.2.0/24", True, (), ("192.0.2.0/24",)),
        ("192.0.2.1", True, (), ("192.0.2.1/32",)),
        (None, True, (), ("0.0.0.0/0", "::/0")),
        ("2001:DB8::1", False, ("2001:db8::1",), ("2001:db8::1/128",)),
        ("192.0.2.1/32", False, ("192.0.2.1",), ("192.0.2.1/32",)),
    ],
)
def test_addresses(
    one: Callable[..., TunnelConfig],
    address: str | None,
    passive: bool,
    addresses: tuple[str, ...],
    networks: tuple[str, ...],
) -> None:
    tunnel = one(address=address, passive=passive)
    assert tunnel.passive is passive
    assert tunnel.addresses == addresses
    assert tunnel.remote_networks == networks


def test_dpd_can_be_switched_off(one: Callable[..., TunnelConfig]) -> None:
    assert one(profile={"dpd": {"interval": "0s"}}).dpd_interval == 0


def test_several_identities(make: Make, compiled: Compiled) -> None:
    peer = make(
        "IPsecPeer",
        authentication=None,
        identities=[
            {
                "name": "a",
                "method": "preSharedKey",
                "secretRef": {"name": "keys", "key": "a"},
                "localID": {"type": "fqdn", "value": "gw.example.com"},
                "remoteID": {"type": "keyID", "value": "branch-a"},
            },
            {"name": "b", "method": "preSharedKey", "secretRef": {"name": "keys", "key": "b"}},
        ],
    )
    result = compiled(make("Secret", "keys", a="one", b="two"), peer)
    assert not result.rejections
    first, second = result.tunnels[0].identities
    assert (first.name, first.local_type, first.local_value) == ("a", "fqdn", "gw.example.com")
    assert (first.remote_type, first.remote_value) == ("keyID", "branch-a")
    assert first.psk.get_secret_value() == b"one"
    assert (second.name, second.psk.get_secret_value()) == ("b", b"two")


def test_identities_that_cannot_be_told_apart(make: Make, compiled: Compiled) -> None:
    entry = {"method": "preSharedKey", "secretRef": {"name": "hq-psk"}}
    peer = make(
        "IPsecPeer",
        authentication=None,
        identities=[
            {"name": "a", **entry},
            {"name": "b", "remoteID": {"type": "ignore"}, **entry},
        ],
    )
    result = compiled(make("Secret", "hq-psk"), peer)
    assert reasons(result) == [("hq", "spec.identities[1].remoteID", "Invalid")]
    assert "spec.identities[0] expects the same" in result.rejections[0].message


def test_a_disabled_peer_is_nothing(make: Make, compiled: Compiled) -> None:
    result = compiled(make("IPsecPeer", disabled=True), make("IPsecPolicy", "p"))
    assert (result.tunnels, result.rejections, result.advice) == ([], [], [])


def test_what_ikev2_ignores_is_said(make: Make, compiled: Compiled) -> None:
    profile = {
        "lifebytes": 1,
        "proposalCheck": "strict",
        "natTraversal": False,
        "dpd": {"maxFailures": 5},
    }
    result = compiled(make("Secret", "hq-psk"), make("IPsecPeer", profile=profile))
    assert len(result.tunnels) == 1
    assert {(a.field, a.reason) for a in result.advice} == {
        ("spec.profile.lifebytes", "Ignored"),
        ("spec.profile.proposalCheck", "Ignored"),
        ("spec.profile.natTraversal", "Ignored"),
        ("spec.profile.dpd.maxFailures", "Ignored"),
    }


def test_two_peers_at_one_address(make: Make, compiled: Compiled) -> None:
    objects = [
        make("Secret", "hq-psk"),
        make("IPsecPeer", "a"),
        make("IPsecPeer", "b", address="203.0.113.9/32", remoteSubnets=["10.21.0.0/16"]),
        make(
            "IPsecPeer",
            "c",
            localAddress="192.0.2.1",
            remoteSubnets=["10.22.0.0/16"],
        ),
    ]
    result = compiled(*objects)
    assert [t.source.name for t in result.tunnels] == ["a", "c"]
    assert reasons(result) == [("b", "spec.address", "Overlap")]
    assert "IPsecPeer default/a" in result.rejections[0].message


def test_the_older_object_wins(make: Make, compiled: Compiled) -> None:
    new, old = make("IPsecPeer", "a-new"), make("IPsecPeer", "b-old")
    new["metadata"]["creationTimestamp"] = "2027-02-02T00:00:00Z"
    old["metadata"]["creationTimestamp"] = "2027-01-01T00:00:00Z"
    result = compiled(make("Secret", "hq-psk"), new, old)
    assert [t.source.name for t in result.tunnels] == ["b-old"]
    assert reasons(result) == [("a-new", "spec.address", "Overlap")]
