"""Transport mode and AH (RFC 7296 1.3.1, 3.3): asked for, agreed to, refused, kept over a rekey."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipsec_ike.config import Mode
from ipsec_ike.events import ChildSaDown, ChildSaRekeyed, ChildSaUp, Reason
from ipsec_ike.numbers import Encr, Esn, ExchangeType, Integ, NotifyType, Protocol, TransformType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.secret import Secret
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import notified
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm

AH = Proposal(
    Protocol.AH,
    (
        Transform(TransformType.INTEG, Integ.HMAC_SHA2_256_128),
        Transform(TransformType.ESN, Esn.NO_ESN),
    ),
)


def connected(*modes: Mode, **changes: object) -> Pair:
    pair = Pair(calm())
    for name, mode in zip((LEFT, RIGHT), modes, strict=True):
        pair.change_children(name, mode=mode, **changes)
    pair.start()
    return pair


def test_both_in_transport_mode() -> None:
    pair = connected(Mode.TRANSPORT, Mode.TRANSPORT)
    pair.passes(LEFT, ExchangeType.IKE_SA_INIT)
    pair.passes(RIGHT, ExchangeType.IKE_SA_INIT)
    # HDR, SK { IDi, AUTH, N(USE_TRANSPORT_MODE), SAi2, TSi, TSr } -->
    request = pair.passes(LEFT, ExchangeType.IKE_AUTH)
    assert NotifyType.USE_TRANSPORT_MODE in notified(pair.read(request))
    # <-- HDR, SK { IDr, AUTH, SAr2, TSi, TSr, N(USE_TRANSPORT_MODE) }
    response = pair.passes(RIGHT, ExchangeType.IKE_AUTH)
    assert NotifyType.USE_TRANSPORT_MODE in notified(pair.read(response))
    for node in (pair.left, pair.right):
        (inbound,) = node.dataplane.inbound.values()
        assert inbound.mode is Mode.TRANSPORT
    # A rekey stays in transport mode.
    (spi,) = pair.left.dataplane.inbound
    pair.tell(LEFT, lambda engine, now: engine.rekey_child(spi, now))
    request = pair.passes(LEFT, ExchangeType.CREATE_CHILD_SA)
    assert NotifyType.USE_TRANSPORT_MODE in notified(pair.read(request))
    pair.flow()
    assert len(pair.of(LEFT, ChildSaRekeyed)) == 1
    assert {i.mode for i in pair.left.dataplane.inbound.values()} == {Mode.TRANSPORT}


def test_tunnel_mode_is_not_given_where_transport_mode_is_wanted() -> None:
    pair = connected(Mode.TUNNEL, Mode.TRANSPORT)
    pair.flow()
    (down,) = pair.of(LEFT, ChildSaDown)
    assert down.reason is Reason.NO_PROPOSAL_CHOSEN
    assert pair.right.dataplane.inbound == {}


def test_an_initiator_in_transport_mode_takes_nothing_else() -> None:
    """The responder may answer with tunnel mode; the initiator deletes that (RFC 7296 1.3.1)."""
    pair = connected(Mode.TRANSPORT, Mode.TUNNEL)
    pair.flow()
    assert pair.of(LEFT, ChildSaUp) == []
    (down, *_) = pair.of(LEFT, ChildSaDown)
    assert "transport" in down.message
    # <-> INFORMATIONAL { D }; packets on their way may still come for some seconds.
    pair.sleep(1)
    assert pair.children(RIGHT) == [("net0", "deleted")]


@pytest.mark.parametrize("mode", list(Mode))
def test_ah(mode: Mode) -> None:
    pair = connected(mode, mode, proposals=(AH,))
    pair.flow()
    (left,), (right,) = (list(n.dataplane.inbound.values()) for n in (pair.left, pair.right))
    for spec in (left, right):
        assert (spec.id.protocol, spec.mode) == (Protocol.AH, mode)
        assert spec.encryption == Transform(TransformType.ENCR, Encr.NULL)
        assert spec.encryption_key == Secret(b"")
        assert len(spec.integrity_key) == 32
        assert spec.integrity == AH.transforms[0]
    assert left.integrity_key != right.integrity_key
    (up,) = pair.of(LEFT, ChildSaUp)
    assert up.suite.startswith("HMAC_SHA2_256_128")


def test_esp_and_ah_do_not_meet() -> None:
    pair = Pair(calm())
    pair.change_children(RIGHT, proposals=(replace(AH),))
    pair.start()
    pair.flow()
    (down,) = pair.of(LEFT, ChildSaDown)
    assert down.reason is Reason.NO_PROPOSAL_CHOSEN
