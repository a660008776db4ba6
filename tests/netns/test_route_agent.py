"""The route agent on three nodes: every pod reaches the remote network by the gateway that carries
it, whatever lies between the nodes, and nothing leaves in clear text."""

import itertools
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipsec_lab.leftovers import footprint, left_behind
from ipsec_lab.nodes import NAMES, REMOTE4, REMOTE6, Nodes, eventually
from ipsec_lab.scrape import samples

PEER = "ns/peer0"

#: Fabric, options of agents, IP version between nodes, and the way that comes of it.
VARIANTS = {
    "neighbours": ("switch", (), 4, "direct"),
    "vxlan-on-request": ("switch", ("--transport", "vxlan"), 4, "vxlan"),
    "routed": ("router", (), 4, "vxlan"),
    "routed-ipv6": ("router", (), 6, "vxlan"),
    "own-numbers": (
        "router",
        ("--vni", "77", "--vxlan-port", "7777", "--table", "88", "--mark-bits", "0x700000"),
        4,
        "vxlan",
    ),
}


class Rig:
    """Nodes with both gateways and all agents running, and g1 carrying the peer."""

    def __init__(self, nodes: Nodes, options: tuple[str, ...], version: int, way: str) -> None:
        self.nodes = nodes
        self.options = options
        self.version = version
        self.way = way

    def start(self) -> None:
        self.nodes.gateway("g1")
        self.nodes.gateway("g2")
        self.nodes.say("g1", PEER)
        for name in NAMES:
            self.agent(name)
        self.carried_by("g1")

    def agent(self, name: str) -> None:
        self.nodes.agent(name, *self.options, version=self.version)

    def carried_by(self, gateway: str, *names: str) -> None:
        for name in names or NAMES:
            way = "local" if name == gateway else self.way
            self.nodes.wait_for(name, PEER, gateway, way)

    def move(self, old: str, new: str) -> None:
        self.nodes.answer_by(new)
        self.nodes.say(new, PEER)
        self.nodes.say(old)


def rig_of(variant: str, folder: Path) -> tuple[Nodes, Rig]:
    fabric, options, version, way = VARIANTS[variant]
    nodes = Nodes(folder, fabric)
    return nodes, Rig(nodes, options, version, way)


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    nodes, rig = rig_of(getattr(request, "param", "routed"), tmp_path)
    with nodes:
        rig.start()
        yield rig


def writes(nodes: Nodes, name: str) -> int:
    (found,) = samples(nodes.page(name, "/metrics"), "ipsec_route_agent_writes_total")
    return int(found.value)


@pytest.mark.parametrize("rig", VARIANTS, indirect=True)
def test_every_pod_reaches_the_remote_network_by_its_gateway(rig: Rig) -> None:
    nodes = rig.nodes
    for name in NAMES:
        assert nodes.pings(name), f"IPv4 from {name}: {nodes.log(name)}"
        assert nodes.pings(name, REMOTE6), f"IPv6 from {name}: {nodes.log(name)}"
    assert nodes.arrived("g1") == 6
    assert nodes.arrived("g2") == 0
    assert nodes.leaked() == 0
    # The cluster's own traffic goes on as before.
    assert nodes.pings("w", nodes.pod_address("g2"))
    assert nodes.pings("w", nodes.pod_address("g2", 6))


@pytest.mark.parametrize("rig", ["neighbours", "routed-ipv6"], indirect=True)
def test_a_failover_is_followed_within_a_second(rig: Rig, record_property) -> None:
    nodes = rig.nodes
    argv = ["ping", "-n", "-D", "-i", "0.02", "-W", "1", REMOTE4]
    ping = nodes.pod["w"].popen(argv, stdout=subprocess.PIPE)
    time.sleep(0.5)
    rig.move("g1", "g2")
    rig.carried_by("g2")
    time.sleep(0.5)
    ping.terminate()
    out = ping.communicate()[0].decode()
    times = [float(t) for t in re.findall(r"^\[([\d.]+)\].*icmp_seq", out, re.M)]
    gap = max(b - a for a, b in itertools.pairwise(times))
    record_property("measured", f"{rig.way}: longest gap {gap * 1000:.0f} ms")
    assert nodes.arrived("g2") > 0
    assert nodes.leaked() == 0
    assert gap < 1.0
    assert all(nodes.pings(name, REMOTE6) for name in NAMES)


def test_what_nobody_carries_leaves_no_node_in_clear_text(rig: Rig) -> None:
    nodes = rig.nodes
    nodes.say("g1", gives_up=(PEER,))
    for name in NAMES:
        nodes.wait_for(name, PEER, None, "none")
        assert not nodes.pings(name)
        assert not nodes.pings(name, REMOTE6)
    assert [nodes.arrived(name) for name in NAMES] == [0, 0, 0]
    # The node itself is held back as its pods are.
    refused = nodes.node["w"].run("ping", "-c", "1", "-W", "1", REMOTE4, check=False)
    assert "unreachable" in refused.lower() or "No route" in refused
    nodes.answer_by("g2")
    nodes.say("g2", PEER)
    rig.carried_by("g2")
    assert all(nodes.pings(name) for name in NAMES)
    assert nodes.leaked() == 0


def test_a_peer_that_tolerates_clear_text_takes_the_usual_way_meanwhile(rig: Rig) -> None:
    nodes = rig.nodes
    nodes.say("g1", PEER, use=(PEER,))
    nodes.say("g2", "ns/peer1", use=("ns/peer1",))
    nodes.wait_for("w", "ns/peer1", "g2", "vxlan")
    nodes.say("g2")
    nodes.wait_for("w", "ns/peer1", None, "none")
    shown = nodes.node["w"].run("ip", "route", "show", "table", "4502")
    assert "10.9.0.0/16" in shown
    assert "10.10.0.0/16" not in shown
    rig.carried_by("g1")


def test_a_gateway_that_is_replaced_goes_on_carrying(rig: Rig) -> None:
    nodes = rig.nodes
    nodes.say("g1", draining=True)
    nodes.kill_gateway("g1")
    time.sleep(1)
    rig.carried_by("g1")
    assert all(nodes.pings(name) for name in NAMES)


@pytest.mark.parametrize("rig", ["neighbours", "routed"], indirect=True)
def test_a_packet_is_handed_from_node_to_node_once(rig: Rig) -> None:
    nodes = rig.nodes
    # The worker does not hear of the move: it goes on sending to g1.
    nodes.stop_agent("w")
    rig.move("g1", "g2")
    rig.carried_by("g2", "g1", "g2")
    assert nodes.pings("g1")
    arrived = nodes.arrived("g2")
    assert not nodes.pings("w")
    assert nodes.arrived("g2") == arrived
    rules = nodes.node["g1"].run("nft", "list", "table", "inet", "kube_ipsec_routes")
    assert re.search(r"counter packets [1-9]\d* bytes \d+ drop", rules)


def test_an_unchanged_world_is_not_written_to_and_a_changed_one_is_put_right(rig: Rig) -> None:
    nodes = rig.nodes
    before = {name: writes(nodes, name) for name in NAMES}
    for name in NAMES:
        # Has the agent look at everything.
        nodes.node[name].ip("address add 203.0.113.7/32 dev lo")
    time.sleep(1.5)
    assert {name: writes(nodes, name) for name in NAMES} == before
    # What somebody else takes away comes back.
    node = nodes.node["w"]
    node.ip("route flush table 4502", "rule delete pref 4502", "link delete kipsec-vx")
    node.nft("delete table inet kube_ipsec_routes\n")
    node.ip("address add 203.0.113.8/32 dev lo")
    assert eventually(lambda: nodes.pings("w")), nodes.log("w")


@pytest.mark.parametrize("rig", ["routed"], indirect=True)
def test_a_killed_agent_is_continued_and_its_orphans_go(rig: Rig) -> None:
    nodes, node = rig.nodes, rig.nodes.node["w"]
    nodes.say("g1", PEER, "ns/peer1")
    nodes.wait_for("w", "ns/peer1", "g1", "vxlan")
    nodes.stop_agent("w", kill=True)
    assert nodes.pings("w"), "traffic goes on without an agent"
    node.ip(
        f"route add 10.77.0.0/16 via {nodes.address('g1')} dev kipsec-vx onlink table 4502 proto 78"
    )
    shown = [
        line
        for line in node.run("ip", "route", "show", "table", "4502").splitlines()
        if "10.77" not in line
    ]
    rig.agent("w")
    rig.carried_by("g1", "w")
    assert eventually(
        lambda: node.run("ip", "route", "show", "table", "4502").splitlines() == shown
    )
    # The packet table alone: what is in it is not read back.
    assert writes(nodes, "w") == 2
    assert nodes.pings("w")


def test_an_agent_whose_gateways_are_silent_goes_on_from_memory(rig: Rig) -> None:
    nodes = rig.nodes
    nodes.stop_agent("w")
    nodes.kill_gateway("g1")
    nodes.kill_gateway("g2")
    shown = nodes.node["w"].run("ip", "route", "show", "table", "4502")
    rig.agent("w")
    rig.carried_by("g1", "w")
    assert nodes.node["w"].run("ip", "route", "show", "table", "4502") == shown
    assert nodes.pings("w")


@pytest.mark.parametrize("variant", ["neighbours", "own-numbers"])
def test_stopping_leaves_everything_and_cleanup_nothing(variant: str, tmp_path: Path) -> None:
    nodes, rig = rig_of(variant, tmp_path)
    filters = ("sh", "-c", "grep . /proc/sys/net/ipv4/conf/*/rp_filter")
    with nodes:
        before = {name: footprint(nodes.node[name]) for name in NAMES}
        checks = {name: nodes.node[name].run(*filters) for name in NAMES}
        rig.start()
        for name in NAMES:
            assert nodes.stop_agent(name) == 0
        assert all(nodes.pings(name) for name in NAMES)
        for name in NAMES:
            assert left_behind(nodes.node[name], before[name])
            argv = nodes.agent_argv(name, *rig.options, "--cleanup", version=rig.version)
            nodes.node[name].run(*argv)
            nodes.node[name].run(*argv)
            assert left_behind(nodes.node[name], before[name]) == []
            assert nodes.node[name].run(*filters) == checks[name]
        assert not list((tmp_path / "state").glob("*.json"))


def test_large_packets_fit_through_vxlan_or_are_told(rig: Rig) -> None:
    nodes = rig.nodes
    route = json.loads(nodes.node["w"].run("ip", "-j", "route", "show", "table", "4502"))
    assert route[0]["metrics"] == [{"mtu": 1450}]
    assert nodes.pings("w", REMOTE4, "-M", "do", "-s", str(1450 - 28))
    said = nodes.pod["w"].run(
        "ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", str(1451 - 28), REMOTE4, check=False
    )
    assert "mtu = 1450" in said or "mtu=1450" in said


def test_a_gateway_with_another_key_is_not_believed(tmp_path: Path) -> None:
    nodes, rig = rig_of("routed", tmp_path)
    with nodes:
        nodes.key.write_bytes(bytes(32))
        nodes.gateway("g2")
        nodes.key.write_bytes(bytes(range(32)))
        nodes.gateway("g1")
        nodes.say("g1", PEER)
        rig.agent("w")
        rig.carried_by("g1", "w")
        nodes.say("g2", PEER)
        assert eventually(lambda: "gateway g2" in nodes.log("w"))
        assert "is the mesh key the same?" in nodes.log("w")
        rig.carried_by("g1", "w")
