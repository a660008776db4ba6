"""Healthy, and statuses where there are tunnels and no documents (in a cluster)."""

from __future__ import annotations

from typing import Any

from ipsec_gateway.facts import Facts
from ipsec_gateway.forward.findings import Blocked
from ipsec_gateway.intent import intent
from ipsec_gateway.lastgood import InForce, Key, LastGood
from ipsec_gateway.pathprobe.schedule import Health
from ipsec_gateway.status import StatusBoard
from ipsec_ike.events import ChildSaUp
from ipsec_ike.identifiers import Direction

PEER = Key("IPsecPeer", "default", "hq")
NAME = "default/hq"
FACTS = Facts(resolved={"203.0.113.9": ("203.0.113.9",)}, sources={"203.0.113.9": "192.0.2.1"})


def board_files(make: Any) -> InForce:
    return LastGood().take(make.files(a=[make.secret(), make.peer()]))


def board_of(make: Any, **change: Any) -> StatusBoard:
    seconds = iter(range(60))
    board = StatusBoard(lambda: f"2026-11-23T12:00:{next(seconds):02}Z")
    found = board_files(make)
    if change:
        (tunnel,) = found.tunnels
        source = tunnel.source.model_copy(update=change)
        policies = tuple(p.model_copy(update={"source": source}) for p in tunnel.policies)
        tunnel = tunnel.model_copy(update={"source": source, "policies": policies})
        found = InForce(tunnels=(tunnel,))
    board.configured(found, intent(found.tunnels, FACTS))
    board.event(make.ike_up())
    return board


def conditions(board: StatusBoard) -> dict[str, tuple[str, str]]:
    board.changes()
    found = board.all()[PEER]["conditions"]
    return {c["type"]: (c["status"], c["reason"]) for c in found}


def test_what_nobody_measures_is_no_condition(make: Any) -> None:
    board = board_of(make)
    assert "Healthy" not in conditions(board)
    board.probed({NAME: Health(None)})
    assert "Healthy" not in conditions(board)


def test_health_is_told_with_its_cause(make: Any) -> None:
    board = board_of(make)
    board.probed({NAME: Health(True, "Healthy", rtt=0.012345, loss=2)})
    assert conditions(board)["Healthy"] == ("True", "Healthy")
    told = board.all()[PEER]["lastProbe"]
    assert (told["rtt"], told["loss"]) == ("12ms", 2)
    board.probed({NAME: Health(False, "ProbeLoss", "no answer", rtt=0.012345, loss=40)})
    found = conditions(board)
    assert found["Healthy"] == ("False", "ProbeLoss")
    assert found["Ready"][0] == "False"
    board.probed({NAME: Health(None, "NoProbe", "no address")})
    found = conditions(board)
    assert found["Healthy"] == ("Unknown", "NoProbe")
    assert found["Ready"][1] != "NoProbe"


def test_noise_is_no_change(make: Any) -> None:
    board = board_of(make)
    board.probed({NAME: Health(True, "Healthy", rtt=0.012, loss=0)})
    assert PEER in board.changes()
    for rtt, loss in ((0.0119, 0), (0.022, 2), (0.007, 9)):
        board.probed({NAME: Health(True, "Healthy", rtt=rtt, loss=loss)})
        assert not board.changes()
    board.probed({NAME: Health(True, "Healthy", rtt=0.1, loss=0)})
    assert PEER in board.changes()
    assert board.all()[PEER]["lastProbe"]["rtt"] == "100ms"


def test_tunnels_alone_have_a_status_at_their_generation(make: Any) -> None:
    board = board_of(make, generation=7, uid="u")
    conditions(board)
    status = board.all()[PEER]
    assert status["observedGeneration"] == 7
    assert {c["observedGeneration"] for c in status["conditions"]} == {7}


def test_what_may_be_dropped_on_the_way_is_told_and_is_no_fault_until_it_is_sure(make: Any) -> None:
    board = board_of(make)
    assert "Forwarding" not in conditions(board)
    board.forwarded({NAME: Blocked(sure=False, message="may drop")})
    found = conditions(board)
    assert found["Forwarding"] == ("Unknown", "ForwardingBlocked")
    assert found["Ready"][1] != "ForwardingBlocked"
    board.forwarded({NAME: Blocked(sure=True, message="drops")})
    found = conditions(board)
    assert found["Forwarding"] == ("False", "ForwardingBlocked")
    assert found["Ready"][0] == "False"
    board.forwarded({})
    assert "Forwarding" not in conditions(board)


def test_what_came_of_hardware_offload_is_told_by_child(make: Any) -> None:
    board = board_of(make)
    (peer,) = intent(board_files(make).tunnels, FACTS).peers
    (child,) = peer.children

    def told() -> Any:
        board.changes()
        return board.all()[PEER].get("hwOffload")

    assert told() is None, "the userspace data plane asks nobody"
    board.offloaded({})
    assert told() == [], "no SA yet"
    board.event(
        ChildSaUp(
            peer=NAME,
            child=child.name,
            reqid=child.reqid,
            spi_in=1,
            spi_out=2,
            suite="AES",
            local_ts=(),
            remote_ts=(),
            encap=False,
        )
    )
    assert told() == [{"child": child.name, "mode": "None"}]
    board.offloaded({(child.reqid, Direction.OUT): "eth0", (7, Direction.IN): "eth0"})
    assert told() == [{"child": child.name, "mode": "Crypto", "outbound": "eth0"}]
    board.offloaded({(child.reqid, direction): "eth0" for direction in Direction})
    assert told() == [
        {"child": child.name, "mode": "Crypto", "inbound": "eth0", "outbound": "eth0"}
    ]
