"""Nonces have 16 to 256 octets (RFC 7296 2.10, 3.9); all of them go into the keys."""

from __future__ import annotations

import pytest

from ipsec_ike.crypto.prf import prf_for
from ipsec_ike.crypto.transforms import is_supported
from ipsec_ike.numbers import ExchangeType, NotifyType, Prf, Protocol, TransformType
from ipsec_ike.proposal import Transform
from ipsec_ike.v2.negotiate import NONCE_OCTETS
from ipsec_ike.wire.header import Header
from ipsec_ike.wire.payloads import NoncePayload
from ipsec_lab.simnet_profile import LEFT, RIGHT
from ipsec_lab.simnet_script import Script, errors

CREATE = ExchangeType.CREATE_CHILD_SA

GOOD = (16, 33, 256)
BAD = (0, 15, 257)


def another(talk: Script, nonce: bytes) -> list[int]:
    """Errors in the answer to a request for a second SA of the child."""
    proposal, *selectors = talk.peer.child(b"\0\0\x10\2", "10.1.0.0/24", "10.2.0.0/24")
    _, answer = talk.request(CREATE, proposal, NoncePayload(nonce), *selectors)
    return errors(answer)


@pytest.mark.parametrize("octets", GOOD)
@pytest.mark.parametrize("initiator", [True, False])
def test_of_the_ike_sa(octets: int, initiator: bool) -> None:
    talk = Script(initiator=initiator)
    talk.peer.nonce = bytes(octets)
    talk.establish()
    assert talk.pair.states(talk.name) == ["established"]
    assert talk.pair.children(talk.name) == [("net0", "installed")]


@pytest.mark.parametrize("octets", BAD)
def test_wrong_in_a_first_request(octets: int) -> None:
    """Nothing is remembered of it."""
    talk = Script(initiator=True)
    talk.peer.nonce = bytes(octets)
    talk.ask(talk.peer.init())
    assert talk.engine.engine.host.sas == {}
    assert sum(talk.engine.engine.counters.values())


@pytest.mark.parametrize("octets", BAD)
def test_wrong_in_a_first_answer(octets: int) -> None:
    """Anybody could have sent it: the attempt goes on."""
    talk = Script(initiator=False)
    (request,) = talk.heard()
    talk.peer.take_init(request)
    right, talk.peer.nonce = talk.peer.nonce, bytes(octets)
    assert talk.ask(talk.peer.init()) == []
    assert talk.pair.states(LEFT) == ["connecting"]
    talk.peer.nonce = right
    (auth,) = talk.ask(talk.peer.init())
    assert Header.parse(auth).exchange == ExchangeType.IKE_AUTH


@pytest.mark.parametrize("octets", GOOD)
def test_of_a_child(octets: int) -> None:
    talk = Script(initiator=True)
    talk.establish()
    assert another(talk, bytes(octets)) == []
    assert len(talk.engine.dataplane.inbound) == 2


@pytest.mark.parametrize("octets", BAD)
def test_wrong_for_a_child(octets: int) -> None:
    """2.21.3: who is authenticated and talks nonsense is told so, and that is the end."""
    talk = Script(initiator=True)
    talk.establish()
    assert another(talk, bytes(octets)) == [NotifyType.INVALID_SYNTAX]
    assert talk.pair.states(RIGHT) == []


@pytest.mark.parametrize("prf", Prf)
def test_ours_are_at_least_half_of_the_key_of_any_prf(prf: Prf) -> None:
    """2.10: the initiator does not know which one will be chosen."""
    if not is_supported(Protocol.IKE, Transform(TransformType.PRF, prf)):
        pytest.skip("not one of ours")
    assert 16 <= NONCE_OCTETS <= 256
    assert prf_for(prf).key_length <= 2 * NONCE_OCTETS
