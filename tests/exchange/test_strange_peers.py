"""Peers that say unusual, wrong or hostile things; the other end is a script.

What is legal though rare must work; what is wrong gets the answer that RFC 7296 2.21 asks for, and
what anybody could have sent changes nothing.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from ipsec_ike.events import AuthFailed, ChildSaUp, IkeSaDown, IkeSaUp, PeerMoved, Reason
from ipsec_ike.inputs import Datagram, Endpoint, UnknownSpi
from ipsec_ike.numbers import ExchangeType, NotifyType, PayloadType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.header import Header
from ipsec_ike.wire.message import encode_clear, encode_payloads
from ipsec_ike.wire.payloads import (
    CpPayload,
    DeletePayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    Payload,
    SaPayload,
    TsPayload,
    UnknownPayload,
    VendorPayload,
)
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import IKE_PROPOSAL, notified
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm
from ipsec_lab.simnet_script import Script, errors

INIT = ExchangeType.IKE_SA_INIT
AUTH = ExchangeType.IKE_AUTH
CREATE = ExchangeType.CREATE_CHILD_SA
INFO = ExchangeType.INFORMATIONAL


def established() -> Script:
    """The script is the initiator and has one child."""
    talk = Script(initiator=True)
    assert errors(talk.establish()) == []
    assert talk.pair.states(RIGHT) == ["established"]
    assert talk.pair.children(RIGHT) == [("net0", "installed")]
    return talk


def rekey_payloads(talk: Script, spi: bytes) -> list[Payload]:
    """The payloads of a request that rekeys the first child."""
    return [
        NotifyPayload(NotifyType.REKEY_SA, b"", 3, b"\0\0\x10\1"),
        *talk.peer.child(spi, "10.1.0.0/24", "10.2.0.0/24", nonce=bytes(range(32))),
    ]


class TestUnusualButLegal:
    def test_establish_as_responder_and_as_initiator(self) -> None:
        assert established().pair.of(RIGHT, ChildSaUp)
        talk = Script(initiator=False)
        talk.establish()
        assert talk.pair.children(LEFT) == [("net0", "installed")]

    @pytest.mark.parametrize("padding", [1, 15, 255])
    def test_padding(self, padding: int) -> None:
        """3.14: up to 255 octets; RouterOS does that."""
        talk = established()
        assert talk.request(INFO, padding=padding)[1] == []

    def test_rekey_with_a_configuration_payload(self) -> None:
        """RouterOS repeats the CP request of IKE_AUTH when it rekeys."""
        talk = established()
        payloads = rekey_payloads(talk, b"\0\0\x10\2")
        _, answer = talk.request(CREATE, CpPayload(1, ((1, b""), (3, b""))), *payloads)
        assert errors(answer) == []
        assert any(isinstance(p, SaPayload) for p in answer)

    def test_unknown_payloads_and_notifications(self) -> None:
        talk = established()
        _, answer = talk.request(
            INFO,
            UnknownPayload(200, False, b"what"),
            NotifyPayload(50000, b"ever"),
            VendorPayload(b"somebody"),
        )
        assert answer == []

    def test_transforms_that_nobody_knows(self) -> None:
        """3.3.6: a proposal with an unknown transform type is passed over; the next one counts."""
        talk = Script(initiator=True)
        strange = Proposal(1, (*IKE_PROPOSAL.transforms, Transform(241, 1)), b"", 1)
        known = replace(IKE_PROPOSAL, number=2)
        payloads = [
            SaPayload((strange, known)),
            KePayload(31, bytes(range(1, 33))),
            NoncePayload(bytes(32)),
        ]
        (answer,) = talk.ask(talk.peer.clear(INIT, 0, payloads, response=False))
        (chosen,) = [p for p in talk.peer.take_init(answer) if isinstance(p, SaPayload)]
        assert chosen.proposals[0].number == 2

    def test_several_deletes_in_one_payload(self) -> None:
        talk = established()
        _, answer = talk.request(INFO, DeletePayload(3, (b"\0\0\x10\1", b"\0\0\x99\x99")))
        assert len(answer) == 1
        assert talk.pair.children(RIGHT) == [] or talk.pair.children(RIGHT)[0][1] == "deleted"

    def test_delete_of_an_unknown_child(self) -> None:
        talk = established()
        assert talk.request(INFO, DeletePayload(3, (b"\0\0\x99\x99",)))[1] == []
        assert talk.pair.children(RIGHT) == [("net0", "installed")]

    def test_a_minor_version(self) -> None:
        talk = established()
        data = talk.peer.protected(INFO, talk.message_id, [])
        # the header is authenticated: what is changed on the way is dropped
        assert talk.ask(data[:17] + b"\x21" + data[18:]) == []
        assert len(talk.ask(data)) == 1


class TestWrong:
    def test_unknown_critical_payload(self) -> None:
        """2.5: UNSUPPORTED_CRITICAL_PAYLOAD names it; the IKE SA goes on."""
        talk = established()
        _, answer = talk.request(INFO, UnknownPayload(201, True, b""))
        assert answer == [NotifyPayload(NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, b"\xc9")]
        assert talk.request(INFO)[1] == []

    def test_unknown_critical_payload_in_the_first_message(self) -> None:
        talk = Script(initiator=True)
        (answer,) = talk.ask(talk.peer.init(UnknownPayload(201, True, b"")))
        payloads = talk.peer.take_init(answer)
        assert notified(payloads) == [NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD]
        assert talk.pair.states(RIGHT) == []

    def test_malformed_request(self) -> None:
        """2.21.3: INVALID_SYNTAX in a protected answer, and the IKE SA is gone."""
        talk = established()
        data = talk.peer.raw(INFO, talk.message_id, PayloadType.DELETE, b"\0\0\0\6\3\4")
        answers = talk.ask(data)
        assert errors(talk.peer.read(answers[0])) == [NotifyType.INVALID_SYNTAX]
        assert talk.pair.of(RIGHT, IkeSaDown)
        assert talk.engine.dataplane.inbound == {}

    def test_child_without_selectors(self) -> None:
        talk = established()
        payloads = rekey_payloads(talk, b"\0\0\x10\2")[1:3]
        answers = talk.ask(talk.peer.protected(CREATE, talk.message_id, payloads))
        assert errors(talk.peer.read(answers[0]))
        assert len(talk.engine.dataplane.inbound) <= 1

    def test_rekey_of_an_unknown_child(self) -> None:
        talk = established()
        _, *rest = rekey_payloads(talk, b"\0\0\x10\2")
        rekey = NotifyPayload(NotifyType.REKEY_SA, b"", 3, b"\0\0\x99\x99")
        _, answer = talk.request(CREATE, rekey, *rest)
        assert errors(answer) == [NotifyType.CHILD_SA_NOT_FOUND]
        assert talk.pair.children(RIGHT) == [("net0", "installed")]

    def test_new_child_without_anything_in_common(self) -> None:
        talk = established()
        payloads = talk.peer.child(b"\0\0\x10\2", "172.16.0.0/12", "172.16.0.0/12", nonce=bytes(32))
        assert errors(talk.request(CREATE, *payloads)[1]) == [NotifyType.TS_UNACCEPTABLE]
        assert talk.request(INFO)[1] == []

    def test_too_many_children(self) -> None:
        talk = Script(initiator=True)
        talk.establish()
        limit = talk.engine.engine.host.limits.children
        refused = False
        for number in range(limit + 8):
            spi = (0x20000 + number).to_bytes(4)
            payloads = talk.peer.child(spi, "10.1.0.0/24", "10.2.0.0/24", nonce=bytes(32))
            _, answer = talk.request(CREATE, *payloads)
            refused = errors(answer) == [NotifyType.NO_ADDITIONAL_SAS]
            talk.heard()
        assert refused
        assert len(talk.engine.dataplane.inbound) <= limit

    def test_key_exchange_of_zero(self) -> None:
        """RFC 8031: a degenerate public value is refused before it becomes a key."""
        talk = Script(initiator=True)
        payloads = [
            SaPayload((IKE_PROPOSAL,)),
            KePayload(31, bytes(32)),
            NoncePayload(bytes(32)),
        ]
        answers = talk.ask(talk.peer.clear(INIT, 0, payloads, response=False))
        assert talk.pair.states(RIGHT) == []
        for answer in answers:
            assert errors(talk.peer.take_init(answer)) == [NotifyType.INVALID_SYNTAX]

    def test_an_answer_that_was_not_offered(self) -> None:
        """The initiator does not take a proposal that it did not make."""
        talk = Script(initiator=False)
        (request,) = talk.heard()
        talk.peer.take_init(request)
        weak = Proposal(1, (Transform(1, 12, 128), *IKE_PROPOSAL.transforms[1:]))
        rest: list[Payload] = [KePayload(31, bytes(range(1, 33))), NoncePayload(bytes(32))]
        talk.ask(talk.peer.clear(INIT, 0, [SaPayload((weak,)), *rest], response=True))
        assert "established" not in talk.pair.states(LEFT)
        assert talk.engine.dataplane.inbound == {}

    def test_selectors_that_were_not_offered(self) -> None:
        """2.9: the answer may narrow, not widen: the child is refused, the IKE SA stays."""
        talk = Script(initiator=False)
        (request,) = talk.heard()
        talk.peer.take_init(request)
        (request,) = talk.ask(talk.peer.init())
        everything = (TrafficSelector.network("0.0.0.0/0"),)
        child: list[Payload] = [
            *talk.peer.child(b"\0\0\x20\1", "10.1.0.0/24", "10.2.0.0/24")[:1],
            TsPayload(PayloadType.TSi, everything),
            TsPayload(PayloadType.TSr, everything),
        ]
        talk.ask(talk.peer.protected(AUTH, 1, talk.peer.auth(*child), response=True))
        assert talk.engine.dataplane.inbound == {}
        assert talk.engine.dataplane.all_outbound == []
        assert talk.pair.of(LEFT, ChildSaUp) == []

    def test_wrong_secret_of_a_responder(self) -> None:
        talk = Script(initiator=False)
        (request,) = talk.heard()
        talk.peer.take_init(request)
        talk.ask(talk.peer.init())
        talk.ask(talk.peer.protected(AUTH, 1, talk.peer.auth(psk=b"guess"), response=True))
        (failed,) = talk.pair.of(LEFT, AuthFailed)
        assert not failed.ours
        assert talk.engine.dataplane.inbound == {}


class TestAnybodyCouldHaveSentIt:
    """Unprotected or forged: counted, and nothing changes."""

    def same(self, talk: Script, data: bytes) -> None:
        before = talk.engine.engine.snapshot()
        talk.ask(data)
        assert talk.engine.engine.snapshot() == before
        assert talk.request(INFO)[1] == []

    def test_forged(self) -> None:
        talk = established()
        data = bytearray(talk.peer.protected(INFO, talk.message_id, [DeletePayload(1)]))
        data[-1] ^= 1
        self.same(talk, bytes(data))

    def test_unprotected_delete(self) -> None:
        talk = established()
        self.same(talk, talk.peer.clear(INFO, talk.message_id, [DeletePayload(1)], response=False))

    def test_unprotected_error(self) -> None:
        """2.21.4: a hint at most."""
        talk = established()
        notify = NotifyPayload(NotifyType.INVALID_IKE_SPI)
        self.same(talk, talk.peer.clear(INFO, 0, [notify], response=True))

    def test_old_request(self) -> None:
        talk = established()
        first = talk.peer.protected(INFO, 2, [])
        answer = talk.ask(first)
        assert talk.ask(first) == answer  # the last one is answered again, octet by octet
        talk.message_id = 3
        talk.request(INFO)
        assert talk.ask(first) == []

    def test_request_from_the_future(self) -> None:
        talk = established()
        assert talk.ask(talk.peer.protected(INFO, 9, [DeletePayload(1)])) == []
        assert talk.pair.states(RIGHT) == ["established"]

    def test_response_that_nobody_asked_for(self) -> None:
        talk = established()
        self.same(talk, talk.peer.protected(INFO, 0, [DeletePayload(1)], response=True))

    def test_reflection(self) -> None:
        """Its own message comes back."""
        talk = established()
        (answer,) = talk.ask(talk.peer.protected(INFO, 2, []))
        assert talk.ask(answer) == []

    def test_our_own_proof_comes_back(self) -> None:
        """A responder without the secret sends our IKE_AUTH back as a request of its own. It would
        verify, and where any identity is accepted that would be all it takes."""
        talk = Script(initiator=False, identity={"remote_id": None})
        (request,) = talk.heard()
        talk.peer.take_init(request)
        (request,) = talk.ask(talk.peer.init())
        assert talk.ask(talk.peer.protected(AUTH, 0, talk.peer.read(request))) == []
        assert talk.ask(talk.peer.protected(INFO, 0, [])) == []
        assert talk.pair.of(LEFT, IkeSaUp) == []
        assert talk.pair.states(LEFT) == ["connecting"]

    def test_wrong_role(self) -> None:
        """The I flag belongs to the original initiator alone."""
        talk = established()
        talk.peer.initiator = False
        for answer in talk.ask(talk.peer.protected(INFO, 2, [DeletePayload(1)])):
            assert Header.parse(answer).next_payload == PayloadType.NOTIFY  # not protected
        assert talk.pair.states(RIGHT) == ["established"]

    def test_unknown_ike_sa(self) -> None:
        """2.21.4: INVALID_IKE_SPI at most, and never for a response."""
        talk = established()
        stray = encode_clear(b"12345678", b"87654321", INFO, 0x08, 5, [])
        answers = talk.ask(stray)
        assert len(answers) <= 1
        for answer in answers:
            assert len(answer) <= len(stray) + 8
            assert Header.parse(answer).response
        assert talk.ask(encode_clear(b"12345678", b"87654321", INFO, 0x28, 5, [])) == []

    def test_newer_version(self) -> None:
        """2.5: INVALID_MAJOR_VERSION, with our version in the header."""
        talk = Script(initiator=True)
        data = talk.peer.init()
        answers = talk.ask(data[:17] + b"\x30" + data[18:])
        assert len(answers) <= 1
        for answer in answers:
            assert Header.parse(answer).major == 2
            assert notified(talk.peer.take_init(answer)) == [NotifyType.INVALID_MAJOR_VERSION]
        assert talk.pair.states(RIGHT) == []

    def test_older_version(self) -> None:
        talk = Script(initiator=True)
        data = talk.peer.init()
        assert talk.ask(data[:17] + b"\x10" + data[18:]) == []

    def test_error_in_answer_to_the_first_message(self) -> None:
        """2.21.1: an unprotected refusal does not end the attempt at once: anyone can send it."""
        talk = Script(initiator=False)
        (request,) = talk.heard()
        talk.peer.take_init(request)
        notify = NotifyPayload(NotifyType.INVALID_SYNTAX)
        talk.peer.spi_r = bytes(8)
        talk.ask(talk.peer.clear(INIT, 0, [notify], response=True))
        talk.peer.spi_r = b"responsr"
        talk.pair.sleep(10.0, deaf=True)  # whatever it makes of it, it tries again
        assert talk.pair.states(LEFT) == ["connecting"]

    def test_stranger_from_elsewhere(self) -> None:
        """No configured peer: no answer that says more, and nothing is kept."""
        talk = Script(initiator=True)
        talk.engine.engine.receive(
            Datagram(talk.peer.init(), Endpoint("192.0.2.2", 500), Endpoint("8.8.8.8", 500)), 0.0
        )
        talk.engine.drain()
        assert talk.pair.states(RIGHT) == []

    def test_a_crowd(self) -> None:
        """Limits of half-open SAs: by address, and COOKIE before any Diffie-Hellman."""
        talk = Script(initiator=True)
        config = replace(
            talk.engine.config, remote_networks=(ipaddress.ip_network("198.51.0.0/16"),)
        )
        talk.engine.configure(config)
        cookies = 0
        for number in range(300):
            script = Script(initiator=True, label=f"crowd {number}")
            source = Endpoint(f"198.51.{number % 60}.1", 500)
            talk.engine.engine.receive(
                Datagram(script.peer.init(), Endpoint("192.0.2.2", 500), source), 0.0
            )
            talk.engine.drain()
            for answer in talk.heard():
                cookies += NotifyType.COOKIE in notified(script.peer.take_init(answer))
        limits = talk.engine.engine.host.limits
        assert cookies >= 300 - limits.cookie_threshold
        assert len(talk.pair.states(RIGHT)) <= limits.cookie_threshold


class TestTime:
    def test_liveness(self) -> None:
        """2.4: silence is checked; then the peer is dead, with address and port in the message."""
        pair = Pair(calm())
        pair.start()
        pair.flow()
        pair.sleep(30.0)
        assert pair.of(LEFT, IkeSaDown) == []
        pair.sleep(60.0, deaf=True)
        for name, address in ((LEFT, "192.0.2.2"), (RIGHT, "198.51.100.1")):
            down = pair.of(name, IkeSaDown)[0]
            assert down.reason is Reason.PEER_DEAD
            assert down.established
            assert address in down.message
            assert "500" in down.message
        assert pair.left.dataplane.inbound == pair.right.dataplane.inbound == {}
        pair.sleep(60.0)
        assert pair.states(LEFT) == pair.states(RIGHT) == ["established"]
        assert pair.children(LEFT) == pair.children(RIGHT) == [("net0", "installed")]

    def test_traffic_is_a_sign_of_life(self) -> None:
        pair = Pair(calm())
        pair.start()
        pair.flow()
        for _ in range(8):
            pair.sleep(4.0)
            pair.left.ping("net0")
            pair.right.ping("net0")
            pair.flow()
        window = pair.left.engine.snapshot()
        assert len(window) == 1
        assert pair.stats["ESP"] == 16

    def test_reauthentication(self) -> None:
        """RFC 4478: the responder limits the authentication; the initiator starts anew before."""
        talk = Script(initiator=False)
        talk.establish(NotifyPayload(NotifyType.AUTH_LIFETIME, (120).to_bytes(4)))
        assert talk.pair.states(LEFT) == ["established"]
        heard: list[bytes] = []
        for _ in range(120):
            talk.pair.run_until(talk.pair.now + 1.0)
            requests = talk.heard()
            talk.answer_all(requests)
            heard += requests
        assert any(Header.parse(data).exchange == INIT for data in heard)

    def test_keepalives(self) -> None:
        """RFC 3948: who is behind the NAT keeps the mapping alive."""
        pair = Pair(calm(nat=True, dpd=0.0))
        pair.start()
        pair.flow()
        pair.sleep(130.0, deaf=False)
        pair.right.ping("net0")
        pair.flow()
        assert pair.stats["ESP"] == 1

    def test_nat_rebinds(self) -> None:
        """2.23: what verifies and comes from a new port moves the SAs there."""
        pair = Pair(calm(nat=True))
        pair.start()
        pair.flow()
        assert pair.nat is not None
        pair.nat.rebind()
        pair.left.ping("net0")
        pair.flow()
        assert pair.of(RIGHT, PeerMoved)
        pair.right.ping("net0")
        pair.flow()
        assert pair.stats["ESP"] == 2
        pair.sleep(30.0)
        assert pair.of(LEFT, IkeSaDown) == pair.of(RIGHT, IkeSaDown) == []

    def test_restart_without_goodbye(self) -> None:
        """The one that still has the SA learns it from INITIAL_CONTACT or liveness."""
        pair = Pair(calm())
        pair.start()
        pair.flow()
        pair.right.boot()
        pair.right.configure(pair.right.config)
        pair.sleep(90.0)
        assert pair.states(LEFT) == pair.states(RIGHT) == ["established"]
        assert pair.children(LEFT) == pair.children(RIGHT) == [("net0", "installed")]

    def test_esp_that_nobody_knows(self) -> None:
        """2.21.4 and 1.5: INVALID_SPI inside the IKE SA; the sender rekeys or deletes."""
        pair = Pair(calm())
        pair.start()
        pair.flow()
        pair.sleep(20.0)
        spi = 0xDEADBEEF
        source = Endpoint(pair.left.address, 500)
        for _ in range(50):
            pair.tell(RIGHT, lambda engine, now: engine.unknown_spi(UnknownSpi(spi, source), now))
        assert len(pair.flying) <= 1  # a flood of ESP is no flood of IKE
        pair.flow()
        assert pair.states(LEFT) == pair.states(RIGHT) == ["established"]

    def test_shutdown(self) -> None:
        """Everything is deleted at both ends, and nothing comes back at the one that ends."""
        pair = Pair(calm(children=2))
        pair.start()
        pair.flow()
        pair.tell(LEFT, lambda engine, now: engine.shutdown(now))
        pair.flow()
        assert pair.left.dataplane.all_outbound == []
        assert pair.right.dataplane.all_outbound == []
        pair.sleep(60.0)
        assert pair.states(LEFT) == []
        assert pair.left.dataplane.inbound == pair.right.dataplane.inbound == {}

    def test_peer_removed_from_the_configuration(self) -> None:
        pair = Pair(calm())
        pair.start()
        pair.flow()
        pair.tell(LEFT, lambda engine, now: engine.configure([], now))
        pair.flow()
        pair.sleep(20.0)
        assert pair.left.dataplane.inbound == pair.right.dataplane.inbound == {}
        assert pair.states(LEFT) == pair.states(RIGHT) == []

    def test_same_configuration_touches_nothing(self) -> None:
        pair = Pair(calm())
        pair.start()
        pair.flow()
        before = len(pair.events[LEFT])
        for _ in range(3):
            pair.left.configure(pair.left.config)
            pair.right.configure(pair.right.config)
        assert pair.flying == []
        assert len(pair.events[LEFT]) == before
        assert len(pair.of(LEFT, IkeSaUp)) == 1


def test_encode_of_nothing() -> None:
    """The scripted peer relies on it: an empty chain is a chain."""
    assert encode_payloads([]) == (0, b"")
