"""A node whose firewall forwards nothing: it is said, with what helps; told to, the gateway opens
it, and leaves it as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipsec_lab.netns import Namespace, missing_programs
from ipsec_lab.sites import Sites
from ipsec_lab.traffic import ping_until

#: How somebody has a node forward nothing but what he knows, and how to show it.
FIREWALLS = {
    "iptables-nft": (
        "T='iptables-nft -w'; $T -P FORWARD DROP; $T -N DOCKER-USER; $T -A FORWARD -j DOCKER-USER;"
        " $T -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT;"
        " $T -A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        "iptables-nft-save -t filter",
    ),
    "iptables-legacy": (
        "T='iptables-legacy -w'; $T -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT;"
        " $T -A FORWARD -j REJECT --reject-with icmp-host-prohibited",
        "iptables-legacy-save -t filter",
    ),
    "nft": (
        "nft 'table inet filter { chain forward { type filter hook forward priority 0;"
        " policy drop; ct state established,related accept; iifname docker0 accept; }; }'",
        "nft list table inet filter",
    ),
    "firewalld": (
        "nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10;"
        " policy accept; ct state established,related accept; iifname lo accept;"
        " jump filter_FORWARD_POLICIES; reject with icmpx admin-prohibited; };"
        " chain filter_FORWARD_POLICIES { iifname lan0 jump filter_FWD_public;"
        " reject with icmpx admin-prohibited; };"
        " chain filter_FWD_public { reject with icmpx admin-prohibited; }; }'",
        "nft list table inet firewalld",
    ),
}


class Node:
    """The node of site a with a firewall."""

    def __init__(self, sites: Sites, name: str) -> None:
        self.namespace: Namespace = sites.topology.gw_a
        script, self._show = FIREWALLS[name]
        if missing := missing_programs(name) if name.startswith("iptables") else []:
            pytest.skip(f"{missing[0]} not installed: apt-get install iptables")
        self.namespace.run("sh", "-euc", script)

    def rules(self) -> str:
        """Its rules, without comments and counters."""
        lines = self.namespace.run("sh", "-euc", self._show).splitlines()
        return "\n".join(
            line.split(" [")[0] if line.startswith(":") else line
            for line in lines
            if not line.startswith("#")
        )


@pytest.fixture
def node(sites: Sites, request: pytest.FixtureRequest) -> Node:
    return Node(sites, request.param)


every = pytest.mark.parametrize("node", FIREWALLS, indirect=True)


@every
def test_a_node_that_forwards_nothing_is_told_with_what_helps(sites: Sites, node: Node) -> None:
    before = node.rules()
    sites.start()
    condition = sites.a.wait_condition("b", "Forwarding", "Unknown", reason="ForwardingBlocked")
    assert not sites.answers(), "the rig itself: the firewall drops it"
    assert node.rules() == before
    assert condition["message"] in sites.a.log()
    assert sites.a.log().count("may drop packets") == 1
    # What it says helps; firewall-cmd is not there to try.
    remedy = condition["message"].split("on the node run ")[1].split("; or have")[0]
    if remedy.startswith("firewall-cmd"):
        assert all(network in remedy for network in sites.topology.b.lans)
        return
    node.namespace.run("sh", "-euc", remedy)
    ping_until(sites.topology.lan_a, sites.topology.b.host())


@every
def test_told_to_the_gateway_opens_it_and_closes_it_again(sites: Sites, node: Node) -> None:
    before = node.rules()
    clear = sites.guard.counters().clear
    sites.start("--open-forward")
    ping_until(sites.topology.lan_a, sites.topology.b.host())
    ping_until(sites.topology.lan_b, sites.topology.a.host())
    assert sites.guard.counters().clear == clear
    assert "Forwarding" not in {c["type"] for c in sites.a.status("IPsecPeer", "b")["conditions"]}
    opened = node.rules()
    assert opened != before
    # What goes past the tunnels is dropped as before.
    assert opened.count("kipsec0") == 2
    assert sites.a.stop() == 0
    assert node.rules() == before


@pytest.mark.parametrize("node", ["iptables-nft", "nft"], indirect=True)
def test_what_a_killed_gateway_has_opened_is_closed_by_the_next_one(
    sites: Sites, node: Node
) -> None:
    before = node.rules()
    sites.start("--open-forward")
    ping_until(sites.topology.lan_a, sites.topology.b.host())
    sites.a.kill()
    assert node.rules() != before
    sites.a.start()
    sites.a.wait_condition("b", "Forwarding", "Unknown", reason="ForwardingBlocked")
    assert node.rules() == before


@pytest.mark.parametrize("node", ["nft"], indirect=True)
def test_others_that_come_later_are_found_when_tunnels_change(sites: Sites, node: Node) -> None:
    sites.start("--open-forward")
    ping_until(sites.topology.lan_a, sites.topology.b.host())
    node.namespace.run("nft", "flush chain inet filter forward")
    assert not sites.answers()
    sites.a.apply(sites.peer("b", mtu=1300))
    ping_until(sites.topology.lan_a, sites.topology.b.host())


def test_a_chain_that_drops_nothing_of_ours_is_left_alone(
    sites: Sites, beside: Callable[[], str]
) -> None:
    before = beside()
    sites.start("--open-forward")
    # The chain beside it was opened, so it was looked at.
    ping_until(sites.topology.lan_a, sites.topology.b.host())
    assert beside() == before
    assert "inet other" not in sites.a.log()


@pytest.fixture
def beside(sites: Sites) -> Callable[[], str]:
    """The node of site a with a chain that drops nothing of ours beside one that drops all;
    shows the former."""
    gateway = sites.topology.gw_a
    gateway.run(
        "nft",
        "table inet other { chain forward { type filter hook forward priority 0; policy accept;"
        " ip saddr 203.0.113.0/24 drop; }; };"
        " table inet closed { chain forward { type filter hook forward priority 1;"
        " policy drop; }; }",
    )
    return lambda: gateway.run("nft", "list table inet other")
