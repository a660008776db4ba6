"""A node whose firewall forwards nothing, where the kernel encrypts: it is said, and opened."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipsec_lab.interop import PEER
from ipsec_lab.kernel_rig import KernelRig
from ipsec_lab.netns import missing_programs
from ipsec_lab.traffic import ping, ping_until

pytestmark = pytest.mark.strongswan

#: How to set it, to show it, to take it away.
FIREWALLS = {
    "iptables-nft": (
        "iptables-nft -w -P FORWARD DROP",
        "iptables-nft-save -t filter | grep -v '^#' | sed 's/ \\[.*//'",
        "nft delete table ip filter",
    ),
    "iptables-legacy": (
        "iptables-legacy -w -A FORWARD -j REJECT",
        "iptables-legacy-save -t filter | grep -v '^#' | sed 's/ \\[.*//'",
        # The table is there for as long as its module, and gateways of later tests would read it.
        "iptables-legacy -w -F FORWARD; modprobe -r iptable_filter;"
        " ! grep -qsx filter /proc/net/ip_tables_names",
    ),
    "nft": (
        "nft 'table inet node { chain forward { type filter hook forward priority 0;"
        " policy drop; }; }'",
        "nft list table inet node",
        "nft delete table inet node",
    ),
}


@pytest.fixture
def show(rig: KernelRig, request: pytest.FixtureRequest) -> Iterator[str]:
    """What shows the firewall of site a."""
    name = request.param
    if name.startswith("iptables") and missing_programs(name):
        pytest.skip(f"{name} not installed: apt-get install iptables")
    make, shown, remove = FIREWALLS[name]
    rig.topology.gw_a.run("sh", "-euc", make)
    try:
        yield shown
    finally:
        rig.topology.gw_a.run("sh", "-euc", remove)


@pytest.mark.parametrize("show", FIREWALLS, indirect=True)
def test_a_closed_node_is_told_opened_and_left_as_it_was(rig: KernelRig, show: str) -> None:
    top = rig.topology
    before = top.gw_a.run("sh", "-euc", show)
    rig.connect("initiator", rig.documents(version=4), rig.connection(version=4))
    gateway = rig.gateway
    told = gateway.wait_condition(PEER, "Forwarding", "False", reason="ForwardingBlocked")
    assert "--pol ipsec" in told["message"] or "rt ipsec exists" in told["message"]
    assert not ping(top.lan_a, top.b.host(), count=2, wait=5).received, "the firewall drops it"
    assert gateway.stop() == 0
    gateway.start("--open-forward")
    gateway.wait_condition(PEER)
    ping_until(top.lan_a, top.b.host(), timeout=60)
    ping_until(top.lan_b, top.a.host(), timeout=60)
    # No card is here: what came of hwOffload: Auto, for SAs of an earlier life, too.
    (child,) = gateway.status("IPsecPeer", PEER)["hwOffload"]
    assert child["mode"] == "None"
    assert child.keys() == {"child", "mode"}
    # The tunnel goes on without a gateway, and so does the way to it.
    assert gateway.stop() == 0
    assert not ping(top.lan_a, top.b.host(), count=3, wait=5).lost
    assert top.gw_a.run("sh", "-euc", show) != before
    assert gateway.cleanup() == 0
    assert top.gw_a.run("sh", "-euc", show) == before
