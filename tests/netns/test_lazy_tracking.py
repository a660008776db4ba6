"""Outside of a cluster a node tracks connections for us only once somebody translates sources."""

from __future__ import annotations

import pytest

from ipsec_lab.masquerades import LEGACY, NFT, ROUTER, TABLES, Actor, keeps_sources
from ipsec_lab.sites import Sites
from ipsec_lab.traffic import ConstantPing, ping, ping_until


@pytest.mark.parametrize(
    ("actor", "tool"),
    [(ROUTER, LEGACY), (ROUTER, NFT), (TABLES, "")],
    ids=["legacy", "iptables-nft", "nftables"],
)
def test_who_comes_later_gets_no_source_to_translate(sites: Sites, actor: Actor, tool: str) -> None:
    top = sites.topology
    sites.start()
    ping_until(top.lan_a, top.b.host())
    assert not keeps_sources(top.gw_a)
    before = sites.guard.counters()
    with ConstantPing(top.lan_a, top.b.host()):
        actor.set_up(top.gw_a, tool)
        sites.a.wait(lambda: keeps_sources(top.gw_a), "sources are kept")
        ping_until(top.lan_a, top.b.host())
    assert ping(top.lan_b, top.a.host()).received == 3
    seen = sites.guard.counters() - before
    assert seen.clear == 0
    assert seen.encrypted >= 8


def test_who_was_there_first_gets_none_either(sites: Sites) -> None:
    top = sites.topology
    ROUTER.set_up(top.gw_a, NFT)
    sites.start()
    ping_until(top.lan_a, top.b.host())
    assert keeps_sources(top.gw_a)
    assert sites.guard.counters().clear == 0
