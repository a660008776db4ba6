"""What one gateway leaves in the kernel, and what the next one makes of it.

The peer is strongSwan's kernel back end. Nothing is lost where the next gateway can go on; where it
cannot, the old SAs carry the traffic until there are new ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from ipsec_lab.interop import CHILD, CONNECTION, PEER
from ipsec_lab.kernel_rig import KernelRig
from ipsec_lab.netns import Namespace
from ipsec_lab.traffic import ConstantPing, PingResult, ping, ping_until

pytestmark = pytest.mark.strongswan

Record = Callable[[str, object], None]

#: An SA, a policy, a rule, a route and a table of somebody else on the same node.
FOREIGN = """
ip xfrm state add src 192.0.2.77 dst 192.0.2.78 proto esp spi 0x4711 mode tunnel reqid 5 \
  aead 'rfc4106(gcm(aes))' 0x0000000000000000000000000000000000000000 128
ip xfrm policy add src 10.77.0.0/24 dst 10.78.0.0/24 dir out priority 77 \
  tmpl src 192.0.2.77 dst 192.0.2.78 proto esp reqid 5 mode tunnel
ip rule add fwmark 0x8000/0x8000 lookup 77 priority 777
ip route add 10.78.0.0/24 dev wan0 table 77
nft add table inet somebody
nft add chain inet somebody post '{ type nat hook postrouting priority 100; }'
"""
#: All of this that a gateway could change; without counters and lifetimes.
SHOW = """
ip xfrm state list reqid 5
ip xfrm policy; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all
nft list tables; nft list table inet somebody
"""


def keys(rig: KernelRig) -> set[int]:
    """The SPIs of our kernel."""
    return {state.spi for state in rig.states()}


def up(rig: KernelRig, role: str = "initiator", **settings: object) -> set[int]:
    """The tunnel of the lab, and its SPIs."""
    documents = rig.documents(passive=role == "responder")
    rig.connect(role, documents, rig.connection(**settings))
    ping_until(rig.topology.lan_a, rig.topology.b.host(), timeout=60)
    return keys(rig)


def constant(rig: KernelRig) -> ConstantPing:
    return ConstantPing(rig.topology.lan_a, rig.topology.b.host(), interval=0.05)


def measured(record: Record, result: PingResult) -> None:
    record("measured", f"{len(result.lost)} of {result.sent} pings lost")
    assert result.received > 10


def shown(where: Namespace) -> str:
    return where.run("sh", "-c", SHOW)


def replaced(rig: KernelRig, old: set[int]) -> None:
    """Until new SAs have taken the place of the old ones, and not before."""
    rig.gateway.wait(lambda: bool(keys(rig) - old), "new SAs")
    rig.gateway.wait(lambda: not keys(rig) & old, "the old SAs go", timeout=20)


@pytest.mark.parametrize("role", ["initiator", "responder"])
def test_the_next_gateway_goes_on(rig: KernelRig, role: str, record_property: Record) -> None:
    """SIGTERM (an upgrade), then SIGKILL: the same SAs, the same IKE SA, and no packet lost."""
    before = up(rig, role)
    (sa,) = rig.charon.established(CONNECTION)
    with constant(rig) as pings:
        assert rig.gateway.stop() == 0
        assert keys(rig) == before
        rig.gateway.start()
        rig.gateway.kill()
        rig.gateway.start()
        result = pings.stop()
    measured(record_property, result)
    assert result.lost == ()
    assert keys(rig) == before
    assert [each.unique_id for each in rig.charon.established(CONNECTION)] == [sa.unique_id]
    assert rig.gateway.log().count("going on after") == 2
    # Message IDs and keys of the IKE SA are right: it carries a rekeying, and that one our next.
    rig.charon.rekey(child=CHILD)
    replaced(rig, before)
    rig.exchange_traffic()


def test_two_at_a_time(rig: KernelRig) -> None:
    """The next version, started too early, leaves the tunnel to the one that runs."""
    before = up(rig)
    early = rig.gateway.beside("--listen", "127.0.0.1:9501")
    assert early.wait(150) not in (0, None)
    assert "PortConflict" in rig.gateway.log() or "in use" in rig.gateway.log()
    assert keys(rig) == before
    rig.exchange_traffic()


def test_lost_records(rig: KernelRig, record_property: Record) -> None:
    """The tunnel is set up anew, and the old SAs carry the traffic until then."""
    before = up(rig)
    rig.gateway.kill()
    (rig.gateway.records / "journal").unlink()
    rig.charon.load()  # it answers nobody for a while: the new tunnel is late
    with constant(rig) as pings:
        rig.gateway.start()
        rig.gateway.wait_condition(PEER, "Established", "False")
        assert keys(rig) == before
        assert not ping(rig.topology.lan_a, rig.topology.b.host(), count=5, wait=5).lost
        rig.charon.load(rig.connection())
        replaced(rig, before)
        ping_until(rig.topology.lan_a, rig.topology.b.host(), timeout=60)
        result = pings.stop()
    measured(record_property, result)
    rig.exchange_traffic()


def test_records_are_never_used_twice(rig: KernelRig) -> None:
    """Neither an older copy in its place nor a copy of the folder elsewhere is gone on from."""
    before = up(rig)
    records = rig.gateway.records
    copy, old = records.with_name("copy"), records.with_name("old-journal")
    shutil.copytree(records, copy)
    shutil.copy(records / "journal", old)
    rig.charon.rekey(ike=CONNECTION)
    rig.gateway.wait(lambda: (records / "journal").stat().st_size > old.stat().st_size, "a record")
    rig.gateway.kill()
    (records / "journal").write_bytes(old.read_bytes())
    rig.gateway.start()
    replaced(rig, before)
    assert "is not used (it is damaged, or an older copy)" in rig.gateway.log()
    before = keys(rig)
    rig.gateway.kill()
    rig.gateway.start("--resume", str(copy))
    replaced(rig, before)
    assert "is not used (it is not of this directory and boot)" in rig.gateway.log()
    assert "going on" not in rig.gateway.log()
    rig.exchange_traffic()


def test_an_sa_that_somebody_removed_is_made_anew(rig: KernelRig) -> None:
    before = up(rig)
    rig.gateway.kill()
    rig.topology.gw_a.ip("xfrm state flush")
    rig.gateway.start()
    rig.gateway.wait(lambda: len(keys(rig)) == 2, "new SAs")
    assert not keys(rig) & before
    rig.exchange_traffic()
    assert "1 children without SAs in the kernel" in rig.gateway.log()


def test_a_document_that_went_bad_meanwhile(rig: KernelRig) -> None:
    """Its tunnel goes on with the last good version, and the status says what is wrong."""
    before = up(rig)
    rig.gateway.stop()
    peer = rig.documents()[-1]
    rig.gateway.apply(peer | {"spec": peer["spec"] | {"address": "not an address!"}})
    rig.gateway.start()
    rig.gateway.wait_condition(PEER, "Accepted", "False")
    rig.exchange_traffic()
    assert keys(rig) == before


def test_what_is_not_wanted_any_more_goes_and_nothing_else(rig: KernelRig) -> None:
    """By a start without its documents, and by --cleanup: the peer is told, and what is foreign on
    the node is as it was."""
    node = rig.topology.gw_a
    node.run("sh", "-euc", FOREIGN)
    foreign = shown(node)
    up(rig)
    rig.gateway.stop()
    assert len(keys(rig)) == 3
    assert shown(node) != foreign
    rig.gateway.remove(*rig.documents())
    rig.gateway.start()
    rig.gateway.wait(lambda: keys(rig) == {0x4711}, "the SAs go")
    rig.charon.wait_for(lambda sas: not sas, "the peer is told")
    rig.gateway.apply(*rig.documents())
    rig.wait_up(rig.connection())
    rig.gateway.kill()
    assert len(keys(rig)) == 3
    assert rig.gateway.cleanup() == 0
    rig.charon.wait_for(lambda sas: not sas, "the peer is told again")
    assert shown(node) == foreign
    assert keys(rig) == {0x4711}
    assert not rig.gateway.records.exists()
