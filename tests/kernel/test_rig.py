"""The rig itself, without our gateway: SAs set by hand, and charon with charon.

What these show: that the kernel's ESP passes the guard, that the guard and the sniffer see clear
text, and that strongSwan's kernel back end works in here.
"""

import pytest

from ipsec_lab.interop import CHILD, CONNECTION
from ipsec_lab.kernel_rig import KernelRig, set_by_hand
from ipsec_lab.sniffer import Sniffer
from ipsec_lab.traffic import ping, ping_until


def test_sas_set_by_hand(rig: KernelRig) -> None:
    set_by_hand(rig.topology)
    before = rig.guard.counters()
    rig.exchange_traffic()
    assert (rig.guard.counters() - before).esp > 10
    assert {sa.spi for sa in rig.states("a")} == {0x1001, 0x1002}


def test_guard_and_sniffer_see_clear_text(kernel_topology, kernel_guard) -> None:
    """The negative control: without SAs the same ping is seen, counted and stopped."""
    before = kernel_guard.counters()
    with Sniffer(kernel_topology.wan) as sniffer:
        result = ping(kernel_topology.lan_a, kernel_topology.b.host(), count=3, wait=2)
    assert result.received == 0
    assert (kernel_guard.counters() - before).clear == 3
    assert sniffer.sighting().marked == 3


@pytest.mark.strongswan
class TestCharonWithCharon:
    """strongSwan's kernel back end at both sites."""

    def connect(self, rig: KernelRig, **child) -> None:
        ours, theirs = rig.mirrored(child=child), rig.connection(child=child)
        rig.start_theirs(ours, site="a")
        rig.start_theirs(theirs)
        rig.charon.initiate(child=CHILD)
        rig.charon_at("a").wait_installed(CHILD)

    def test_esp_tunnel(self, rig: KernelRig) -> None:
        self.connect(rig)
        before = rig.guard.counters()
        rig.exchange_traffic()
        assert (rig.guard.counters() - before).esp > 10
        (sa,) = rig.charon.established(CONNECTION)
        assert sa.children[0].suite.startswith("AES_GCM_16_128")
        assert {sa.mode for sa in rig.states("a")} == {"tunnel"}

    def test_esp_transport(self, rig: KernelRig) -> None:
        a, b = rig.topology.a.wan_address(), rig.topology.b.wan_address()
        self.connect(rig, mode="transport", local_ts=(b,), remote_ts=(a,))
        rig.exchange_outer()
        assert {sa.mode for sa in rig.states("a")} == {"transport"}

    @pytest.mark.parametrize("integrity_only", [True])
    def test_ah_tunnel(self, rig: KernelRig, integrity_only: bool) -> None:
        self.connect(rig, ah_proposals=("sha256-x25519",))
        before = rig.guard.counters()
        ping_until(rig.topology.lan_a, rig.topology.b.host(), timeout=60)
        assert (rig.guard.counters() - before).ah >= 2
        assert {sa.protocol for sa in rig.states("a")} == {"ah"}
