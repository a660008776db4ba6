"""Scripts that change the table: what is asked is filled before, and nothing goes too early."""

from __future__ import annotations

import re

from ipsec_gateway import nftables, nftscripts
from ipsec_gateway.classify import classify
from ipsec_gateway.nftscripts import Found, Installed
from ipsec_lab.steering_rig import spec


def table(*remotes: str, mtu: int | None = None) -> nftables.Ruleset:
    """The one for policies to these networks, each from a network of its own."""
    policies = [spec(f"10.{n}.0.0/16", remote) for n, remote in enumerate(remotes)]
    policies += [spec("fd00:1::/64", "fd00:2::/64")]
    return nftables.ruleset(classify(policies, frozenset({7})), device="ipsec0", mtu=mtu)


def installed(of: nftables.Ruleset) -> Installed:
    return nftscripts.replace(of).then


def asked(script: str) -> set[str]:
    return set(re.findall(r"@(\w+)", script))


def declared(script: str) -> set[str]:
    return set(re.findall(r"^  set (\w+) ", script, re.MULTILINE))


def test_a_neighbour_leaves_the_others_alone() -> None:
    before, after = table("172.16.0.0/24"), table("172.16.0.0/24", "172.16.1.0/24")
    (script,) = nftscripts.change(after, installed(before)).scripts
    assert "add element inet kube_ipsec remote4 { 172.16.1.0/24 }" in script
    assert "delete" not in script


def test_elements_are_there_before_others_go() -> None:
    before, after = table("172.16.0.0/24", "172.17.0.0/24"), table("172.16.0.0/24", "172.18.0.0/24")
    first, second = nftscripts.change(after, installed(before)).scripts
    assert "add element inet kube_ipsec step0_any4 { 10.1.0.0/16 . 172.18.0.0/24" in first
    assert "add element inet kube_ipsec remote4 { 172.18.0.0/24 }" in first
    assert "delete" not in first
    assert "delete element inet kube_ipsec step0_any4 { 10.1.0.0/16 . 172.17.0.0/24" in second
    assert "delete element inet kube_ipsec remote4 { 172.17.0.0/24 }" in second
    assert "add" not in second


def test_no_rule_asks_a_set_of_its_own_transaction() -> None:
    """New rules have new sets, filled before; those of before go with the rules that ask them."""
    actual = installed(table("172.16.0.0/24"))
    for mtu in (1400, 1300, None):
        change = nftscripts.change(table("172.16.0.0/24", mtu=mtu), actual)
        filled, rules = change.scripts
        assert declared(filled) == asked(rules) == set(change.then.names.values())
        assert not declared(rules)
        assert not asked(filled)
        assert set(change.then.names.values()).isdisjoint(actual.names.values())
        for old in actual.names.values():
            assert f"delete set inet kube_ipsec {old}\n" in rules
        actual = change.then
    assert actual.names["step0_any4"] == "step0_any4_2"


def test_elements_are_changed_where_the_kernel_has_them() -> None:
    actual = nftscripts.install(table("172.16.0.0/24"), Found({"remote4", "step0_any4"}, ())).then
    (script,) = nftscripts.change(table("172.16.0.0/24", "172.16.1.0/24"), actual).scripts
    assert "add element inet kube_ipsec remote4_2 { 172.16.1.0/24 }" in script
    assert "add element inet kube_ipsec step0_any4_2 {" in script


def test_what_an_earlier_table_had_goes() -> None:
    there = Found({"step0_any4", "old"}, {"prerouting", "forgotten"})
    change = nftscripts.install(table("172.16.0.0/24"), there)
    rules = change.scripts[-1]
    gone = re.findall(r"^delete (.*)$", rules, re.MULTILINE)
    assert sorted(gone) == [
        "chain inet kube_ipsec forgotten",
        "set inet kube_ipsec old",
        "set inet kube_ipsec step0_any4",
    ]
    assert change.then.names["step0_any4"] == "step0_any4_2"
    assert change.then.names["remote4"] == "remote4"


def test_names_of_a_listed_table() -> None:
    listed = {
        "nftables": [
            {"metainfo": {}},
            {"table": {"name": "kube_ipsec"}},
            {"set": {"name": "remote4"}},
            {"chain": {"name": "steer"}},
            {"rule": {"chain": "steer"}},
        ]
    }
    assert nftscripts.found(listed) == Found(("remote4",), ("steer",))
    assert nftscripts.found({}) == Found((), ())


def test_nothing_to_do() -> None:
    it = table("172.16.0.0/24")
    assert nftscripts.change(table("172.16.0.0/24"), installed(it)).scripts == ()


def test_chains_stay() -> None:
    """A chain that comes back in the same transaction would be a moment without one of the two."""
    actual = installed(table("172.16.0.0/24"))
    for device in ("ipsec0", None):
        wanted = nftables.ruleset((), device=device)
        chains = set(re.findall(r"chain (\w+)", wanted.body))
        rules = nftscripts.change(wanted, actual).scripts[-1]
        gone = set(re.findall(r"^delete chain inet kube_ipsec (\w+)$", rules, re.MULTILINE))
        assert gone.isdisjoint(chains)
        assert gone | chains >= set(re.findall(r"chain (\w+)", actual.ruleset.body))
