"""Whom to ask from where, and the octets of it."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretBytes

from ipsec_api.tunnel import (
    ObjectRef,
    TunnelConfig,
    TunnelIdentity,
    TunnelMapping,
    TunnelPolicy,
    TunnelProbe,
    TunnelProposal,
    TunnelSelector,
)
from ipsec_gateway.board import Cause, PeerState
from ipsec_gateway.pathprobe.icmp import checksum, reply, request
from ipsec_gateway.pathprobe.prober import subjects
from ipsec_gateway.pathprobe.targets import Way, targets

OWN = [ipaddress.ip_address(a) for a in ("192.0.2.1", "10.1.3.1", "fd01::1")]


def tunnel(*pairs: tuple[str, str], **change: Any) -> TunnelConfig:
    ref = ObjectRef(kind="IPsecPeer", namespace="ns", name="hq")
    selectors = tuple(TunnelSelector(src=a, dst=b) for a, b in pairs)
    return TunnelConfig(
        source=ref,
        **{
            "ike_proposals": (TunnelProposal(encryption=("aes128-gcm",)),),
            "identities": (TunnelIdentity(name="x", psk=SecretBytes(b"p" * 16)),),
            "policies": (TunnelPolicy(source=ref, priority=1, selectors=selectors),),
            **change,
        },
    )


V4, V6 = ("10.1.0.0/16", "10.2.0.0/16"), ("fd01::/64", "fd02::/64")


def test_guesses_are_the_first_address_of_each_remote_subnet() -> None:
    found, asked, why = targets(tunnel(V4, V6, ("10.1.0.0/16", "10.3.0.9/32")), OWN)
    assert found == (
        Way("10.1.3.1", "10.2.0.1"),
        Way("fd01::1", "fd02::1"),
        Way("10.1.3.1", "10.3.0.9"),
    )
    assert not asked
    assert not why


def test_named_targets_come_in_order() -> None:
    probe = TunnelProbe(targets=("10.2.9.9", "fd02::5"))
    ways = (Way("10.1.3.1", "10.2.9.9"), Way("fd01::1", "fd02::5"))
    assert targets(tunnel(V4, V6, probe=probe), OWN) == (ways, True, "")


@pytest.mark.parametrize(
    ("probe", "own", "why"),
    [
        (TunnelProbe(), OWN[:1], "no address in the local subnets"),
        (TunnelProbe(targets=("10.99.0.1",)), OWN, "no remote subnet"),
        (TunnelProbe(source_address="10.1.3.2"), OWN, "sourceAddress"),
    ],
)
def test_why_there_are_none(probe: TunnelProbe, own: Any, why: str) -> None:
    found = targets(tunnel(V4, probe=probe), own)
    assert not found.ways
    assert why in found.why


def test_only_what_pings_can_pass() -> None:
    ref = ObjectRef(kind="IPsecPeer", namespace="ns", name="hq")
    tcp = TunnelSelector(src=V4[0], dst=V4[1], protocol=6)
    only_tcp = tunnel(policies=(TunnelPolicy(source=ref, priority=1, selectors=(tcp,)),))
    assert "pings" in targets(only_tcp, OWN).why


def test_translated_networks_are_asked_as_we_see_them() -> None:
    mapping = TunnelMapping(side="remote", original="10.2.0.0/16", mapped="10.9.0.0/16")
    assert targets(tunnel(V4, mappings=(mapping,)), OWN).ways == (Way("10.1.3.1", "10.9.0.1"),)


def test_who_is_probed() -> None:
    plain, off = tunnel(V4), tunnel(V4, probe=TunnelProbe(enabled=False))
    assert subjects([plain], OWN, {}, {}, unasked=False) == ([], {})
    assert subjects([off], OWN, {}, {}, unasked=True) == ([], {})
    (subject,), unable = subjects([plain], OWN, {}, {"ns/hq": 1400}, unasked=True)
    assert (subject.asked, subject.up, subject.silent, subject.mtu) == (False, False, False, 1400)
    assert not unable
    asked = tunnel(V4, probe=TunnelProbe(targets=("10.2.0.7",), interval=5, failure_threshold=2))
    state = PeerState(cause=Cause("Timeout", ""))
    (subject,), _ = subjects([asked], OWN, {"ns/hq": state}, {}, unasked=False)
    assert (subject.asked, subject.silent) == (True, True)
    assert (subject.interval, subject.threshold) == (5.0, 2)
    _, unable = subjects([asked], OWN[:1], {}, {}, unasked=False)
    assert "no address" in unable["ns/hq"]


@pytest.mark.parametrize("version", [4, 6])
def test_a_request_comes_back_as_a_reply(version: int) -> None:
    header = {4: 20, 6: 40}[version]
    data = request(version, 77, 0xDEADBEEF, 1400)
    assert len(data) == 1400 - header
    kind = {4: 0, 6: 129}[version]
    ip = bytes([0x45]) + bytes(19) if version == 4 else b""
    answer = ip + bytes([kind]) + data[1:]
    assert reply(version, answer, 77) == 0xDEADBEEF
    assert reply(version, answer, 78) is None
    assert reply(version, ip + data, 77) is None


def test_the_checksum_of_a_message_with_its_checksum_is_zero() -> None:
    assert checksum(request(4, 1, 2, 84)) == 0
    assert checksum(b"\x01") == 0xFEFF


@given(st.binary(max_size=80), st.sampled_from([4, 6]))
def test_anything_else_is_no_reply(data: bytes, version: int) -> None:
    assert reply(version, data, 4711) is None
