"""What an agent leaves to the next one on its node: who carried what, and what is to be put back.

Names, addresses and kernel variables, nothing secret; gone with the next boot, as its routes are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ipsec_gateway import netns
from ipsec_gateway.intent import Address
from ipsec_gateway.routeagent.leases import parse_addresses


class Memory:
    """One file per network namespace in ``folder``. Nothing here raises for a file that is absent
    or not ours to understand; ``keep`` raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._file: Final = folder / f"route-agent-{netns.identity()}.json"
        self._text = ""

    def recall(self) -> dict[str, Any]:
        """What was kept, or nothing."""
        try:
            kept = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def keep(self, document: Mapping[str, Any]) -> None:
        """Write it down if it differs from what was kept last."""
        text = json.dumps(document, sort_keys=True)
        if text == self._text:
            return
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = self._file.with_suffix(".new")
        scratch.write_text(text)
        scratch.chmod(0o600)
        scratch.replace(self._file)
        self._text = text

    def forget(self) -> None:
        """Nothing is left to anybody."""
        self._file.unlink(missing_ok=True)
        self._text = ""


def gateways_of(document: Mapping[str, Any]) -> dict[str, tuple[Address, ...]]:
    """The gateways that were known."""
    kept = document.get("gateways")
    if not isinstance(kept, Mapping):
        return {}
    return {str(name): parse_addresses(str(each)) for name, each in kept.items()}


def checks_of(document: Mapping[str, Any]) -> dict[str, int]:
    """``rp_filter`` by interface as it was before us."""
    kept = document.get("rp_filter")
    if not isinstance(kept, Mapping):
        return {}
    return {str(k): v for k, v in kept.items() if isinstance(v, int)}
