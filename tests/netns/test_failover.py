"""Three gateways and two remote sites: what happens to a pod's pings when a gateway goes.

The figures are properties of the report ("measured"); bounds are wide, since machines are slow.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipsec_lab.failover_rig import GATEWAYS, FailoverRig
from ipsec_lab.traffic import ConstantPing, PingResult, ping_until

# Seven daemons that start: a minute and more on a machine that is busy otherwise.
pytestmark = pytest.mark.timeout(600)

INTERVAL = 0.05
R1, R2 = "10.9.0.9", "10.8.0.9"
Record = Callable[[str, Any], None]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[FailoverRig]:
    with FailoverRig(tmp_path) as it:
        it.start()
        yield it
        assert it.clear() == 0, "pods' packets left in clear text"
        for log in tmp_path.glob("g?.log"):
            assert "Traceback" not in log.read_text(), log.read_text()


def up(rig: FailoverRig, *names: str) -> str:
    """Start gateways, wait for traffic to both sites, and give the owner of r1."""
    for name in names:
        rig.gateway(name)
    ready = lambda: all(rig.view(n).get("joined") for n in names)  # noqa: E731 - said once
    rig.wait("all have joined", ready)
    rig.wait("an owner each", lambda: all(len(rig.owners(r)) == 1 for r in ("r1", "r2")))
    for address in (R1, R2):
        ping_until(rig.namespaces["pod"], address, timeout=30)
    return rig.owners("r1")[0]


def condition(rig: FailoverRig, kind: str) -> str | None:
    """Of r1, as the API server has it."""
    found = {c["type"]: c["status"] for c in rig.status("r1").get("conditions", ())}
    return found.get(kind)


def finished(constant: ConstantPing) -> PingResult:
    """With some answers after the gap, without which it would not be seen as one."""
    time.sleep(1)
    return constant.stop()


def gap(result: PingResult) -> float:
    """Seconds of the longest run of lost pings."""
    longest = run = 0
    lost = set(result.lost)
    for number in range(1, result.sent + 1):
        run = run + 1 if number in lost else 0
        longest = max(longest, run)
    return longest * INTERVAL


def moved(rig: FailoverRig, owner: str) -> Callable[[], bool]:
    return lambda: len(now := rig.owners("r1")) == 1 and now != [owner]


def test_a_killed_gateway_is_replaced(rig: FailoverRig, record_property: Record) -> None:
    owner = up(rig, *GATEWAYS)
    rig.wait("status", lambda: rig.status("r1").get("activeGateway") == owner)
    with ConstantPing(rig.namespaces["pod"], R1, interval=INTERVAL) as constant:
        rig.kill(owner)
        rig.wait("another owner", moved(rig, owner))
        ping_until(rig.namespaces["pod"], R1, timeout=30)
        result = finished(constant)
    record_property("measured", f"kill -9: {gap(result):.2f} s without answers")
    assert gap(result) < 20
    new = rig.owners("r1")[0]
    rig.wait("status follows", lambda: rig.status("r1").get("activeGateway") == new)
    rig.wait("it is up", lambda: condition(rig, "Established") == "True")
    status = rig.status("r1")
    assert status["lastFailover"]
    assert owner not in status["standbyGateways"]
    # It comes back, and nothing moves.
    rig.gateway(owner)
    rig.wait("it has joined", lambda: bool(rig.view(owner).get("joined")))
    assert rig.owners("r1") == [new]
    # Without the API server it goes on.
    rig.api({"close": 1})
    rig.kill(new)
    rig.wait("another owner again", moved(rig, new))
    ping_until(rig.namespaces["pod"], R1, timeout=30)
    rig.api({"reopen": 1})
    last = rig.owners("r1")[0]
    rig.wait("status follows", lambda: rig.status("r1").get("activeGateway") == last)


def test_drain_and_cut_links(rig: FailoverRig, record_property: Record) -> None:
    owner = up(rig, *GATEWAYS)
    with ConstantPing(rig.namespaces["pod"], R1, interval=INTERVAL) as constant:
        assert rig.terminate(owner) == 0
        rig.wait("another owner", moved(rig, owner))
        ping_until(rig.namespaces["pod"], R1, timeout=30)
        result = finished(constant)
    record_property("measured", f"drain: {gap(result):.2f} s without answers")
    assert gap(result) < 10
    # A node that is cut off from everybody.
    rig.gateway(owner)
    rig.wait("it has joined", lambda: bool(rig.view(owner).get("joined")))
    second = rig.owners("r1")[0]
    with ConstantPing(rig.namespaces["pod"], R1, interval=INTERVAL) as constant:
        rig.cut(second, "eth0", "wan0")
        others = [n for n in GATEWAYS if n != second]
        rig.wait(
            "another owner",
            lambda: any("default/r1" in rig.view(n).get("held", ()) for n in others),
        )
        ping_until(rig.namespaces["pod"], R1, timeout=30)
        result = finished(constant)
    record_property("measured", f"links cut: {gap(result):.2f} s without answers")
    assert gap(result) < 20
    # Back again both hold it, and soon only the one whose SA is alive.
    rig.mend(second, "eth0", "wan0")
    rig.wait("one owner", lambda: len(rig.owners("r1")) == 1)
    assert rig.owners("r1") != [second]
    ping_until(rig.namespaces["pod"], R1, timeout=30)


def test_a_gateway_that_cannot_reach_the_peer_gives_it_up(
    rig: FailoverRig, record_property: Record
) -> None:
    owner = up(rig, *GATEWAYS)

    rig.wait("the probe works", lambda: condition(rig, "Healthy") == "True")
    with ConstantPing(rig.namespaces["pod"], R1, interval=INTERVAL) as constant:
        rig.cut(owner, "wan0")
        rig.wait("another owner", moved(rig, owner), seconds=60)
        ping_until(rig.namespaces["pod"], R1, timeout=30)
        result = finished(constant)
    record_property("measured", f"uplink cut: {gap(result):.2f} s without answers")
    assert "default/r1" in rig.view(owner)["givesUp"]
    assert gap(result) < 40


def test_partition_between_gateways_and_wrong_clocks(
    rig: FailoverRig, record_property: Record
) -> None:
    for name, hours in zip(GATEWAYS, (-30, 0, 500), strict=True):
        rig.gateway(name, hours=hours)
    rig.wait("all", lambda: all(len(rig.view(n).get("live", ())) == 3 for n in GATEWAYS))
    rig.wait("an owner each", lambda: all(len(rig.owners(r)) == 1 for r in ("r1", "r2")))
    ping_until(rig.namespaces["pod"], R1, timeout=30)
    owner = rig.owners("r1")[0]
    other = next(n for n in GATEWAYS if n != owner)
    with ConstantPing(rig.namespaces["pod"], R1, interval=INTERVAL) as constant:
        # They see each other's Leases, so nothing moves.
        rig.part(owner, other)
        rig.wait("it is noticed", lambda: owner in rig.view(other)["silent"])
        for _ in range(80):
            assert rig.owners("r1") == [owner]
        # Now the API server goes away, too: only two of three hear each other, or not even that.
        rig.api({"close": 1})
        for _ in range(80):
            rig.owners("r1")
        rig.rejoin(owner)
        rig.api({"reopen": 1})
        rig.wait("one owner", lambda: len(rig.owners("r1")) == 1)
        ping_until(rig.namespaces["pod"], R1, timeout=30)
        result = finished(constant)
    lost = len(result.lost) * INTERVAL
    record_property("measured", f"partition: {lost:.2f} s without answers in all")
    # A drain by signal, as preStop does it: the process lives on and holds nothing.
    last = rig.owners("r1")[0]
    rig.signal(last, signal.SIGUSR1)
    rig.wait("handed over", moved(rig, last))
    assert rig.view(last)["draining"]
