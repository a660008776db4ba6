"""What a gateway knows of the cluster, for its next life: on tmpfs, because keys are in it.

``tunnels.json``  tunnels and other gateways as last seen, for a start without the API server
``held.json``     the peers that we hold, each second: a life that follows within the patience of
                  the others goes on with them, and nobody else takes them

What is damaged, or not for us alone (``privatefiles``), is as if it were not there.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ipsec_gateway import privatefiles
from ipsec_gateway.cluster.membership import PATIENCE, LeaseFacts

log = logging.getLogger("ipsec_gateway")


@dataclass(frozen=True, slots=True)
class Remembered:
    """Of an earlier life. ``held`` is empty if that is too long ago to go on with it."""

    tunnels: Mapping[str, bytes] = field(default_factory=dict)
    gateways: Mapping[str, LeaseFacts] = field(default_factory=dict)
    held: frozenset[str] = frozenset()


class Memory:
    """``directory`` None: nothing is kept."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._told = False
        if directory is None:
            return
        try:
            privatefiles.prepare(directory)
        except OSError as exc:
            log.warning("nothing is kept for a start without the cluster: %s", exc)
            self._directory = None

    def read(self) -> Remembered:
        """What the earlier life left. Raises OSError where it cannot be read now."""
        known, held = self._load("tunnels.json"), self._load("held.json")
        try:
            tunnels = {str(k): str(v).encode() for k, v in known.get("tunnels", {}).items()}
            gateways = {
                str(node): LeaseFacts(
                    renewed=str(facts["renewed"]),
                    addresses=tuple(map(str, facts["addresses"])),
                    group=str(facts["group"]),
                    labels={str(k): str(v) for k, v in facts["labels"].items()},
                )
                for node, facts in known.get("gateways", {}).items()
            }
            warm = held.get("boot") == self._boot and 0 <= _uptime() - float(held["at"]) < PATIENCE
            peers = frozenset(map(str, held["held"])) if warm else frozenset()
        except (KeyError, TypeError, ValueError, AttributeError):
            log.warning("what an earlier gateway knew of the cluster is damaged, and is not used")
            return Remembered()
        return Remembered(tunnels, gateways, peers)

    def keep(self, tunnels: Mapping[str, bytes], gateways: Mapping[str, LeaseFacts]) -> None:
        """Tunnels and gateways as they are now."""
        self._store(
            "tunnels.json",
            {
                "tunnels": {name: text.decode() for name, text in tunnels.items()},
                "gateways": {node: asdict(facts) for node, facts in gateways.items()},
            },
        )

    def alive(self, held: Iterable[str], *, drained: bool = False) -> None:
        """We live, and hold these; ``drained``: all that others can take is handed over."""
        said = {"boot": self._boot, "at": _uptime(), "held": sorted(held), "drained": drained}
        self._store("held.json", said)

    def forget(self) -> None:
        """Nobody is to go on with it, and nothing is kept any more."""
        if self._directory is not None:
            for name in ("tunnels.json", "held.json", "pid"):
                (self._directory / name).unlink(missing_ok=True)
            # Somebody else's files may be in there.
            with contextlib.suppress(OSError):
                self._directory.rmdir()
            self._directory = None

    def _load(self, name: str) -> dict[str, Any]:
        return {} if self._directory is None else privatefiles.read_object(self._directory / name)

    def _store(self, name: str, document: Mapping[str, Any]) -> None:
        if self._directory is None:
            return
        try:
            privatefiles.write_object(self._directory / name, document)
            self._told = False
        except OSError as exc:
            if not self._told:
                log.warning("%s cannot be kept: %s", self._directory / name, exc)
                self._told = True


def _uptime() -> float:
    """Seconds since the boot, those asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
