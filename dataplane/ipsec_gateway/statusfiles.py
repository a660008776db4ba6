"""Statuses as files: ``STATE/status/<kind>/<namespace>/<name>.yaml``, in the form of kubectl.

A file is replaced whole, and only when something in it has changed. The folder is for root alone:
there are no secrets in a status, but addresses and names of others' networks.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from ipsec_api.conditions import Condition
from ipsec_api.documents import loader
from ipsec_api.kinds import API_VERSION, KINDS
from ipsec_gateway.lastgood import Key

_KINDS: Final = {kind.name.lower(): kind.name for kind in KINDS}


class FileStatusSink:
    """Writes below ``state``. Raises OSError where it cannot."""

    def __init__(self, state: Path) -> None:
        self._root: Final = state / "status"

    def open(self) -> dict[Key, tuple[Condition, ...]]:
        """Make the folder and give back what conditions an earlier run has left."""
        self._root.parent.mkdir(parents=True, exist_ok=True)
        self._root.mkdir(mode=0o700, exist_ok=True)
        self._root.chmod(0o700)
        found: dict[Key, tuple[Condition, ...]] = {}
        for path in self._root.glob("*/*/*.yaml"):
            kind = _KINDS.get(path.parent.parent.name)
            if kind is not None:
                found[Key(kind, path.parent.name, path.stem)] = _conditions(path)
        return found

    def write(self, changes: Mapping[Key, dict[str, Any] | None]) -> None:
        """Write or delete the files of these objects."""
        for key, status in changes.items():
            path = self._root / key.kind.lower() / key.namespace / f"{key.name}.yaml"
            if status is None:
                path.unlink(missing_ok=True)
                # Somebody else's status may still be in there.
                with contextlib.suppress(OSError):
                    path.parent.rmdir()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{path.name}.new")
            fresh.write_text(document(key, status))
            fresh.replace(path)

    def drop(self, keep: set[Key]) -> None:
        """Delete the files of all other objects: those that went away while nobody looked."""
        stale = [key for key in self._files() if key not in keep]
        self.write(dict.fromkeys(stale))

    def _files(self) -> Iterator[Key]:
        for path in self._root.glob("*/*/*.yaml"):
            kind = _KINDS.get(path.parent.parent.name)
            if kind is not None:
                yield Key(kind, path.parent.name, path.stem)


def document(key: Key, status: dict[str, Any]) -> str:
    """The object with its status, as YAML."""
    metadata = {"name": key.name, "namespace": key.namespace}
    whole = {
        "apiVersion": API_VERSION,
        "kind": key.kind,
        "metadata": metadata,
        "status": status,
    }
    return "".join(_lines(whole, 0))


def _lines(value: dict[str, Any], depth: int) -> Iterator[str]:
    """YAML of nested maps, lists and scalars. PyYAML takes a millisecond for one status, too long
    while thousands of tunnels come up; text in quotes as JSON has it is YAML too."""
    pad = "  " * depth
    for key, each in value.items():
        if isinstance(each, dict) and each:
            yield f"{pad}{key}:\n"
            yield from _lines(each, depth + 1)
        elif isinstance(each, list) and each:
            yield f"{pad}{key}:\n"
            for item in each:
                if isinstance(item, dict) and item:
                    first, *rest = _lines(item, depth + 1)
                    yield f"{pad}- {first.lstrip()}"
                    yield from rest
                else:
                    yield f"{pad}- {_scalar(item)}\n"
        else:
            yield f"{pad}{key}: {_scalar(each)}\n"


def _scalar(value: object) -> str:
    if isinstance(value, str) and value.isalpha() and value.isascii() and value not in _WORDS:
        return value
    return json.dumps(value)


#: Words that YAML takes for something else than text.
_WORDS: Final = frozenset(
    word
    for base in ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    for word in (base, base.capitalize(), base.upper())
)


def _conditions(path: Path) -> tuple[Condition, ...]:
    """Conditions of a status file; a file that cannot be read as one has none."""
    try:
        text = path.read_text()
        entries = yaml.load(text, Loader=loader(text))["status"]["conditions"]  # noqa: S506  # safe
        return tuple(Condition.model_validate(entry) for entry in entries)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, ValidationError):
        # It is ours to overwrite: only the time of the last change is lost.
        return ()
