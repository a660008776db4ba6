"""``kube-ipsec gateway --cluster``: from the environment to a running gateway, and to its end.

=========  =====================================================================================
signal     what it does
=========  =====================================================================================
SIGTERM    hands all peers over, 3 s at most; then as without a cluster
SIGUSR1    hands all peers over and goes on: nothing is taken any more (``--drain`` sends it)
SIGINT     says good-bye to all peers and takes everything away
=========  =====================================================================================
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ipsec_api.cluster import (
    DEFAULT_NAMESPACE,
    MESH_KEY_PATH,
    NODE_IP_ENV,
    NODE_NAME_ENV,
    POD_NAMESPACE_ENV,
)
from ipsec_api.ownership import DEFAULT_GROUP
from ipsec_gateway.cluster.api import Api, NoCluster, from_kubeconfig, in_cluster
from ipsec_gateway.cluster.coordinator import DRAIN, Cluster, ClusterOptions
from ipsec_gateway.cluster.kubeconfig import plain
from ipsec_gateway.cluster.metrics import ClusterMetrics
from ipsec_gateway.options import Options
from ipsec_gateway.ports import PortConflict
from ipsec_gateway.runtime import Gateway
from ipsec_gateway.udp import IkeSockets

#: All addresses of the node, with commas; NODE_IP is the preferred one.
NODE_IPS_ENV: Final = "NODE_IPS"
MESH_KEY_ENV: Final = "KUBE_IPSEC_MESH_KEY"

_PID: Final = "pid"


def cluster_options(environ: Mapping[str, str], *, group: str, memory: Path) -> ClusterOptions:
    """Who we are, by the environment of the pod. Raises NoCluster."""
    node = environ.get(NODE_NAME_ENV, "")
    texts = f"{environ.get(NODE_IP_ENV, '')},{environ.get(NODE_IPS_ENV, '')}".split(",")
    addresses = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not node or not addresses:
        raise NoCluster(
            f"{NODE_NAME_ENV} and {NODE_IP_ENV} are not set: take them from spec.nodeName and"
            " status.hostIP of the pod (downward API)"
        )
    return ClusterOptions(
        node=node,
        addresses=addresses,
        namespace=environ.get(POD_NAMESPACE_ENV) or DEFAULT_NAMESPACE,
        group=group or DEFAULT_GROUP,
        mesh_key=Path(environ.get(MESH_KEY_ENV) or MESH_KEY_PATH),
        memory=memory,
    )


async def run(
    options: Options,
    where: ClusterOptions,
    environ: Mapping[str, str],
    make_backend: Callable[[IkeSockets], Any],
) -> None:
    """A gateway of the cluster, until a signal ends it. Raises NoCluster, and what
    ``Gateway.run`` raises."""
    loop = asyncio.get_running_loop()
    kubeconfig = environ.get("KUBECONFIG")
    access = None
    if kubeconfig:
        path = Path(kubeconfig)
        access = plain(path) or await from_kubeconfig(path)
    access = access or in_cluster(environ, instead="set KUBECONFIG")
    cluster = Cluster(where, Api(access), clock=_now)
    gateway = Gateway(replace(options, name=where.node), cluster.source, make_backend, cluster)
    gateway.metrics.registry.register(ClusterMetrics(cluster))
    draining: list[asyncio.Task[None]] = []

    def drain(then: Callable[[], None] | None) -> None:
        async def work() -> None:
            await cluster.drain()
            if then is not None:
                then()

        draining.append(loop.create_task(work()))

    loop.add_signal_handler(signal.SIGTERM, drain, gateway.stop)
    loop.add_signal_handler(signal.SIGUSR1, drain, None)
    loop.add_signal_handler(signal.SIGINT, lambda: gateway.stop(goodbye=True))
    loop.add_signal_handler(signal.SIGHUP, gateway.refresh)
    try:
        await cluster.open()
    except OSError as exc:
        raise PortConflict(
            f"cannot serve the mesh on TCP port {where.mesh_port} of {', '.join(where.addresses)}"
            f" ({exc.strerror}): free it"
        ) from exc
    for task in cluster.tasks:
        task.add_done_callback(lambda done: _ended(done, gateway))
    if where.memory is not None and where.memory.is_dir():
        (where.memory / _PID).write_text(str(os.getpid()))
    try:
        await gateway.run()
    finally:
        for each in draining:
            each.cancel()
        await asyncio.gather(*draining, return_exceptions=True)
        await cluster.close()


def _ended(task: asyncio.Task[None], gateway: Gateway) -> None:
    """None of them ends by itself, so something is broken."""
    if not task.cancelled() and (exc := task.exception()) is not None:
        gateway.fail(exc)


def drain_running(memory: Path) -> str:
    """Have the gateway that keeps its memory there hand everything over, and wait for it. Returns
    what went wrong, or an empty text."""
    try:
        pid = int((memory / _PID).read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return "no gateway of a cluster is running here: nothing to hand over"
    if b"gateway" not in command:
        return f"process {pid} is no gateway (any more): nothing to hand over"
    try:
        os.kill(pid, signal.SIGUSR1)
    except OSError as exc:
        return f"the gateway, process {pid}, cannot be told ({exc.strerror}): run it as root"
    deadline = time.monotonic() + DRAIN + 1.5
    while time.monotonic() < deadline:
        try:
            if json.loads((memory / "held.json").read_bytes()).get("drained"):
                return ""
        except (OSError, ValueError):
            # It is being replaced, or the gateway has ended and taken everything with it.
            if not Path(f"/proc/{pid}").exists():
                return ""
        time.sleep(0.05)
    return f"the gateway, process {pid}, has not handed everything over in time"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
