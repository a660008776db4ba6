"""``kube-ipsec operator``: options, exit codes, signals.

====  ========================================================================================
exit  when
====  ========================================================================================
0     stopped in good order (SIGTERM, SIGINT)
1     something broke while it ran, or the Lease was lost: the log says what; start it again
2     wrong usage of the command line, or settings that cannot be used
3     there is no cluster: neither a service account nor a kubeconfig
====  ========================================================================================
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

import click
from aiohttp import web

from ipsec_api.cluster import POD_NAMESPACE_ENV
from ipsec_operator import logs, settings
from ipsec_operator.api import Api, NoCluster, configuration
from ipsec_operator.health import application
from ipsec_operator.leader import Leadership, LostLease
from ipsec_operator.runtime import Operator, precisely

log = logging.getLogger("ipsec_operator")

DEFAULT: Final = Path("/etc/kube-ipsec/operator.yaml")
_USAGE, _NO_CLUSTER = 2, 3


@click.command()
@click.option(
    "--settings",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT,
    show_default=True,
    help="YAML file with the settings; the chart makes it from its values.",
)
@click.option("--check", is_flag=True, help="Read the settings, and end.")
def operator(file: Path, check: bool) -> None:
    """Compile the cluster's IPsecPeers, IPsecPolicies and ModeConfigs for the gateways.

    Cluster: the pod's service account, or else KUBECONFIG. POD_NAMESPACE overrides the namespace in
    the settings, POD_NAME names this replica in the Lease.
    """
    try:
        chosen = settings.load(file)
    except settings.SettingsError as exc:
        _end(str(exc), _USAGE)
    if namespace := os.environ.get(POD_NAMESPACE_ENV):
        chosen = chosen.model_copy(update={"namespace": namespace})
    if check:
        click.echo(f"{file}: good")
        return
    logs.setup(chosen.log_format, chosen.log_level)
    # What is loaded stays, and so do thousands of resources: look for garbage more rarely than
    # Python does by itself.
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)
    try:
        asyncio.run(_run(chosen))
    except NoCluster as exc:
        _end(str(exc), _NO_CLUSTER)
    except LostLease as exc:
        log.error("%s: another replica goes on", exc)
        sys.exit(1)
    except Exception as exc:  # whatever it is, a supervisor starts it anew
        log.critical("ended by %s: %s", type(exc).__name__, exc, exc_info=exc)
        sys.exit(1)


async def _run(chosen: settings.Settings) -> None:
    config = await configuration()
    identity = os.environ.get("POD_NAME") or socket.gethostname()
    async with Api(config) as api:
        it = Operator(chosen, api, identity, time.monotonic)
        leadership = None
        if chosen.leader_election:
            leadership = Leadership(api, chosen.namespace, identity, time.monotonic, precisely)
        runner = web.AppRunner(application(it, leadership), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, None, chosen.port).start()
            work = it.run() if leadership is None else leadership.run(it.run)
            await _until_signal(asyncio.ensure_future(work), it.kopf_runs)
        finally:
            await runner.cleanup()


async def _until_signal(work: asyncio.Future[None], kopf_runs: asyncio.Event) -> None:
    asked = asyncio.Event()

    def listen() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, asked.set)

    async def listen_again() -> None:
        # kopf, once it runs, would stop itself first and then wait for tasks that are not its own.
        await kopf_runs.wait()
        listen()

    listen()
    again = asyncio.ensure_future(listen_again())
    waiter: asyncio.Future[Any] = asyncio.ensure_future(asked.wait())
    await asyncio.wait({work, waiter}, return_when=asyncio.FIRST_COMPLETED)
    for task in (waiter, again):
        task.cancel()
    if not work.done():
        work.cancel()
        await asyncio.wait({work})
    if not work.cancelled():
        work.result()


def _end(message: str, code: int) -> None:
    click.echo(f"kube-ipsec operator: {message}", err=True)
    sys.exit(code)
