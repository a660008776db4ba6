"""What the commands of this package have in common: options, exit codes, how they end."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final, NoReturn, TypeVar, get_args

import click

from ipsec_gateway import logs

F = TypeVar("F", bound=Callable[..., Any])

#: Exit codes: something is missing on this machine; somebody else has our ports.
LACKING: Final = 3
CONFLICT: Final = 4

#: Debian packages by program.
_PACKAGES: Final = {"ip": "iproute2", "bridge": "iproute2", "nft": "nftables"}


class ListenAddress(click.ParamType[tuple[str, int]]):
    """ADDR:PORT, with an IPv6 address in brackets; :PORT is all addresses."""

    name = "addr:port"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, colon, port = str(value).rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65535:
            self.fail(f"{value!r} is not ADDR:PORT, such as 127.0.0.1:9500 or :9500", param, ctx)
        return host.removeprefix("[").removesuffix("]"), int(port)


class NetworkType(click.ParamType[IPv4Network | IPv6Network]):
    """A network in CIDR notation."""

    name = "cidr"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> IPv4Network | IPv6Network:
        try:
            return ip_network(str(value))
        except ValueError as exc:
            self.fail(f"{exc}; write it such as 10.96.0.0/12", param, ctx)


class BitMask(click.ParamType[int]):
    """A number of 32 bits, decimal or with 0x."""

    name = "mask"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            mask = value if isinstance(value, int) else int(str(value), 0)
        except ValueError:
            mask = 0
        if not 0 < mask <= 0xFFFFFFFF:
            self.fail(f"{value!r} is not a mask of 32 bits, such as 0x70", param, ctx)
        return mask


def listen_option(default: str) -> Callable[[F], F]:
    """``--listen``."""
    return click.option(
        "--listen",
        type=ListenAddress(),
        default=default,
        show_default=True,
        help="Address of /healthz, /readyz, /metrics and /status.",
    )


def log_options(command: F) -> F:
    """``--log-format`` and ``--log-level``."""
    level = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
    )
    form = click.option(
        "--log-format", type=click.Choice(get_args(logs.Format)), default="text", show_default=True
    )
    return form(level(command))


def missing_program(programs: Iterable[str]) -> str | None:
    """The first of these programs that is not installed, with the remedy."""
    for program in programs:
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install {_PACKAGES[program]}"
    return None


def end(command: str, message: str, code: int) -> NoReturn:
    """One line, and the exit code."""
    click.echo(f"kube-ipsec {command}: {message}", err=True)
    sys.exit(code)
