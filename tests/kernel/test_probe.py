"""The responder where the kernel decrypts: what it sees of a packet does not say that it came out
of an SA, so the guard has to."""

import pytest

from ipsec_gateway.pathprobe.format import datagram
from ipsec_lab.asking import asked, asked_until
from ipsec_lab.kernel_rig import KernelRig

pytestmark = pytest.mark.strongswan


def answers(rig: KernelRig) -> float:
    return rig.gateway.metric("ipsec_probe_responder_total", outcome="answered")


def test_the_responder_answers_out_of_sas_alone(rig: KernelRig) -> None:
    top = rig.topology
    rig.connect("initiator", rig.documents(version=4), rig.connection(version=4))
    data = datagram(4, 7, 1200)
    for lan in (0, 1):
        target, source = top.a.gateway(lan), top.b.host(lan)
        answer = asked_until(top.lan_b, target, data, source=source, wait=3, timeout=60)
        assert answer == data, target
    answered = answers(rig)
    assert answered >= 2
    dropped = rig.gateway.metric("ipsec_unencrypted_drops_total")
    for namespace, target in (
        (top.wan, top.a.wan_address()),
        (top.wan, top.a.wan_address(6)),
        (top.lan_a, top.a.gateway()),
        (top.lan_a, top.a.gateway(1)),
        (top.gw_a, top.a.gateway()),
    ):
        assert asked(namespace, target, data, wait=2) == b""
    assert rig.gateway.metric("ipsec_unencrypted_drops_total") == dropped + 4
    assert answers(rig) == answered
