"""Order of the tiers, and what happens where one cannot run.

Tests marked ``root`` or ``strongswan`` use network namespaces, real sockets and daemons. They come
last and stay on one xdist worker, so that they neither meet each other nor share the processors
with the rest.

Where such a tier cannot run its tests are skipped, with the reason in one line. With
``KUBE_IPSEC_REQUIRE_TIERS=1`` (``.ci/run``) a skip in them is a failure.
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

TIERS = {"root", "strongswan"}
REQUIRE = os.environ.get("KUBE_IPSEC_REQUIRE_TIERS") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(here).parts[0]
        if folder in ("netns", "interop"):
            item.add_marker("root")
        if folder == "interop":
            item.add_marker("strongswan")
        if _tiers(item):
            item.add_marker(pytest.mark.xdist_group("network"))
    items.sort(key=lambda item: bool(_tiers(item)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for tier in sorted(_tiers(item)):
        if reason := _missing(tier):
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRE and report.skipped and not hasattr(report, "wasxfail") and _tiers(item):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"this tier has to run here (KUBE_IPSEC_REQUIRE_TIERS=1): {reason}"
    return report


def _tiers(item: pytest.Item) -> set[str]:
    return {mark.name for mark in item.iter_markers()} & TIERS


@functools.cache
def _missing(tier: str) -> str | None:
    """Why this tier cannot run here, or None."""
    if tier == "root":
        probe = ["unshare", "--net", "sh", "-c", "ip tuntap add probe mode tun && nft list tables"]
        if os.geteuid() != 0:
            return "needs root: network namespaces, TUN, nftables"
        for program in ("ip", "nft", "unshare"):
            if shutil.which(program) is None:
                return f"needs the program {program}"
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        return f"no network namespaces here: {done.stderr.strip()}" if done.returncode else None
    if shutil.which("swanctl") is None or not Path("/usr/lib/ipsec/charon").exists():
        return "needs strongSwan: charon and swanctl"
    plugin = Path("/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so")
    return None if plugin.exists() else "needs strongSwan's plugin kernel-libipsec"
