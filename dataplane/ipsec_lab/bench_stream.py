"""One TCP stream between the two LANs, and what the gateways spend on it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ipsec_lab.bench_process import Usage
from ipsec_lab.netns import LabError, end_process
from ipsec_lab.topology import Topology


@dataclass(frozen=True, slots=True)
class Stream:
    """``mbit``: received by the far host, Mbit/s. ``cost``: core-seconds per Gbit, by gateway."""

    mbit: float
    cost: Mapping[str, float]


def stream(topology: Topology, seconds: float, usage: Callable[[str], Usage]) -> Stream:
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
