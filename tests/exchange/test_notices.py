"""Limits, and what else a peer may tell us or refuse, against a scripted peer."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from ipsec_ike.config import Start
from ipsec_ike.events import AuthFailed, ChildSaDown, IkeSaDown, Reason, Warned
from ipsec_ike.inputs import Acquire, Datagram, Endpoint, UnknownSpi
from ipsec_ike.numbers import ExchangeType, NotifyType
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.header import Header
from ipsec_ike.wire.payloads import NotifyPayload
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import notified
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm
from ipsec_lab.simnet_script import Script, errors

INIT = ExchangeType.IKE_SA_INIT
CREATE = ExchangeType.CREATE_CHILD_SA
INFO = ExchangeType.INFORMATIONAL

_HERE = Endpoint("192.0.2.2", 500)
_THERE = Endpoint("198.51.100.1", 500)


def established() -> Script:
    """The script is the initiator and has one child."""
    talk = Script(initiator=True)
    assert errors(talk.establish()) == []
    talk.heard()
    return talk


class TestStrangers:
    def test_who_pretends_to_be_a_peer_does_not_lock_it_out(self) -> None:
        """RFC 7296 2.6: the second half of what an address may have is for those who return a
        COOKIE, and what one address may have in total is bounded."""
        talk = Script(initiator=True)
        limit = talk.engine.engine.host.limits.half_open_per_address
        for number in range(4 * limit):
            forger = Script(initiator=True, label=f"forger {number}")
            talk.ask(forger.peer.init())
        assert len(talk.pair.states(RIGHT)) == limit // 2
        (answer,) = talk.ask(talk.peer.init())
        (cookie,) = talk.peer.take_init(answer)
        assert isinstance(cookie, NotifyPayload)
        assert cookie.notify == NotifyType.COOKIE
        (answer,) = talk.ask(talk.peer.init(before=[cookie]))
        assert notified(talk.peer.take_init(answer)).count(NotifyType.COOKIE) == 0
        assert len(talk.pair.states(RIGHT)) == limit // 2 + 1

    def test_one_address_has_a_limit_even_with_cookies(self) -> None:
        talk = Script(initiator=True)
        limits = talk.engine.engine.host.limits
        for number in range(2 * limits.half_open_per_address):
            other = Script(initiator=True, label=f"crowd {number}")
            answers = talk.ask(other.peer.init())
            first = other.peer.take_init(answers[0])[0] if answers else None
            if isinstance(first, NotifyPayload) and first.notify == NotifyType.COOKIE:
                talk.ask(other.peer.init(before=[first]))
        assert len(talk.pair.states(RIGHT)) == limits.half_open_per_address

    def test_a_total_limit(self) -> None:
        talk = Script(initiator=True, remote_networks=(ipaddress.ip_network("198.51.0.0/16"),))
        engine = talk.engine.engine
        object.__setattr__(engine.host.limits, "half_open_max", 6)
        for number in range(9):
            other = Script(initiator=True, label=f"many {number}")
            source = Endpoint(f"198.51.{number}.1", 500)
            engine.receive(Datagram(other.peer.init(), _HERE, source), 0.0)
        assert len(engine.snapshot()) == 6
        assert engine.counters["dropped_half_open_max"] == 3

    def test_esp_to_unknown_spis_is_answered_seldom(self) -> None:
        """Anybody can send such packets with the address of a peer."""
        talk = established()
        for spi in range(1000, 3000):
            talk.pair.tell(
                RIGHT, lambda e, now, spi=spi: e.unknown_spi(UnknownSpi(spi, _THERE), now)
            )
        assert len(talk.heard()) == 1
        assert talk.engine.engine.counters["answers_suppressed"] > 1000


class TestNotices:
    def test_invalid_spi_again_and_again_is_one_rekey(self) -> None:
        """1.5: what the peer sends us must not fill our queue while we wait for its answers."""
        talk = established()
        talk.pair.sleep(7.0, deaf=True)
        for _ in range(5):
            talk.request(INFO, *[NotifyPayload(NotifyType.INVALID_SPI, b"\0\0\x10\1")] * 50)
        (sa,) = talk.engine.engine.host.sas.values()
        assert len(sa.pending_requests()) <= 2

    def test_the_initiator_does_not_believe_us(self) -> None:
        """2.21.2: N(AUTHENTICATION_FAILED) in an exchange of its own ends the IKE SA."""
        talk = established()
        notify = NotifyPayload(NotifyType.AUTHENTICATION_FAILED)
        _, answer = talk.request(INFO, notify)
        assert answer == []
        (down,) = talk.pair.of(RIGHT, IkeSaDown)
        assert down.reason is Reason.AUTH_FAILED
        (failed,) = talk.pair.of(RIGHT, AuthFailed)
        assert failed.ours
        assert talk.engine.dataplane.all_outbound == []

    def test_complaints_do_not_flood_the_log(self) -> None:
        talk = established()
        for _ in range(20):
            talk.request(INFO, *[NotifyPayload(NotifyType.INVALID_SELECTORS)] * 50)
        assert 1 <= len(talk.pair.of(RIGHT, Warned)) <= 10

    def test_authentication_every_moment(self) -> None:
        """RFC 4478: a lifetime of nothing does not make us begin anew without end."""
        talk = Script(initiator=False)
        talk.establish(NotifyPayload(NotifyType.AUTH_LIFETIME, bytes(4)))
        talk.pair.sleep(5.0, deaf=True)
        assert len(talk.engine.engine.snapshot()) == 1
        talk.pair.sleep(6.0, deaf=True)
        assert len(talk.engine.engine.snapshot()) == 2

    def test_authentication_anew_takes_a_child_that_is_there(self) -> None:
        """Where children come by traffic the new IKE SA begins with one that is in use."""
        talk = Script(initiator=False, profile=calm(on_traffic=True))
        talk.pair.tell(LEFT, lambda engine, now: engine.acquire(Acquire(1), now))
        talk.establish(NotifyPayload(NotifyType.AUTH_LIFETIME, (20).to_bytes(4)))
        talk.heard()
        (sa,) = talk.engine.engine.host.sas.values()
        assert [child.config.start for child in sa.children] == [Start.ON_TRAFFIC]
        sa.heard_at = 1000.0  # no liveness checks
        talk.pair.run_until(19.0)
        (attempt,) = [s for s in talk.engine.engine.host.sas.values() if s is not sa]
        assert attempt.handshake is not None
        assert attempt.handshake.child == sa.children[0].config

    def test_no_ike_sa_alone_with_who_does_not_know_that(self) -> None:
        """RFC 6023 3: without CHILDLESS_IKEV2_SUPPORTED the child must not be left out."""
        talk = Script(initiator=False, children=())
        talk.pair.tell(LEFT, lambda engine, now: engine.initiate("right", now))
        (request,) = talk.heard()
        talk.peer.take_init(request)
        assert talk.ask(talk.peer.init()) == []
        (down,) = talk.pair.of(LEFT, IkeSaDown)
        assert "6023" in down.message

    def test_a_minimal_peer_that_cannot_rekey(self) -> None:
        """1.3 and 4: NO_ADDITIONAL_SAS to a rekey: a new IKE SA is made while the old one lasts."""
        for what in ("child", "ike"):
            talk = Script(initiator=False)
            talk.establish()
            talk.heard()
            (spi,) = talk.engine.dataplane.inbound
            if what == "child":
                talk.pair.tell(LEFT, lambda engine, now, spi=spi: engine.rekey_child(spi, now))
            else:
                talk.pair.tell(LEFT, lambda engine, now: engine.rekey_ike("right", now))
            (request,) = talk.heard()
            refusal = [NotifyPayload(NotifyType.NO_ADDITIONAL_SAS)]
            number = Header.parse(request).message_id
            (attempt,) = talk.ask(talk.peer.protected(CREATE, number, refusal, response=True))
            assert Header.parse(attempt).exchange == INIT
            assert talk.pair.children(LEFT) == [("net0", "installed")]
            assert talk.pair.of(LEFT, ChildSaDown) == []


class TestLimits:
    def test_rekeys_at_the_limit_of_children(self) -> None:
        """Who has as many children as it may have can still rekey them, and no more than that."""
        talk = established()
        object.__setattr__(talk.engine.engine.host.limits, "children", 1)
        new = talk.peer.child(b"\0\0\x10\2", "10.1.0.0/24", "10.2.0.0/24", nonce=bytes(32))
        _, answer = talk.request(CREATE, *new)
        assert errors(answer) == [NotifyType.NO_ADDITIONAL_SAS]
        old = NotifyPayload(NotifyType.REKEY_SA, b"", 3, b"\0\0\x10\1")
        _, answer = talk.request(CREATE, old, *new)
        assert errors(answer) == []
        again = talk.peer.child(b"\0\0\x10\3", "10.1.0.0/24", "10.2.0.0/24", nonce=bytes(32))
        old = NotifyPayload(NotifyType.REKEY_SA, b"", 3, b"\0\0\x10\2")
        _, answer = talk.request(CREATE, old, *again)
        assert errors(answer) == [NotifyType.NO_ADDITIONAL_SAS]


class TestNarrowing:
    def test_the_packets_own_selectors_decide_between_children(self) -> None:
        """2.9: of an offer that no child takes whole, the answer has the first selectors, for which
        a packet waits."""
        pair = Pair(calm(children=2, on_traffic=True))
        (config, _) = pair.left.config.children
        wide = replace(
            config,
            local_ts=(TrafficSelector.network("10.1.0.0/16"),),
            remote_ts=(TrafficSelector.network("10.2.0.0/16"),),
        )
        pair.change(LEFT, children=(wide,))
        pair.start()
        local = TrafficSelector.network("10.1.1.7/32", protocol=6, start_port=1024, end_port=1024)
        remote = TrafficSelector.network("10.2.1.9/32", protocol=6, start_port=80, end_port=80)
        packet = Acquire(wide.reqid, local, remote)
        pair.tell(LEFT, lambda engine, now: engine.acquire(packet, now))
        pair.flow()
        assert pair.children(RIGHT) == [("net1", "installed")]
        (sa,) = pair.left.engine.snapshot()
        (child,) = sa.children
        assert any(ts.contains(remote) for ts in child.remote_ts)
