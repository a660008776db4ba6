"""The probe between two gateways of ours: each finds where the other answers, and what answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipsec_api.cluster import PROBE_PORT
from ipsec_gateway.pathprobe.format import datagram
from ipsec_lab.asking import asked, asked_until
from ipsec_lab.gateway import GatewayProcess
from ipsec_lab.netns import Namespace
from ipsec_lab.sites import Sites
from ipsec_lab.topology import SITE_A, SITE_B, Site, Topology
from ipsec_lab.traffic import ping

#: What each side knows of the other one: nobody has the first addresses of these.
NETS = {"a": ["10.1.0.0/16", "fd00:1::/32"], "b": ["10.2.0.0/16", "fd00:2::/32"]}
FIRST = {"a": "10.1.0.1", "b": "10.2.0.1"}


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    """Two gateways that have not the first addresses of their networks."""
    a = Site("a", SITE_A.wan, ("10.1.5.0/24", "fd00:1:5::/64"))
    b = Site("b", SITE_B.wan, ("10.2.5.0/24", "fd00:2:5::/64"))
    with Topology(a, b) as topology, Sites(topology, tmp_path) as both:
        yield both


def start(sites: Sites, *options: str, **probe: object) -> None:
    """Both, with this probe at a, which leaves the verdict to it, and a ping at b."""
    sites.peer_b = sites.peer(
        "b",
        localSubnets=NETS["a"],
        remoteSubnets=NETS["b"],
        probe={"interval": "1s", **probe},
        profile={"dpd": {"interval": "0s"}},
    )
    sites.peer_a = sites.peer(
        "a",
        passive=True,
        localSubnets=NETS["b"],
        remoteSubnets=NETS["a"],
        probe={"interval": "1s"},
    )
    sites.start(*options)


def answers(gateway: GatewayProcess) -> dict[str, int]:
    """What became of datagrams at the responder."""
    found = gateway.samples("ipsec_probe_responder_total")
    return {each.labels["outcome"]: int(each.value) for each in found}


def guarded(gateway: GatewayProcess) -> int:
    """Packets that the guard has dropped because they came in clear text."""
    return int(gateway.metric("ipsec_unencrypted_drops_total", direction="in"))


def test_each_gateway_finds_where_the_other_one_answers(sites: Sites) -> None:
    """By UDP and by ping, without ``targets``: the guesses lead nowhere."""
    start(sites, protocol="UDP")
    assert not ping(sites.topology.lan_a, FIRST["b"], count=1, wait=0.3).received
    sites.a.wait_condition("b", "Healthy", "True", timeout=20)
    sites.b.wait_condition("a", "Healthy", "True", timeout=20)
    assert answers(sites.b)["answered"] >= 1
    assert answers(sites.a)["answered"] == 0
    assert sites.guard.counters().clear == 0
    sites.guard.cut()
    lost = sites.a.wait_condition("b", "Healthy", "False", reason="ProbeLoss", timeout=25)
    assert f"{sites.topology.b.gateway()}, {sites.topology.b.gateway(1)}" in lost["message"]
    assert f"UDP to port {PROBE_PORT}" in lost["message"]


def test_the_responder_answers_nothing_in_clear_text(sites: Sites) -> None:
    top = sites.topology
    start(sites)
    data = datagram(4, 7, 1300)
    # Through the tunnel it answers, from the address that was asked and with what it was asked.
    for lan in (0, 1):
        assert asked_until(top.lan_a, top.b.gateway(lan), data) == data
    assert asked(top.lan_a, top.b.gateway(), data + b"x") == b""
    assert answers(sites.b)["no_probe"] == 1
    before, dropped = answers(sites.b), guarded(sites.b)
    clear: list[tuple[Callable[[], Namespace], str]] = [
        (lambda: top.wan, top.b.wan_address()),
        (lambda: top.wan, top.b.wan_address(6)),
        (lambda: top.lan_b, top.b.gateway()),
        (lambda: top.lan_b, top.b.gateway(1)),
    ]
    for namespace, target in clear:
        assert asked(namespace(), target, data, wait=0.5) == b""
    assert guarded(sites.b) == dropped + len(clear)
    assert answers(sites.b) == before
    assert asked(top.gw_b, top.b.gateway(), data, wait=0.5) == b""
    assert answers(sites.b) == before
    assert sites.guard.counters().clear == 0


def test_without_a_responder_pings_still_find_the_gateway(sites: Sites) -> None:
    top = sites.topology
    start(sites, "--no-probe-responder")
    sites.a.wait_condition("b", "Healthy", "True", timeout=20)
    assert asked(top.lan_a, top.b.gateway(), datagram(4, 7, 84), wait=0.5) == b""
    assert sum(answers(sites.b).values()) == 0
