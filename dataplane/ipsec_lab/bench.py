"""``kube-ipsec bench``: our figures beside charon's, on this machine, as ratios within one run."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from ipsec_lab import bench_report, strongswan, userns
from ipsec_lab.bench_failover import failover
from ipsec_lab.bench_handshakes import handshakes, tunnel
from ipsec_lab.bench_kernel import EMULATED, kernel
from ipsec_lab.bench_modp import modp
from ipsec_lab.bench_operator import operator
from ipsec_lab.bench_pair import Settings
from ipsec_lab.bench_report import Row
from ipsec_lab.bench_stream import stream
from ipsec_lab.bench_suites import suites
from ipsec_lab.netns import LabError, missing_programs

#: By the name that --only takes, in the order of the table.
BENCHES: Final[Mapping[str, Callable[[Settings], list[Row]]]] = {
    "handshakes": handshakes,
    "tunnel": tunnel,
    "stream": stream,
    "modp": modp,
    "kernel": kernel,
    "suites": suites,
    "operator": operator,
    "failover": failover,
}
#: In a virtual machine with a kernel that has ESP (their smoke test: tests/kernel/test_bench.py).
IN_GUEST: Final = frozenset({"kernel", "suites"})
#: In the cluster that KUBECONFIG names.
IN_CLUSTER: Final = frozenset({"operator"})
#: Some need more than this machine, others many minutes.
_ON_REQUEST: Final = IN_GUEST | IN_CLUSTER | {"failover"}
#: These need no rights on this machine.
_ANYWHERE: Final = IN_GUEST | IN_CLUSTER | {"modp"}
_PAGE: Final = Path("docs/benchmarks.md")


@click.command()
@click.option(
    "--only",
    type=click.Choice(list(BENCHES)),
    help="One benchmark; without it all that need no virtual machine, no cluster and few minutes.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Turns of each side; medians are shown.",
)
@click.option("--quick", is_flag=True, help="Tiny numbers: shows that it runs, measures nothing.")
@click.option("--write", is_flag=True, help=f"Also write the table into {_PAGE}.")
def bench(only: str | None, runs: int, quick: bool, write: bool) -> None:
    """Measure handshakes, set-up time, throughput and memory beside strongSwan."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    names = [only] if only else [name for name in BENCHES if name not in _ON_REQUEST]
    arguments = ["--only", only] if only else []
    arguments += ["--quick"] if quick else ["--runs", str(runs)]
    if not _ANYWHERE.issuperset(names):
        if problem := userns.missing_rights():
            raise click.ClickException(problem)
        if lacking := missing_programs("ip", "nft", "iperf3", "ss"):
            raise click.ClickException(f"missing programs: {', '.join(lacking)}")
        if not userns.has_network_rights():
            userns.reexecute([sys.executable, *sys.orig_argv[1:]])
    surroundings = bench_report.surroundings(" ".join(["kube-ipsec bench", *arguments]))
    for line in surroundings:
        console.print(line, highlight=False)
    if problem := strongswan.missing():
        console.print(f"without charon: {problem}", highlight=False)

    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="kube-ipsec-bench-") as folder:
        settings = Settings.tiny(Path(folder)) if quick else Settings(Path(folder), runs=runs)
        for name in names:
            with console.status(f"measuring: {name}"):
                try:
                    rows += BENCHES[name](settings)
                except LabError as exc:
                    raise click.ClickException(f"{name}: {exc}") from exc
    if not IN_GUEST.isdisjoint(names):
        surroundings.append(f"kernel and suites: {EMULATED}")
        console.print(surroundings[-1], highlight=False)
    console.print(bench_report.table(rows))
    for note in dict.fromkeys(f"{row.what}: {row.note}" for row in rows if row.note):
        console.print(f"- {note}", highlight=False)
    if write:
        bench_report.write(_PAGE, bench_report.markdown(rows, surroundings))
        console.print(f"written: {_PAGE}")


if __name__ == "__main__":
    bench()
