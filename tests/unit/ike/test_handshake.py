"""IKE_SA_INIT and IKE_AUTH with a child, back to back."""

from __future__ import annotations

from ipsec_ike.actions import AddSa, SendDatagram
from ipsec_ike.events import ChildSaUp, IkeSaUp
from ipsec_ike.identifiers import Direction


def test_handshake_with_child(pair):
    pair.up()
    for side in (pair.left, pair.right):
        (up,) = side.events(IkeSaUp)
        assert up.suite == "AES_GCM_16_128/HMAC_SHA2_256/CURVE25519"
        (child,) = side.events(ChildSaUp)
        assert child.suite == "AES_GCM_16_128/ESN"
        assert len(side.sad) == 2
    pair.assert_mirrored()
    assert sum(isinstance(a, SendDatagram) for a in pair.left.log) == 2


def test_responder_installs_inbound_before_it_answers(pair):
    pair.up()
    kinds = [
        a.spec.id.direction if isinstance(a, AddSa) else "send"
        for a in pair.right.log
        if isinstance(a, AddSa | SendDatagram)
    ]
    assert kinds == ["send", Direction.IN, Direction.OUT, "send"]
