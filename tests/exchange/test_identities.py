"""Several identities of one responder: IDi and IDr choose, and each has its own secret and
children (RFC 7296 2.15, 3.5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipsec_ike.config import IdentityConfig
from ipsec_ike.events import AuthFailed, ChildSaDown, IkeSaUp, Reason
from ipsec_ike.identity import Identity
from ipsec_ike.secret import Secret
from ipsec_lab.simnet_check import twins
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm

PSK = {"net0": Secret(b"the secret of the first"), "net1": Secret(b"the secret of the second")}


def name(text: str) -> Identity:
    return Identity.fqdn(f"{text}.example")


def by_initiator(child: str) -> IdentityConfig:
    """The initiators have names of their own, to us who have one."""
    return IdentityConfig(
        name=child,
        local_id=name("right"),
        remote_id=name(f"left-{child}"),
        psk=PSK[child],
        children=(child,),
    )


def by_responder(child: str) -> IdentityConfig:
    """The same initiator asks for one of our names."""
    return IdentityConfig(
        name=child,
        local_id=name(f"right-{child}"),
        remote_id=name("left"),
        psk=PSK[child],
        children=(child,),
    )


KINDS = {"IDi": by_initiator, "IDr": by_responder}


def meet(kind: str, child: str, *, secret: Secret | None = None) -> Pair:
    """Left has one of the identities and wants both children."""
    pair = Pair(calm(children=2))
    identities = tuple(KINDS[kind](each) for each in PSK)
    pair.change(RIGHT, identities=identities)
    (mine,) = (identity for identity in identities if identity.name == child)
    pair.change_identity(
        LEFT, local_id=mine.remote_id, remote_id=mine.local_id, psk=secret or mine.psk
    )
    pair.start()
    pair.flow()
    return pair


@pytest.mark.parametrize("child", ["net0", "net1"])
@pytest.mark.parametrize("kind", ["IDi", "IDr"])
def test_each_has_its_own_children(kind: str, child: str) -> None:
    pair = meet(kind, child)
    for end in (LEFT, RIGHT):
        assert pair.states(end) == ["established"]
        assert pair.children(end) == [(child, "installed")]
    assert list(twins(pair.left.dataplane, pair.right.dataplane)) == []
    (up,) = pair.of(RIGHT, IkeSaUp)
    expected = KINDS[kind](child)
    assert (up.local_id, up.remote_id) == (str(expected.local_id), str(expected.remote_id))
    # The other one is refused, also when it is asked for later.
    assert {down.child for down in pair.of(LEFT, ChildSaDown)} == set(PSK) - {child}
    assert {down.reason for down in pair.of(LEFT, ChildSaDown)} == {Reason.TS_UNACCEPTABLE}
    pair.sleep(30.0)
    assert pair.children(LEFT) == pair.children(RIGHT) == [(child, "installed")]


@pytest.mark.parametrize("child", ["net0", "net1"])
@pytest.mark.parametrize("kind", ["IDi", "IDr"])
def test_the_secret_of_another_one_is_none(kind: str, child: str) -> None:
    (other,) = (secret for each, secret in PSK.items() if each != child)
    pair = meet(kind, child, secret=other)
    assert pair.states(RIGHT) == []
    assert pair.of(RIGHT, IkeSaUp) == pair.of(LEFT, IkeSaUp) == []
    assert pair.of(RIGHT, AuthFailed)


def test_without_idr_the_first_that_knows_the_initiator() -> None:
    """An initiator that takes any responder does not say whom it wants."""
    pair = Pair(calm(children=2))
    pair.change(RIGHT, identities=tuple(by_responder(each) for each in PSK))
    pair.change_identity(LEFT, remote_id=None, psk=PSK["net0"])
    pair.start()
    pair.flow()
    assert pair.children(RIGHT) == [("net0", "installed")]


def test_both_at_the_same_time() -> None:
    """Two initiators with two identities at one peer of ours: neither is the other's successor."""
    pair = meet("IDi", "net0")
    before = dict(pair.right.dataplane.inbound)
    # Another initiator comes from the same address.
    pair.left.boot()
    second = by_initiator("net1")
    pair.change_identity(LEFT, local_id=second.remote_id, psk=second.psk)
    children = pair.left.config.children
    pair.change(LEFT, children=tuple(replace(c, reqid=c.reqid + 10) for c in children))
    pair.left.configure(pair.left.config)
    pair.flow()
    assert pair.states(RIGHT) == ["established", "established"]
    assert pair.children(RIGHT) == [("net0", "installed"), ("net1", "installed")]
    assert before.items() <= pair.right.dataplane.inbound.items()
