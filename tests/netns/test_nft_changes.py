"""Changes of the table as the kernel takes them, with networks inside of others that come and go,
and with packets under way all the time."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ipsec_gateway import nftables, nftscripts
from ipsec_gateway.classify import classify
from ipsec_gateway.intent import Intent
from ipsec_gateway.steering import Steering
from ipsec_lab.netns import LabError, Namespace, end_process
from ipsec_lab.steering_rig import spec

STEPS = 60
#: Networks whose extent, and only that, differs from step to step.
REMOTES = ("10.2.0.0/24", "10.2.0.0/23", "10.2.0.0/25")
FLOOD = """
import contextlib, socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("10.1.0.1", 0))
while True:
    with contextlib.suppress(PermissionError):
        sender.sendto(b"clear text", ("10.2.0.1", 9))
"""
COUNTED = """
table inet arrived {
  counter clear { }
  chain in { type filter hook prerouting priority 0; ip daddr 10.2.0.0/16 counter name "clear"; }
}
"""


@pytest.fixture
def node() -> Iterator[Namespace]:
    namespace = Namespace("node")
    try:
        yield namespace
    finally:
        namespace.delete()


@pytest.fixture
def far(node: Namespace) -> Iterator[Namespace]:
    """Where packets of ``node`` to 10.2.0.0/16 arrive if nothing stops them, and are counted."""
    namespace = Namespace("far")
    try:
        node.ip(
            f"link add out type veth peer name eth0 netns {namespace.name}",
            "link set lo up",
            "link set out up",
            "addr add 10.1.0.1/32 dev lo",
            "route add 10.2.0.0/16 dev out",
            "neigh add 10.2.0.1 lladdr 02:00:00:00:00:01 dev out",
        )
        namespace.ip("link set eth0 address 02:00:00:00:00:01 up")
        namespace.nft(COUNTED)
        yield namespace
    finally:
        namespace.delete()


def objects(node: Namespace, *what: str) -> list[dict]:
    said = node.run("nft", "-j", *what)
    found: list[dict] = json.loads(said)["nftables"]
    return found


def listed(node: Namespace, name: str) -> set[str]:
    """Elements of a set in the kernel, as we write them."""
    shown = objects(node, "list", "set", "inet", "kube_ipsec", name)
    elements = next(each["set"] for each in shown if "set" in each).get("elem", [])
    return {" . ".join(map(network, ends(element))) for element in elements}


def ends(element):
    """The fields of an element, one or more."""
    if isinstance(element, dict):
        element = element.get("elem", {"val": element})["val"]
    if isinstance(element, dict) and "concat" in element:
        return element["concat"]
    return [element]


def network(end) -> str:
    return str(
        ipaddress.ip_network(
            f"{end['prefix']['addr']}/{end['prefix']['len']}" if isinstance(end, dict) else end
        )
    )


def counter(node: Namespace, table: str, name: str) -> int:
    shown = objects(node, "list", "counter", "inet", table, name)
    return next(each["counter"]["packets"] for each in shown if "counter" in each)


@contextlib.contextmanager
def flood(node: Namespace) -> Iterator[None]:
    """Packets of the node's own to 10.2.0.1, as many as it can send.

    Somebody listens to changes of tables meanwhile: the kernel tells him of each rule after it is
    in force and before new pairs are, which makes that moment longer.
    """
    listener = node.popen(["nft", "monitor"], stdout=subprocess.DEVNULL)
    sender = node.popen([sys.executable, "-c", FLOOD])
    try:
        yield
    finally:
        end_process(sender)
        end_process(listener)


@pytest.mark.parametrize("seed", range(3))
def test_remote_networks_come_and_go(node: Namespace, seed: int) -> None:
    """Each change is taken as it is, or with new sets where it overlaps with what goes."""
    rng = random.Random(seed)
    networks = [ipaddress.ip_network("10.99.0.0/32")]
    wanted = nftables.ruleset(classify(policies(networks), frozenset({7})), device=None)
    change = nftscripts.replace(wanted)
    node.nft(*change.scripts)
    refused = 0
    for _ in range(STEPS):
        for _ in range(rng.randint(1, 5)):
            if len(networks) > 1 and rng.random() < 0.5:
                networks.pop(rng.randrange(1, len(networks)))
            else:
                bits = rng.randint(22, 32)
                address = 0x0A020000 | rng.getrandbits(10)
                networks.append(ipaddress.IPv4Network((address, bits), strict=False))
        wanted = nftables.ruleset(classify(policies(networks), frozenset({7})), device=None)
        actual = change.then
        change = nftscripts.change(wanted, actual)
        try:
            for script in change.scripts:
                node.nft(script)
        except LabError:
            refused += 1
            shown = {"nftables": objects(node, "-t", "list", "table", "inet", "kube_ipsec")}
            change = nftscripts.install(wanted, nftscripts.found(shown))
            for script in change.scripts:
                node.nft(script)
        for name, each in wanted.sets.items():
            expected = {" . ".join(map(network, e.split(" . "))) for e in each.elements}
            assert listed(node, change.then.names[name]) == expected
    assert 0 < refused < STEPS, "some overlapped, and not all of them"


def policies(networks):
    """One each, from a network of its own."""
    return [
        spec(f"10.1.{n // 250}.{n % 250}/32", str(network)) for n, network in enumerate(networks)
    ]


def test_nothing_passes_while_the_table_changes(node: Namespace, far: Namespace) -> None:
    """Rules, pairs and gateways come and go, and what is protected all the time is dropped."""
    steering = Steering(None)

    async def guard(remote: str, mtu: int) -> None:
        intent = Intent(policies=(spec("10.1.0.0/16", remote),))
        await steering.guard(intent, live=frozenset(), mtu=mtu)

    def put(remote: str, mtu: int) -> None:
        node.call(lambda: asyncio.run(guard(remote, mtu)))

    put(REMOTES[0], 1400)
    with flood(node):
        while not (dropped := [counter(node, "kube_ipsec", "unencrypted_out")])[0]:
            time.sleep(0.05)
        for number in range(STEPS):
            if number % 10 == 0:
                steering = Steering(None)  # killed, and the next one finds what there is
            put(REMOTES[number % len(REMOTES)], 1400 - number // 2)
            dropped.append(counter(node, "kube_ipsec", "unencrypted_out"))
    assert counter(far, "arrived", "clear") == 0
    assert dropped == sorted(dropped), "counters go on"
    assert dropped[0] < dropped[-1]
    names = [each["set"]["name"] for each in objects(node, "list", "sets", "inet") if "set" in each]
    assert len(names) == 2, "no set stays behind"
