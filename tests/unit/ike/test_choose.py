"""What two lists of proposals have in common (RFC 7296 2.7, 3.3)."""

from __future__ import annotations

import pytest

from ipsec_ike.numbers import Encr, Esn, Group, Integ, Prf, Protocol, TransformType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.sa import choose

GCM_128 = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
GCM_256 = Transform(TransformType.ENCR, Encr.AES_GCM_16, 256)
CBC_128 = Transform(TransformType.ENCR, Encr.AES_CBC, 128)
SHA_256 = Transform(TransformType.INTEG, Integ.HMAC_SHA2_256_128)
NO_INTEG = Transform(TransformType.INTEG, Integ.NONE)
X25519 = Transform(TransformType.KE, Group.CURVE25519)
P256 = Transform(TransformType.KE, Group.ECP_256)
NO_KE = Transform(TransformType.KE, Group.NONE)
ESN = Transform(TransformType.ESN, Esn.ESN)
NO_ESN = Transform(TransformType.ESN, Esn.NO_ESN)
PRF = Transform(TransformType.PRF, Prf.HMAC_SHA2_256)


def esp(*transforms: Transform, number: int = 1, spi: bytes = b"theirspi"[:4]) -> Proposal:
    return Proposal(Protocol.ESP, transforms, spi, number)


def test_our_order_counts_and_their_number_and_spi() -> None:
    ours = (esp(GCM_256, NO_ESN), esp(GCM_128, NO_ESN))
    theirs = (esp(GCM_128, NO_ESN, number=1), esp(GCM_256, NO_ESN, number=2, spi=b"2222"))
    assert choose.choose(ours, theirs) == theirs[1]


def test_the_first_of_theirs_that_fits() -> None:
    theirs = (
        esp(CBC_128, SHA_256, NO_ESN, number=1),
        esp(GCM_128, NO_ESN, number=2),
        esp(GCM_128, GCM_256, NO_ESN, number=3),
    )
    chosen = choose.choose((esp(GCM_128, NO_ESN),), theirs)
    assert chosen == theirs[1]


def test_key_lengths_are_part_of_a_cipher() -> None:
    assert choose.choose((esp(GCM_128, NO_ESN),), (esp(GCM_256, NO_ESN),)) is None
    bare = Transform(TransformType.ENCR, Encr.AES_GCM_16)
    assert choose.choose((esp(GCM_128, NO_ESN),), (esp(bare, NO_ESN),)) is None


def test_duplicates_in_an_offer_do_no_harm() -> None:
    chosen = choose.choose((esp(GCM_128, NO_ESN),), (esp(GCM_128, GCM_128, NO_ESN, NO_ESN),))
    assert chosen is not None
    assert chosen.transforms == (GCM_128, NO_ESN)


@pytest.mark.parametrize(
    ("ours", "theirs", "common"),
    [
        ((GCM_128, ESN, NO_ESN), (GCM_128, NO_ESN), (GCM_128, NO_ESN)),
        ((GCM_128, ESN, NO_ESN), (GCM_128, NO_ESN, ESN), (GCM_128, ESN)),
        ((GCM_128, ESN), (GCM_128, NO_ESN), None),
        ((GCM_128, NO_ESN), (GCM_128,), (GCM_128,)),
        ((GCM_128, ESN), (GCM_128,), None),
    ],
)
def test_esn(
    ours: tuple[Transform, ...],
    theirs: tuple[Transform, ...],
    common: tuple[Transform, ...] | None,
) -> None:
    chosen = choose.choose((esp(*ours),), (esp(*theirs),))
    assert (None if chosen is None else chosen.transforms) == common


@pytest.mark.parametrize(
    ("ours", "theirs", "group"),
    [
        ((), (), 0),
        ((), (NO_KE,), 0),
        ((NO_KE,), (), 0),
        ((X25519, NO_KE), (), 0),
        ((X25519, NO_KE), (NO_KE, X25519), Group.CURVE25519),
        ((X25519,), (), None),
        ((), (X25519,), None),
        ((X25519, P256), (P256, X25519), Group.CURVE25519),
    ],
)
def test_groups_of_a_child(
    ours: tuple[Transform, ...], theirs: tuple[Transform, ...], group: int | None
) -> None:
    """No KE transform and NONE mean the same; PFS is not talked away."""
    chosen = choose.choose((esp(GCM_128, *ours, NO_ESN),), (esp(GCM_128, *theirs, NO_ESN),))
    if group is None:
        assert chosen is None
        return
    assert chosen is not None
    ke = chosen.one(TransformType.KE)
    assert (0 if ke is None else ke.id) == group
    assert (ke is None) is not any(t.type == TransformType.KE for t in theirs)


def test_a_key_exchange_that_is_here_already_saves_a_round_trip() -> None:
    ours, theirs = (esp(GCM_128, X25519, P256, NO_ESN),), (esp(GCM_128, X25519, P256, NO_ESN),)
    chosen = choose.choose(ours, theirs, ke=Group.ECP_256)
    assert chosen is not None
    assert chosen.one(TransformType.KE) == P256
    chosen = choose.choose(ours, theirs, ke=Group.MODP_2048)
    assert chosen is not None
    assert chosen.one(TransformType.KE) == X25519


@pytest.mark.parametrize(
    ("ours", "theirs", "fits"),
    [
        ((GCM_128,), (GCM_128, NO_INTEG), True),
        ((GCM_128, NO_INTEG), (GCM_128,), True),
        ((GCM_128,), (GCM_128, SHA_256), False),
        ((CBC_128, SHA_256), (CBC_128,), False),
        ((CBC_128, SHA_256), (CBC_128, NO_INTEG), False),
        ((CBC_128, SHA_256), (CBC_128, NO_INTEG, SHA_256), True),
    ],
)
def test_integrity(ours: tuple[Transform, ...], theirs: tuple[Transform, ...], fits: bool) -> None:
    """RFC 5282 8: a combined-mode cipher excludes it, every other one needs it."""
    assert (choose.choose((esp(*ours),), (esp(*theirs),)) is not None) is fits


def test_a_second_cipher_of_the_same_proposal() -> None:
    """The first leads nowhere: theirs has an integrity algorithm that GCM cannot have."""
    ours = (esp(GCM_128, CBC_128, SHA_256, NO_ESN),)
    chosen = choose.choose(ours, (esp(GCM_128, CBC_128, SHA_256, NO_ESN),))
    assert chosen is not None
    assert chosen.transforms == (CBC_128, SHA_256, NO_ESN)


def test_unknown_transform_types() -> None:
    strange = Transform(241, 7)
    assert choose.choose((esp(GCM_128),), (esp(GCM_128, strange),)) is None
    assert choose.choose((esp(GCM_128),), (esp(GCM_128, strange, Transform(241, 0)),)) is not None


class TestConfirm:
    """What an answer may choose."""

    ours = choose.with_spi((esp(GCM_128, GCM_256, X25519, NO_ESN), esp(CBC_128, SHA_256)), b"ours")

    def test_one_of_each_type_that_was_offered(self) -> None:
        answer = esp(GCM_256, X25519, NO_ESN, number=1)
        assert choose.confirm(self.ours, (answer,)) == answer

    @pytest.mark.parametrize(
        "answer",
        [
            (),
            (esp(GCM_128, X25519, NO_ESN), esp(GCM_128, X25519, NO_ESN)),
            (esp(GCM_128, X25519, NO_ESN, number=2),),
            (esp(GCM_128, X25519, NO_ESN, number=3),),
            (esp(GCM_128, GCM_256, X25519, NO_ESN),),
            (esp(GCM_128, NO_ESN),),
            (esp(GCM_128, P256, NO_ESN),),
            (esp(X25519, NO_ESN),),
            (Proposal(Protocol.AH, (GCM_128, X25519, NO_ESN), b"abcd", 1),),
        ],
    )
    def test_everything_else_is_refused(self, answer: tuple[Proposal, ...]) -> None:
        assert choose.confirm(self.ours, answer) is None


def test_differences_name_each_attribute_of_the_closest_pair() -> None:
    ours = (Proposal(Protocol.IKE, (GCM_256, PRF, X25519)),)
    theirs = (
        Proposal(Protocol.IKE, (CBC_128, SHA_256, PRF, P256)),
        Proposal(Protocol.IKE, (GCM_128, PRF, P256)),
    )
    assert choose.differences(ours, theirs) == (
        "ENCR: ours AES_GCM_16_256, theirs AES_GCM_16_128",
        "KE: ours CURVE25519, theirs ECP_256",
    )
    assert choose.differences(ours, (esp(GCM_128),)) == ("protocol: ours IKE, theirs ESP",)
    assert choose.differences(ours, ()) == ("no proposal at all",)
