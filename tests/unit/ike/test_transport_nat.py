"""Transport mode with a NAT between (RFC 7296 2.23.1): who knows which addresses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipsec_ike.actions import SendDatagram
from ipsec_ike.config import Mode
from ipsec_ike.events import ChildSaRekeyed, SelectorsMismatch
from ipsec_ike.identifiers import Direction
from ipsec_ike.selectors import TrafficSelector

LEFT, RIGHT, NAT = "192.0.2.1", "192.0.2.2", "203.0.113.9"


def behind_nat(pair, kit, side: str, *, mode: Mode = Mode.TRANSPORT) -> None:
    """``side`` seems to be NAT to the other, and both want transport mode with what they see."""
    inside = {"left": LEFT, "right": RIGHT}[side]

    def tap(message: SendDatagram) -> SendDatagram:
        if message.local.address == inside:
            return replace(message, local=message.local._replace(address=NAT))
        if message.remote.address == NAT:
            return replace(message, remote=message.remote._replace(address=inside))
        return message

    def config(name: str, own: str, other: str):
        ends = {"local_ts": own, "remote_ts": other}
        selectors = {k: (TrafficSelector.network(f"{v}/32"),) for k, v in ends.items()}
        found = kit.peer(name, children=(kit.child(name, mode=mode, **selectors),))
        path = found.paths[0]._replace(remote=other)
        return replace(found, paths=(path,), remote_networks=())

    pair.tap = tap
    if side == "left":
        ours, theirs = config("left", LEFT, RIGHT), config("right", RIGHT, NAT)
    else:
        ours, theirs = config("left", LEFT, NAT), config("right", RIGHT, LEFT)
    pair.up(ours, theirs)


def selected(side) -> set[tuple[str, str]]:
    """The addresses of the selectors of its SAs, local first."""
    found = set()
    for add in side.sad.values():
        ends = [".".join(map(str, ts[0].start)) for ts in (add.spec.local_ts, add.spec.remote_ts)]
        found.add(tuple(ends))
    return found


@pytest.mark.parametrize(
    ("side", "left", "right"),
    [("left", (LEFT, RIGHT), (RIGHT, NAT)), ("right", (LEFT, NAT), (RIGHT, LEFT))],
)
def test_each_end_has_what_it_sees(pair, kit, side: str, left, right) -> None:
    behind_nat(pair, kit, side)
    assert len(pair.left.sad) == len(pair.right.sad) == 2
    ends = {name: [a.spec for a in pair.side(name).sad.values()] for name in ("left", "right")}
    assert {spec.mode for specs in ends.values() for spec in specs} == {Mode.TRANSPORT}
    assert (selected(pair.left), selected(pair.right)) == ({left}, {right})
    # Either side may ask for the next one.
    for name in ("left", "right"):
        *_, spi = (spi for direction, spi in pair.side(name).sad if direction is Direction.IN)
        pair.side(name).engine.rekey_child(spi, pair.now)
        pair.pass_time(5)
        assert pair.side(name).events(ChildSaRekeyed)
        assert (selected(pair.left), selected(pair.right)) == ({left}, {right})


def test_tunnel_mode_has_what_was_offered(pair, kit) -> None:
    """The addresses inside of a tunnel are nobody's but the hosts'."""
    behind_nat(pair, kit, "left", mode=Mode.TUNNEL)
    assert not pair.right.sad
    assert pair.right.events(SelectorsMismatch)
