"""Order of the tiers, and what happens where one cannot run.

Tests marked ``root`` or ``strongswan`` use network namespaces, real sockets and daemons. They come
last and stay on one xdist worker, so that they do not share the processors with the rest. Those of
the kernel tier take longest, so workers begin with them: two if there are as many, each with half
of the tests in a virtual machine of its own. Without workers one machine has them all.

Where such a tier cannot run its tests are skipped, with the reason in one line. With
``KUBE_IPSEC_REQUIRE_TIERS=1`` (``.ci/run``) a skip in them is a failure, so that nothing goes green
by not being run. The exception is ``kube``: it needs somebody's cluster, named by KUBECONFIG.
"""

import functools
import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from ipsec_lab import guest, strongswan, userns
from ipsec_lab.guest_inside import inside
from ipsec_lab.netns import Namespace, missing_programs

# Times are for `make bench`: on a busy machine a good example may take long.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

REQUIRE = os.environ.get("KUBE_IPSEC_REQUIRE_TIERS") == "1"

#: What every test in a folder under tests/ needs.
FOLDERS = {
    "netns": ("root",),
    "interop": ("root", "strongswan"),
    "kernel": ("kernel",),
    "kube": ("kube",),
}

#: Files of the kernel tier that come to half of its time.
FIRST_HALF = frozenset({"test_bench.py", "test_gateway.py", "test_resume.py"})


@functools.cache
def _missing_root() -> str | None:
    if not userns.has_network_rights():
        return "needs root: network namespaces, TUN, nftables"
    if lacking := missing_programs("ip", "nft", "nsenter", "unshare", "setpriv", "sysctl", "ping"):
        return (
            f"programs missing ({', '.join(lacking)}): apt-get install --no-install-recommends "
            "iproute2 nftables util-linux procps iputils-ping"
        )
    probe = ["unshare", "--net", "sh", "-c", "ip tuntap add probe mode tun && nft list tables"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"no network namespaces here: {done.stderr.strip()}" if done.returncode else None


#: Tier (marker) and what says why it cannot run here, or None.
TIERS: dict[str, Callable[[], str | None]] = {
    "kernel": functools.cache(lambda: None if inside() else guest.missing()),
    "root": _missing_root,
    "strongswan": functools.cache(strongswan.missing),
    "kube": lambda: None if "KUBECONFIG" in os.environ else "set KUBECONFIG to a cluster of yours",
}


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """A wrapper, since it has to come before xdist, which reads the groups in the same hook."""
    here = Path(__file__).parent
    for item in items:
        for marker in FOLDERS.get(item.path.relative_to(here).parts[0], ()):
            item.add_marker(marker)
        if tiers := _tiers(item):
            item.add_marker(pytest.mark.xdist_group(_group(item, tiers)))
    items.sort(key=_turn)
    return (yield)


def _group(item: pytest.Item, tiers: list[str]) -> str:
    if "kernel" in tiers:
        return "kernel" if item.path.name in FIRST_HALF else "kernel2"
    return "kube" if "kube" in tiers else "network"


def _turn(item: pytest.Item) -> int:
    tiers = _tiers(item)
    return 0 if "kernel" in tiers else 2 if tiers else 1


def lacking(item: pytest.Item) -> str | None:
    """Why a test cannot run here, or None."""
    for tier in _tiers(item):
        if reason := TIERS[tier]():
            return f"tier {tier}: {reason}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := lacking(item):
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    tiers = _tiers(item)
    required = REQUIRE and tiers and not ("kube" in tiers and TIERS["kube"]())
    if required and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"this tier has to run here (KUBE_IPSEC_REQUIRE_TIERS=1): {reason}"
    return report


def _tiers(item: pytest.Item) -> list[str]:
    """In the order of TIERS: the first that is missing is the one that is named."""
    marks = {mark.name for mark in item.iter_markers()}
    return [tier for tier in TIERS if tier in marks]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        MEASURED.extend(
            f"{report.nodeid.split('::')[-1]}: {text}"
            for name, text in report.user_properties
            if name == "measured"
        )


#: What tests found out and do not judge: ``record_property("measured", "2 of 500 pings lost")``.
MEASURED: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MEASURED:
        terminalreporter.section("measured")
        for line in MEASURED:
            terminalreporter.line(line)


@pytest.fixture(scope="module")
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Two ends of a wire, for back ends of XFRM."""
    from ipsec_lab import xfrm_rig  # a quarter of a second that few runs need

    with xfrm_rig.wired() as both:
        yield both


@pytest.fixture
def play(namespaces: tuple[Namespace, Namespace]) -> Callable[..., None]:
    """Runs a test with a back end at each end, and sees to it that they leave nothing behind."""
    from ipsec_lab import xfrm_rig  # see above

    return xfrm_rig.player(namespaces)
