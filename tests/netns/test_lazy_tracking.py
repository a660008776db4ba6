"""Outside of a cluster a node tracks connections for us only once somebody translates sources."""

from __future__ import annotations

import pytest

from ipsec_gateway.marks import NFT_TABLE
from ipsec_lab.masquerades import LEGACY, NFT, ROUTER, TABLES, Actor
from ipsec_lab.sites import Sites
from ipsec_lab.traffic import ping, ping_until


def tracks(sites: Sites) -> bool:
    """Whether our table has a chain for which the kernel tracks connections."""
    return "type nat" in sites.topology.gw_a.run("nft", "list", "table", "inet", NFT_TABLE)


@pytest.mark.parametrize(
    ("actor", "tool"),
    [(ROUTER, LEGACY), (ROUTER, NFT), (TABLES, "")],
    ids=["legacy", "iptables-nft", "nftables"],
)
def test_who_comes_later_gets_no_source_to_translate(sites: Sites, actor: Actor, tool: str) -> None:
    top = sites.topology
    sites.start()
    ping_until(top.lan_a, top.b.host())
    assert not tracks(sites)
    before = sites.guard.counters()
    actor.set_up(top.gw_a, tool)
    sites.a.wait(lambda: tracks(sites), "sources are kept")
    ping_until(top.lan_a, top.b.host())
    assert ping(top.lan_b, top.a.host()).received == 3
    seen = sites.guard.counters() - before
    assert seen.clear == 0
    assert seen.encrypted >= 8


def test_who_was_there_first_gets_none_either(sites: Sites) -> None:
    ROUTER.set_up(sites.topology.gw_a, NFT)
    sites.start()
    ping_until(sites.topology.lan_a, sites.topology.b.host())
    assert tracks(sites)
    assert sites.guard.counters().clear == 0
