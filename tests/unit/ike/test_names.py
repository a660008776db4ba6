"""Registries, proposals as text, errors and secrets."""

from __future__ import annotations

import pickle

import pytest

from ipsec_ike import errors
from ipsec_ike.numbers import Encr, NotifyType, PayloadType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.secret import Secret


class TestOpenEnumerations:
    def test_known(self) -> None:
        assert PayloadType(33) is PayloadType.SA

    def test_unknown_survives_as_itself(self) -> None:
        kind = PayloadType(200)
        assert (kind, kind.name, int(kind)) == (200, "UNKNOWN_200", 200)
        assert {200: 1}[kind] == 1

    def test_unknown_is_not_remembered(self) -> None:
        before = len(PayloadType.__members__)
        for number in range(1000, 2000):
            PayloadType(number)
        assert len(PayloadType.__members__) == before
        assert len(PayloadType._value2member_map_) == before

    def test_no_number(self) -> None:
        with pytest.raises(ValueError, match="nonsense"):
            PayloadType("nonsense")

    def test_errors_and_status(self) -> None:
        assert NotifyType.TEMPORARY_FAILURE.is_error
        assert not NotifyType.COOKIE.is_error
        assert NotifyType(8191).is_error
        assert not NotifyType(40000).is_error


class TestProposal:
    proposal = Proposal(
        3, (Transform(1, 20, 256), Transform(1, 28), Transform(5, 1), Transform(99, 7))
    )

    def test_text(self) -> None:
        assert str(self.proposal) == "ESP:AES_GCM_16_256/CHACHA20_POLY1305/ESN/type99:7"
        assert str(Transform(1, 999)) == "UNKNOWN_999"

    def test_by_type(self) -> None:
        assert self.proposal.of_type(1) == (Transform(1, Encr.AES_GCM_16, 256), Transform(1, 28))
        assert self.proposal.one(1) == Transform(1, 20, 256)
        assert self.proposal.one(4) is None


def test_every_error_of_a_peer_knows_its_notification() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.IkeError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        error = kind("what", data=b"x")
        assert error.notify.is_error
        assert error.data == b"x"


class TestSecret:
    secret = Secret(b"swordfish")

    def test_never_shows(self) -> None:
        for text in (repr(self.secret), str(self.secret), f"{self.secret}", repr([self.secret])):
            assert "swordfish" not in text
            assert "73776f7264" not in text

    def test_reveal(self) -> None:
        assert self.secret.reveal() == b"swordfish"
        assert len(self.secret) == 9
        assert self.secret
        assert not Secret(b"")

    def test_comparison(self) -> None:
        assert self.secret == Secret(b"swordfish")
        assert hash(self.secret) == hash(Secret(b"swordfish"))
        assert self.secret != Secret(b"Swordfish")
        assert self.secret != b"swordfish"

    def test_pickle(self) -> None:
        assert pickle.loads(pickle.dumps(self.secret)) == self.secret
