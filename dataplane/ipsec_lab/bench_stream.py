"""One TCP stream between the two LANs, and what the gateways spend on it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ipsec_lab.bench_charon import CharonPair
from ipsec_lab.bench_gateways import gateways
from ipsec_lab.bench_pair import CHARON, OURS, Settings, turns
from ipsec_lab.bench_process import Usage
from ipsec_lab.bench_report import Row
from ipsec_lab.netns import LabError, end_process
from ipsec_lab.topology import Topology


@dataclass(frozen=True, slots=True)
class Stream:
    """``mbit``: received by the far host, Mbit/s. ``cost``: core-seconds per Gbit, by gateway."""

    mbit: float
    cost: Mapping[str, float]


def stream(settings: Settings) -> list[Row]:
    """Throughput and what a Gbit costs each gateway."""

    def measure(side: str) -> Stream:
        folder = settings.new_folder()
        with Topology() as topology:
            if side == OURS:
                with gateways(topology, folder) as ours:
                    return one_stream(topology, settings.seconds, ours.usage)
            with CharonPair(topology, folder) as charons:
                charons.initiate(1, parallel=1)
                return one_stream(topology, settings.seconds, charons.usage)

    results = turns(settings, measure)
    ours, theirs = results[OURS], results[CHARON]
    rows = [
        Row(
            what="userspace ESP, one TCP stream",
            unit="Mbit/s",
            ours=tuple(s.mbit for s in ours),
            theirs=tuple(s.mbit for s in theirs),
            at_least=4,
            note="AES-128-GCM, UDP-encapsulated, MTU 1500 on the wire; both gateways and both ends "
            f"of iperf3 share this machine; {settings.seconds:g} s",
        )
    ]
    for name, what in (("a", "encrypting"), ("b", "decrypting")):
        rows.append(
            Row(
                what=f"CPU of the {what} gateway",
                unit="core-s per Gbit",
                ours=tuple(s.cost[name] for s in ours),
                theirs=tuple(s.cost[name] for s in theirs),
                at_most=0.25,
            )
        )
    return rows


def one_stream(topology: Topology, seconds: float, usage: Callable[[str], Usage]) -> Stream:
    """iperf3 from the host of LAN a to that of LAN b for ``seconds``.

    ``usage`` tells what the gateway of a site has used so far. Raises LabError where iperf3 fails.
    """
    address = topology.b.host()
    server = topology.lan_b.popen(
        ["iperf3", "--server", "--one-off", "--bind", address], stdout=subprocess.DEVNULL
    )
    try:
        _wait_for_listener(topology)
        before = {name: usage(name) for name in ("a", "b")}
        argv = ["iperf3", "--client", address, "--time", f"{seconds:g}", "--json"]
        report = json.loads(topology.lan_a.run(*argv, check=False, timeout=seconds + 30))
        used = {name: usage(name) - before[name] for name in ("a", "b")}
    finally:
        end_process(server)
    if "error" in report:
        raise LabError(f"iperf3: {report['error']}")
    received = report["end"]["sum_received"]
    gbit = received["bytes"] * 8 / 1e9
    return Stream(
        received["bits_per_second"] / 1e6,
        {name: value.cpu / gbit for name, value in used.items()},
    )


def _wait_for_listener(topology: Topology) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if topology.lan_b.run("ss", "-Htln", "sport = :5201").strip():
            return
        time.sleep(0.02)
    raise LabError("iperf3 does not listen")
