"""What a gateway has put into its namespace, to see that it takes all of it away again."""

from __future__ import annotations

import re
from typing import Final

from ipsec_lab.netns import Namespace

# Counters and lifetimes change by themselves.
_VOLATILE: Final = re.compile(r" (expires|cache|hoplimit|error) \S+| packets \d+ bytes \d+")


def footprint(namespace: Namespace) -> frozenset[str]:
    """Devices, addresses, routes of all tables, rules and nftables tables: one line each."""
    found = set()
    for kind, argv in (
        ("link", ("ip", "-o", "link", "show")),
        ("address", ("ip", "-o", "address", "show")),
        ("rule", ("ip", "-4", "rule", "show")),
        ("rule6", ("ip", "-6", "rule", "show")),
        ("route", ("ip", "-4", "route", "show", "table", "all")),
        ("route6", ("ip", "-6", "route", "show", "table", "all")),
        ("nft", ("nft", "list", "tables")),
    ):
        for line in namespace.run(*argv).splitlines():
            text = _VOLATILE.sub("", line)
            if kind == "link":
                text = text.split("<")[0]
            # ip looks at every name in /run/netns to name a peer's namespace, and complains of one
            # that another lab is just taking away.
            if line.strip() and not line.startswith("Error: Peer netns"):
                found.add(f"{kind}: {' '.join(text.split())}")
    return frozenset(found)


def left_behind(namespace: Namespace, before: frozenset[str]) -> list[str]:
    """What is there now and was not in ``before``."""
    return sorted(footprint(namespace) - before)
