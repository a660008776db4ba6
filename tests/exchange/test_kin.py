"""Gateways of our kind tell each other where they answer probes, and tell nobody else."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_ike.config import Responder
from ipsec_ike.events import IkeSaUp
from ipsec_ike.numbers import ExchangeType, NotifyType
from ipsec_ike.v2.kin import MOST, VENDOR, Unreadable, decode, encode
from ipsec_ike.wire.payloads import NotifyPayload, Payload, VendorPayload
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import notified
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm
from ipsec_lab.simnet_script import Script, answer_child

INIT = ExchangeType.IKE_SA_INIT
AUTH = ExchangeType.IKE_AUTH
TOLD = NotifyType.PROBE_RESPONDER

OURS = Responder(4499, ("10.2.0.1", "fd02::1"))
THEIRS = Responder(0, ("10.1.0.1",))
STRANGE = VendorPayload(b"a product of others")


def notice(responder: Responder) -> NotifyPayload:
    return NotifyPayload(TOLD, encode(responder))


def talk(
    *, initiator: bool, vendor: tuple[Payload, ...], notify: tuple[Payload, ...]
) -> tuple[Script, list[Payload], list[Payload]]:
    """A scripted peer sets up an IKE SA with an engine that has OURS to tell. Gives what the engine
    said in IKE_SA_INIT and in IKE_AUTH."""
    it = Script(initiator=initiator, responder=OURS)
    peer = it.peer
    if initiator:
        (answer,) = it.ask(peer.init(*vendor))
        first = peer.take_init(answer)
        child = peer.child(b"\0\0\x10\1", "10.1.0.0/24", "10.2.0.0/24")
        (answer,) = it.ask(peer.protected(AUTH, 1, peer.auth(*child, *notify)))
        return it, first, peer.read(answer)
    (request,) = it.heard()
    first = peer.take_init(request)
    (request,) = it.ask(peer.init(*vendor))
    said = peer.read(request)
    it.ask(peer.protected(AUTH, 1, peer.auth(*answer_child(said), *notify), response=True))
    return it, first, said


def heard(it: Script) -> list[Responder | None]:
    return [event.responder for event in it.pair.of(it.name, IkeSaUp)]


def test_both_ends_know_each_others_responder() -> None:
    pair = Pair(calm())
    pair.change(LEFT, responder=THEIRS)
    pair.change(RIGHT, responder=OURS)
    pair.start()
    assert VENDOR in pair.read(pair.passes(LEFT, INIT))
    assert VENDOR in pair.read(pair.passes(RIGHT, INIT))
    assert TOLD in notified(pair.read(pair.passes(LEFT, AUTH)))
    assert TOLD in notified(pair.read(pair.passes(RIGHT, AUTH)))
    assert [e.responder for e in pair.of(LEFT, IkeSaUp)] == [OURS]
    assert [e.responder for e in pair.of(RIGHT, IkeSaUp)] == [THEIRS]
    assert pair.children(LEFT) == pair.children(RIGHT) == [("net0", "installed")]


def test_the_new_ike_sa_of_a_rekey_still_knows() -> None:
    pair = Pair(calm())
    pair.change(RIGHT, responder=OURS)
    pair.start()
    pair.flow()
    pair.tell(LEFT, lambda engine, now: engine.rekey_ike(pair.left.config.name, now))
    pair.sleep(1)
    (sa,) = pair.left.engine.host.sas.values()
    assert sa.responder == OURS


def test_who_has_nothing_to_tell_says_nothing() -> None:
    pair = Pair(calm())
    pair.start()
    pair.passes(LEFT, INIT)
    pair.passes(RIGHT, INIT)
    assert TOLD not in notified(pair.read(pair.passes(LEFT, AUTH)))
    assert TOLD not in notified(pair.read(pair.passes(RIGHT, AUTH)))


@pytest.mark.parametrize("initiator", [True, False])
@pytest.mark.parametrize("vendor", [(), (STRANGE,), (VendorPayload(VENDOR.data + b"2"),)])
def test_a_peer_of_another_kind_is_told_nothing_and_not_believed(
    initiator: bool, vendor: tuple[Payload, ...]
) -> None:
    it, first, said = talk(initiator=initiator, vendor=vendor, notify=(notice(THEIRS),))
    # As responder we say who we are only to who has said it first.
    assert (VENDOR in first) == (not initiator)
    assert TOLD not in notified(said)
    assert heard(it) == [None]
    assert it.pair.children(it.name) == [("net0", "installed")]


@pytest.mark.parametrize("initiator", [True, False])
def test_a_peer_of_our_kind_is_told_and_heard(initiator: bool) -> None:
    it, first, said = talk(initiator=initiator, vendor=(VENDOR,), notify=(notice(THEIRS),))
    assert VENDOR in first
    assert notice(OURS) in said
    assert heard(it) == [THEIRS]


@pytest.mark.parametrize("initiator", [True, False])
def test_our_own_words_sent_back_are_just_words(initiator: bool) -> None:
    """A reflection names our addresses; that they are no peer's is seen by whoever uses them."""
    it, _, _ = talk(initiator=initiator, vendor=(VENDOR,), notify=(notice(OURS),))
    assert heard(it) == [OURS]
    assert it.engine.engine.counters["ignored_responder"] == 0


BAD = {
    "nothing": b"",
    "no address": b"\1\x11\x93",
    "another version": b"\2" + encode(THEIRS)[1:],
    "an unknown family": b"\1\0\0\5\1\2\3\4",
    "half an address": encode(THEIRS)[:-1],
    "something behind": encode(THEIRS) + b"\4",
    "too many": encode(THEIRS) + encode(THEIRS)[3:] * MOST,
    "multicast": b"\1\0\0\4\xe0\0\0\1",
    "broadcast": b"\1\0\0\4\xff\xff\xff\xff",
    "loopback": b"\1\0\0\4\x7f\0\0\1",
    "unspecified": b"\1\0\0\4\0\0\0\0",
    "link-local": b"\1\0\0\6" + ipaddress.ip_address("fe80::1").packed,
    "IPv4 in IPv6": b"\1\0\0\6" + ipaddress.ip_address("::ffff:10.1.0.1").packed,
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("initiator", [True, False])
def test_what_makes_no_sense_is_ignored_and_counted(initiator: bool, data: bytes) -> None:
    notify = NotifyPayload(TOLD, data)
    it, _, _ = talk(initiator=initiator, vendor=(VENDOR,), notify=(notify,))
    assert heard(it) == [None]
    assert it.engine.engine.counters["ignored_responder"] == 1
    assert it.pair.children(it.name) == [("net0", "installed")]


def test_no_more_than_eight_addresses_are_told() -> None:
    many = Responder(1, tuple(f"10.1.0.{n}" for n in range(1, 12)))
    assert decode(encode(many)) == Responder(1, many.addresses[:MOST])


@given(
    st.integers(0, 65535),
    st.lists(
        st.one_of(
            st.integers(0x0B000000, 0x7EFFFFFF).map(ipaddress.IPv4Address),
            st.integers(1 << 125, (1 << 126) - 1).map(ipaddress.IPv6Address),
        ),
        min_size=1,
        max_size=MOST,
        unique=True,
    ),
)
def test_what_is_told_is_what_is_heard(port: int, addresses: list[ipaddress.IPv4Address]) -> None:
    told = Responder(port, tuple(map(str, addresses)))
    assert decode(encode(told)) == told


@given(st.one_of(st.binary(max_size=160), st.binary(max_size=157).map(lambda b: b"\1\0\0" + b)))
def test_whatever_comes_is_bounded(data: bytes) -> None:
    try:
        found = decode(data)
    except Unreadable:
        return
    assert 1 <= len(found.addresses) <= MOST
    for text in found.addresses:
        assert not ipaddress.ip_address(text).is_multicast
