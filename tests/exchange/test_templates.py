"""Children that a peer asks for within templates: who gets what, and who does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipsec_ike.config import Mode, Taken, TemplateConfig
from ipsec_ike.events import (
    ChildSaDown,
    ChildSaRekeyed,
    ChildSaUp,
    Reason,
    SelectorsMismatch,
    SelectorsRefused,
)
from ipsec_ike.identity import Identity
from ipsec_ike.numbers import ExchangeType, NotifyType
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.header import Header
from ipsec_ike.wire.payloads import NotifyPayload
from ipsec_lab.simnet_check import twins
from ipsec_lab.simnet_network import seeded
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import ScriptedPeer, notified
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm
from ipsec_lab.simnet_script import Script

AUTH = ExchangeType.IKE_AUTH
NETWORK = TrafficSelector.network
REQIDS = (1000, 2000)


def template(pair: Pair, **changes: Any) -> TemplateConfig:
    child = pair.right.config.children[0]
    plain = TemplateConfig(
        name="t",
        local_ts=(NETWORK("10.2.0.0/16"),),
        remote_ts=(NETWORK("10.1.0.0/16"),),
        proposals=child.proposals,
        reqids=REQIDS,
        lifetime=child.lifetime,
    )
    return replace(plain, **changes)


def meet(*, children: int = 1, any_port: bool = False, **changes: Any) -> Pair:
    """Left asks for ``children``; right has a template alone, with these changes."""
    pair = Pair(calm(children=children))
    pair.change(RIGHT, templates=(template(pair, **changes),), children=())
    pair.change_identity(RIGHT, templates=("t",), any_port=any_port)
    return pair


def asks(pair: Pair, local: str, remote: str, **ports: int) -> None:
    """What left wants for its first child."""
    pair.change_children(
        LEFT, local_ts=(NETWORK(local, **ports),), remote_ts=(NETWORK(remote, **ports),)
    )


def selectors(event: ChildSaUp) -> tuple[list[str], list[str]]:
    return [str(t) for t in event.local_ts], [str(t) for t in event.remote_ts]


def test_what_is_asked_for_is_a_child_of_its_own() -> None:
    pair = meet(children=2)
    pair.start()
    pair.flow()
    ups = pair.of(RIGHT, ChildSaUp)
    assert [selectors(up) for up in ups] == [
        (["10.2.0.0/24"], ["10.1.0.0/24"]),
        (["10.2.1.0/24"], ["10.1.1.0/24"]),
    ]
    assert [up.template for up in ups] == ["t", "t"]
    assert all(REQIDS[0] <= up.reqid <= REQIDS[1] for up in ups)
    assert len({up.reqid for up in ups}) == len({up.child for up in ups}) == 2
    assert list(twins(pair.left.dataplane, pair.right.dataplane)) == []


def test_it_is_rekeyed_by_either_end_and_goes_with_its_sa() -> None:
    pair = meet()
    pair.start()
    pair.flow()
    (up,) = pair.of(RIGHT, ChildSaUp)
    for name in (LEFT, RIGHT):
        (spi,) = (s for s in pair.nodes[name].dataplane.inbound)
        pair.tell(name, lambda engine, now, spi=spi: engine.rekey_child(spi, now))
        pair.sleep(20.0)
        assert pair.children(RIGHT) == [(up.child, "installed")]
        assert list(twins(pair.left.dataplane, pair.right.dataplane)) == []
    pair.tell(LEFT, lambda engine, now: engine.rekey_ike("right", now))
    pair.sleep(20.0)
    assert [event.reqid for event in pair.of(RIGHT, ChildSaRekeyed)] == [up.reqid] * 2
    assert pair.of(RIGHT, ChildSaDown) == []
    pair.tell(LEFT, lambda engine, now: engine.terminate("right", now))
    pair.sleep(20.0)
    (down,) = pair.of(RIGHT, ChildSaDown)
    assert (down.child, down.template, down.reason) == (up.child, "t", Reason.PEER_DELETED)


def test_an_end_that_is_not_there_any_more_is_not_asked_for_again() -> None:
    """Who answers does not ask for what the other end has deleted."""
    pair = meet()
    pair.start()
    pair.flow()
    pair.change(LEFT, children=())
    pair.left.configure(pair.left.config)
    pair.sleep(60.0)
    assert pair.children(RIGHT) == []
    assert pair.states(RIGHT) == ["established"]


@pytest.mark.parametrize(
    ("local", "remote", "ports", "agreed"),
    [
        ("10.1.7.0/24", "10.2.0.0/16", {}, (["10.2.0.0/16"], ["10.1.7.0/24"])),
        # Narrowed to the template.
        ("10.0.0.0/8", "10.2.3.0/24", {}, (["10.2.3.0/24"], ["10.1.0.0/16"])),
        (
            "10.1.7.0/24",
            "10.2.0.0/16",
            {"protocol": 17, "start_port": 53, "end_port": 53},
            (["10.2.0.0/16[17/53]"], ["10.1.7.0/24[17/53]"]),
        ),
    ],
)
def test_narrowing(
    local: str, remote: str, ports: dict[str, int], agreed: tuple[list[str], list[str]]
) -> None:
    pair = meet()
    asks(pair, local, remote, **ports)
    pair.start()
    pair.flow()
    (up,) = pair.of(RIGHT, ChildSaUp)
    assert selectors(up) == agreed
    (mirrored,) = pair.of(LEFT, ChildSaUp)
    assert selectors(mirrored) == agreed[::-1]


def test_all_ports_of_the_template() -> None:
    """port-override: agreed is what was asked for, carried are all ports that the template has."""
    pair = meet(any_port=True)
    asks(pair, "10.1.7.0/24", "10.2.0.0/16", protocol=17, start_port=53, end_port=53)
    pair.start()
    pair.flow()
    (up,) = pair.of(RIGHT, ChildSaUp)
    assert selectors(up) == (["10.2.0.0/16[17]"], ["10.1.7.0/24[17]"])
    assert selectors(pair.of(LEFT, ChildSaUp)[0])[0] == ["10.1.7.0/24[17/53]"]
    (spi,) = pair.right.dataplane.inbound
    assert [str(t) for t in pair.right.dataplane.inbound[spi].local_ts] == ["10.2.0.0/16[17]"]
    # A rekey of ours asks for what was agreed on.
    pair.tell(RIGHT, lambda engine, now: engine.rekey_child(spi, now))
    pair.sleep(20.0)
    (spi,) = pair.right.dataplane.inbound
    assert [str(t) for t in pair.right.dataplane.inbound[spi].local_ts] == ["10.2.0.0/16[17]"]
    (out,) = pair.left.dataplane.all_outbound
    assert [str(t) for t in out.local_ts] == ["10.1.7.0/24[17/53]"]


def test_ports_that_a_template_names_stay() -> None:
    some = NETWORK("10.2.0.0/16", protocol=17, start_port=0, end_port=100)
    pair = meet(any_port=True, local_ts=(some,))
    asks(pair, "10.1.7.0/24", "10.2.0.0/16", protocol=17, start_port=53, end_port=53)
    pair.start()
    pair.flow()
    (up,) = pair.of(RIGHT, ChildSaUp)
    assert selectors(up) == (["10.2.0.0/16[17/0-100]"], ["10.1.7.0/24[17]"])


REFUSED = [
    ({}, ("10.3.0.0/24", "10.2.0.0/24"), None),
    ({"remote_ts": (NETWORK("0.0.0.0/0"),)}, ("0.0.0.0/0", "10.2.0.0/24"), "allowDefaultRoute"),
    (
        {"taken": (Taken(NETWORK("10.2.0.0/16"), NETWORK("10.1.0.0/20"), "policy a/b", True),)},
        ("10.1.1.0/24", "10.2.0.0/24"),
        "the traffic of policy a/b",
    ),
    (
        {"taken": (Taken(NETWORK("10.2.0.0/24"), NETWORK("10.1.1.0/24"), "policy a/b", False),)},
        ("10.1.1.0/24", "10.2.0.0/24"),
        "the traffic of policy a/b",
    ),
]


@pytest.mark.parametrize(("changes", "asked", "why"), REFUSED)
def test_refusals(changes: dict[str, Any], asked: tuple[str, str], why: str | None) -> None:
    pair = meet(**changes)
    asks(pair, *asked)
    pair.start()
    pair.flow()
    assert pair.of(RIGHT, ChildSaUp) == []
    (down,) = pair.of(LEFT, ChildSaDown)
    assert down.reason is Reason.TS_UNACCEPTABLE
    refused = pair.of(RIGHT, SelectorsRefused)
    if why is None:
        assert refused == []
        (mismatch,) = pair.of(RIGHT, SelectorsMismatch)
        assert mismatch.ours == ((NETWORK("10.2.0.0/16"),), (NETWORK("10.1.0.0/16"),))
    else:
        assert why in refused[0].message
        assert (refused[0].remote_id, refused[0].template) == ("left.example", "t")


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        (
            {"remote_ts": (NETWORK("0.0.0.0/0"),), "default_route": True},
            ("0.0.0.0/0", "10.2.0.0/24"),
        ),
        # It comes first, but leaves something over.
        (
            {"taken": (Taken(NETWORK("10.2.0.0/16"), NETWORK("10.1.1.0/24"), "x", True),)},
            ("10.1.0.0/20", "10.2.0.0/24"),
        ),
        # It comes later and is not the very same.
        (
            {"taken": (Taken(NETWORK("10.2.0.0/16"), NETWORK("10.1.0.0/16"), "x", False),)},
            ("10.1.1.0/24", "10.2.0.0/24"),
        ),
    ],
)
def test_what_is_not_refused(changes: dict[str, Any], asked: tuple[str, str]) -> None:
    pair = meet(**changes)
    asks(pair, *asked)
    pair.start()
    pair.flow()
    assert len(pair.of(RIGHT, ChildSaUp)) == 1


def test_a_configured_child_is_preferred() -> None:
    pair = Pair(calm())
    pair.change(RIGHT, templates=(template(pair),))
    pair.change_identity(RIGHT, templates=("t",))
    pair.start()
    pair.flow()
    assert [(up.child, up.template) for up in pair.of(RIGHT, ChildSaUp)] == [("net0", "")]


def test_an_identity_without_templates_gets_nothing() -> None:
    pair = meet()
    pair.change_identity(RIGHT, templates=())
    pair.start()
    pair.flow()
    assert pair.of(RIGHT, ChildSaUp) == []


def test_transport_mode_is_between_the_two_hosts() -> None:
    everything = (NETWORK("0.0.0.0/0"),)
    pair = meet(mode=Mode.TRANSPORT, local_ts=everything, remote_ts=everything)
    pair.change_children(LEFT, mode=Mode.TRANSPORT)
    pair.start()
    pair.flow()
    assert pair.of(RIGHT, ChildSaUp) == []
    here, there = (pair.profile.address(name) for name in (RIGHT, LEFT))
    asks(pair, f"{there}/32", f"{here}/32")
    pair.left.configure(pair.left.config)
    pair.sleep(10.0)
    (up,) = pair.of(RIGHT, ChildSaUp)
    assert selectors(up) == ([f"{here}/32"], [f"{there}/32"])


# -- configuration that changes ----------------------------------------------------------------


def test_a_template_that_goes_takes_its_children_along() -> None:
    pair = meet()
    pair.start()
    pair.flow()
    pair.change(RIGHT, templates=())
    pair.right.configure(pair.right.config)
    pair.flow()
    (down,) = pair.of(RIGHT, ChildSaDown)
    assert down.reason is Reason.CONFIGURATION
    assert "template t" in down.message
    assert pair.states(RIGHT) == ["established"]


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({"local_ts": (NETWORK("10.0.0.0/8"),)}, True),
        ({"taken": (Taken(NETWORK("10.2.9.0/24"), NETWORK("10.1.9.0/24"), "x", True),)}, True),
        ({"remote_ts": (NETWORK("10.1.1.0/24"),)}, False),
        ({"taken": (Taken(NETWORK("10.2.0.0/24"), NETWORK("10.1.0.0/24"), "x", True),)}, False),
    ],
)
def test_a_template_that_changes(changes: dict[str, Any], stays: bool) -> None:
    pair = meet()
    pair.start()
    pair.flow()
    before = set(pair.right.dataplane.inbound)
    (plain,) = pair.right.config.templates
    pair.change(RIGHT, templates=(replace(plain, **changes),))
    pair.right.configure(pair.right.config)
    pair.sleep(10.0)
    assert (pair.of(RIGHT, ChildSaDown) == []) is stays
    assert (set(pair.right.dataplane.inbound) == before) is stays


# -- several peers -----------------------------------------------------------------------------


class Crowd:
    """Road warriors with one configuration, told apart by their identities."""

    def __init__(self, **changes: Any) -> None:
        self.talk = Script(initiator=True, identity={"remote_id": None, "templates": ("t",)})
        pair = self.talk.pair
        pair.change(
            RIGHT, templates=(template(pair, proposals=_gcm(pair), **changes),), children=()
        )
        pair.right.configure(pair.right.config)
        self.count = 0

    def connect(self, name: str, network: str) -> list[int]:
        """A new IKE SA of ``name``, whose child is to be for ``network``; what it is told."""
        self.count += 1
        peer = ScriptedPeer(
            Identity.fqdn(name),
            self.talk.peer.psk,
            seeded(f"{name} {self.count}").randbytes,
            initiator=True,
        )
        (answer,) = (data for data in self.talk.ask(peer.init()) if data[:8] == peer.spi_i)
        peer.take_init(answer)
        child = peer.child((0x2000 + self.count).to_bytes(4), network, "10.2.0.0/24")
        heard = self.talk.ask(peer.protected(AUTH, 1, peer.auth(*child)))
        answers = [data for data in heard if data[:8] == peer.spi_i]
        # Behind it the engine may ask for a sign of life.
        return notified(peer.read(next(data for data in answers if Header.parse(data).response)))

    def ups(self) -> list[tuple[str, int]]:
        return [(up.child, up.reqid) for up in self.talk.pair.of(RIGHT, ChildSaUp)]

    def sending(self) -> int:
        return len(self.talk.engine.dataplane.all_outbound)


def _gcm(pair: Pair) -> Any:
    return pair.right.config.children[0].proposals


def test_road_warriors_side_by_side() -> None:
    crowd = Crowd()
    for number in range(20):
        assert crowd.connect(f"w{number}.example", f"10.1.0.{number}/32") == []
    assert len(set(crowd.ups())) == 20
    assert crowd.sending() == 20


@pytest.mark.parametrize("wanted", ["10.1.0.0/28", "10.1.0.5/32", "10.1.0.0/16"])
def test_nobody_gets_what_another_one_has(wanted: str) -> None:
    crowd = Crowd()
    assert crowd.connect("first.example", "10.1.0.0/28") == []
    assert NotifyType.TS_UNACCEPTABLE in crowd.connect("second.example", wanted)
    (refused,) = crowd.talk.pair.of(RIGHT, SelectorsRefused)
    assert refused.remote_id == "second.example"
    assert "peer left (first.example at 198.51.100.1:500) has this traffic" in refused.message
    assert len(crowd.ups()) == 1


def test_the_same_one_replaces_its_own() -> None:
    crowd = Crowd()
    for _ in range(3):
        assert crowd.connect("first.example", "10.1.0.0/28") == []
    assert len(set(crowd.ups())) == 1, "one name, one reqid"
    assert crowd.talk.pair.of(RIGHT, SelectorsRefused) == []
    # And may take another part of it.
    assert crowd.connect("first.example", "10.1.0.4/32") == []


def test_what_is_gone_is_free() -> None:
    crowd = Crowd()
    crowd.connect("first.example", "10.1.0.0/28")
    crowd.talk.pair.sleep(120.0, deaf=True)  # it does not answer any more
    assert crowd.sending() == 0
    assert crowd.connect("second.example", "10.1.0.0/28") == []


def test_one_identity_cannot_have_everything() -> None:
    crowd = Crowd()
    crowd.talk.engine.engine.host.limits = replace(  # type: ignore[misc]  # final elsewhere
        crowd.talk.engine.engine.host.limits, generated=3
    )
    told = [crowd.connect("first.example", f"10.1.{n}.0/24") for n in range(5)]
    assert [NotifyType.TS_UNACCEPTABLE in each for each in told] == [False] * 3 + [True] * 2
    refused = crowd.talk.pair.of(RIGHT, SelectorsRefused)
    assert "3 are allowed" in refused[0].message
    assert crowd.connect("second.example", "10.1.9.0/24") == []


def test_reqids_do_not_collide() -> None:
    """In a range of two the second one takes what is left."""
    crowd = Crowd(reqids=(7, 8))
    crowd.connect("first.example", "10.1.0.1/32")
    crowd.connect("second.example", "10.1.0.2/32")
    assert {reqid for _, reqid in crowd.ups()} == {7, 8}
    assert NotifyType.NO_ADDITIONAL_SAS in crowd.connect("third.example", "10.1.0.3/32")


def test_what_a_peer_does_not_have_any_more_is_not_made_anew() -> None:
    """It answers our rekey with CHILD_SA_NOT_FOUND: it will ask if it wants the child again."""
    talk = Crowd().talk
    talk.establish()
    (spi,) = talk.engine.dataplane.inbound
    talk.pair.tell(RIGHT, lambda engine, now: engine.rekey_child(spi, now))
    (request,) = talk.heard()
    header = Header.parse(request)
    answer = [NotifyPayload(NotifyType.CHILD_SA_NOT_FOUND, b"", 3, spi.to_bytes(4))]
    said = talk.ask(talk.peer.protected(header.exchange, header.message_id, answer, response=True))
    assert [Header.parse(data).exchange for data in said] == []
    assert len(talk.pair.of(RIGHT, ChildSaDown)) == 1
    assert talk.engine.dataplane.all_outbound == []
