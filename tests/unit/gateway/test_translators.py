"""Who else translates sources, by the names of chains and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ipsec_gateway.translators import backend, legacy_tables


def chain(table: str, name: str, family: str = "ip", **base: Any) -> dict[str, Any]:
    return {"chain": {"family": family, "table": table, "name": name, **base}}


def nat(table: str, name: str, family: str = "ip") -> dict[str, Any]:
    return chain(table, name, family, type="nat", hook="postrouting", prio=100)


IPTABLES = nat("nat", "POSTROUTING")


@pytest.mark.parametrize(
    ("chains", "legacy", "said"),
    [
        ([], [], "none"),
        ([], ["filter"], "none"),
        ([], ["filter", "nat"], "iptables-legacy"),
        ([IPTABLES], [], "iptables-nft"),
        (
            [IPTABLES, chain("nat", "KUBE-POSTROUTING"), chain("nat", "FLANNEL-POSTRTG")],
            [],
            "iptables-nft (flannel, kube-proxy)",
        ),
        # The same names without a chain that is called are no translation.
        ([chain("nat", "KUBE-POSTROUTING")], [], "none"),
        ([nat("kube-proxy", "nat-postrouting")], [], "nftables (kube-proxy)"),
        (
            [nat("kindnet-ipmasq", "postrouting", "inet"), nat("home", "post", "inet")],
            [],
            "nftables (home, kindnet)",
        ),
        ([nat("home", "POSTROUTING")], [], "nftables (home)"),
        (
            [nat("nat", "POSTROUTING", "ip6"), chain("nat", "cali-nat-outgoing", "ip6")],
            ["nat"],
            "iptables-legacy; iptables-nft (Calico)",
        ),
        ([nat("kube_ipsec", "snat", "inet")], [], "none"),
        ([chain("x", "pre", type="nat", hook="prerouting", prio=-100)], [], "none"),
        ([chain("x", "post", type="filter", hook="postrouting", prio=0)], [], "none"),
        (
            [nat(f"t{n}", "post") for n in range(9)],
            [],
            "nftables (t0, t1, t2, t3, t4, t5, and others)",
        ),
    ],
)
def test_what_is_said(chains: list[dict[str, Any]], legacy: list[str], said: str) -> None:
    assert backend({"nftables": [{"metainfo": {}}, *chains]}, legacy) == said


def test_tables_of_legacy_iptables(tmp_path: Path) -> None:
    (tmp_path / "four").write_text("nat\nfilter\n")
    paths = (str(tmp_path / "four"), str(tmp_path / "six"))
    assert legacy_tables(paths) == {"nat", "filter"}
    assert legacy_tables(paths[1:]) == frozenset()
