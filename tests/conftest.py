"""Tiers: which tests can run on this machine, and what happens to those that cannot.

A test folder belongs to tiers, each tier is a marker with a probe. Where a probe finds something
missing, the tests are skipped with that one line. ``.ci/run`` sets KUBE_IPSEC_REQUIRE_TIERS=1:
there a tier that cannot run is a failure, so that nothing goes green by not being run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from ipsec_lab import strongswan, userns
from ipsec_lab.netns import missing_programs

#: Markers of every test in a folder under tests/.
FOLDER_MARKERS: Final = {
    "netns": ("root",),
    "interop": ("root", "strongswan"),
}


def _missing_root() -> str | None:
    if not userns.has_network_rights():
        return "needs root: network namespaces, TUN, nftables"
    if lacking := missing_programs("ip", "nft", "nsenter", "unshare", "setpriv", "sysctl", "ping"):
        return (
            f"programs missing ({', '.join(lacking)}): apt-get install --no-install-recommends "
            "iproute2 nftables util-linux procps iputils-ping"
        )
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing: modprobe tun"
    return None


PROBES: Final[dict[str, Callable[[], str | None]]] = {
    "root": cache(_missing_root),
    "strongswan": cache(strongswan.missing),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            folder = item.path.relative_to(here).parts[0]
            for marker in FOLDER_MARKERS.get(folder, ()):
                item.add_marker(marker)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, probe in PROBES.items():
        if item.get_closest_marker(marker) is None:
            continue
        if (reason := probe()) is not None:
            if os.environ.get("KUBE_IPSEC_REQUIRE_TIERS") == "1":
                pytest.fail(f"tier {marker} must run here, but: {reason}", pytrace=False)
            pytest.skip(f"tier {marker}: {reason}")
