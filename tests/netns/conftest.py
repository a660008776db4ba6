"""Two sites for whole gateways; for the ESP tests one rig for a module, a tunnel with fixed keys
behind the guard; for what steers packets a gateway between a LAN and a WAN."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipsec_lab.esp_pair import EspPair
from ipsec_lab.guard import Guard
from ipsec_lab.sites import Sites
from ipsec_lab.sniffer import Sniffer
from ipsec_lab.steering_rig import Rig, steering_rig
from ipsec_lab.topology import Topology


@pytest.fixture(scope="module")
def esp_rig():
    with Topology() as topology:
        yield topology


@pytest.fixture
def esp_guard(esp_rig):
    """Drops and counts clear text on the WAN; at the end none may have been seen, nor may a frame
    have carried the marker of the test traffic."""
    guard = Guard(esp_rig)
    with Sniffer(esp_rig.wan) as sniffer:
        yield guard
    counters = guard.counters()
    guard.end_nat()
    guard.remove()
    assert counters.clear == 0
    assert sniffer.sighting().marked == 0, sniffer.sighting().first_marked


@pytest.fixture
def esp_pair(esp_rig, esp_guard, request):
    """A tunnel; parametrize indirectly with a Suite for another than AES-GCM in UDP over IPv4."""
    with EspPair(esp_rig, getattr(request, "param", None)) as pair:
        yield pair


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    """Two gateways that are not started yet; killed in the end."""
    with Topology() as topology, Sites(topology, tmp_path) as both:
        yield both


@pytest.fixture
def rig() -> Iterator[Rig]:
    """For a gateway's steering, without a gateway."""
    with steering_rig() as it:
        yield it
