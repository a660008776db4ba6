"""``kube-ipsec``: the one command; its subcommands are entry points of other packages.

A subcommand is imported only when it is called or asked for help, so that ``kube-ipsec --version``
needs neither the gateway nor the operator. Errors are one line on standard error and an exit code.
"""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Final

import click

from ipsec_cli import selftest

#: Entry points in this group are ``click.Command`` objects, by the name of the subcommand.
GROUP: Final = "kube_ipsec.commands"


class _Commands(click.Group):
    """Finds its commands among the installed entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(entry.name for entry in metadata.entry_points(group=GROUP))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for entry in metadata.entry_points(group=GROUP, name=cmd_name):
            try:
                found = entry.load()
            except ImportError as exc:
                raise click.ClickException(
                    f"{cmd_name} cannot be loaded ({exc}): reinstall kube-ipsec"
                ) from exc
            assert isinstance(found, click.Command)
            return found
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names alone: descriptions would import every command."""
        with formatter.section("Commands"):
            formatter.write_text(", ".join(self.list_commands(ctx)))


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kube-ipsec", prog_name="kube-ipsec")
@click.option(
    "--self-test",
    "part",
    type=click.Choice(selftest.PARTS),
    is_flag=False,
    flag_value="all",
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, part: ctx.exit(selftest.run(part)) if part else None,
    help="Try what this installation needs, and end; with the name of a part what that one needs.",
)
def cli() -> None:
    """IPsec tunnels as Kubernetes resources."""


def main() -> None:
    """The console script."""
    try:
        ended = cli.main(prog_name="kube-ipsec", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError:
        _end("kube-ipsec: name a command (see kube-ipsec --help)", 2)
    except click.UsageError as exc:
        where = exc.ctx.command_path if exc.ctx else "kube-ipsec"
        _end(f"{where}: {exc.format_message()} (see {where} --help)", exc.exit_code)
    except click.ClickException as exc:
        _end(f"kube-ipsec: {exc.format_message()}", exc.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    # Outside its own standalone mode click returns the code of an Exit instead of raising it.
    sys.exit(ended if isinstance(ended, int) else 0)


def _end(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)
