"""Nothing of IKE_SA_INIT is authenticated: a made-up answer must not end what the true one begins.

RFC 7296 2.21.1: who is refused goes on trying for a while. The engine is the initiator; the forger
sees its request and is faster than the peer.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ipsec_ike.events import IkeSaDown, ProposalMismatch, Reason
from ipsec_ike.inputs import Endpoint
from ipsec_ike.numbers import ExchangeType, NotifyType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.wire.message import FLAG_RESPONSE, encode_clear
from ipsec_ike.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload
from ipsec_lab.simnet_network import Packet
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import IKE_PROPOSAL
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm
from ipsec_lab.simnet_script import Script

INIT = ExchangeType.IKE_SA_INIT
_ANY = (Endpoint("192.0.2.1", 500), Endpoint("192.0.2.2", 500))

_REST = (KePayload(31, bytes(range(1, 33))), NoncePayload(bytes(32)))
_WEAK = Proposal(1, (Transform(1, 12, 128), *IKE_PROPOSAL.transforms[1:]))
FORGERIES: dict[str, tuple[Sequence[Payload], bytes]] = {
    "no proposal": ([NotifyPayload(NotifyType.NO_PROPOSAL_CHOSEN)], bytes(8)),
    "no authentication": ([NotifyPayload(NotifyType.AUTHENTICATION_FAILED)], bytes(8)),
    "another group": ([NotifyPayload(NotifyType.INVALID_KE_PAYLOAD, b"\0\x0e")], bytes(8)),
    "short group": ([NotifyPayload(NotifyType.INVALID_KE_PAYLOAD, b"")], bytes(8)),
    "unknown error": ([NotifyPayload(8191)], bytes(8)),
    "not offered": ([SaPayload((_WEAK,)), *_REST], b"somebody"),
    "low order": (
        [SaPayload((IKE_PROPOSAL,)), KePayload(31, bytes(32)), _REST[1]],
        b"somebody",
    ),
    "no SPI": ([SaPayload((IKE_PROPOSAL,)), *_REST], bytes(8)),
    "wrong group": ([SaPayload((IKE_PROPOSAL,)), KePayload(19, bytes(64)), _REST[1]], b"somebody"),
}


def forge(pair: Pair, request: Packet, payloads: Sequence[Payload], spi_r: bytes) -> None:
    """An answer arrives before the peer's."""
    data = encode_clear(request.data[:8], spi_r, INIT, FLAG_RESPONSE, 0, payloads)
    like = Packet(request.destination, request.source, b"x")
    pair.inject(LEFT, data, like)


@pytest.mark.parametrize("kind", FORGERIES)
def test_the_true_answer_counts(kind: str) -> None:
    pair = Pair(calm())
    pair.start()
    request = pair.passes(LEFT, INIT)
    forge(pair, request, *FORGERIES[kind])
    assert pair.of(LEFT, IkeSaDown) == []
    pair.flow()
    assert pair.states(LEFT) == pair.states(RIGHT) == ["established"]
    pair.sleep(20.0)
    assert pair.of(LEFT, IkeSaDown) == []


def test_the_true_answer_may_need_to_be_asked_for_again() -> None:
    pair = Pair(calm())
    pair.start()
    forge(pair, pair.drops(LEFT, INIT), *FORGERIES["no proposal"])
    pair.sleep(1.0)
    assert pair.states(LEFT) == ["established"]


def test_a_refusal_that_nothing_contradicts() -> None:
    """After a moment it is believed, and said with its cause; repetitions change nothing."""
    talk = Script(initiator=False)
    (request,) = talk.heard()
    talk.peer.take_init(request)
    talk.peer.spi_r = bytes(8)
    for _ in range(3):
        notify = NotifyPayload(NotifyType.NO_PROPOSAL_CHOSEN)
        talk.ask(talk.peer.clear(INIT, 0, [notify], response=True))
        talk.pair.sleep(0.9, deaf=True)
    assert talk.pair.of(LEFT, IkeSaDown) == []
    talk.pair.sleep(0.5, deaf=True)
    (down,) = talk.pair.of(LEFT, IkeSaDown)
    assert down.reason is Reason.NO_PROPOSAL_CHOSEN
    assert "192.0.2.2 port 500 answers NO_PROPOSAL_CHOSEN" in down.message
    assert len(talk.pair.of(LEFT, ProposalMismatch)) == 1


def test_a_public_value_of_low_order_is_named_as_the_cause() -> None:
    talk = Script(initiator=False)
    (request,) = talk.heard()
    talk.peer.take_init(request)
    payloads, _ = FORGERIES["low order"]
    talk.ask(talk.peer.clear(INIT, 0, payloads, response=True))
    talk.pair.sleep(3.1, deaf=True)
    (down,) = talk.pair.of(LEFT, IkeSaDown)
    assert down.reason is Reason.INVALID_MESSAGE
    assert "low order" in down.message


def test_a_cookie_for_each_group() -> None:
    """2.6.1: a responder whose cookies cover the KE payload asks for another one after
    INVALID_KE_PAYLOAD. That is answered at once, a second one for the same group is not."""
    talk = Script(initiator=False, ike_proposals=(_two_groups(),))
    (request,) = talk.heard()
    talk.peer.take_init(request)
    talk.peer.spi_r = bytes(8)
    (request,) = talk.ask(_say(talk, NotifyType.COOKIE, b"one"))
    (request,) = talk.ask(_say(talk, NotifyType.INVALID_KE_PAYLOAD, b"\0\x13"))
    assert talk.pair.read(Packet(*_ANY, request))[0] == NotifyPayload(NotifyType.COOKIE, b"one")
    (request,) = talk.ask(_say(talk, NotifyType.COOKIE, b"two"))
    assert talk.pair.read(Packet(*_ANY, request))[0] == NotifyPayload(NotifyType.COOKIE, b"two")
    assert talk.ask(_say(talk, NotifyType.COOKIE, b"three")) == []


def _say(talk: Script, kind: int, data: bytes) -> bytes:
    return talk.peer.clear(INIT, 0, [NotifyPayload(kind, data)], response=True)


def _two_groups() -> Proposal:
    return Proposal(1, (*IKE_PROPOSAL.transforms, Transform(4, 19)))
