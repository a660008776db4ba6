"""What an agent leaves to the next one on its node: who carried what, and what is to be put back.

Names, addresses and kernel variables, nothing secret; gone with the next boot, as its routes are.
One file (``privatefiles``) per network namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipsec_gateway import netns
from ipsec_gateway.classify import Address
from ipsec_gateway.routeagent.leases import parse_addresses


def file_in(folder: Path) -> Path:
    """The file of the network namespace that the caller is in."""
    return folder / f"route-agent-{netns.identity()}.json"


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
