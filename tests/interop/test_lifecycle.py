"""Rekeying under traffic, collisions, dead paths, restarts and deletions."""

import re
import time

import pytest

from ipsec_lab.interop import CHILD, CONNECTION, PEER, InteropRig
from ipsec_lab.strongswan import CharonChild, CharonIkeSa, CharonSettings, Connection
from ipsec_lab.traffic import ConstantPing, ping, ping_until

ROLES = pytest.mark.parametrize("role", ["initiator", "responder"])
RESTARTS = pytest.mark.parametrize("how", ["orderly", "killed"])
#: A silent peer is asked after a second. Its death is certain half a minute later: the engine's
#: retransmissions have to end first.
QUICK_DPD = {"dpd": {"interval": "1s"}}
#: The same of charon, which gives up after two and a half seconds.
QUICK_CHARON = CharonSettings(retransmit_timeout=0.5, retransmit_tries=2)


@ROLES
def test_rekeys_by_us_under_ping(rig: InteropRig, role):
    """Our child lives 4 s, our IKE SA 7 s; not one ping may be lost."""
    documents = rig.documents(
        proposal={"lifetime": "4s"}, profile={"lifetime": "7s"}, passive=role == "responder"
    )
    rig.connect(role, documents, rig.connection())
    _ping_through_rekeys(rig, seconds=14, children=3, ike=2)


@ROLES
def test_rekeys_by_charon_under_ping(rig: InteropRig, role):
    connection = rig.connection(
        rekey_time=5, over_time=5, child={"rekey_time": 3, "life_time": 20, "rand_time": 0}
    )
    rig.connect(role, rig.documents(passive=role == "responder"), connection)
    _ping_through_rekeys(rig, seconds=12, children=3, ike=1)


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


#: What charon's log says when its request goes out.
ASKING = {"child": "establishing CHILD_SA lans", "ike": "initiating IKE_SA east"}
#: What charon's log says of each collision.
SEEN = {
    ("child", "ours"): r"detected CHILD_REKEY collision with CHILD_REKEY",
    ("child", "theirs"): r"generating CREATE_CHILD_SA response \d+ \[ N\(NO_CHILD_SA\)",
    ("child", "both"): r"CHILD_SA rekey collision (won|lost)",
    ("ike", "ours"): r"detected IKE_REKEY collision with IKE_REKEY",
    ("ike", "theirs"): r"retransmit 1 of request",
    ("ike", "both"): r"IKE_SA rekey collision (won|lost)",
}


#: What charon's log says when it has replaced its SA.
DONE = {"child": "CHILD_SA closed", "ike": "state change: REKEYED => DELETING"}


@pytest.mark.parametrize(
    ("role", "first"), [("initiator", "ours"), ("responder", "theirs"), ("initiator", "both")]
)
@pytest.mark.parametrize("what", ["child", "ike"])
def test_rekey_collision(rig: InteropRig, role, what, first):
    """Both sides have asked when the other's request arrives. ESP goes on meanwhile.

    ``first`` is whose request gets through while the other's is lost again and again; with ``both``
    it is the answers that are lost, until both requests have arrived.
    """
    lifetime = {"proposal" if what == "child" else "profile": {"lifetime": "16s"}}
    connection = rig.connection()
    rig.start_theirs(connection, settings=CharonSettings(retransmit_timeout=0.3))
    rig.start_ours(rig.documents(passive=role == "responder", **lifetime))
    if role == "responder":
        rig.charon.initiate(child=CHILD)
    rig.wait_up(connection)
    old = rig.charon.established(CONNECTION)[0]
    ping_until(rig.topology.lan_a, rig.topology.b.host())

    def charon_says(text: str, times: int = 1) -> None:
        rig.gateway.wait(lambda: len(re.findall(text, rig.charon.log())) >= times, text)

    with ConstantPing(rig.topology.lan_a, rig.topology.b.host()) as constant:
        before = rig.guard.counters().weather
        rig.guard.cut_ike()
        rig.gateway.wait(lambda: rig.guard.counters().weather > before, "ours", timeout=20)
        asked = rig.charon.log().count(ASKING[what])
        rig.charon.rekey(**({"child": CHILD} if what == "child" else {"ike": CONNECTION}))
        charon_says(ASKING[what], asked + 1)
        if first == "ours":
            rig.guard.cut_ike(requests="b", answers=False)
            charon_says("collision with")
        elif first == "theirs":
            rig.guard.cut_ike(requests="a", answers=False)
            charon_says(DONE[what])
        else:
            repeated = rig.charon.log().count("] retransmit ")
            rig.guard.cut_ike(requests="")
            charon_says("collision with")
            charon_says(r"\] retransmit ", repeated + 1)
        rig.guard.restore()
        charon_says(SEEN[what, first])
        rig.charon.wait_for(lambda sas: _replaced(sas, old, what), "one winner", timeout=15)
        result = constant.stop()
    assert result.lost == ()
    rig.exchange_traffic(lan=(0,))


def _replaced(sas: list[CharonIkeSa], old: CharonIkeSa, what: str) -> bool:
    # A loser of which we never saw the answer ends at charon by itself, later.
    sas = [sa for sa in sas if sa.state != "REKEYED"]
    if not _one_of_each(sas):
        return False
    if what == "ike":
        return sas[0].spi_i != old.spi_i
    return all(c.spi_in != old.children[0].spi_in for c in sas[0].children)


def test_rekeys_from_both_sides_in_turn(rig: InteropRig):
    """charon rekeys every second, child and IKE SA, and we whenever a soft limit is reached."""
    top = rig.topology
    documents = rig.documents(proposal={"lifetime": "2s"}, profile={"lifetime": "3s"})
    connection = rig.connection()
    rig.connect("initiator", documents, connection)
    ping_until(top.lan_a, top.b.host())
    with ConstantPing(top.lan_a, top.b.host()) as constant:
        for turn in range(9):
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


@ROLES
def test_a_cut_path_is_found_and_heals(rig: InteropRig, role):
    """DPD: the path is cut silently; we notice, say so, and come back when it heals.

    The responder waits; charon, the initiator then, is asked to come back.
    """
    connection = rig.connection(dpd_delay=1)
    rig.start_theirs(connection, settings=QUICK_CHARON)
    rig.start_ours(rig.documents(profile=QUICK_DPD, passive=role == "responder"))
    if role == "responder":
        rig.charon.initiate(child=CHILD)
    rig.wait_up(connection)
    rig.exchange_traffic(lan=(0,))
    rig.guard.cut()
    condition = rig.gateway.wait_condition(PEER, "Established", "False", timeout=60)
    assert condition["reason"] == "PeerDead"
    assert rig.topology.b.wan_address() in condition["message"]
    assert ping(rig.topology.lan_a, rig.topology.b.host(), count=2, wait=0.2).received == 0
    rig.charon.wait_for(lambda sas: not sas, "charon notices too", timeout=20)
    rig.guard.restore()
    if role == "responder":
        rig.charon.initiate(child=CHILD)
    rig.wait_up(connection, timeout=60)
    rig.exchange_traffic(lan=(0,))


@RESTARTS
def test_charon_restarts(rig: InteropRig, how):
    """It was the responder and knows nothing any more: we set up the tunnel again."""
    connection = rig.connection()
    rig.connect("initiator", rig.documents(profile=QUICK_DPD), connection)
    _restart_charon(rig, how, connection)
    rig.charon.wait_installed(CHILD, timeout=60)
    rig.wait_up(connection, timeout=10)
    rig.exchange_traffic(lan=(0,))
    assert len(rig.charon.established(CONNECTION)) == 1


@RESTARTS
def test_charon_restarts_and_comes_back(rig: InteropRig, how):
    """It was the initiator: its INITIAL_CONTACT ends at once what we still have of before."""
    a, b = rig.topology.a, rig.topology.b
    # charon sends INITIAL_CONTACT only to somebody whom it knows by name.
    ids = {"local_id": b.wan_address(), "remote_id": a.wan_address()}
    connection = rig.connection(unique="replace", **ids)
    rig.connect("responder", rig.documents(passive=True), connection)
    _restart_charon(rig, how, connection)
    rig.charon.initiate(child=CHILD)
    rig.gateway.wait(lambda: rig.gateway.log().count("IKE SA established") == 2, "the second")
    rig.gateway.wait(lambda: _ike_sas(rig) == 1, "one IKE SA at ours")
    rig.wait_up(connection)
    rig.exchange_traffic(lan=(0,))


def _restart_charon(rig: InteropRig, how: str, connection: Connection) -> None:
    if how == "orderly":
        rig.charon.stop()
    else:
        rig.charon.kill()
    rig.charon.start()
    rig.charon.load(connection)


def _ike_sas(rig: InteropRig) -> int:
    """How many our gateway has, by its log."""
    log = rig.gateway.log()
    return log.count("IKE SA established") - len(re.findall(r"IKE SA with .* closed:", log))


@RESTARTS
def test_we_restart(rig: InteropRig, how):
    """The same manifests again: one IKE SA is left, because of INITIAL_CONTACT.

    ``unique = no``: charon replaces nothing of its own accord.
    """
    connection = rig.connection(unique="no")
    rig.connect("initiator", rig.documents(), connection)
    first = rig.charon.wait_installed(CHILD)
    _restart_ours(rig, how)
    rig.charon.wait_for(
        lambda sas: len(sas) == 1 and _installed_anew(sas, first), "one new IKE SA", timeout=15
    )
    rig.wait_up(connection)
    rig.exchange_traffic()


@RESTARTS
def test_we_restart_and_are_asked_again(rig: InteropRig, how):
    """As the responder: charon is told (SIGTERM) or finds out (SIGKILL), and comes back."""
    child = {"dpd_action": "start", "close_action": "start"}
    connection = rig.connection(dpd_delay=1, child=child, keyingtries=0)
    rig.start_theirs(connection, settings=QUICK_CHARON)
    rig.start_ours(rig.documents(passive=True))
    rig.charon.initiate(child=CHILD)
    rig.wait_up(connection)
    first = rig.charon.wait_installed(CHILD)
    _restart_ours(rig, how)
    rig.charon.wait_for(lambda sas: _installed_anew(sas, first), "a new child", timeout=30)
    rig.wait_up(connection)
    rig.exchange_traffic()


def _restart_ours(rig: InteropRig, how: str) -> None:
    if how == "orderly":
        assert rig.gateway.stop() == 0
    else:
        rig.gateway.kill()
    rig.gateway.start()


def _installed_anew(sas: list[CharonIkeSa], first: CharonChild) -> bool:
    return any(
        c.state == "INSTALLED" and c.spi_in != first.spi_in for sa in sas for c in sa.children
    )


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
    rig.charon.wait_for(lambda sas: _installed_anew(sas, first), "a new child", timeout=15)
    rig.wait_up(connection)
    rig.exchange_traffic(lan=(0,))
