"""``kube-ipsec gateway``: options, exit codes, signals.

====  ========================================================================================
exit  when
====  ========================================================================================
0     stopped in good order (SIGTERM, SIGINT); with ``--dry-run``: everything is accepted
1     something broke while it ran: the log says what, a supervisor starts it again
2     wrong usage of the command line
3     this machine lacks something: a program, a right, a folder, the chosen data plane
4     another process has UDP port 500 or 4500, or the address of ``--listen``
5     ``--dry-run``: some document is rejected
====  ========================================================================================
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

import click

from ipsec_gateway import collector, logs, marks
from ipsec_gateway.commandline import (
    CONFLICT,
    LACKING,
    BitMask,
    NetworkType,
    end,
    listen_option,
    log_options,
    missing_program,
)
from ipsec_gateway.handover import DEFAULT
from ipsec_gateway.ipsec.abilities import USERSPACE
from ipsec_gateway.ipsec.base import DataplaneError, IpsecBackend
from ipsec_gateway.marks import BadNumbers, Numbers
from ipsec_gateway.options import Options
from ipsec_gateway.ports import PortConflict
from ipsec_gateway.probe import probe
from ipsec_gateway.runtime import Gateway
from ipsec_gateway.sources.directory import DirectorySource, NoSource
from ipsec_gateway.udp import IkeSockets

log = logging.getLogger("ipsec_gateway")

#: The TUN device of the userspace data plane.
DEVICE: Final = "kipsec0"

_REJECTED: Final = 5


@click.command()
@click.option(
    "--manifests",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with *.yaml files: IPsecPeer, IPsecPolicy, ModeConfig, Secret. Followed.",
)
@click.option(
    "--cluster",
    "in_cluster",
    is_flag=True,
    help="Take tunnels from the cluster, and share them with its other gateways. NODE_NAME, "
    "NODE_IP and POD_NAMESPACE say who and where; the API server is that of the pod, or of "
    "KUBECONFIG.",
)
@click.option("--group", default="", help="Group of gateways that this one belongs to.")
@click.option(
    "--drain",
    is_flag=True,
    help="Have the gateway that runs here with --cluster hand its tunnels over, and wait for it.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for statuses (STATE/status/KIND/NAMESPACE/NAME.yaml); none are written without.",
)
@click.option(
    "--dataplane",
    type=click.Choice(["auto", "xfrm", "userspace"]),
    default="auto",
    show_default=True,
    help="Who carries the packets: the kernel (xfrm), this program (userspace), or the kernel if "
    "it has ESP (auto).",
)
@click.option(
    "--resume",
    metavar="DIR|off",
    help="Folder on tmpfs with what the next gateway needs to go on with the SAs in the kernel; "
    "off: none are left to it. Only with the kernel's ESP.  [default: /run/kube-ipsec]",
)
@listen_option("127.0.0.1:9500")
@log_options
@click.option(
    "--cleanup",
    is_flag=True,
    help="Take away what a stopped gateway has left: say good-bye to its peers, remove its SAs, "
    "policies, rules and records, and end.",
)
@click.option(
    "--service-cidr",
    "services",
    type=NetworkType(),
    multiple=True,
    help="Network of Services, which stays tracked whatever notrack says. May be repeated.",
)
@click.option(
    "--mark-bits",
    type=BitMask(),
    default=hex(marks.DEFAULT.mask),
    envvar="KUBE_IPSEC_MARK_BITS",
    show_default=True,
    help="The three bits of the packet mark that are the gateway's on this node.",
)
@click.option(
    "--tables",
    type=int,
    default=marks.DEFAULT.table,
    envvar="KUBE_IPSEC_TABLES",
    show_default=True,
    help="The first of the gateway's three routing tables; its rules are numbered from one less.",
)
@click.option(
    "--allow-mark-conflict",
    is_flag=True,
    envvar="KUBE_IPSEC_ALLOW_MARKCONFLICT",
    help="Take mark bits that kube-proxy, Calico, Cilium and others use where they run.",
)
@click.option(
    "--open-forward",
    is_flag=True,
    envvar="KUBE_IPSEC_OPEN_FORWARD",
    help="Have the node forward what tunnels carry: where another chain on the forward hook drops "
    "it, a rule that accepts it is put there, kept there, and taken away in the end.",
)
@click.option(
    "--probe-responder/--no-probe-responder",
    "responder",
    default=True,
    show_default=True,
    help="Answer probes of other gateways by UDP (port 4498, out of SAs alone).",
)
@click.option(
    "--dry-run", is_flag=True, help="Read the folder once, say what would be done, and end."
)
def gateway(
    manifests: Path | None,
    in_cluster: bool,
    group: str,
    drain: bool,
    state: Path | None,
    dataplane: str,
    resume: str | None,
    listen: tuple[str, int],
    log_format: logs.Format,
    log_level: str,
    cleanup: bool,
    services: tuple[IPv4Network | IPv6Network, ...],
    mark_bits: int,
    tables: int,
    allow_mark_conflict: bool,
    open_forward: bool,
    responder: bool,
    dry_run: bool,
) -> None:
    """Run tunnels for the resources in a folder, or in a cluster.

    SIGTERM ends it. With the kernel's ESP the tunnels go on and wait for the next gateway; SIGINT
    ends them, too: peers are told, and nothing is left behind. SIGHUP reads everything again.
    """
    if manifests is None and not (cleanup or in_cluster or drain):
        raise click.UsageError("Missing option '--manifests' or '--cluster'.")
    if manifests is not None and in_cluster:
        raise click.UsageError("--manifests and --cluster exclude each other.")
    memory = (Path(resume) if resume not in (None, "off") else DEFAULT) / "cluster"
    if drain:
        from ipsec_gateway.cluster.launch import drain_running

        end("gateway", undone, 1) if (undone := drain_running(memory)) else sys.exit(0)
    try:
        numbers = Numbers(mark_bits, tables, allow_mark_conflict)
    except BadNumbers as exc:
        raise click.UsageError(f"--mark-bits, --tables: {exc}") from exc
    if dry_run and manifests is not None:
        # Imported here: it pulls in what a running gateway does not need.
        from ipsec_gateway.dryrun import report

        accepted, text = report(manifests)
        click.echo(text)
        sys.exit(0 if accepted else _REJECTED)
    logs.setup(log_format, log_level)
    try:
        kernel = None if dataplane == "userspace" else probe()
    except DataplaneError as exc:
        kernel, lacks = None, str(exc)
    else:
        lacks = kernel.lacks if kernel else ""
    if dataplane == "xfrm" and lacks:
        end("gateway", f"--dataplane xfrm: {lacks}; or use --dataplane userspace", LACKING)
    in_kernel = kernel is not None and kernel.usable
    if problem := _lacking(device=not in_kernel) or _unusable(state):
        end("gateway", problem, LACKING)
    options = Options(
        state=state,
        listen=None if cleanup else listen,
        goodbye=cleanup,
        services=services,
        numbers=numbers,
        open_forward=open_forward,
        probe_responder=responder,
        # Nodes of a cluster translate sources, if not now, then as soon as its agents are up.
        lazy_tracking=not in_cluster,
    )
    make_backend: Callable[[IkeSockets], IpsecBackend] = _userspace
    if kernel is not None and in_kernel:
        make_backend = partial(_xfrm, directions=kernel.directions, numbers=numbers)
        log.info("data plane: the kernel's (%s)", kernel)
        keep = None if resume == "off" else Path(resume) if resume else DEFAULT
        options = replace(options, kernel=True, resume=keep, abilities=kernel.abilities)
        if cleanup:
            options = replace(options, resume=keep or DEFAULT)
    else:
        log.info("data plane: userspace%s", f" ({lacks})" if lacks else "")
        # Offloads join what one call sends and receives in UDP, and not in IP protocol 50.
        options = replace(options, device=DEVICE, encapsulate=True, abilities=USERSPACE)
    try:
        if in_cluster and not cleanup:
            asyncio.run(_run_in_cluster(options, group, memory, make_backend))
        else:
            asyncio.run(_run(options, None if cleanup else manifests, make_backend))
        if cleanup and memory.is_dir():
            from ipsec_gateway.cluster.memory import Memory

            Memory(memory).forget()
    except PortConflict as exc:
        end("gateway", str(exc), CONFLICT)
    except PermissionError as exc:
        end("gateway", f"{exc}: run it as root, or with CAP_NET_ADMIN and CAP_NET_RAW", LACKING)
    except Exception as exc:  # at the start or later: a supervisor starts it anew
        log.critical("ended by %s: %s", type(exc).__name__, exc, exc_info=exc)
        sys.exit(1)


async def _run(
    options: Options,
    manifests: Path | None,
    make_backend: Callable[[IkeSockets], IpsecBackend],
) -> None:
    loop = asyncio.get_running_loop()
    source = NoSource() if manifests is None else DirectorySource(manifests)
    it = Gateway(options, source, make_backend)
    loop.add_signal_handler(signal.SIGTERM, it.stop)
    loop.add_signal_handler(signal.SIGINT, lambda: it.stop(goodbye=True))
    loop.add_signal_handler(signal.SIGHUP, it.refresh)
    collector.settle()
    await it.run()


async def _run_in_cluster(
    options: Options,
    group: str,
    memory: Path,
    make_backend: Callable[[IkeSockets], IpsecBackend],
) -> None:
    # Imported here: it pulls in what a gateway without a cluster does not need.
    from ipsec_gateway.cluster import launch
    from ipsec_gateway.cluster.api import NoCluster

    try:
        where = launch.cluster_options(os.environ, group=group, memory=memory)
        collector.settle()
        await launch.run(options, where, os.environ, make_backend)
    except NoCluster as exc:
        end("gateway", f"--cluster: {exc}", LACKING)


def _xfrm(sockets: IkeSockets, *, directions: bool, numbers: Numbers) -> IpsecBackend:
    from ipsec_gateway.ipsec.xfrm import XfrmBackend
    from ipsec_gateway.ipsec.xfrm_sa import Treatment

    how = Treatment(directions=directions, output_mark=(numbers.bypass, numbers.bypass))
    return XfrmBackend(natt=sockets.pairs, treatment=how)


def _userspace(sockets: IkeSockets) -> IpsecBackend:
    from ipsec_gateway.ipsec.userspace import UserspaceBackend

    return UserspaceBackend(device=DEVICE, esp_sockets=[pair.esp for pair in sockets.pairs])


def _lacking(*, device: bool) -> str | None:
    """What is missing on this machine, with the remedy; ``device``: packets need one."""
    if problem := missing_program(("ip", "nft")):
        return problem
    if not device:
        return None
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing: modprobe tun, or mount it into the container"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun cannot be opened: run it as root"
    return None


def _unusable(state: Path | None) -> str | None:
    """Why statuses cannot be kept in this folder, with the remedy."""
    try:
        if state is not None:
            state.mkdir(parents=True, exist_ok=True)
            if not os.access(state, os.W_OK | os.X_OK):
                raise PermissionError(f"no right to write into {state}")
    except OSError as exc:
        why = exc.strerror or str(exc)
        return f"--state {state} cannot be used ({why}): choose another folder"
    return None
