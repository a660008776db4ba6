"""Road warriors on the kernel's ESP: what they have from a template is theirs over a restart."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipsec_lab.interop import CHILD, PEER
from ipsec_lab.kernel_rig import KernelRig
from ipsec_lab.traffic import ConstantPing, ping, ping_until

pytestmark = pytest.mark.strongswan

Record = Callable[[str, object], None]


def reqids(rig: KernelRig) -> set[str]:
    """Those of the states in the kernel."""
    words = rig.topology.gw_a.run("ip", "xfrm", "state").split()
    return {words[at + 1] for at, word in enumerate(words) if word == "reqid"}


def outward(rig: KernelRig) -> str:
    """The outbound policies."""
    return rig.topology.gw_a.run("ip", "xfrm", "policy", "list", "dir", "out")


def test_a_road_warrior_and_two_restarts(rig: KernelRig, record_property: Record) -> None:
    top = rig.topology
    child = {"local_ts": ("10.2.0.0/24",), "remote_ts": ("10.1.0.0/24",)}
    connection = rig.connection(child=child)
    rig.connect("responder", rig.template_documents(), connection)
    ping_until(top.lan_a, top.b.host(), timeout=60)
    spis, before = {state.spi for state in rig.states()}, reqids(rig)
    assert len(before) == 1
    with ConstantPing(top.lan_a, top.b.host(), interval=0.05) as pings:
        assert rig.gateway.stop() == 0
        rig.gateway.start()
        rig.gateway.wait_condition(PEER)
        rig.gateway.kill()
        rig.gateway.start()
        rig.gateway.wait_condition(PEER)
        result = pings.stop()
    record_property("measured", f"{len(result.lost)} of {result.sent} pings lost")
    assert result.received > 10
    assert not result.lost
    assert {state.spi for state in rig.states()} == spis
    rig.gateway.wait(
        lambda: bool(rig.gateway.status("IPsecPolicy", "pool").get("generated")),
        "the template's status",
    )
    # A rekey afterwards keeps the policies, which name the reqid.
    rig.charon.rekey(child=CHILD)
    rig.gateway.wait(lambda: not {s.spi for s in rig.states()} & spis, "a rekey", timeout=20)
    assert reqids(rig) == before
    assert not ping(top.lan_a, top.b.host(), count=5).lost
    # The end of the child is the end of its policies, and what is left is blocked.
    rig.charon.terminate_child(CHILD)
    rig.gateway.wait(lambda: "dst 10.2.0.0/24" not in outward(rig), "its policies go")
    assert "dst 10.2.0.0/16" in outward(rig)
    assert ping(top.lan_a, top.b.host(), count=2).lost
