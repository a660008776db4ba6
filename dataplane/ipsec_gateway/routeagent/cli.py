"""``kube-ipsec route-agent``: options, exit codes, signals.

====  ========================================================================================
exit  when
====  ========================================================================================
0     stopped (SIGTERM, SIGINT): routes stay; with ``--cleanup``: everything was taken away
1     something broke while it ran: the log says what, a supervisor starts it again
2     wrong usage of the command line
3     this machine lacks something: a program, a right, the mesh key, a way to the API server
4     another process has the address of ``--listen``
====  ========================================================================================
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import sys
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final, get_args

import click

from ipsec_api.cluster import (
    DEFAULT_NAMESPACE,
    MESH_KEY_PATH,
    MESH_PORT,
    NODE_IP_ENV,
    NODE_NAME_ENV,
    POD_NAMESPACE_ENV,
)
from ipsec_gateway import logs
from ipsec_gateway.classify import Address
from ipsec_gateway.cluster.api import Api, NoCluster, in_cluster
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
from ipsec_gateway.routeagent.agent import Agent, Options
from ipsec_gateway.routeagent.leases import parse_addresses
from ipsec_gateway.routeagent.plan import Settings, Transport
from ipsec_gateway.tools import ToolError

log = logging.getLogger("ipsec_gateway")

#: Not ours to use as a table: default, main, local, unspec; and rules after main come too late.
_TABLES: Final = click.IntRange(2, 32765)
_RESERVED: Final = frozenset((253, 254, 255))


class _Addresses(click.ParamType[tuple[Address, ...]]):
    name = "addr[,addr]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Address, ...]:
        if isinstance(value, tuple):
            return value
        found = parse_addresses(str(value))
        if len(found) != len(str(value).split(",")):
            self.fail(f"{value!r} is not a list of IP addresses with commas", param, ctx)
        return found


class _Gateway(click.ParamType[tuple[str, tuple[Address, ...]]]):
    name = "node=addr[,addr]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[Address, ...]]:
        node, _, text = str(value).partition("=")
        found = parse_addresses(text)
        if not node or not found or len(found) != len(text.split(",")):
            self.fail(f"{value!r} is not NODE=ADDR, such as node-1=192.0.2.1", param, ctx)
        return node, found


@click.command("route-agent")
@click.option("--node-name", envvar=NODE_NAME_ENV, help=f"This node.  [env: {NODE_NAME_ENV}]")
@click.option(
    "--node-ip",
    type=_Addresses(),
    envvar=[f"{NODE_IP_ENV}S", NODE_IP_ENV],
    help="Addresses of this node, the one that carries VXLAN first; without, those of its"
    f" interfaces.  [env: {NODE_IP_ENV}S, {NODE_IP_ENV}]",
)
@click.option(
    "--namespace",
    envvar=POD_NAMESPACE_ENV,
    default=DEFAULT_NAMESPACE,
    show_default=True,
    help=f"Where the Leases of gateways are.  [env: {POD_NAMESPACE_ENV}]",
)
@click.option(
    "--gateway",
    "gateways",
    type=_Gateway(),
    multiple=True,
    help="A gateway and its node addresses; with any of these no API server is asked.",
)
@click.option(
    "--mesh-key",
    type=click.Path(path_type=Path),
    default=MESH_KEY_PATH,
    show_default=True,
    help="File with the mesh key.",
)
@click.option(
    "--mesh-port",
    type=click.IntRange(1, 65535),
    default=MESH_PORT,
    show_default=True,
    help="TCP port of gateways' streams.",
)
@click.option(
    "--transport",
    type=click.Choice(get_args(Transport)),
    default="auto",
    show_default=True,
    help="auto: directly where the gateway is a neighbour on the same link, else VXLAN; vxlan:"
    " always, for networks that look at addresses (clouds).",
)
@click.option("--vni", type=click.IntRange(1, 0xFFFFFF), default=Settings().vni, show_default=True)
@click.option(
    "--vxlan-port",
    type=click.IntRange(1, 65535),
    default=Settings().port,
    show_default=True,
    help="UDP port of VXLAN.",
)
@click.option(
    "--table",
    type=_TABLES,
    default=Settings().table,
    show_default=True,
    help="Number of the routing table, and priority of the rule that leads to it.",
)
@click.option(
    "--mark-bits",
    type=BitMask(),
    default=f"{Settings().mask:#x}",
    show_default=True,
    help="Mark bits of the gateway: packets that carry one are not routed by the agent.",
)
@click.option(
    "--exclude",
    type=NetworkType(),
    multiple=True,
    help="Network of the cluster (pods, services, nodes) that no remote subnet covers. Repeatable.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default="/run/kube-ipsec",
    show_default=True,
    help="Folder for what the next agent on this node goes on with.",
)
@listen_option("127.0.0.1:9502")
@log_options
@click.option("--cleanup", is_flag=True, help="Take away what agents left on this node, and end.")
def route_agent(
    node_name: str | None,
    node_ip: tuple[Address, ...] | None,
    namespace: str,
    gateways: tuple[tuple[str, tuple[Address, ...]], ...],
    mesh_key: Path,
    mesh_port: int,
    transport: Transport,
    vni: int,
    vxlan_port: int,
    table: int,
    mark_bits: int,
    exclude: tuple[IPv4Network | IPv6Network, ...],
    state: Path,
    listen: tuple[str, int],
    log_format: logs.Format,
    log_level: str,
    cleanup: bool,
) -> None:
    """Route remote subnets from this node to the gateway that carries them.

    Runs on every node. SIGTERM and SIGINT end it and leave the routes, so that traffic goes on.
    """
    if table in _RESERVED:
        raise click.UsageError(f"--table {table} is the kernel's: take another one, such as 4502")
    if not cleanup and not node_name:
        raise click.UsageError(f"Missing option '--node-name' (or {NODE_NAME_ENV}).")
    logs.setup(log_format, log_level)
    if problem := _lacking(None if cleanup else mesh_key):
        end("route-agent", problem, LACKING)
    api: Api | None = None
    if not gateways and not cleanup:
        try:
            api = Api(in_cluster(os.environ, instead="name gateways with --gateway"))
        except NoCluster as exc:
            end("route-agent", str(exc), LACKING)
    settings = Settings(
        table=table,
        mask=mark_bits,
        vni=vni,
        port=vxlan_port,
        transport=transport,
        exclude=exclude,
    )
    options = Options(
        name=node_name or "",
        settings=settings,
        key=mesh_key,
        state=state,
        mesh_port=mesh_port,
        addresses=node_ip or (),
        listen=listen,
        api=api,
        namespace=namespace,
        gateways=dict(gateways) if gateways else None,
    )
    try:
        asyncio.run(_clean(options) if cleanup else _run(options))
    except ToolError as exc:
        end("route-agent", str(exc), LACKING)
    except PermissionError as exc:
        end("route-agent", f"{exc}: run it as root, or with CAP_NET_ADMIN", LACKING)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            end("route-agent", f"{exc}: choose another address with --listen", CONFLICT)
        log.critical("ended by %s", exc, exc_info=exc)
        sys.exit(1)


async def _run(options: Options) -> None:
    loop = asyncio.get_running_loop()
    agent = Agent(options)
    loop.add_signal_handler(signal.SIGTERM, agent.stop)
    loop.add_signal_handler(signal.SIGINT, agent.stop)
    await agent.run()


async def _clean(options: Options) -> None:
    await Agent(options).clean()


def _lacking(key: Path | None) -> str | None:
    """What is missing on this machine, with the remedy."""
    if problem := missing_program(("ip", "bridge", "nft")):
        return problem
    if key is not None and not os.access(key, os.R_OK):
        return f"{key} cannot be read: mount the Secret with the mesh key there, or set --mesh-key"
    return None
