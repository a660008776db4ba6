"""Every interop test runs behind the guard and under the eyes of the sniffer."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from ipsec_lab.guard import Guard
from ipsec_lab.interop import InteropRig
from ipsec_lab.leftovers import footprint, left_behind
from ipsec_lab.sniffer import Sniffer
from ipsec_lab.topology import SITE_A, SITE_B, Site, Topology

_LOG_LINES = 150


@pytest.fixture(scope="session")
def topology() -> Iterator[Topology]:
    more_a = Site("a", SITE_A.wan, (*SITE_A.lans, "10.1.1.0/24"))
    more_b = Site("b", SITE_B.wan, (*SITE_B.lans, "10.2.1.0/24"))
    with Topology(more_a, more_b) as top:
        yield top


@pytest.fixture(scope="session")
def guard(topology: Topology) -> Guard:
    return Guard(topology)


@pytest.fixture
def rig(
    topology: Topology, guard: Guard, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[InteropRig]:
    """A fresh gateway and a fresh charon; no clear text may reach the WAN meanwhile."""
    before = guard.counters()
    rig = InteropRig(topology, guard, tmp_path)
    request.node.stash[_RIG] = rig
    with Sniffer(topology.wan) as sniffer:
        try:
            yield rig
        finally:
            rig.stop()
            guard.restore()
            guard.end_nat()
            _clean(topology)
    seen = sniffer.sighting()
    assert (guard.counters() - before).clear == 0, f"clear text reached the WAN: {seen.clear}"
    assert seen.marked == 0, seen.first_marked


_RIG: pytest.StashKey[InteropRig] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    rig = item.stash.get(_RIG, None)
    if report.failed and rig is not None:
        for name, text in rig.logs().items():
            tail = "\n".join(text.splitlines()[-_LOG_LINES:])
            report.sections.append((f"log of {name}", tail))
    return report


@pytest.fixture(scope="session")
def untouched(topology: Topology) -> dict[str, frozenset[str]]:
    """The gateways' namespaces before anything ran in them."""
    return {name: footprint(topology.gateway(name)) for name in ("a", "b")}


@pytest.fixture(autouse=True)
def _remember_untouched(untouched: dict[str, frozenset[str]]) -> None:
    """Before the first test."""


def _clean(topology: Topology) -> None:
    """What a killed gateway leaves for its next start to adopt: the next test is another one."""
    for namespace in (topology.gw_a, topology.gw_b):
        namespace.run("nft", "flush", "ruleset")
        for line in namespace.run("ip", "-o", "link", "show").splitlines():
            name = line.split(": ")[1].split("@")[0]
            if name not in ("lo", "lan0", "wan0"):
                namespace.run("ip", "link", "del", name, check=False)
        for family in ("-4", "-6"):
            for line in namespace.run("ip", family, "rule", "show").splitlines():
                priority, _, rest = line.partition(":")
                table = rest.split("lookup ")[-1].split()[0]
                if table not in ("local", "main", "default"):
                    namespace.run("ip", family, "rule", "del", "priority", priority, check=False)
                    namespace.run("ip", family, "route", "flush", "table", table, check=False)


@pytest.fixture
def left(topology: Topology, untouched: dict[str, frozenset[str]]):
    """What our gateway has left in its namespace."""
    return lambda: left_behind(topology.gw_a, untouched["a"])
