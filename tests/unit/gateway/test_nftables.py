"""Sets of the table, and the scripts that change them."""

from __future__ import annotations

import ipaddress

import pytest

from ipsec_gateway import nftables
from ipsec_gateway.classify import classify
from ipsec_lab.steering_rig import spec


def table(*remotes: str, device: str | None = None) -> nftables.Ruleset:
    """The one for policies to these networks, each from a network of its own."""
    policies = [spec(f"10.{n}.0.0/16", remote) for n, remote in enumerate(remotes)]
    policies += [spec("fd00:1::/64", "fd00:2::/64")]
    return nftables.ruleset(classify(policies, frozenset({7})), device=device)


def remotes(of: nftables.Ruleset) -> list[str]:
    return sorted(of.sets["remote4"].elements)


def test_every_remote_network_once() -> None:
    it = table("172.16.4.0/24", "172.16.0.0/16", "192.0.2.0/24", "192.0.2.0/24", "192.0.3.0/24")
    assert remotes(it) == ["172.16.0.0/16", "192.0.2.0/24", "192.0.3.0/24"]
    assert list(it.sets["remote6"].elements) == ["fd00:2::/64"]


def test_everything_is_one_network() -> None:
    assert remotes(table("172.16.0.0/16", "0.0.0.0/0", "255.255.255.255/32")) == ["0.0.0.0/0"]


@pytest.mark.parametrize("every", [1, 256, 65_521])
def test_thousands_of_remote_networks_are_few_elements(every: int) -> None:
    networks = [ipaddress.IPv4Network((256 * n * every % 2**32, 24)) for n in range(3000)]
    policies = [spec("10.1.0.0/16", str(network)) for network in networks]
    it = nftables.ruleset(classify(policies, frozenset({7})), device=None)
    found = [ipaddress.ip_network(element) for element in remotes(it)]
    assert 1 < len(found) <= 64
    assert all(any(n.subnet_of(wide) for wide in found) for n in networks)


@pytest.mark.parametrize("device", [None, "ipsec0"])
def test_pairs_are_looked_up_for_remote_networks_only(device: str | None) -> None:
    """Every chain that looks at pairs is entered through the sets of remote networks."""
    chains = {}
    for part in table("172.16.0.0/16", device=device).body.split("  chain ")[1:]:
        name, _, rules = part.partition(" {")
        chains[name] = rules.splitlines()
    slow = {name for name, rules in chains.items() if any("@step" in rule for rule in rules)}
    assert slow
    assert not any(" hook " in rule for name in slow for rule in chains[name])
    for rules in chains.values():
        for rule in rules:
            for name in slow:
                if rule.endswith((f"jump {name}", f"goto {name}")):
                    assert "@remote" in rule
