"""``kube-ipsec demo``: from the YAML of two sites to an encrypted tunnel, with proof.

The order matters. First the guard must be seen to drop clear text, or nothing that follows proves
anything. Then the gateways start and the traffic flows, while guard and sniffer watch the WAN. In
the end the peer is deleted: nothing may be left, and clear text must be dropped again.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from ipsec_lab import strongswan, userns
from ipsec_lab.demo_sites import DemoSite, OurSite, StrongswanSite
from ipsec_lab.guard import Guard, GuardCounters
from ipsec_lab.netns import LabError, missing_programs
from ipsec_lab.sniffer import Sighting, Sniffer
from ipsec_lab.topology import Topology
from ipsec_lab.traffic import ping, ping_until, tcp_transfer

EXAMPLES: Final = Path(__file__).parents[2] / "examples" / "site-to-site"
_PROGRAMS: Final = ("ip", "nft", "ping", "nsenter", "unshare", "setpriv", "sysctl")
_READY_TIMEOUT: Final = 30.0


@click.command()
@click.option(
    "--peer",
    type=click.Choice(["kube-ipsec", "strongswan"]),
    default="kube-ipsec",
    show_default=True,
    help="Who the west site is.",
)
@click.option(
    "--examples",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=EXAMPLES,
    help="Folder with the manifests of the sites, in east/ and west/.",
)
@click.option(
    "--megabytes",
    type=click.IntRange(1, 1 << 16),
    default=256,
    show_default=True,
    help="Size of the speed test.",
)
def demo(peer: str, examples: Path, megabytes: int) -> None:
    """Run two sites on this machine, pass traffic through a tunnel, prove that it is encrypted."""
    if problem := _missing(peer):
        raise click.ClickException(problem)
    if not userns.has_network_rights():
        click.echo("not root: continuing in a user namespace")
        userns.reexecute([sys.executable, *sys.orig_argv[1:]])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    work = Path(tempfile.mkdtemp(prefix="kube-ipsec-demo-"))
    try:
        _run(console, peer, examples, work, megabytes << 20)
    except LabError as exc:
        console.print(f"[bold red]failed:[/] {exc}")
        console.print(f"logs and manifests are in {work}")
        sys.exit(1)
    shutil.rmtree(work)


def _missing(peer: str) -> str | None:
    if lacking := missing_programs(*_PROGRAMS):
        return (
            f"missing: {', '.join(lacking)} (apt-get install --no-install-recommends iproute2 "
            "nftables iputils-ping util-linux procps)"
        )
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun is missing or may not be opened: modprobe tun"
    if peer == "strongswan" and (problem := strongswan.missing()):
        return problem
    return userns.missing_rights()


def _run(console: Console, peer: str, examples: Path, work: Path, octets: int) -> None:
    with Topology() as topology:
        guard = Guard(topology)
        console.print(
            f"two sites, {topology.a.lans[0]} and {topology.b.lans[0]} (and IPv6), "
            "five network namespaces, a guard and a sniffer between them"
        )
        _clear_text_must_be_dropped(topology, guard)
        console.print(
            "no tunnel yet: pings fail, the guard has dropped their clear text  [green]ok"
        )

        (work / "east").mkdir()
        (work / "west").mkdir()
        west = StrongswanSite if peer == "strongswan" else OurSite
        sites: tuple[DemoSite, DemoSite] = (
            west(topology, topology.gw_b, "west", examples / "west", work / "west"),
            OurSite(topology, topology.gw_a, "east", examples / "east", work / "east"),
        )
        before = guard.counters()
        with Sniffer(topology.wan) as sniffer:
            started = time.monotonic()
            for site in sites:
                site.start()
            for site in sites:
                site.wait_ready(_READY_TIMEOUT)
            console.print(
                f"both sites are ready {time.monotonic() - started:.1f} s after the start of the "
                "gateways  [green]ok"
            )
            figures = _traffic(topology)
        for handshake in sniffer.handshakes[:1]:
            figures.insert(0, ("IKE handshake, first to last message", handshake, "ms"))
        # At full speed a sniffer in Python would measure itself; the guard counts in the kernel.
        figures.append(_speed(topology, octets))
        console.print(_status_table(sites))
        console.print(_figures_table(figures))
        seen = guard.counters() - before
        console.print(_evidence_table(seen, sniffer.sighting()))
        _judge(seen, sniffer.sighting())

        for site in reversed(sites):
            site.delete_peer()
        for site in sites:
            site.wait_gone(15.0)
        _clear_text_must_be_dropped(topology, guard)
        console.print(
            "peer deleted: SAs gone at both ends, no route, rule, device or nftables table left  "
            "[green]ok"
        )
        for site in sites:
            site.stop()
    console.print("[bold green]passed:[/] the traffic crossed the WAN encrypted, and only so")


def _clear_text_must_be_dropped(topology: Topology, guard: Guard) -> None:
    """The negative control. Raises LabError if a ping passes, or if the guard does not see it."""
    before = guard.counters()
    for address in (topology.b.host(0), topology.b.host(1)):
        if ping(topology.lan_a, address, count=2, wait=0.3).received:
            raise LabError(f"a ping to {address} passes without a tunnel: nothing can be proved")
    # IPv6 packets may still wait for the router's neighbour discovery.
    deadline = time.monotonic() + 3
    while (guard.counters() - before).clear < 4:
        if time.monotonic() > deadline:
            dropped = (guard.counters() - before).clear
            raise LabError(f"the guard has dropped {dropped} of 4 clear-text packets")
        time.sleep(0.1)


#: What was measured, its value and unit.
Figure = tuple[str, float, str]


def _traffic(topology: Topology) -> list[Figure]:
    """Pings and checked transfers, both ways and both IP versions. Raises LabError."""
    figures: list[Figure] = []
    for index, version in enumerate(("IPv4", "IPv6")):
        for source, destination, address in (
            (topology.lan_a, topology.lan_b, topology.b.host(index)),
            (topology.lan_b, topology.lan_a, topology.a.host(index)),
        ):
            ping_until(source, address)
            result = ping(source, address, count=20, interval=0.02)
            if result.lost:
                raise LabError(f"{len(result.lost)} of 20 pings to {address} are lost")
            transfer = tcp_transfer(source, destination, address, octets=8 << 20)
            if not transfer.intact:
                raise LabError(f"the transfer to {address} arrived damaged")
        figures.append((f"round trip LAN to LAN, {version}, median", result.median, "ms"))
    figures.append(("TCP transfers with intact SHA-256", 4, "of 4"))
    return figures


def _speed(topology: Topology, octets: int) -> Figure:
    transfer = tcp_transfer(topology.lan_a, topology.lan_b, topology.b.host(), octets=octets)
    if not transfer.intact:
        raise LabError("the speed test arrived damaged")
    return (f"TCP, one stream, {octets >> 20} MiB", transfer.mbit_per_second, "Mbit/s")


def _judge(seen: GuardCounters, sighting: Sighting) -> None:
    """Raise LabError unless traffic passed, and passed encrypted."""
    if seen.clear:
        raise LabError(f"{seen.clear} clear-text packets reached the WAN (and were dropped there)")
    if sighting.marked:
        raise LabError(f"test traffic was readable on the WAN: {sighting.first_marked}")
    if not seen.encrypted or not sighting.encrypted:
        raise LabError("no ESP on the WAN: the traffic took another way")


def _status_table(sites: Sequence[DemoSite]) -> Table:
    table = Table(
        "site and resource", "ready", "remote", "cipher suite", "child SAs", title="Status"
    )
    for site in sites:
        for row in site.status():
            table.add_row(row.resource, row.ready, row.remote, row.suite, row.children)
    return table


def _figures_table(figures: Sequence[Figure]) -> Table:
    table = Table("figure", "value", title="Figures")
    for name, value, unit in figures:
        table.add_row(name, f"{value:.4g} {unit}")
    return table


def _evidence_table(seen: GuardCounters, sighting: Sighting) -> Table:
    table = Table(
        "on the WAN", "guard (all packets)", "sniffer (frames looked into)", title="Evidence"
    )
    frames = sighting.frames
    table.add_row("IKE", str(seen.ike), str(frames.get("ike", 0) + frames.get("keepalive", 0)))
    table.add_row("ESP", str(seen.esp), str(frames.get("esp", 0)))
    table.add_row("ESP in UDP", str(seen.esp_udp), str(frames.get("esp-in-udp", 0)))
    table.add_row("clear text", str(seen.clear), str(frames.get("other", 0)))
    table.add_row("readable test traffic", "-", str(sighting.marked))
    if sighting.skipped:
        table.add_row("not looked into: too fast", "-", str(sighting.skipped))
    return table
