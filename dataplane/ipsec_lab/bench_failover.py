"""A pod's pings while a gateway's node dies, and while it is drained: how long nothing comes back.

Three gateways, a route agent and two remote sites of ``failover_rig``. There is no operator at all:
failover does not need one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Final

from ipsec_lab.bench_pair import Settings
from ipsec_lab.bench_report import Row
from ipsec_lab.failover_rig import GATEWAYS, FailoverRig
from ipsec_lab.netns import LabError, missing_programs
from ipsec_lab.traffic import ConstantPing, PingResult, ping_until

_REMOTE: Final = "10.9.0.9"
_PEER: Final = "r1"
#: Seconds between pings, which is how exact a gap is.
_INTERVAL: Final = 0.05


def failover(settings: Settings) -> list[Row]:
    """The rows of ``make bench BENCH=failover``. Raises LabError where traffic does not come
    back."""
    if missing_programs("curl"):
        raise LabError("curl is missing: apt-get install --no-install-recommends curl")
    count = 2 if settings.count < 100 else 20
    with FailoverRig(settings.new_folder()) as rig:
        rig.start()
        for name in GATEWAYS:
            rig.gateway(name)
        _all_joined(rig)
        deaths = [_gap(rig, _die, _revive) for _ in range(count)]
        drains = [_gap(rig, _drain, _start) for _ in range(count)]
        if leaked := rig.clear():
            raise LabError(f"{leaked} packets of pods left in clear text")
    return [
        _row("node death to traffic again", deaths, 10, "both links of the node are cut at once"),
        _row("drain to traffic again", drains, 3, "SIGTERM, as at the end of a pod"),
    ]


def _row(what: str, gaps: list[float], limit: float, how: str) -> Row:
    p95 = quantiles(gaps, n=20, method="inclusive")[-1]
    return Row(
        what=f"{what}, 95th percentile of {len(gaps)}",
        unit="s",
        ours=(p95,),
        limit=limit,
        note=f"{how}; the longest run of a pod's pings without an answer, one each "
        f"{1000 * _INTERVAL:.0f} ms, from a node that has no gateway; median "
        f"{median(gaps):.2f} s, {min(gaps):.2f} to {max(gaps):.2f} s; no operator runs",
    )


def _gap(
    rig: FailoverRig,
    end: Callable[[FailoverRig, str], None],
    begin: Callable[[FailoverRig, str], None],
) -> float:
    """End the owner, wait until another has the peer and pings pass, and begin it again."""
    owner = rig.owners(_PEER)[0]
    pod = rig.namespaces["pod"]
    others = [name for name in GATEWAYS if name != owner]
    with ConstantPing(pod, _REMOTE, interval=_INTERVAL) as constant:
        time.sleep(1)
        end(rig, owner)
        rig.wait(
            "another owner",
            lambda: any(f"default/{_PEER}" in rig.view(n).get("held", ()) for n in others),
        )
        ping_until(pod, _REMOTE, timeout=60)
        # With answers after the gap, without which it would not be seen as one.
        time.sleep(1)
        result = constant.stop()
    begin(rig, owner)
    _all_joined(rig)
    ping_until(pod, _REMOTE, timeout=60)
    return longest(result) * _INTERVAL


def longest(result: PingResult) -> int:
    """The most pings in a row that were lost."""
    most = run = 0
    lost = set(result.lost)
    for number in range(1, result.sent + 1):
        run = run + 1 if number in lost else 0
        most = max(most, run)
    return most


def _die(rig: FailoverRig, name: str) -> None:
    rig.cut(name, "eth0", "wan0")


def _revive(rig: FailoverRig, name: str) -> None:
    rig.mend(name, "eth0", "wan0")


def _drain(rig: FailoverRig, name: str) -> None:
    if code := rig.terminate(name):
        raise LabError(f"{name} ended with {code}: {rig.logs()}")


def _start(rig: FailoverRig, name: str) -> None:
    rig.gateway(name)


def _all_joined(rig: FailoverRig) -> None:
    rig.wait(
        "all gateways know each other, and the peer has one owner",
        lambda: (
            all(
                (view := rig.view(n)).get("joined") and len(view.get("live", ())) == len(GATEWAYS)
                for n in GATEWAYS
            )
            and len(rig.owners(_PEER)) == 1
        ),
    )
    ping_until(rig.namespaces["pod"], _REMOTE, timeout=60)
