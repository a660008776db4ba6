"""Changes of the table as the kernel takes them, with networks inside of others that come and go,
and with packets under way all the time."""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Iterator

import pytest

from ipsec_gateway import nftables, nftscripts
from ipsec_gateway.classify import classify
from ipsec_gateway.intent import Intent
from ipsec_gateway.steering import Steering
from ipsec_lab.flood import flooded
from ipsec_lab.netns import LabError, Namespace
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
    """Elements of a set in the kernel, as we write them."""
    shown = node.nft_list("set", "inet", "kube_ipsec", name)
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
            shown = {"nftables": node.nft_list("table", "inet", "kube_ipsec")}
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


def test_nothing_passes_while_the_table_changes() -> None:
    """Rules, elements and gateways come and go, and what is protected all the time is dropped."""
    it = flooded(STEPS)
    assert it.arrived == 0
    assert list(it.dropped) == sorted(it.dropped), "counters go on"
    assert it.dropped[0] < it.dropped[-1]
    assert len(it.sets) == 2, "no set stays behind"


def test_a_table_of_another_version_is_taken_over(node: Namespace) -> None:
    """One whose chains are elsewhere and whose sets are of another type."""
    node.nft(
        """
        table inet kube_ipsec {
          set remote4 { type ether_addr; }
          chain guard_out { type filter hook output priority 7; ether saddr @remote4 drop; }
          chain gone { type filter hook input priority 7; jump hers; }
          chain hers { }
        }
        """
    )
    intent = Intent(policies=(spec("10.1.0.0/16", "10.2.0.0/24"),))
    node.call(lambda: asyncio.run(Steering(None).guard(intent, live=frozenset())))
    shown = node.nft_list("table", "inet", "kube_ipsec")
    there = nftscripts.found({"nftables": shown})
    assert set(there.sets) == {"remote4", "step0_any4"}
    assert {"gone", "hers"}.isdisjoint(there.chains)
    (guard,) = (each["chain"] for each in shown if each.get("chain", {}).get("name") == "guard_out")
    assert guard["hook"] == "postrouting"
    assert listed(node, "remote4") == {"10.2.0.0/24"}
