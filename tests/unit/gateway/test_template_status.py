"""What a template's status says: who has what of it, and why somebody has nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipsec_gateway.dynamic import Generated
from ipsec_gateway.facts import Facts, Problem
from ipsec_gateway.intent import intent
from ipsec_gateway.lastgood import InForce, Key, LastGood
from ipsec_gateway.logs import describe
from ipsec_gateway.status import StatusBoard
from ipsec_ike import events
from ipsec_ike.events import Reason
from ipsec_ike.inputs import Endpoint
from ipsec_ike.selectors import TrafficSelector

PEER = Key("IPsecPeer", "default", "hq")
POOL = Key("IPsecPolicy", "default", "pool")
HERE = Endpoint("192.0.2.1", 4500)
END = Endpoint("198.51.100.7", 4500)
ASKS = {
    "method": "preSharedKey",
    "secretRef": {"name": "psk"},
    "generatePolicy": "port-strict",
    "policyTemplateGroup": "warriors",
}
LOCAL = (TrafficSelector.network("10.1.0.0/16"),)


class Rig:
    """A board with a peer and a template, whatever else is changed."""

    def __init__(self, clock, make) -> None:
        self.make = make
        self.board = StatusBoard(clock)
        self.found = InForce()

    def apply(self, *, peer: dict[str, Any] | None = None, **template: Any) -> None:
        spec = {"address": None, "localSubnets": None, "remoteSubnets": None, "passive": True}
        who = self.make.peer(**{**spec, "authentication": ASKS, **(peer or {})})
        selectors = [{"src": "10.1.0.0/16", "dst": "10.99.0.0/24"}]
        pool = {"template": True, "group": "warriors", "selectors": selectors, **template}
        documents = [self.make.secret(), who, self.make.policy("pool", None, **pool)]
        self.found = LastGood().take(self.make.files(a=documents))
        self.board.configured(self.found, intent(self.found.tunnels, Facts()))

    def status(self, key: Key = POOL) -> dict[str, Any]:
        self.board.changes()
        return self.board.all()[key]

    def condition(self, kind: str, key: Key = POOL) -> tuple[str, str, str]:
        (found,) = [c for c in self.status(key)["conditions"] if c["type"] == kind]
        return found["status"], found["reason"], found.get("message", "")

    def ike_up(self) -> None:
        up = self.make.ike_up(local=HERE, remote=END, initiator=False, nat_remote=True)
        self.board.event(up)

    def child_up(self, number: int) -> Generated:
        remote = (TrafficSelector.network(f"10.99.0.{number}/32"),)
        name = f"pool#{number}"
        self.board.event(
            events.ChildSaUp(
                peer="default/hq",
                child=name,
                reqid=number,
                spi_in=number,
                spi_out=number,
                suite="AES",
                local_ts=LOCAL,
                remote_ts=remote,
                encap=True,
                template="pool",
            )
        )
        return Generated("default/hq", "pool", name, number, LOCAL, remote, f"w{number}", END)

    def child_down(self, number: int) -> None:
        self.board.event(
            events.ChildSaDown(
                peer="default/hq",
                child=f"pool#{number}",
                reqid=number,
                spi_in=number,
                reason=Reason.PEER_DELETED,
                message="gone",
                template="pool",
            )
        )


@pytest.fixture
def rig(clock, make) -> Rig:
    return Rig(clock, make)


def test_who_has_what(rig: Rig) -> None:
    rig.apply()
    assert rig.status()["state"] == "Template"
    assert rig.condition("Ready")[0] == "True"
    assert rig.condition("Established", PEER)[1] == "Waiting"
    rig.ike_up()
    rig.board.generated([rig.child_up(1), rig.child_up(2)])
    status = rig.status()
    assert (status["dynamic"], status["selectorsInstalled"]) == (True, 2)
    assert status["generated"][0] == {
        "peer": "hq",
        "remoteID": "w1",
        "remoteAddress": "198.51.100.7:4500",
        "local": ["10.1.0.0/16"],
        "remote": ["10.99.0.1/32"],
    }
    assert rig.status(PEER)["childSAs"] == {"installed": 2, "expected": 2}
    assert rig.condition("Established", PEER)[0] == "True"
    rig.child_down(1)
    rig.child_down(2)
    rig.board.generated([])
    assert rig.status(PEER)["childSAs"] == {"installed": 0, "expected": 0}
    status = rig.status()
    assert (status["dynamic"], status["selectorsInstalled"], status["generated"]) == (False, 0, [])


def test_in_a_cluster_the_peer_says_what_it_has_and_the_template_is_the_operators(
    rig: Rig,
) -> None:
    rig.apply()
    tunnels = InForce(tunnels=rig.found.tunnels)
    rig.board.configured(tunnels, intent(tunnels.tunnels, Facts()))
    rig.board.changes()
    assert set(rig.board.all()) == {PEER}
    assert "generated" not in rig.status(PEER)
    use = {"template": "pool", "generation": 0}
    assert rig.status(PEER)["templates"] == [use | {"pairs": 0}]
    rig.ike_up()
    rig.board.generated([rig.child_up(1)])
    assert set(rig.board.changes()) == {PEER}
    assert rig.status(PEER)["generated"] == [
        {
            "template": "pool",
            "remoteID": "w1",
            "remoteAddress": "198.51.100.7:4500",
            "local": ["10.1.0.0/16"],
            "remote": ["10.99.0.1/32"],
            "pairs": 1,
        }
    ]
    assert rig.status(PEER)["templates"] == [use | {"pairs": 1}]
    rig.board.generated([])
    assert "generated" not in rig.status(PEER)


def test_a_peer_says_which_generation_of_a_template_it_has_and_how_much_of_it(rig: Rig) -> None:
    nets = (("10.1.0.0/16", "10.99.0.0/24"), ("10.2.0.0/16", "10.98.0.0/24"))
    rig.apply(selectors=[{"src": src, "dst": dst} for src, dst in nets])
    (tunnel,) = rig.found.tunnels
    source = tunnel.templates[0].source.model_copy(update={"generation": 3})
    templates = tuple(t.model_copy(update={"source": source}) for t in tunnel.templates)
    found = InForce(tunnels=(tunnel.model_copy(update={"templates": templates}),))
    rig.board.configured(found, intent(found.tunnels, Facts()))
    rig.ike_up()
    made = [rig.child_up(number) for number in range(100)]
    other = replace(made[0], template="pool-1", child="pool-1#0")
    rig.board.generated([*made, other])
    status = rig.status(PEER)
    assert status["templates"] == [{"template": "pool", "generation": 3, "pairs": 101}]
    assert len(status["generated"]) == 64
    rig.apply(peer={"authentication": {"method": "preSharedKey", "secretRef": {"name": "psk"}}})
    assert "templates" not in rig.status(PEER)


def test_only_what_changes_is_written(rig: Rig) -> None:
    rig.apply()
    one = rig.child_up(1)
    rig.board.generated([one])
    rig.board.changes()
    rig.board.generated([one])
    assert rig.board.changes() == {}


def test_a_peer_that_is_gone_leaves_no_child_behind(rig: Rig) -> None:
    rig.apply()
    rig.ike_up()
    rig.child_up(1)
    rig.board.event(
        events.IkeSaDown(
            peer="default/hq",
            reason=Reason.PEER_DEAD,
            message="silent",
            remote=END,
            established=True,
        )
    )
    assert rig.status(PEER)["childSAs"] == {"installed": 0, "expected": 0}


def test_why_a_peer_has_nothing(rig: Rig) -> None:
    rig.apply()
    rig.ike_up()
    refused = events.SelectorsRefused(
        peer="default/hq",
        template="pool",
        remote_id="w2",
        wanted=(LOCAL, LOCAL),
        message="peer a/b (w1 at 192.0.2.9:500) has this traffic already",
    )
    rig.board.event(refused)
    status, reason, message = rig.condition("Established", PEER)
    assert (status, reason) == ("False", "TSUnacceptable")
    assert message.startswith("w2 does not get 10.1.0.0/16 to 10.1.0.0/16 of template pool: ")
    assert message.endswith("has this traffic already")
    assert "w1 at 192.0.2.9:500" in describe(refused)
    rig.child_up(1)
    assert rig.condition("Established", PEER)[0] == "True"


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        ({"group": "others"}, "Template", "Unused"),
        ({"disabled": True}, "Disabled", "Disabled"),
        ({"ipsecProtocols": ["esp", "ah"]}, "Rejected", "NotAccepted"),
    ],
)
def test_a_template_that_does_nothing(rig: Rig, change, state: str, reason: str) -> None:
    rig.apply(**change)
    assert rig.status()["state"] == state
    assert rig.condition("Programmed")[:2] == ("False", reason)


def test_in_a_cluster_the_peer_says_what_is_wrong_with_its_template(rig: Rig) -> None:
    rig.apply()
    alone = InForce(tunnels=rig.found.tunnels)
    (template,) = alone.tunnels[0].templates
    bad = Problem(template.source, "UnsupportedByDataplane", "no such cipher here")
    # Every peer that uses it brings it.
    rig.board.configured(alone, replace(intent(alone.tunnels, Facts()), problems=(bad, bad)))
    said = rig.condition("Programmed", PEER)
    assert said == ("False", "UnsupportedByDataplane", "template pool: no such cipher here")
