"""The kernel tier: on the host, one boot runs all of a worker's tests; in the guest, they are run.

On the host the protocol of each test is replaced: the reports that the guest has made of it, with
its captured output, are passed on as if it had run here. A guest that ends or falls silent fails
the tests that have no report yet, with the end of its console as the reason.
"""

import os
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipsec_lab import guest_inside
from ipsec_lab.guard import Guard
from ipsec_lab.guest import Guest
from ipsec_lab.kernel_rig import KernelRig, SlowCharon, charons
from ipsec_lab.netns import LabError
from ipsec_lab.sniffer import Sniffer
from ipsec_lab.topology import Topology

ROOT = Path(__file__).parents[2]


class Remote:
    """Runs tests in a guest; booted when the first of them is due."""

    def __init__(self, nodes: list[str], options: list[str]) -> None:
        self._nodes = nodes
        self._options = options
        self._guest: Guest | None = None
        self._lines: Iterator[dict[str, Any]] = iter(())
        self._reports: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._finished: set[str] = set()
        self._problem: str | None = None

    def reports(self, node: str) -> tuple[list[dict[str, Any]], str | None]:
        """What the guest says about one test, and why that is not all."""
        if self._guest is None:
            self._guest = Guest()
            self._guest.start(
                "ipsec_lab.guest_inside:pytest_task",
                {"nodes": self._nodes, "options": self._options, "root": str(ROOT)},
            )
            self._lines = self._guest.lines()
        while node not in self._finished and self._problem is None:
            self._follow()
        reports = self._reports[node]
        if node not in self._finished:
            return reports, self._problem
        # A test has an outcome when its call was reported, or something before it did not pass.
        if any(r["when"] == "call" or r["outcome"] != "passed" for r in reports):
            return reports, None
        return reports, "the guest finished it and has not reported its outcome"

    def _follow(self) -> None:
        assert self._guest is not None
        try:
            line = next(self._lines)
        except StopIteration:
            self._problem = f"the guest has not run it; its console:\n{self._guest.tail()}"
        except LabError as exc:
            self._problem = str(exc)
        else:
            if "report" in line:
                self._reports[line["report"]["nodeid"]].append(line["report"])
            elif "finished" in line:
                self._finished.add(line["finished"])

    def close(self) -> None:
        if self._guest is not None:
            self._guest.close()


_REMOTES: pytest.StashKey[dict[str, Remote]] = pytest.StashKey()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not guest_inside.inside():
        for item in _of_the_kernel_tier(items):
            item.add_marker(pytest.mark.timeout(0))  # the guest's own pytest has timeouts


def _of_the_kernel_tier(items: list[pytest.Item]) -> list[pytest.Item]:
    return [item for item in items if _is_ours(item)]


def _is_ours(item: pytest.Item) -> bool:
    return item.path.is_relative_to(Path(__file__).parent)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if not _is_ours(item):  # pytest calls this hook of every conftest for every test
        return None
    if guest_inside.inside() or _lacking(item) is not None:
        return None  # as everywhere: it is run, or skipped with the reason
    config = item.config
    remotes = config.stash.setdefault(_REMOTES, {})
    if (group := _group_of(item)) not in remotes:
        nodes = [
            _node(each)
            for each in _of_the_kernel_tier(item.session.items)
            if _lacking(each) is None and _group_of(each) == group
        ]
        remotes[group] = Remote(nodes, ["-x"] if config.getoption("maxfail") else [])
        config.add_cleanup(remotes[group].close)
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    said, problem = remotes[group].reports(_node(item))
    for data in said:
        report = hook.pytest_report_from_serializable(config=config, data=data)
        report.nodeid = item.nodeid  # xdist adds the group to it
        hook.pytest_runtest_logreport(report=report)
    if problem is not None:
        hook.pytest_runtest_logreport(
            report=pytest.TestReport(
                item.nodeid,
                item.location,
                dict.fromkeys(item.keywords, 1),
                "failed",
                problem,
                "call",
            )
        )
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _group_of(item: pytest.Item) -> str:
    """Tests of one group come to one worker; without workers there is one group."""
    group = item.get_closest_marker("xdist_group")
    assert group is not None
    return str(group.args[0]) if "PYTEST_XDIST_WORKER" in os.environ else ""


def _node(item: pytest.Item) -> str:
    return item.nodeid.partition("@")[0]


def _lacking(item: pytest.Item) -> str | None:
    return _tiers_conftest(item).lacking(item)  # type: ignore[no-any-return]


def _tiers_conftest(item: pytest.Item) -> Any:
    """tests/conftest.py, which knows about tiers: it has no name that could be imported."""
    path = str(ROOT / "tests" / "conftest.py")
    for plugin in item.config.pluginmanager.get_plugins():
        if getattr(plugin, "__file__", None) == path:
            return plugin
    raise LookupError(path)


@pytest.fixture(scope="session")
def kernel_topology() -> Iterator[Topology]:
    with Topology() as topology:
        for site in ("a", "b"):
            # Such as an administrator has it where tunnels end: what comes out of an SA may be for
            # another interface than the one that it came in by.
            topology.gateway(site).sysctl({"ipv4.conf.all.rp_filter": 0})
            # All namespaces share one memory: the far gateway decrypts in place, in pages that the
            # sniffer holds too (docs/lab.md). Without scattered pages each copy has its own.
            topology.gateway(site).run("ethtool", "-K", "wan0", "sg", "off")
        yield topology


@pytest.fixture(scope="session")
def kernel_guard(kernel_topology: Topology) -> Guard:
    return Guard(kernel_topology)


@pytest.fixture(scope="session")
def kernel_charons(
    kernel_topology: Topology, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, SlowCharon]:
    return charons(kernel_topology, tmp_path_factory.mktemp("charons"))


@pytest.fixture
def rig(
    kernel_topology: Topology,
    kernel_guard: Guard,
    kernel_charons: dict[str, SlowCharon],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[KernelRig]:
    """Two sites behind the guard; no clear text may reach the WAN meanwhile.

    Tests of AH say ``@pytest.mark.parametrize("integrity_only", [True])``: their frames are
    readable, and the guard lets AH pass for them.
    """
    topology, guard = kernel_topology, kernel_guard
    readable = "integrity_only" in request.fixturenames
    if readable:
        guard.allow_ah()
    before = guard.counters()
    rig = KernelRig(topology, guard, tmp_path, kernel_charons)
    request.node.stash[_RIG] = rig
    with Sniffer(topology.wan) as sniffer:
        try:
            yield rig
        finally:
            rig.stop()
            guard.calm()
            _clean(topology)
    seen = sniffer.sighting()
    assert (guard.counters() - before).clear == 0, f"clear text reached the WAN: {seen.clear}"
    if not readable:
        assert seen.marked == 0, seen.first_marked


def _clean(topology: Topology) -> None:
    """What a killed gateway leaves for its next start to adopt: the next test is another one."""
    for namespace in (topology.gw_a, topology.gw_b):
        namespace.ip("xfrm state flush", "xfrm policy flush")
    topology.gw_a.run("sh", "-c", _CLEANING)


# Of our gateway. Each program that starts takes time in here: no more of them than needed.
_CLEANING = """
nft flush ruleset
for family in -4 -6; do
  ip $family route flush table all proto 79
  ip $family rule show | while read -r priority rest; do
    case "$rest" in
    *lookup\\ local* | *lookup\\ main* | *lookup\\ default* | *lookup\\ 220*) ;;
    *) ip $family rule del priority "${priority%:}" ;;
    esac
  done
done
"""

_RIG: pytest.StashKey[KernelRig] = pytest.StashKey()
_LOG_LINES = 120


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    rig = item.stash.get(_RIG, None)
    if report.failed and rig is not None:
        for name, text in rig.logs().items():
            tail = "\n".join(text.splitlines()[-_LOG_LINES:])
            report.sections.append((name, tail))
    return report


if guest_inside.inside():

    def pytest_runtest_logstart(nodeid: str) -> None:
        guest_inside.say({"started": nodeid})

    def pytest_runtest_logfinish(nodeid: str) -> None:
        guest_inside.say({"finished": nodeid})

    class Reporter:
        """Sends every report to the host."""

        def __init__(self, config: pytest.Config) -> None:
            self._config = config

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            data = self._config.hook.pytest_report_to_serializable(
                config=self._config, report=report
            )
            guest_inside.say({"report": data})

    def pytest_configure(config: pytest.Config) -> None:
        config.pluginmanager.register(Reporter(config), "to-the-host")
