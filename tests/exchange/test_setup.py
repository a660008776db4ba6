"""Setting up IKE SAs and children, two parties, message by message.

Left is the initiator; arrows to the right are its messages. After each step both ends are looked
at.
"""

from __future__ import annotations

from dataclasses import replace

from ipsec_ike.events import (
    ChildSaUp,
    IkeSaDown,
    IkeSaUp,
    Reason,
    SelectorsNarrowed,
)
from ipsec_ike.numbers import ExchangeType, Group, NotifyType, PayloadType
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.header import Header
from ipsec_ike.wire.payloads import KePayload, NotifyPayload
from ipsec_lab.simnet_check import twins
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import notified
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm

INIT = ExchangeType.IKE_SA_INIT
AUTH = ExchangeType.IKE_AUTH
CREATE = ExchangeType.CREATE_CHILD_SA
INFO = ExchangeType.INFORMATIONAL


def assert_up(pair: Pair, *children: str) -> None:
    """One IKE SA, these children, the same at both ends."""
    for name in (LEFT, RIGHT):
        assert pair.states(name) == ["established"]
        assert pair.children(name) == [(child, "installed") for child in sorted(children)]
    assert list(twins(pair.left.dataplane, pair.right.dataplane)) == []


def test_the_first_exchanges() -> None:
    pair = Pair(calm())
    pair.start()
    assert pair.states(LEFT) == ["connecting"]

    # HDR, SAi1, KEi, Ni, N(NAT_DETECTION_*) -->
    request = pair.passes(LEFT, INIT)
    kinds = notified(pair.read(request))
    assert NotifyType.NAT_DETECTION_SOURCE_IP in kinds
    assert NotifyType.NAT_DETECTION_DESTINATION_IP in kinds
    assert NotifyType.IKEV2_FRAGMENTATION_SUPPORTED in kinds
    assert NotifyType.SIGNATURE_HASH_ALGORITHMS in kinds
    assert pair.states(RIGHT) == ["connecting"]

    # <-- HDR, SAr1, KEr, Nr
    pair.passes(RIGHT, INIT)

    # HDR, SK { IDi, IDr, AUTH, SAi2, TSi, TSr } -->
    request = pair.passes(LEFT, AUTH)
    assert request.destination.port == 500
    assert NotifyType.INITIAL_CONTACT in notified(pair.read(request))
    assert pair.states(RIGHT) == ["established"]
    assert len(pair.right.dataplane.inbound) == 1
    assert pair.left.dataplane.inbound == {}

    # <-- HDR, SK { IDr, AUTH, SAr2, TSi, TSr }
    pair.passes(RIGHT, AUTH)
    assert_up(pair, "net0")
    assert pair.flying == []
    for name, initiator in ((LEFT, True), (RIGHT, False)):
        (up,) = pair.of(name, IkeSaUp)
        assert up.initiator is initiator
        assert not up.nat_local
        assert not up.nat_remote
        (child,) = pair.of(name, ChildSaUp)
        assert child.child == "net0"
        assert not child.encap


def test_every_message_lost_once() -> None:
    pair = Pair(calm())
    pair.start()
    # HDR, SAi1, KEi, Ni --x
    first = pair.drops(LEFT, INIT)
    pair.run_until(pair.now + 1.0)
    # again, octet by octet -->
    assert pair.passes(LEFT, INIT).data == first.data
    # x-- HDR, SAr1, KEr, Nr
    answer = pair.drops(RIGHT, INIT)
    pair.run_until(pair.now + 1.5)
    pair.passes(LEFT, INIT)
    # <-- the answer again, octet by octet
    assert pair.passes(RIGHT, INIT).data == answer.data
    assert pair.states(RIGHT) == ["connecting"]
    # HDR, SK { IDi, ... } -->, and the answer is lost
    pair.passes(LEFT, AUTH)
    answer = pair.drops(RIGHT, AUTH)
    pair.run_until(pair.now + 1.0)
    pair.passes(LEFT, AUTH)
    assert pair.passes(RIGHT, AUTH).data == answer.data
    pair.flow()
    assert_up(pair, "net0")
    assert len(pair.of(RIGHT, ChildSaUp)) == 1


def test_cookie() -> None:
    """RFC 7296 2.6: nothing is remembered about a stranger that was not heard twice."""
    pair = Pair(calm(cookies=True))
    pair.start()
    # HDR, SAi1, KEi, Ni -->
    first = pair.passes(LEFT, INIT)
    assert pair.states(RIGHT) == []
    # <-- HDR, N(COOKIE)
    answer = pair.passes(RIGHT, INIT)
    assert notified(pair.read(answer)) == [NotifyType.COOKIE]
    assert Header.parse(answer.data).spi_r == bytes(8)
    # HDR, N(COOKIE), SAi1, KEi, Ni -->  the same otherwise
    second = pair.take(LEFT, INIT)
    cookie, *rest = pair.read(second)
    assert isinstance(cookie, NotifyPayload)
    assert cookie.notify == NotifyType.COOKIE
    assert rest == pair.read(first)
    assert Header.parse(second.data).spi_i == Header.parse(first.data).spi_i
    # from another port the cookie is worth nothing
    elsewhere = replace(second, source=second.source._replace(port=555))
    pair.deliver(elsewhere)
    assert pair.states(RIGHT) == []
    pair.drops(RIGHT, INIT)
    pair.deliver(second)
    pair.flow()
    assert_up(pair, "net0")


def test_another_group() -> None:
    """RFC 7296 1.2: INVALID_KE_PAYLOAD names the group to try again with."""
    pair = Pair(calm(other_group_first=True))
    pair.start()
    # HDR, SAi1, KEi(x25519), Ni -->
    pair.passes(LEFT, INIT)
    assert pair.states(RIGHT) == []
    # <-- HDR, N(INVALID_KE_PAYLOAD, ecp256)
    (refusal,) = pair.read(pair.passes(RIGHT, INIT))
    assert refusal == NotifyPayload(NotifyType.INVALID_KE_PAYLOAD, Group.ECP_256.to_bytes(2))
    # HDR, SAi1, KEi(ecp256), Ni -->
    request = pair.read(pair.passes(LEFT, INIT))
    (ke,) = [p for p in request if isinstance(p, KePayload)]
    assert ke.group == Group.ECP_256
    pair.flow()
    assert_up(pair, "net0")


def test_another_group_and_a_cookie() -> None:
    pair = Pair(calm(other_group_first=True, cookies=True))
    pair.start()
    pair.flow()
    assert_up(pair, "net0")


def test_nat() -> None:
    """RFC 7296 2.23: both detect it, and everything moves to port 4500."""
    pair = Pair(calm(nat=True))
    pair.start()
    pair.passes(LEFT, INIT)
    pair.passes(RIGHT, INIT)
    request = pair.passes(LEFT, AUTH)
    assert request.destination.port == 4500
    assert request.marker
    pair.flow()
    assert_up(pair, "net0")
    (up,) = pair.of(LEFT, IkeSaUp)
    assert (up.nat_local, up.nat_remote) == (True, False)
    (up,) = pair.of(RIGHT, IkeSaUp)
    assert (up.nat_local, up.nat_remote) == (False, True)
    assert pair.left.ping("net0")
    assert pair.right.ping("net0")
    pair.flow()
    assert pair.stats["ESP"] == 2


def test_pretended_nat() -> None:
    pair = Pair(calm())
    pair.change(LEFT, force_encapsulation=True)
    pair.start()
    pair.flow()
    assert_up(pair, "net0")
    for name in (LEFT, RIGHT):
        (up,) = pair.of(name, ChildSaUp)
        assert up.encap


def test_fragments() -> None:
    """RFC 7383: what is too large comes in parts; one of them lost is all of them again."""
    pair = Pair(calm(small_fragments=True))
    pair.start()
    pair.passes(LEFT, INIT)
    pair.passes(RIGHT, INIT)
    parts = pair.waiting(LEFT)
    assert len(parts) > 1
    assert {part.next_payload for part in parts} == {PayloadType.SKF}
    assert max(part.length for part in parts) <= 400 - 20 - 8 - 4
    pair.drops(LEFT, AUTH)
    pair.flow()
    assert pair.states(RIGHT) == ["connecting"]
    pair.sleep(1.0)
    assert_up(pair, "net0")


def test_no_fragments_for_who_does_not_know_them() -> None:
    pair = Pair(calm(small_fragments=True))
    pair.change(RIGHT, fragmentation=False)
    pair.start()
    pair.passes(LEFT, INIT)
    pair.passes(RIGHT, INIT)
    (whole,) = pair.waiting(LEFT)
    assert whole.next_payload == PayloadType.SK
    pair.flow()
    assert_up(pair, "net0")


def test_childless() -> None:
    """RFC 6023: IKE_AUTH without a child; the child has a Diffie-Hellman of its own."""
    pair = Pair(calm(childless=True, pfs=True))
    pair.start()
    pair.passes(LEFT, INIT)
    answer = pair.passes(RIGHT, INIT)
    assert NotifyType.CHILDLESS_IKEV2_SUPPORTED in notified(pair.read(answer))
    pair.passes(LEFT, AUTH)
    pair.passes(RIGHT, AUTH)
    assert pair.states(LEFT) == pair.states(RIGHT) == ["established"]
    assert pair.children(LEFT) == pair.children(RIGHT) == []
    request = pair.read(pair.passes(LEFT, CREATE))
    assert any(isinstance(p, KePayload) for p in request)
    pair.flow()
    assert_up(pair, "net0")


def test_several_children() -> None:
    pair = Pair(calm(children=3, pfs=True))
    pair.start()
    pair.passes(LEFT, INIT)
    pair.passes(RIGHT, INIT)
    pair.passes(LEFT, AUTH)
    pair.passes(RIGHT, AUTH)
    assert_up(pair, "net0")
    pair.passes(LEFT, CREATE)
    pair.passes(RIGHT, CREATE)
    assert_up(pair, "net0", "net1")
    pair.flow()
    assert_up(pair, "net0", "net1", "net2")


def test_narrowing() -> None:
    """RFC 7296 2.9: left asks for a /16, right allows a /24 of it."""
    pair = Pair(calm())
    wide = (TrafficSelector.network("10.1.0.0/16"),)
    narrow = (TrafficSelector.network("10.1.0.0/24"),)
    pair.change_children(LEFT, local_ts=wide)
    pair.start()
    pair.flow()
    assert_up(pair, "net0")
    (up,) = pair.of(LEFT, ChildSaUp)
    assert up.local_ts == narrow
    (event,) = pair.of(LEFT, SelectorsNarrowed)
    assert event.wanted[0] == wide
    assert event.agreed[0] == narrow


def test_ports_and_protocols() -> None:
    pair = Pair(calm())
    web = TrafficSelector.network("10.2.0.0/24", protocol=6, start_port=443, end_port=443)
    pair.change_children(RIGHT, local_ts=(web,))
    pair.start()
    pair.flow()
    assert_up(pair, "net0")
    (up,) = pair.of(LEFT, ChildSaUp)
    assert up.remote_ts == (web,)


def test_rotation_of_the_secret() -> None:
    """The responder takes the previous secret as well as the new one."""
    pair = Pair(calm())
    old = pair.left.config.identities[0].psk
    pair.change_identity(RIGHT, psk=Secret(b"the new secret"), psk_previous=old)
    pair.start()
    pair.flow()
    assert_up(pair, "net0")


def test_initial_contact() -> None:
    """RFC 7296 2.4: left has lost its memory; right drops what it had with it at once."""
    pair = Pair(calm())
    pair.start()
    pair.flow()
    pair.sleep(30.0)
    before = set(pair.right.dataplane.inbound)
    pair.left.boot()
    pair.flying.clear()
    pair.left.configure(pair.left.config)
    pair.passes(LEFT, INIT)
    pair.passes(RIGHT, INIT)
    assert set(pair.right.dataplane.inbound) == before  # not authenticated yet
    pair.passes(LEFT, AUTH)
    assert len(pair.of(RIGHT, IkeSaDown)) == 1
    pair.flow()
    pair.sleep(6.0)
    assert_up(pair, "net0")
    assert not before & set(pair.right.dataplane.inbound)
    (down,) = pair.of(RIGHT, IkeSaDown)
    assert down.reason is Reason.REPLACED


def test_both_initiate_at_once() -> None:
    """Two IKE SAs come up; one of them goes, and so do its children, without a gap."""
    pair = Pair(calm(both_initiate=True))
    pair.start()
    pair.passes(LEFT, INIT)
    pair.passes(RIGHT, INIT)
    pair.flow()
    pair.sleep(100.0)
    assert_up(pair, "net0")


def test_nobody_there() -> None:
    """A timeout names address and port; then it is tried again, later and later."""
    pair = Pair(calm())
    pair.start()
    pair.sleep(60.0, deaf=True)
    first = pair.of(LEFT, IkeSaDown)[0]
    assert first.reason is Reason.TIMEOUT
    assert "192.0.2.2" in first.message
    assert "500" in first.message
    assert not first.established
    assert pair.states(LEFT) == ["connecting"]
    pair.sleep(60.0)
    assert_up(pair, "net0")


def test_half_open_sas_end() -> None:
    """A responder forgets who does not authenticate."""
    pair = Pair(calm())
    pair.start()
    pair.passes(LEFT, INIT)
    assert pair.states(RIGHT) == ["connecting"]
    pair.left.boot()
    pair.sleep(31.0, deaf=True)
    assert pair.states(RIGHT) == []
    assert pair.of(RIGHT, IkeSaUp) == []


def test_acquire() -> None:
    """A packet without an SA has its child negotiated, its own selectors first."""
    pair = Pair(calm(on_traffic=True))
    pair.start()
    pair.flow()
    assert pair.children(LEFT) == []
    pair.left.ping("net0")
    pair.flow()
    assert_up(pair, "net0")
