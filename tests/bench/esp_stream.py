"""Throughput of the userspace data plane alone: two of them with fixed keys, no IKE.

    python tests/bench/esp_stream.py [--seconds 5] [--runs 3] [CASE ...]

Needs root and iperf3. Both gateways, both ends of iperf3 and the router between share the machine;
the figure to compare is what a packet or a Gbit costs a gateway, not the wall clock.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from statistics import median

from ipsec_lab.esp_packets import make_spec
from ipsec_lab.esp_pair import EspPair, Suite
from ipsec_lab.guard import Guard
from ipsec_lab.netns import end_process
from ipsec_lab.topology import Topology

#: Name: (suite, UDP encapsulation, arguments of iperf3).
CASES = {
    "tcp-gcm128": ("gcm16-128", True, []),
    "tcp-gcm256": ("gcm16-256", True, []),
    "tcp-chacha": ("chacha", True, []),
    "tcp-cbc-sha256": ("cbc-sha256", True, []),
    "tcp-gcm128-ipv6": ("gcm16-128", True, ["-6"]),
    "tcp-gcm128-4streams": ("gcm16-128", True, ["--parallel", "4"]),
    "tcp-gcm128-both-ways": ("gcm16-128", True, ["--bidir"]),
    "tcp-gcm128-raw-esp": ("gcm16-128", False, []),
    "udp-1400-200M": ("gcm16-128", True, ["--udp", "--length", "1400", "--bitrate", "200M"]),
    "udp-1400-500M": ("gcm16-128", True, ["--udp", "--length", "1400", "--bitrate", "500M"]),
    "udp-64-20M": ("gcm16-128", True, ["--udp", "--length", "64", "--bitrate", "20M"]),
}


def run(case: str, seconds: float) -> dict[str, float]:
    name, encap, extra = CASES[case]
    spec = make_spec(name)
    suite = Suite(encryption=spec.encryption, integrity=spec.integrity, encap=encap)
    with Topology() as topology:
        Guard(topology)
        with EspPair(topology, suite) as pair:
            address = topology.b.host(1 if "-6" in extra else 0)
            server = topology.lan_b.popen(
                ["iperf3", "--server", "--one-off"], stdout=subprocess.DEVNULL
            )
            try:
                while not topology.lan_b.run("ss", "-Htln", "sport = :5201").strip():
                    time.sleep(0.02)
                before = {g: pair.gateway(g).usage().cpu for g in "ab"}
                argv = ["iperf3", "--client", address, "--time", f"{seconds:g}", "--json", *extra]
                report = json.loads(topology.lan_a.run(*argv, check=False, timeout=seconds + 30))
                used = {g: pair.gateway(g).usage().cpu - before[g] for g in "ab"}
            finally:
                end_process(server)
            counted = pair.b.do(pair.b.backend.counters())
            packets = max(c.packets for c in counted.values())
    if "error" in report:
        raise SystemExit(f"iperf3: {report['error']}")
    end = report["end"]
    received = end.get("sum_received") or end["sum"]
    octets, rate = received["bytes"], received["bits_per_second"]
    if "sum_received_bidir_reverse" in end:
        octets += end["sum_received_bidir_reverse"]["bytes"]
        rate += end["sum_received_bidir_reverse"]["bits_per_second"]
    return {
        "Mbit/s": rate / 1e6,
        "A core-s/Gbit": used["a"] / (octets * 8 / 1e9),
        "B core-s/Gbit": used["b"] / (octets * 8 / 1e9),
        "A us/packet": used["a"] / packets * 1e6,
        "B us/packet": used["b"] / packets * 1e6,
        "lost %": received.get("lost_percent", 0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE")
    options = parser.parse_args()
    for number, case in enumerate(options.cases):
        results = [run(case, options.seconds) for _ in range(options.runs)]
        if not number:
            print(f"{'':24}" + "".join(f"{name:>15}" for name in results[0]))  # noqa: T201 - output
        middle = {name: median(r[name] for r in results) for name in results[0]}
        print(f"{case:24}" + "".join(f"{v:15.2f}" for v in middle.values()), flush=True)  # noqa: T201 - output


if __name__ == "__main__":
    main()
