"""Where a peer of our kind says that it answers, and what is believed of it; UDP targets."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretBytes

from ipsec_api.tunnel import (
    ObjectRef,
    TunnelConfig,
    TunnelIdentity,
    TunnelInterface,
    TunnelMapping,
    TunnelPolicy,
    TunnelProbe,
    TunnelProposal,
    TunnelSelector,
)
from ipsec_gateway.board import PeerState, fold
from ipsec_gateway.pathprobe.prober import subjects
from ipsec_gateway.pathprobe.targets import MOST, Way, own_responder, targets
from ipsec_ike.config import Responder
from ipsec_ike.events import ChildSaUp, IkeSaUp
from ipsec_ike.inputs import Endpoint
from ipsec_ike.selectors import TrafficSelector

OWN = [ipaddress.ip_address(a) for a in ("192.0.2.1", "10.1.3.1", "10.1.3.2", "fd01::1")]
REF = ObjectRef(kind="IPsecPeer", namespace="ns", name="hq")
UDP = TunnelProbe(protocol="UDP")
TOLD = Responder(4498, ("10.2.7.7", "fd02::7"))
V4, V6 = ("10.1.0.0/16", "10.2.0.0/16"), ("fd01::/64", "fd02::/64")


def policy(*pairs: tuple[str, str], **change: Any) -> TunnelPolicy:
    selectors = tuple(TunnelSelector(src=a, dst=b) for a, b in pairs)
    return TunnelPolicy(**{"source": REF, "priority": 1, "selectors": selectors, **change})


def tunnel(*pairs: tuple[str, str], **change: Any) -> TunnelConfig:
    return TunnelConfig(
        source=REF,
        **{
            "ike_proposals": (TunnelProposal(encryption=("aes128-gcm",)),),
            "identities": (TunnelIdentity(name="x", psk=SecretBytes(b"p" * 16)),),
            "policies": (policy(*pairs),),
            **change,
        },
    )


def narrowed(protocol: int, **ports: tuple[int, int]) -> TunnelConfig:
    selector = TunnelSelector(src=V4[0], dst=V4[1], protocol=protocol, **ports)
    return tunnel(policies=(policy(selectors=(selector,)),), probe=UDP)


# -- what is asked -----------------------------------------------------------------------------


def test_what_the_peer_tells_is_asked_instead_of_guesses_and_counts() -> None:
    ways = (Way("10.1.3.1", "10.2.7.7"), Way("fd01::1", "fd02::7"))
    assert targets(tunnel(V4, V6), OWN, TOLD) == (ways, True, "")


def test_named_targets_come_before_what_the_peer_tells() -> None:
    probe = TunnelProbe(targets=("10.2.9.9",))
    assert targets(tunnel(V4, probe=probe), OWN, TOLD).ways == (Way("10.1.3.1", "10.2.9.9"),)


def test_udp_goes_to_the_port_that_the_peer_tells() -> None:
    it = tunnel(V4, probe=TunnelProbe(protocol="UDP", port=7))
    assert targets(it, OWN, Responder(5000, ("10.2.7.7",))).ways == (
        Way("10.1.3.1", "10.2.7.7", 5000),
    )
    guess = (Way("10.1.3.1", "10.2.0.1", 7),)
    assert targets(it, OWN) == (guess, False, "")
    # It answers pings alone.
    assert targets(it, OWN, Responder(0, ("10.2.7.7",))) == (guess, False, "")
    assert targets(tunnel(V4), OWN, Responder(0, ("10.2.7.7",))).asked
    assert targets(tunnel(V4, probe=UDP), OWN).ways == (Way("10.1.3.1", "10.2.0.1", 4498),)


@pytest.mark.parametrize(
    ("it", "able"),
    [
        (narrowed(17), True),
        (narrowed(17, dst_port=(4000, 5000)), True),
        (narrowed(17, dst_port=(7, 7)), False),
        (narrowed(17, src_port=(4498, 4498)), False),
        (narrowed(1), False),
        (narrowed(6), False),
    ],
)
def test_only_what_datagrams_can_pass(it: TunnelConfig, able: bool) -> None:
    found = targets(it, OWN)
    assert bool(found.ways) == able
    assert ("UDP to port 4498" in found.why) == (not able)


@pytest.mark.parametrize("address", ["10.3.0.1", "192.0.2.9", "10.1.3.2", "fd03::1"])
def test_what_is_not_the_peers_is_not_believed(address: str) -> None:
    found = targets(tunnel(V4, V6), OWN, Responder(4498, (address,)))
    assert not found.asked
    assert [way.target for way in found.ways] == ["10.2.0.1", "fd02::1"]


def test_what_is_left_in_clear_text_is_not_believed() -> None:
    spared = policy((V4[0], "10.2.7.0/24"), action="none")
    it = tunnel(policies=(spared, policy(V4)))
    assert [w.target for w in targets(it, OWN, TOLD).ways] == ["10.2.0.1"]


def test_what_is_only_routed_in_is_not_believed() -> None:
    """A packet to what the peer names would leave by another way."""
    everything = ("0.0.0.0/0", "0.0.0.0/0")
    it = tunnel(policies=(policy(everything, interface=TunnelInterface(name="x")),))
    assert not targets(it, OWN, TOLD).asked
    assert own_responder(it, OWN, 4498) is None


def test_translated_addresses() -> None:
    remote = TunnelMapping(side="remote", original="10.2.0.0/16", mapped="10.9.0.0/16")
    found = targets(tunnel(V4, mappings=(remote,)), OWN, TOLD)
    assert found.ways == (Way("10.1.3.1", "10.9.7.7"),)
    # The selectors of the wire have the mapped network.
    local = TunnelMapping(side="local", original="10.1.0.0/16", mapped="10.8.0.0/16")
    wire = tunnel(("10.8.0.0/16", "10.2.0.0/16"), mappings=(local,))
    assert own_responder(wire, OWN, 4498) == Responder(4498, ("10.8.3.1",))


# -- what is told ------------------------------------------------------------------------------


def test_we_tell_where_our_probes_come_from() -> None:
    assert own_responder(tunnel(V4, V6), OWN, 4498) == Responder(4498, ("10.1.3.1", "fd01::1"))
    chosen = tunnel(V4, probe=TunnelProbe(source_address="10.1.3.2"))
    assert own_responder(chosen, OWN, 0) == Responder(0, ("10.1.3.2",))


def test_we_tell_nothing_that_the_peer_could_not_reach() -> None:
    assert own_responder(tunnel(("10.5.0.0/16", "10.2.0.0/16")), OWN, 4498) is None
    assert own_responder(tunnel(V4, nat_mode="SNAT", snat_address="10.1.3.1"), OWN, 1) is None
    assert own_responder(tunnel(("0.0.0.0/0", "10.2.0.0/16")), OWN, 4498) is None


def test_we_tell_eight_at_most() -> None:
    pairs = [(f"10.{n}.0.0/16", "10.200.0.0/16") for n in range(1, 20)]
    own = [ipaddress.ip_address(f"10.{n}.0.1") for n in range(1, 20)]
    told = own_responder(tunnel(*pairs), own, 4498)
    assert told is not None
    assert len(told.addresses) == MOST


# -- what is remembered ------------------------------------------------------------------------

UP = IkeSaUp(
    peer="ns/hq",
    local=Endpoint("192.0.2.1", 500),
    remote=Endpoint("192.0.2.2", 500),
    initiator=True,
    spi_i=b"i",
    spi_r=b"r",
    suite="",
    local_id="",
    remote_id="",
    nat_local=False,
    nat_remote=False,
    responder=TOLD,
)
CHILD = ChildSaUp(
    peer="ns/hq",
    child="net",
    reqid=1,
    spi_in=1,
    spi_out=2,
    suite="",
    local_ts=(),
    remote_ts=(TrafficSelector.network("10.2.7.0/24"),),
    encap=False,
)


def test_of_what_is_told_that_counts_which_was_agreed_on() -> None:
    state = PeerState()
    fold(state, UP, "now")
    assert state.responder is None
    fold(state, CHILD, "now")
    assert state.responder == Responder(4498, ("10.2.7.7",))
    fold(state, replace(UP, responder=None), "now")
    assert state.responder is None


def test_who_is_asked_about_a_peer_that_tells() -> None:
    state = PeerState()
    fold(state, UP, "now")
    fold(state, CHILD, "now")
    (subject,), _ = subjects([tunnel(V4, V6)], OWN, {"ns/hq": state}, {}, unasked=True)
    assert subject.asked
    assert subject.targets == (Way("10.1.3.1", "10.2.7.7"),)
    (subject,), _ = subjects([tunnel(V4, V6)], OWN, {}, {}, unasked=True)
    assert not subject.asked
