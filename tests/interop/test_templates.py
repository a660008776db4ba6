"""charon as a road warrior: what it asks for within a template it has as long as its SAs."""

import pytest

from ipsec_lab.interop import CHILD, CONNECTION, GCM, PEER, InteropRig
from ipsec_lab.netns import LabError
from ipsec_lab.strongswan import Child
from ipsec_lab.traffic import ping


def warrior(rig: InteropRig, number: int = 0, lan: int = 0, **child):
    """A connection of a road warrior with an identity of its own."""
    one = {
        "name": f"{CHILD}{number}",
        "local_ts": (rig.topology.b.lans[lan],),
        "remote_ts": ("10.1.0.0/24",),
        "esp_proposals": (GCM.their_esp,),
    }
    return rig.connection(
        name=f"{CONNECTION}{number}",
        local_id=f"warrior{number}.example",
        children=(Child(**(one | child)),),
    )


def state(rig: InteropRig):
    return rig.gateway.status("IPsecPolicy", "pool")


def has(rig: InteropRig, *remote: str) -> None:
    """Until the template's status says that these networks are given."""

    def reached() -> bool:
        given = [net for each in state(rig).get("generated", ()) for net in each["remote"]]
        return sorted(given) == sorted(remote)

    rig.gateway.wait(reached, f"{remote} given, status: {state(rig)}", timeout=10)


def test_a_road_warrior(rig: InteropRig):
    """Traffic as with a policy, also over rekeys; in clear text neither before nor after."""
    top = rig.topology
    rig.start_theirs(warrior(rig))
    rig.start_ours(rig.template_documents())
    has(rig)
    assert state(rig)["state"] == "Template"
    assert not answered(rig)
    rig.charon.initiate(child=f"{CHILD}0")
    # The answer to the very first packet finds its way.
    assert not ping(top.lan_b, top.a.host(0), count=3, interval=0.05, source=top.b.host(0)).lost
    rig.gateway.wait_condition(PEER)
    has(rig, "10.2.0.0/24")
    status = state(rig)
    assert (status["dynamic"], status["selectorsInstalled"]) == (True, 1)
    (given,) = status["generated"]
    assert given["remoteID"] == "warrior0.example"
    assert given["remoteAddress"].startswith(top.b.wan_address())
    assert given["local"] == ["10.1.0.0/24"]
    counts = rig.gateway.status("IPsecPeer", PEER)["childSAs"]
    assert counts == {"installed": 1, "expected": 1}
    rig.exchange_traffic(lan=(0,))
    old = rig.charon.wait_installed(f"{CHILD}0")
    rig.charon.rekey(child=f"{CHILD}0")
    rig.charon.wait_for(lambda sas: replaced(sas, old.spi_in), "child rekeyed")
    rig.exchange_traffic(lan=(0,))
    rig.charon.terminate(f"{CONNECTION}0")
    has(rig)
    assert state(rig)["dynamic"] is False
    assert not answered(rig)
    rig.charon.initiate(child=f"{CHILD}0")
    has(rig, "10.2.0.0/24")
    rig.exchange_traffic(lan=(0,))


def answered(rig: InteropRig) -> bool:
    """Whether the other LAN answers; the guard of the rig sees what leaves in clear text."""
    top = rig.topology
    return not ping(top.lan_a, top.b.host(0), count=2, interval=0.1, source=top.a.host(0)).lost


def replaced(sas, old_spi):
    installed = [c for sa in sas for c in sa.children if c.state == "INSTALLED"]
    return bool(installed) and all(c.spi_in != old_spi for c in installed)


def test_road_warriors_do_not_take_from_each_other(rig: InteropRig):
    thief = warrior(rig, 2, name="theft", local_ts=("10.2.0.0/25",))
    rig.start_theirs(warrior(rig, 0), warrior(rig, 1, lan=2), thief)
    rig.start_ours(rig.template_documents())
    for number in (0, 1):
        rig.charon.initiate(child=f"{CHILD}{number}")
    has(rig, "10.2.0.0/24", "10.2.1.0/24")
    with pytest.raises(LabError):
        rig.charon.initiate(child="theft")
    assert "TS_UNACCEPT" in rig.charon.log()
    assert "warrior2.example does not get 10.1.0.0/24 to 10.2.0.0/25" in rig.gateway.log()
    assert "(warrior0.example at " in rig.gateway.log()
    has(rig, "10.2.0.0/24", "10.2.1.0/24")
    rig.exchange_traffic(lan=(0,))
    top = rig.topology
    assert not ping(top.lan_b, top.a.host(0), count=3, source=top.b.host(2)).lost
    # Who is gone leaves it to the next.
    rig.charon.terminate(f"{CONNECTION}0")
    has(rig, "10.2.1.0/24")
    rig.charon.initiate(child="theft")
    has(rig, "10.2.0.0/25", "10.2.1.0/24")


def test_a_road_warrior_comes_back_without_a_word(rig: InteropRig):
    """Killed, and anew with the same identity: it replaces its own."""
    connection = warrior(rig)
    rig.start_theirs(connection)
    rig.start_ours(rig.template_documents())
    rig.charon.initiate(child=f"{CHILD}0")
    has(rig, "10.2.0.0/24")
    rig.charon.kill()
    rig.charon.start()
    rig.charon.load(connection)
    rig.charon.initiate(child=f"{CHILD}0")
    rig.exchange_traffic(lan=(0,))
    has(rig, "10.2.0.0/24")
    assert "does not get" not in rig.gateway.log()


def test_without_the_template_nothing_is_left(rig: InteropRig, left):
    everything = rig.template_documents()
    pattern = next(d for d in everything if d["kind"] == "IPsecPolicy")
    rig.start_theirs(warrior(rig))
    rig.start_ours(everything)
    rig.charon.initiate(child=f"{CHILD}0")
    has(rig, "10.2.0.0/24")
    rig.gateway.remove(pattern)
    rig.charon.wait_for(
        lambda sas: not any(sa.children for sa in sas), "its child is deleted", timeout=10
    )
    rig.gateway.remove(*everything)
    rig.charon.wait_for(lambda sas: not sas, "deleted at charon too", timeout=10)
    rig.gateway.wait(lambda: not left(), f"nothing left: {left()}", timeout=10)


@pytest.mark.parametrize(("how", "installed"), [("port-strict", 80), ("port-override", None)])
def test_ports(rig: InteropRig, how, installed):
    """charon asks for one port; with port-override we carry all of the protocol."""
    child = {"local_ts": ("10.2.0.0/24[tcp]",), "remote_ts": ("10.1.0.0/24[tcp/80]",)}
    rig.start_theirs(warrior(rig, **child))
    rig.start_ours(rig.template_documents(how))
    rig.charon.initiate(child=f"{CHILD}0")
    rig.gateway.wait(lambda: bool(state(rig).get("generated")), "something is given")
    (given,) = state(rig)["generated"]
    assert given["local"] == [f"10.1.0.0/24[6{'' if installed is None else f'/{installed}'}]"]
    assert given["remote"] == ["10.2.0.0/24[6]"]
