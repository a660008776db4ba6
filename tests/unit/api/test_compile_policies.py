"""IPsecPolicies to TunnelPolicies: fields, overlaps, algorithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ipsec_api.compile import CompileResult
from ipsec_api.tunnel import TunnelPolicy, TunnelProposal

Make = Callable[..., dict[str, Any]]
Compiled = Callable[..., CompileResult]


def reasons(result: CompileResult) -> list[tuple[str, str, str]]:
    return [(r.name, r.field, r.reason) for r in result.rejections]


def pairs(policy: TunnelPolicy) -> list[tuple[str, str]]:
    return [(s.src, s.dst) for s in policy.selectors]


# --- policies ---------------------------------------------------------------------------------


def test_every_field_of_a_policy_arrives(make: Make, compiled: Compiled) -> None:
    policy = make(
        "IPsecPolicy",
        "web",
        selectors=[
            {
                "src": "10.1.0.0/24",
                "dst": "10.30.0.0/16",
                "protocol": "tcp",
                "srcPort": 1024,
                "srcEndPort": 65535,
                "dstPort": 443,
            },
            {"src": "fd00:1::/64", "dst": "fd00:3::/64", "protocol": "58"},
        ],
        selectorMode="PerPair",
        priority=77,
        proposal={
            "encAlgorithms": ["aes256-gcm", "aes128"],
            "authAlgorithms": ["sha512", "aes-xcbc"],
            "pfsGroup": "ecp521",
            "lifetime": "10m",
            "lifebytes": 10**12,
            "lifepackets": 10**9,
            "esn": False,
            "replayWindow": 64,
        },
    )
    peer = make("IPsecPeer", remoteSubnets=None)
    (tunnel,) = compiled(make("Secret", "hq-psk"), peer, policy).tunnels
    (got,) = tunnel.policies
    assert str(got.source) == "IPsecPolicy default/web"
    assert (got.priority, got.per_pair, got.index) == (77, True, 0)
    tcp, icmp = got.selectors
    assert (tcp.protocol, tcp.src_port, tcp.dst_port) == (6, (1024, 65535), (443, 443))
    assert (icmp.protocol, icmp.src_port, icmp.dst_port) == (58, (0, 65535), (0, 65535))
    assert (got.lifetime, got.lifebytes, got.lifepackets) == (600, 10**12, 10**9)
    assert got.replay_window == 64
    groups = ("ecp521",)
    assert got.proposals == (
        TunnelProposal(encryption=("aes256-gcm",), groups=groups, esn=(False,)),
        TunnelProposal(
            encryption=("aes128",), integrity=("sha512", "aes-xcbc"), groups=groups, esn=(False,)
        ),
    )


def test_pfs_can_be_switched_off(make: Make, compiled: Compiled) -> None:
    policy = make("IPsecPolicy", "p", proposal={"pfsGroup": "none"})
    (tunnel,) = compiled(make("Secret", "hq-psk"), make("IPsecPeer"), policy).tunnels
    assert [p.groups for p in tunnel.policies[1].proposals] == [(), ()]


@pytest.mark.parametrize("action", ["discard", "none"])
def test_actions_without_encryption(make: Make, compiled: Compiled, action: str) -> None:
    policy = make("IPsecPolicy", "p", action=action, level="use")
    result = compiled(make("Secret", "hq-psk"), make("IPsecPeer"), policy)
    assert not result.rejections
    got = result.tunnels[0].policies[1]
    assert (got.action, got.proposals) == (action, ())


def test_a_disabled_policy_is_nothing(make: Make, compiled: Compiled) -> None:
    result = compiled(
        make("Secret", "hq-psk"), make("IPsecPeer"), make("IPsecPolicy", "p", disabled=True)
    )
    assert not result.rejections
    assert len(result.tunnels[0].policies) == 1


def test_a_peer_may_have_no_policy(make: Make, compiled: Compiled) -> None:
    result = compiled(make("Secret", "hq-psk"), make("IPsecPeer", remoteSubnets=None))
    assert not result.rejections
    assert result.tunnels[0].policies == ()


def test_combined_selectors_that_are_no_product_are_split(make: Make, compiled: Compiled) -> None:
    def selectors(*given: tuple[str, str]) -> list[dict[str, str]]:
        return [{"src": f"10.1.{s}.0/24", "dst": f"10.30.{d}.0/24"} for s, d in given]

    peer = make("IPsecPeer", remoteSubnets=None)
    policy = make("IPsecPolicy", "p", selectors=selectors(("1", "1"), ("2", "2"), ("3", "1")))
    (tunnel,) = compiled(make("Secret", "hq-psk"), peer, policy).tunnels
    first, second = tunnel.policies
    assert (first.index, second.index) == (0, 1)
    assert pairs(first) == [("10.1.1.0/24", "10.30.1.0/24"), ("10.1.3.0/24", "10.30.1.0/24")]
    assert pairs(second) == [("10.1.2.0/24", "10.30.2.0/24")]
    policy = make(
        "IPsecPolicy", "p", selectors=selectors(("1", "1"), ("1", "2"), ("2", "1"), ("2", "2"))
    )
    (tunnel,) = compiled(make("Secret", "hq-psk"), peer, policy).tunnels
    assert len(tunnel.policies) == 1


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        ({"peerRef": {"name": "nobody"}}, "RefNotFound", "no IPsecPeer default/nobody: create it"),
        ({"peerRef": {"name": "bad"}}, "PeerNotAccepted", "IPsecPeer default/bad is not accepted"),
    ],
)
def test_policies_without_a_peer(
    make: Make, compiled: Compiled, fields: dict[str, Any], reason: str, message: str
) -> None:
    bad = make("IPsecPeer", "bad", address="192.0.2.77", exchangeMode="main")
    good = make("IPsecPeer")
    result = compiled(make("Secret", "hq-psk"), good, bad, make("IPsecPolicy", "p", **fields))
    assert [t.source.name for t in result.tunnels] == ["hq"]
    rejection = next(r for r in result.rejections if r.kind == "IPsecPolicy")
    assert (rejection.field, rejection.reason) == ("spec.peerRef", reason)
    assert message in rejection.message


# --- overlaps ---------------------------------------------------------------------------------


def test_the_same_traffic_twice(make: Make, compiled: Compiled) -> None:
    result = compiled(
        make("Secret", "hq-psk"),
        make("IPsecPeer"),
        make("IPsecPolicy", "a"),
        make("IPsecPolicy", "b", action="discard", priority=5),
    )
    assert reasons(result) == [("b", "spec.selectors", "Overlap")]
    assert "10.1.0.0/24 to 10.30.0.0/16 is the traffic of IPsecPolicy default/a already" in str(
        result.rejections[0]
    )
    assert len(result.tunnels[0].policies) == 2


@pytest.mark.parametrize(
    ("change", "clash"),
    [
        ({"dst": "10.30.5.0/24"}, True),
        ({"dst": "10.0.0.0/8", "src": "10.0.0.0/8"}, True),
        ({"src": "10.1.0.0/25"}, True),
        ({"protocol": "udp"}, True),
        ({"dst": "10.31.0.0/16"}, False),
        ({"src": "10.3.0.0/24"}, False),
    ],
)
def test_overlap_of_one_priority(
    make: Make, compiled: Compiled, change: dict[str, str], clash: bool
) -> None:
    selector = {"src": "10.1.0.0/24", "dst": "10.30.0.0/16", **change}
    objects = [
        make("Secret", "hq-psk"),
        make("IPsecPeer", remoteSubnets=None),
        make("IPsecPolicy", "a"),
        make("IPsecPolicy", "b", selectors=[selector]),
    ]
    result = compiled(*objects)
    wanted = [("b", "spec.selectors", "Overlap")] if clash else []
    assert reasons(result) == wanted
    # With a priority of its own it is clear which one comes first.
    objects[3]["spec"]["priority"] = 5
    assert not compiled(*objects).rejections


def test_protocols_and_ports_tell_traffic_apart(make: Make, compiled: Compiled) -> None:
    base = {"src": "10.1.0.0/24", "dst": "10.30.0.0/16", "protocol": "tcp"}
    result = compiled(
        make("Secret", "hq-psk"),
        make("IPsecPeer", remoteSubnets=None),
        make("IPsecPolicy", "a", selectors=[{**base, "dstPort": 80}]),
        make("IPsecPolicy", "b", selectors=[{**base, "dstPort": 81, "dstEndPort": 90}]),
        make("IPsecPolicy", "c", selectors=[{**base, "protocol": "udp", "dstPort": 80}]),
        make("IPsecPolicy", "d", selectors=[{**base, "dstPort": 79, "dstEndPort": 80}]),
    )
    assert reasons(result) == [("d", "spec.selectors", "Overlap")]


NARROW = [{"src": "10.1.0.0/25", "dst": "10.30.0.0/24"}]
WIDE = [{"src": "10.1.0.0/24", "dst": "10.30.0.0/16"}]


@pytest.mark.parametrize(
    ("older", "newer", "priority", "message"),
    [
        (
            WIDE,
            NARROW,
            1,
            "10.1.0.0/25 to 10.30.0.0/24 never matches, 10.1.0.0/24 to 10.30.0.0/16 of",
        ),
        (
            NARROW,
            WIDE,
            9,
            "10.1.0.0/24 to 10.30.0.0/16 takes all of 10.1.0.0/25 to 10.30.0.0/24 of",
        ),
        (WIDE, NARROW, 9, ""),
        (NARROW, WIDE, 1, ""),
    ],
)
def test_a_policy_that_never_matches_is_told(
    make: Make,
    compiled: Compiled,
    older: list[dict[str, str]],
    newer: list[dict[str, str]],
    priority: int,
    message: str,
) -> None:
    result = compiled(
        make("Secret", "hq-psk"),
        make("IPsecPeer", remoteSubnets=None),
        make("IPsecPolicy", "a", priority=priority, selectors=older),
        make("IPsecPolicy", "b", priority=5, selectors=newer),
    )
    assert not result.rejections
    assert [(a.name, a.reason) for a in result.advice] == ([("b", "Overlap")] if message else [])
    assert not message or result.advice[0].message.startswith(f"{message} IPsecPolicy default/a")


def test_overlap_of_two_peers(make: Make, compiled: Compiled) -> None:
    result = compiled(
        make("Secret", "hq-psk"),
        make("IPsecPeer", "a"),
        make("IPsecPeer", "b", address="192.0.2.2", remoteSubnets=["10.20.3.0/24"]),
        make("IPsecPeer", "c", address="192.0.2.3", remoteSubnets=["10.21.0.0/16"]),
    )
    assert [t.source.name for t in result.tunnels] == ["a", "c"]
    assert reasons(result) == [("b", "spec.remoteSubnets", "Overlap")]
    assert "another spec.priority" in result.rejections[0].message


def test_a_peer_goes_on_with_its_other_policies(make: Make, compiled: Compiled) -> None:
    result = compiled(
        make("Secret", "hq-psk"),
        make("IPsecPeer", "a"),
        make("IPsecPeer", "b", address="192.0.2.2"),
        make("IPsecPolicy", "p", peerRef={"name": "b"}),
    )
    assert reasons(result) == [("b", "spec.remoteSubnets", "Overlap")]
    assert [t.source.name for t in result.tunnels] == ["a", "b"]
    assert [str(p.source) for p in result.tunnels[1].policies] == ["IPsecPolicy default/p"]


# --- algorithms -------------------------------------------------------------------------------


def test_insecure_algorithms_of_a_policy_need_the_peer_to_allow_them(
    make: Make, compiled: Compiled
) -> None:
    proposal = {"encAlgorithms": ["aes256"], "authAlgorithms": ["sha1"]}
    objects = [
        make("Secret", "hq-psk"),
        make("IPsecPeer"),
        make("IPsecPolicy", "p", proposal=proposal),
    ]
    result = compiled(*objects)
    assert reasons(result) == [("p", "spec.proposal.authAlgorithms", "InsecureAlgorithm")]
    assert "allowInsecure: true on IPsecPeer default/hq" in result.rejections[0].message
    assert len(result.tunnels) == 1
    objects[1]["spec"]["allowInsecure"] = True
    result = compiled(*objects)
    assert not result.rejections
    assert [(a.field, a.reason) for a in result.advice] == [
        ("spec.proposal.authAlgorithms", "InsecureAlgorithm")
    ]
    assert result.tunnels[0].policies[1].proposals[0].integrity == ("sha1",)


def test_insecure_algorithms_of_a_peer_are_a_warning(make: Make, compiled: Compiled) -> None:
    peer = make(
        "IPsecPeer",
        allowInsecure=True,
        profile={"encAlgorithms": ["aes256"], "hash": "sha1", "dhGroups": ["modp2048"]},
    )
    result = compiled(make("Secret", "hq-psk"), peer)
    assert not result.rejections
    assert [(a.field, a.reason) for a in result.advice] == [
        ("spec.profile.hash", "InsecureAlgorithm")
    ]
    assert result.tunnels[0].ike_proposals[0].integrity == ("sha1",)
