"""Rekeying under traffic, collisions, dead paths, restarts and deletions."""

import time

import pytest

from ipsec_lab.interop import CHILD, CONNECTION, PEER, InteropRig
from ipsec_lab.strongswan import CharonSettings
from ipsec_lab.traffic import ConstantPing, ping, ping_until

ROLES = pytest.mark.parametrize("role", ["initiator", "responder"])
#: Every few seconds of DPD and retransmission, so that a dead peer is found within the test.
QUICK_DPD = {"dpd": {"interval": "1s", "maxFailures": 2}}


def test_rekeys_by_us_under_ping(rig: InteropRig):
    """Our child lives 4 s, our IKE SA 7 s; not one ping may be lost."""
    documents = rig.documents(proposal={"lifetime": "4s"}, profile={"lifetime": "7s"})
    rig.connect("initiator", documents, rig.connection())
    _ping_through_rekeys(rig, seconds=16, children=4, ike=2)


def test_rekeys_by_charon_under_ping(rig: InteropRig):
    connection = rig.connection(
        rekey_time=5, over_time=5, child={"rekey_time": 3, "life_time": 20, "rand_time": 0}
    )
    rig.connect("responder", rig.documents(passive=True), connection)
    _ping_through_rekeys(rig, seconds=14, children=3, ike=2)


def _ping_through_rekeys(rig: InteropRig, *, seconds: float, children: int, ike: int) -> None:
    top = rig.topology
    ping_until(top.lan_a, top.b.host(0))
    ping_until(top.lan_b, top.a.host(1))
    spis, ike_spis = set(), set()
    with (
        ConstantPing(top.lan_a, top.b.host(0)) as first,
        ConstantPing(top.lan_b, top.a.host(1)) as second,
    ):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for sa in rig.charon.sas():
                ike_spis.add(sa.spi_i)
                spis |= {c.spi_in for c in sa.children}
            time.sleep(0.2)
        results = [first.stop(), second.stop()]
    for result in results:
        assert result.lost == ()
        assert result.received > seconds / 0.02 / 2
    assert len(spis) > children
    assert len(ike_spis) > ike


def test_rekey_collisions(rig: InteropRig):
    """Both sides rekey at one moment, again and again: child, IKE SA, and one of each."""
    top = rig.topology
    # Both sides' soft limits fall together: 5 s minus our margin is charon's 4 s.
    documents = rig.documents(proposal={"lifetime": "5s"}, profile={"lifetime": "8s"})
    connection = rig.connection(
        rekey_time=7, over_time=10, child={"rekey_time": 4, "life_time": 30, "rand_time": 0}
    )
    rig.connect("initiator", documents, connection)
    ping_until(top.lan_a, top.b.host())
    with ConstantPing(top.lan_a, top.b.host()) as constant:
        for turn in range(10):
            rig.charon.rekey(child=CHILD)
            if turn % 3 == 2:
                rig.charon.rekey(ike=CONNECTION)
            time.sleep(1.1)
        result = constant.stop()
    assert result.lost == ()
    rig.charon.wait_for(_one_of_each, "one IKE SA with one installed child is left", timeout=10)
    rig.exchange_traffic()


def _one_of_each(sas):
    return len(sas) == 1 and sum(c.state == "INSTALLED" for c in sas[0].children) == 1


def test_a_cut_path_is_found_and_heals(rig: InteropRig):
    """DPD: the path is cut silently; we notice, say so, and come back when it heals."""
    connection = rig.connection(dpd_delay=1)
    rig.start_theirs(
        connection, settings=CharonSettings(retransmit_timeout=0.5, retransmit_tries=2)
    )
    rig.start_ours(rig.documents(profile=QUICK_DPD))
    rig.wait_up(connection)
    rig.exchange_traffic(lan=(0,))
    rig.guard.cut()
    condition = rig.gateway.wait_condition(PEER, "Established", "False", timeout=60)
    assert condition["reason"] in ("PeerDead", "Timeout", "Connecting")
    assert ping(rig.topology.lan_a, rig.topology.b.host(), count=2, wait=0.2).received == 0
    rig.charon.wait_for(lambda sas: not sas, "charon notices too", timeout=20)
    rig.guard.restore()
    rig.wait_up(connection, timeout=60)
    rig.exchange_traffic(lan=(0,))


@pytest.mark.parametrize("how", ["orderly", "killed"])
def test_charon_restarts(rig: InteropRig, how):
    connection = rig.connection()
    rig.connect("initiator", rig.documents(profile=QUICK_DPD), connection)
    if how == "orderly":
        rig.charon.stop()
    else:
        rig.charon.kill()
    rig.charon.start()
    rig.charon.load(connection)
    rig.charon.wait_installed(CHILD, timeout=60)
    rig.wait_up(connection, timeout=10)
    rig.exchange_traffic(lan=(0,))
    assert len(rig.charon.established(CONNECTION)) == 1


@pytest.mark.parametrize("how", ["orderly", "killed"])
def test_we_restart(rig: InteropRig, how):
    """The same manifests again: one IKE SA is left, because of INITIAL_CONTACT."""
    connection = rig.connection(unique="replace")
    rig.connect("initiator", rig.documents(), connection)
    first = rig.charon.wait_installed(CHILD)
    if how == "orderly":
        rig.gateway.stop()
    else:
        rig.gateway.kill()
    rig.gateway.start()
    rig.charon.wait_for(
        lambda sas: (
            len(sas) == 1
            and any(c.state == "INSTALLED" and c.spi_in != first.spi_in for c in sas[0].children)
        ),
        "one new IKE SA",
        timeout=15,
    )
    rig.wait_up(connection)
    rig.exchange_traffic()


@ROLES
def test_deleting_the_peer_leaves_nothing(rig: InteropRig, role, left):
    documents = rig.documents(passive=role == "responder")
    rig.connect(role, documents, rig.connection())
    rig.exchange_traffic(lan=(0,))
    rig.gateway.remove(*documents)
    rig.charon.wait_for(lambda sas: not sas, "deleted at charon too", timeout=10)
    rig.gateway.wait(lambda: not left(), f"nothing left: {left()}", timeout=10)
    assert rig.gateway.stop() == 0


def test_charon_deletes_a_child(rig: InteropRig):
    """The peer takes our child away: we ask for it again."""
    connection = rig.connection()
    rig.connect("initiator", rig.documents(), connection)
    first = rig.charon.wait_installed(CHILD)
    rig.charon.terminate_child(CHILD)
    rig.charon.wait_for(
        lambda sas: any(
            c.state == "INSTALLED" and c.spi_in != first.spi_in for sa in sas for c in sa.children
        ),
        "a new child",
        timeout=15,
    )
    rig.wait_up(connection)
    rig.exchange_traffic(lan=(0,))
