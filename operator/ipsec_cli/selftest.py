"""``kube-ipsec --self-test``: whether this installation can do its work, before it has to.

Every subcommand is imported, and every package asked that has checks of its own (entry points in
``kube_ipsec.selftests``, named after the part that needs them). Of a part that is not to run on
this machine, what is missing is only a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Final, Literal

import click

Part = Literal["operator", "gateway", "all"]
PARTS: Final = ("operator", "gateway", "all")

#: Entry points: functions that give (what was tried, ok | bad | note, what was found).
GROUP: Final = "kube_ipsec.selftests"
_COMMANDS: Final = "kube_ipsec.commands"
#: Checks of others than these are about what gateways alone need.
_COMMON: Final = "engine"

Check = tuple[str, str, str]


def run(part: Part) -> int:
    """Print a line for each check; 1 if this part cannot work."""
    failed = False
    for name, verdict, text in _checks(part):
        failed |= verdict == "bad"
        click.echo(f"{verdict:4}  {name}{': ' if text else ''}{text}")
    return int(failed)


def _checks(part: Part) -> Iterator[Check]:
    for entry in _sorted(metadata.entry_points(group=_COMMANDS)):
        yield _loaded(entry)
    for entry in _sorted(metadata.entry_points(group=GROUP)):
        needed = entry.name == _COMMON or part == "gateway"
        try:
            checks: Callable[[], Iterable[Check]] = entry.load()
        except ImportError as exc:
            yield entry.name, "bad", f"cannot be loaded ({exc}): reinstall kube-ipsec"
            continue
        for name, verdict, text in checks():
            if verdict == "bad" and not needed:
                verdict, text = "note", f"{text} (gateways need it)"
            yield name, verdict, text


def _sorted(entries: metadata.EntryPoints) -> list[metadata.EntryPoint]:
    return sorted(entries, key=lambda entry: entry.name)


def _loaded(entry: metadata.EntryPoint) -> Check:
    name = f"kube-ipsec {entry.name}"
    try:
        entry.load()
    except (ImportError, AttributeError) as exc:
        return name, "bad", f"cannot be loaded ({exc}): reinstall kube-ipsec"
    return name, "ok", ""
