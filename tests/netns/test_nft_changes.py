"""Changes of sets as the kernel takes them: with networks inside of others that come and go."""

from __future__ import annotations

import ipaddress
import json
import random
from collections.abc import Iterator

import pytest

from ipsec_gateway import nftables
from ipsec_gateway.classify import classify
from ipsec_lab.netns import Namespace
from ipsec_lab.steering_rig import spec

STEPS = 60


@pytest.fixture
def node() -> Iterator[Namespace]:
    namespace = Namespace("node")
    try:
        yield namespace
    finally:
        namespace.delete()


def listed(node: Namespace, name: str) -> set[str]:
    """Elements of a set in the kernel."""
    said = node.run("nft", "-j", "list", "set", "inet", "kube_ipsec", name)
    elements = next(x["set"] for x in json.loads(said)["nftables"] if "set" in x).get("elem", [])
    found = set()
    for element in elements:
        prefix = element["prefix"] if isinstance(element, dict) else {"addr": element, "len": 32}
        found.add(f"{prefix['addr']}/{prefix['len']}")
    return found


@pytest.mark.parametrize("seed", range(3))
def test_remote_networks_come_and_go(node: Namespace, seed: int) -> None:
    """Each change is taken as it is: the table is never set up anew."""
    rng = random.Random(seed)
    networks = [ipaddress.ip_network("10.99.0.0/32")]
    actual = nftables.ruleset(classify(policies(networks), frozenset({7})), device=None)
    node.nft(nftables.replace(actual))
    for _ in range(STEPS):
        for _ in range(rng.randint(1, 5)):
            if len(networks) > 1 and rng.random() < 0.5:
                networks.pop(rng.randrange(1, len(networks)))
            else:
                bits = rng.randint(22, 32)
                address = 0x0A020000 | rng.getrandbits(10)
                networks.append(ipaddress.IPv4Network((address, bits), strict=False))
        desired = nftables.ruleset(classify(policies(networks), frozenset({7})), device=None)
        if script := nftables.change(desired, actual):
            node.nft(script)
        actual = desired
        assert listed(node, "remote4") == set(actual.sets["remote4"].elements)


def policies(networks):
    """One each, from a network of its own."""
    return [
        spec(f"10.1.{n // 250}.{n % 250}/32", str(network)) for n, network in enumerate(networks)
    ]
