"""SAs in the kernel's form: windows, flags, directions, moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.xfrm_attributes import Encapsulation, Replay, attributes
from ipsec_gateway.ipsec.xfrm_messages import Installed, Message, State, raw_key, totals
from ipsec_gateway.ipsec.xfrm_numbers import INFINITE, Attr, Msg, StateFlag
from ipsec_gateway.ipsec.xfrm_sa import JUMP, Treatment, add_state, direction_of, repeat_state
from ipsec_ike.actions import SaSpec
from ipsec_ike.config import Handling, Lifetime, Mode
from ipsec_ike.identifiers import Direction
from ipsec_ike.numbers import Protocol
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.xfrm_rig import CBC, OUTER6, pair


def out(**more: Any) -> SaSpec:
    return pair(0x1000, **more)[0]


def inward(**more: Any) -> SaSpec:
    return pair(0x1000, **more)[1]


def decoded(message: Message) -> tuple[State, dict[int, bytes]]:
    body = memoryview(message.body)
    return State.decode(body), {kind: bytes(value) for kind, value in attributes(body[224:])}


@pytest.mark.parametrize(
    ("spec", "directions", "small", "replay"),
    [
        (out(replay_window=1024), False, 0, None),
        (out(replay_window=1024, esn=True), False, 0, 1),
        (out(replay_window=1024, esn=True), True, 0, 0),
        (inward(replay_window=32), False, 32, None),
        (inward(replay_window=33), False, 0, 33),
        (inward(replay_window=0), False, 0, None),
        (inward(replay_window=0, esn=True), False, 0, 1),
        (inward(replay_window=64, esn=True), True, 0, 64),
    ],
)
def test_replay_windows(spec: SaSpec, directions: bool, small: int, replay: int | None) -> None:
    state, values = decoded(add_state(spec, Treatment(directions=directions)))
    assert state.window == small
    found = values.get(Attr.REPLAY_ESN_VAL)
    if replay is None:
        assert found is None
    else:
        # As iproute2 does it, without the bitmap that the number of words promises.
        assert int.from_bytes(found[20:24], "little") == replay  # type: ignore[index]
        assert int.from_bytes(found[:4], "little") == -(-replay // 32)  # type: ignore[index]
    assert bool(state.flags & StateFlag.ESN) is spec.esn
    assert (Attr.SA_DIR in values) is directions


@pytest.mark.parametrize("spec", [out(), inward(), out(mode=Mode.TRANSPORT), inward(esn=True)])
def test_the_direction_can_be_told_again(spec: SaSpec) -> None:
    state, values = decoded(add_state(spec, Treatment()))
    assert direction_of(state) is spec.id.direction
    assert (Attr.SET_MARK in values) is (spec.id.direction is Direction.OUT)


def test_outer_packets_have_the_mark_of_their_peer() -> None:
    def marks(spec: SaSpec) -> tuple[int, int]:
        _, values = decoded(add_state(spec, Treatment()))
        value, mask = values[Attr.SET_MARK], values[Attr.SET_MARK_MASK]
        return int.from_bytes(value, "little"), int.from_bytes(mask, "little")  # type: ignore[arg-type]

    assert marks(out()) == (0x40, 0x40), "the others' bits are kept"
    assert marks(out(handling=Handling(mark=0x47))) == (0x47, 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("spec", "aligned"),
    [
        (out(protocol=Protocol.AH, suite=CBC), True),
        (inward(protocol=Protocol.AH, suite=CBC), True),
        (out(protocol=Protocol.AH, suite=CBC, ends=OUTER6), False),
        (out(), False),
    ],
)
def test_ah_is_padded_as_others_expect_it(spec: SaSpec, aligned: bool) -> None:
    """RFC 4302 3.3.3.2.1: to 32 bits over IPv4, to 64 over IPv6."""
    state, _ = decoded(add_state(spec, Treatment()))
    assert bool(state.flags & StateFlag.ALIGN4) is aligned


def test_outer_headers() -> None:
    plain, _ = decoded(add_state(out(), Treatment()))
    assert plain.flags == StateFlag.AF_UNSPEC
    how = Handling(copy_df=False, copy_dscp=False, keep_outer_dscp=True, ecn=False)
    state, values = decoded(add_state(out(handling=how), Treatment()))
    assert state.flags == StateFlag.AF_UNSPEC | StateFlag.NOPMTUDISC | StateFlag.NOECN
    assert values[Attr.SA_EXTRA_FLAGS] == b"\1\0\0\0"
    state, values = decoded(add_state(inward(handling=how), Treatment()))
    assert state.flags == StateFlag.AF_UNSPEC | (
        StateFlag.DECAP_DSCP | StateFlag.NOECN | StateFlag.ICMP
    )
    assert Attr.SA_EXTRA_FLAGS not in values


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (out(), b"\0\0\0\0\0\0\0\0"),
        (inward(), b"\0\0\0\0\2\0\0\0"),
    ],
)
def test_a_card_is_asked_for_its_part(spec: SaSpec, value: bytes) -> None:
    assert decoded(add_state(spec, Treatment(), offload=True))[1][Attr.OFFLOAD_DEV] == value
    assert Attr.OFFLOAD_DEV not in decoded(add_state(spec, Treatment()))[1]


@pytest.mark.parametrize("make", [out, inward])
def test_an_interface_has_sas_of_its_own(make: Any) -> None:
    spec = make(handling=Handling(interface=0x20000017), replay_window=32)
    assert decoded(add_state(spec, Treatment()))[1][Attr.IF_ID] == b"\x17\0\0\x20"
    assert Attr.IF_ID not in decoded(add_state(make(), Treatment()))[1]
    # A moved SA stays with it.
    copy = repeat_state(memoryview(add_state(spec, Treatment()).body), *OUTER6, None)
    assert decoded(copy)[1][Attr.IF_ID] == b"\x17\0\0\x20"


def test_what_was_agreed_is_the_selector_of_the_outbound_sa_alone() -> None:
    narrow = {"nets": ("10.1.0.0/24", "10.2.0.128/25")}
    state, _ = decoded(add_state(out(**narrow), Treatment()))
    assert (state.selector.destination, state.selector.destination_length) == ("10.2.0.128", 25)
    state, _ = decoded(add_state(inward(**narrow), Treatment()))
    assert state.selector.family == 0
    two = replace(
        out(), remote_ts=tuple(map(TrafficSelector.network, ("10.2.0.0/24", "10.4.0.0/24")))
    )
    state, _ = decoded(add_state(two, Treatment()))
    assert state.selector.family == 0


def test_limits_of_zero_are_none() -> None:
    limits = {"soft": Lifetime(seconds=10.2), "hard": Lifetime(seconds=20, bytes=500)}
    message = add_state(out(**limits), Treatment())
    numbers = [int.from_bytes(message.body[96 + 8 * i : 104 + 8 * i], "little") for i in range(8)]
    assert numbers == [INFINITE, 500, INFINITE, INFINITE, 11, 20, 0, 0]
    state, _ = decoded(message)
    assert state.limits is not None
    assert (state.limits.hard_bytes, state.limits.soft_bytes) == (500, 0)
    assert replace(state, counted=(0, 0, 100, 0)).is_soft(111)
    assert not replace(state, counted=(0, 0, 100, 0)).is_soft(110)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (out(protocol=Protocol.AH, suite=CBC, ports=(4500, 4500)), "AH cannot pass a NAT"),
        (out(replay_window=4097), "replay window of 4097"),
    ],
)
def test_what_has_no_form_there_is_refused(spec: SaSpec, words: str) -> None:
    with pytest.raises(DataplaneError, match=words):
        add_state(spec, Treatment())


def test_no_key_shows_in_a_message() -> None:
    spec = out()
    message = add_state(spec, Treatment())
    assert spec.encryption_key.reveal() in message.body
    assert "body" not in repr(message)
    body = memoryview(message.body)
    assert "raw" not in repr(Installed.decode(body))


@pytest.mark.parametrize(("esn", "highest"), [(True, 2**64 - 2), (False, 2**32 - 2)])
def test_a_copy_goes_on_far_beyond_the_old_one(esn: bool, highest: int) -> None:
    message = add_state(out(esn=esn), Treatment())
    for sent in (0, 5, highest):
        body = message.body + Replay(64, sent, 0, (0, 0)).attribute()
        copy = repeat_state(memoryview(body), "192.0.2.1", "192.0.2.9", None)
        state, values = decoded(copy)
        assert (copy.kind, state.destination, state.spi) == (Msg.NEWSA, "192.0.2.9", 0x1000)
        replay = Replay.decode(memoryview(values[Attr.REPLAY_ESN_VAL]))
        assert replay.sent == min(sent + JUMP, highest)
        assert values[Attr.ALG_AEAD] == decoded(message)[1][Attr.ALG_AEAD]


def test_an_inbound_copy_keeps_its_window_and_counters() -> None:
    body = bytearray(add_state(inward(), Treatment()).body)
    body[160:168] = (84).to_bytes(8, "little")
    seen = Replay(64, 0, 77, (0b101, 1))
    full = bytes(body) + seen.attribute()
    # The last of two attributes of one kind counts, here as in the kernel.
    state, values = decoded(repeat_state(memoryview(full), *OUTER6, None))
    assert Replay.decode(memoryview(values[Attr.REPLAY_ESN_VAL])) == seen
    assert values[Attr.LTIME_VAL][:8] == (84).to_bytes(8, "little")
    assert (state.source, state.destination) == OUTER6


def test_new_ports_change_nothing_else() -> None:
    before = add_state(out(ports=(4500, 4500)), Treatment())
    update = repeat_state(
        memoryview(before.body), "192.0.2.1", "192.0.2.2", Encapsulation(4500, 999), update=True
    )
    assert update.kind == Msg.UPDSA
    old, new = decoded(before), decoded(update)
    assert old[0] == new[0]
    assert Encapsulation.decode(memoryview(new[1].pop(Attr.ENCAP))) == Encapsulation(4500, 999)
    assert old[1].keys() - new[1].keys() == {Attr.ENCAP}


def test_totals_are_those_of_the_message() -> None:
    body = bytearray(add_state(inward(), Treatment()).body)
    body[160:176] = (84).to_bytes(8, "little") + (2).to_bytes(8, "little")
    body[192:204] = b"".join(n.to_bytes(4, "little") for n in (3, 4, 5))
    counted = totals(memoryview(bytes(body)))
    assert counted == (raw_key((50, 0x1000, "192.0.2.2")), 84, 2, 3, 4, 5, 0)
    state = State.decode(memoryview(bytes(body)))
    assert (state.counted[:2], state.failures) == ((84, 2), (3, 4, 5))
