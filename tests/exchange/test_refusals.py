"""Refusals: no common ground, wrong secrets, wrong identities. Both ends say why, as far as they
may.

Left is the initiator; arrows to the right are its messages.
"""

from __future__ import annotations

import pytest

from ipsec_ike.events import (
    AuthFailed,
    ChildSaDown,
    IkeSaDown,
    ProposalMismatch,
    Reason,
    SelectorsMismatch,
)
from ipsec_ike.identity import Identity
from ipsec_ike.numbers import Encr, ExchangeType, Group, NotifyType, Prf
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.payloads import NotifyPayload
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import notified
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm

INIT = ExchangeType.IKE_SA_INIT
AUTH = ExchangeType.IKE_AUTH
CREATE = ExchangeType.CREATE_CHILD_SA
INFO = ExchangeType.INFORMATIONAL


def test_no_common_selectors() -> None:
    """The IKE SA stands; the child does not, and both ends say why."""
    pair = Pair(calm())
    other = (TrafficSelector.network("172.16.0.0/12"),)
    pair.change_children(RIGHT, remote_ts=other)
    pair.start()
    pair.passes(LEFT, INIT)
    pair.passes(RIGHT, INIT)
    pair.passes(LEFT, AUTH)
    answer = pair.passes(RIGHT, AUTH)
    assert NotifyType.TS_UNACCEPTABLE in notified(pair.read(answer))
    assert pair.states(LEFT) == pair.states(RIGHT) == ["established"]
    assert pair.children(LEFT) == pair.children(RIGHT) == []
    (mismatch,) = pair.of(RIGHT, SelectorsMismatch)
    assert mismatch.ours[1] == other
    assert mismatch.theirs[1] == (TrafficSelector.network("10.1.0.0/24"),)
    (down,) = pair.of(LEFT, ChildSaDown)
    assert down.reason is Reason.TS_UNACCEPTABLE


def test_no_common_proposal_for_the_ike_sa() -> None:
    pair = Pair(calm())
    ours = Proposal(
        1,
        (
            Transform(1, Encr.AES_GCM_16, 256),
            Transform(2, Prf.HMAC_SHA2_384),
            Transform(4, Group.CURVE25519),
        ),
    )
    pair.change(RIGHT, ike_proposals=(ours,))
    pair.start()
    pair.passes(LEFT, INIT)
    assert pair.states(RIGHT) == []
    # <-- HDR, N(NO_PROPOSAL_CHOSEN)
    answer = pair.passes(RIGHT, INIT)
    assert notified(pair.read(answer)) == [NotifyType.NO_PROPOSAL_CHOSEN]
    (mismatch,) = pair.of(RIGHT, ProposalMismatch)
    assert mismatch.stage == "IKE"
    assert len(mismatch.differences) == 2
    assert "AES_GCM_16_256" in mismatch.differences[0]
    assert "AES_GCM_16_128" in mismatch.differences[0]
    pair.sleep(3.0, deaf=True)  # anybody could have said that
    (down,) = pair.of(LEFT, IkeSaDown)
    assert down.reason is Reason.NO_PROPOSAL_CHOSEN
    assert not down.established
    (mismatch,) = pair.of(LEFT, ProposalMismatch)
    assert mismatch.ours


def test_no_common_proposal_for_the_child() -> None:
    pair = Pair(calm())
    chacha = Proposal(3, (Transform(1, Encr.CHACHA20_POLY1305), Transform(5, 0)))
    pair.change_children(RIGHT, proposals=(chacha,))
    pair.start()
    pair.flow()
    assert pair.states(LEFT) == pair.states(RIGHT) == ["established"]
    assert pair.children(LEFT) == pair.children(RIGHT) == []
    (mismatch,) = pair.of(RIGHT, ProposalMismatch)
    assert mismatch.stage == "net0"
    (down,) = pair.of(LEFT, ChildSaDown)
    assert down.reason is Reason.NO_PROPOSAL_CHOSEN


@pytest.mark.parametrize("wrong", ["secret", "identity"])
def test_who_is_not_let_in_learns_nothing(wrong: str) -> None:
    """A wrong secret and an unknown identity get the same answer, and nothing is installed."""
    pair = Pair(calm())
    if wrong == "secret":
        pair.change_identity(LEFT, psk=Secret(b"another secret"))
    else:
        pair.change_identity(LEFT, local_id=Identity.fqdn("stranger.example"))
    pair.start()
    pair.passes(LEFT, INIT)
    pair.passes(RIGHT, INIT)
    pair.passes(LEFT, AUTH)
    assert pair.states(RIGHT) == []
    # <-- HDR, SK { N(AUTHENTICATION_FAILED) }
    answer = pair.take(RIGHT, AUTH)
    payloads = pair.read(answer)
    assert payloads == [NotifyPayload(NotifyType.AUTHENTICATION_FAILED)]
    pair.deliver(answer)
    (failed,) = pair.of(RIGHT, AuthFailed)
    assert not failed.ours
    assert failed.remote_id == ("left.example" if wrong == "secret" else "stranger.example")
    (failed,) = pair.of(LEFT, AuthFailed)
    assert failed.ours
    (down,) = pair.of(LEFT, IkeSaDown)
    assert down.reason is Reason.AUTH_FAILED
    for node in (pair.left, pair.right):
        assert node.dataplane.inbound == {}
        assert node.dataplane.all_outbound == []


def test_a_responder_that_cannot_prove_itself() -> None:
    """The initiator has sent a right AUTH; what it gets back is wrong: it leaves at once."""
    pair = Pair(calm())
    pair.change_identity(LEFT, remote_id=Identity.fqdn("somebody-else.example"))
    pair.start()
    pair.passes(LEFT, INIT)
    pair.passes(RIGHT, INIT)
    pair.passes(LEFT, AUTH)
    if pair.states(RIGHT):
        pair.passes(RIGHT, AUTH)
    assert pair.left.dataplane.inbound == {}
    assert pair.of(LEFT, AuthFailed) or pair.waiting(RIGHT)
    pair.flow()
    assert pair.left.dataplane.all_outbound == []
    assert pair.right.dataplane.inbound == {}
