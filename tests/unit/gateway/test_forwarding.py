"""What becomes of a tunnel's packets in others' chains, and what would let them pass.

Texts are those of iptables 1.8.9 and nftables 1.0.6.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from ipsec_gateway.facts import Facts
from ipsec_gateway.forward import listed, saved
from ipsec_gateway.forward.chains import Base, Flow, outcome
from ipsec_gateway.forward.findings import judged
from ipsec_gateway.forward.flows import Wish, any_of, flows, wishes
from ipsec_gateway.forward.opening import closing, opening
from ipsec_gateway.intent import intent
from ipsec_gateway.lastgood import LastGood

LOCAL, REMOTE = ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")
OUT = Flow(4, "out", LOCAL, REMOTE, ipsec=True)
IN = Flow(4, "in", REMOTE, LOCAL, ipsec=True)
TUN_OUT = Flow(4, "out", LOCAL, REMOTE, oif="kipsec0")
TUN_IN = Flow(4, "in", REMOTE, LOCAL, iif="kipsec0")
WISHES = {Wish("in"), Wish("out")}


def iptables(*rules: str, policy: str = "DROP", chains: str = "") -> Base:
    text = f"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD {policy} [3:4]\n"
    text += "".join(f":{name} - [0:0]\n" for name in chains.split())
    text += "".join(f"-A {rule}\n" for rule in rules) + "COMMIT\n"
    (base,) = saved.bases(text, "iptables-nft", "ip")
    return base


def meets(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def nft(*rules: list[dict[str, Any]], policy: str = "drop", table: str = "filter") -> Base:
    where = {"family": "inet", "table": table}
    chain = {"name": "forward", "type": "filter", "hook": "forward", "policy": policy}
    shown: dict[str, Any] = {
        "nftables": [
            {"metainfo": {}},
            {"chain": {**where, **chain}},
            *(
                {"rule": {**where, "chain": "forward", "handle": 5 + number, "expr": rule}}
                for number, rule in enumerate(rules)
            ),
        ]
    }
    (base,) = listed.bases(shown)
    found = listed.rules(shown)
    return Base(base.tool, base.family, base.table, base.name, base.drops, found["forward"], found)


ACCEPT, DROP = {"accept": None}, {"drop": None}


def prefix(text: str) -> dict[str, Any]:
    addr, length = text.split("/")
    return {"prefix": {"addr": addr, "len": int(length)}}


def daddr(right: Any, op: str = "==") -> dict[str, Any]:
    return meets({"payload": {"protocol": "ip", "field": "daddr"}}, right, op)


def iif(name: str) -> dict[str, Any]:
    return meets({"meta": {"key": "iifname"}}, name)


#: A chain, and (passes, sure) of what goes into a tunnel and of what comes out of it.
CHAINS: dict[str, tuple[Base, Flow, tuple[bool, bool]]] = {
    "policy": (iptables(), OUT, (False, True)),
    "established": (
        iptables("FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        OUT,
        (False, False),
    ),
    "flannel": (iptables("FORWARD -s 10.0.0.0/8 -j ACCEPT"), OUT, (True, True)),
    "wider than accepted": (iptables("FORWARD -s 10.1.2.0/24 -j ACCEPT"), OUT, (False, False)),
    "somebody else's": (iptables("FORWARD -s 10.9.0.0/16 -j ACCEPT"), OUT, (False, True)),
    "negated": (iptables("FORWARD ! -s 10.9.0.0/16 -j ACCEPT"), OUT, (True, True)),
    "policy match": (
        iptables("FORWARD -m policy --dir out --pol ipsec -j ACCEPT"),
        OUT,
        (True, True),
    ),
    "policy of a reqid": (
        iptables("FORWARD -m policy --dir out --pol ipsec --reqid 7 -j ACCEPT"),
        OUT,
        (False, False),
    ),
    "clear text alone": (
        iptables("FORWARD -m policy --dir out --pol none -j ACCEPT"),
        OUT,
        (False, True),
    ),
    "a device": (iptables("FORWARD -o kipsec+ -j ACCEPT"), TUN_OUT, (True, True)),
    "another device": (iptables("FORWARD -o docker0 -j ACCEPT"), TUN_OUT, (False, True)),
    "perhaps this device": (iptables("FORWARD -i eth0 -j ACCEPT"), TUN_OUT, (False, False)),
    "mark": (iptables("FORWARD -m mark --mark 0x1/0x1 -j ACCEPT"), OUT, (False, False)),
    "tcp alone": (iptables("FORWARD -s 10.1.0.0/16 -p tcp -j ACCEPT"), OUT, (False, False)),
    "a log": (iptables("FORWARD -j LOG --log-prefix x", policy="ACCEPT"), OUT, (True, True)),
    "reject in the end": (
        iptables("FORWARD -j REJECT --reject-with icmp-host-prohibited", policy="ACCEPT"),
        OUT,
        (False, True),
    ),
    "a jump": (
        iptables("FORWARD -j UFW", "UFW -s 10.1.0.0/16 -j ACCEPT", chains="UFW"),
        OUT,
        (True, True),
    ),
    "a jump and back": (
        iptables("FORWARD -j UFW", "UFW -j RETURN", "UFW -j ACCEPT", chains="UFW"),
        OUT,
        (False, True),
    ),
    "a goto": (
        iptables("FORWARD -g A", "FORWARD -j ACCEPT", "A -j RETURN", chains="A"),
        OUT,
        (False, True),
    ),
    "a goto in a jump": (
        iptables(
            "FORWARD -j A", "FORWARD -j ACCEPT", "A -g B", "A -j DROP", "B -j RETURN", chains="A B"
        ),
        OUT,
        (True, True),
    ),
    "perhaps a jump": (
        iptables("FORWARD -m mark --mark 1 -j A", "A -j ACCEPT", chains="A"),
        OUT,
        (False, False),
    ),
    "perhaps back": (
        iptables(
            "FORWARD -j A", "A -m mark --mark 1 -j RETURN", "A -j DROP", policy="ACCEPT", chains="A"
        ),
        OUT,
        (False, False),
    ),
    "perhaps a drop": (
        iptables("FORWARD -m conntrack --ctstate INVALID -j DROP", policy="ACCEPT"),
        OUT,
        (True, True),
    ),
    "loop": (iptables("FORWARD -j A", "A -j A", chains="A"), OUT, (False, False)),
    "nft policy": (nft(), OUT, (False, True)),
    "nft network": (nft([daddr(prefix("10.2.0.0/15")), ACCEPT]), OUT, (True, True)),
    "nft set": (
        nft(
            [daddr({"set": [prefix("10.2.0.0/17"), {"range": ["10.2.0.0", "10.3.0.255"]}]}), ACCEPT]
        ),
        OUT,
        (True, True),
    ),
    "nft named set": (nft([daddr("@pods"), ACCEPT]), OUT, (False, False)),
    "nft network of IPv6": (nft([daddr(prefix("fd00::/8")), ACCEPT]), OUT, (False, True)),
    "nft ipsec": (nft([meets({"rt": {"key": "ipsec"}}, True), ACCEPT]), OUT, (True, True)),
    "nft clear text": (
        nft([meets({"rt": {"key": "ipsec"}}, False), ACCEPT]),
        OUT,
        (False, True),
    ),
    "nft ipsec in": (nft([meets({"meta": {"key": "ipsec"}}, True), ACCEPT]), IN, (True, True)),
    "nft device": (nft([iif("kipsec*"), ACCEPT]), TUN_IN, (True, True)),
    "nft IPv6 alone": (
        nft([meets({"meta": {"key": "nfproto"}}, "ipv6"), ACCEPT]),
        OUT,
        (False, True),
    ),
    "nft limit": (nft([{"limit": {"rate": 1}}, ACCEPT]), OUT, (False, False)),
    "nft counter": (nft([{"counter": {"packets": 1}}, ACCEPT]), OUT, (True, True)),
    "nft map": (nft([{"vmap": {"key": {}, "data": {}}}]), OUT, (False, False)),
    "nft a foreign match": (
        nft([{"xt": {"type": "match", "name": "policy"}}, ACCEPT]),
        OUT,
        (False, False),
    ),
    "nft a foreign target": (
        nft([{"xt": {"type": "target", "name": "REJECT"}}], policy="accept"),
        OUT,
        (False, True),
    ),
}


@pytest.mark.parametrize(("base", "flow", "expected"), CHAINS.values(), ids=list(CHAINS))
def test_what_becomes_of_a_flow(base: Base, flow: Flow, expected: tuple[bool, bool]) -> None:
    found = outcome(base, flow)
    assert (found.passes, found.sure) == expected


def test_chains_that_drop_some_are_no_suspects() -> None:
    """Those of kube-proxy and Calico, whose drops are for what is theirs."""
    assert not iptables("FORWARD -m mark --mark 1 -j DROP", policy="ACCEPT").suspect
    assert not nft([iif("cali*"), DROP], policy="accept").suspect
    assert nft([iif("cali*"), ACCEPT], [{"counter": None}, DROP], policy="accept").suspect
    assert iptables("FORWARD -j A", policy="ACCEPT", chains="A").suspect


def test_only_others_filters_on_the_forward_hook_are_read() -> None:
    shown = {
        "nftables": [
            {"chain": {"family": family, "table": table, "name": "x", "hook": hook, "type": kind}}
            for family, table, hook, kind in (
                ("inet", "kube_ipsec", "forward", "filter"),
                ("inet", "kube_ipsec_routes", "forward", "filter"),
                ("bridge", "filter", "forward", "filter"),
                ("inet", "filter", "input", "filter"),
                ("ip", "nat", "postrouting", "nat"),
                ("inet", "theirs", "forward", "filter"),
            )
        ]
    }
    assert [base.table for base in listed.bases(shown)] == ["theirs"]
    assert listed.bases({}) == []


def test_legacy_text_with_several_tables() -> None:
    text = "# Generated\n*mangle\n:FORWARD ACCEPT [0:0]\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\n"
    found = saved.bases(text + "COMMIT\n", "iptables-legacy", "ip6")
    assert [(b.table, b.drops, b.versions) for b in found] == [
        ("mangle", False, (6,)),
        ("filter", True, (6,)),
    ]


# -- opening


def lines(base: Base, kernel: bool = True) -> list[str]:
    chosen = WISHES if kernel else {Wish("in", "kipsec0"), Wish("out", "kipsec0")}
    return [" ".join(command) for command in opening(base, chosen, kernel=kernel)]


def test_it_opens_as_late_as_it_can() -> None:
    mine = "-m policy --dir in --pol ipsec -m comment --comment kube-ipsec -j ACCEPT"
    policies = iptables("FORWARD -j cali-FORWARD", chains="cali-FORWARD")
    assert lines(policies)[0] == f"iptables-nft -w 5 -t filter -A FORWARD {mine}"
    reject = iptables("FORWARD -j A", "FORWARD -j REJECT", policy="ACCEPT", chains="A")
    assert lines(reject)[0] == f"iptables-nft -w 5 -t filter -I FORWARD 2 {mine}"
    inner = iptables("FORWARD -j A", "FORWARD -j B", "A -j DROP", policy="ACCEPT", chains="A B")
    assert lines(inner)[0] == f"iptables-nft -w 5 -t filter -I FORWARD 1 {mine}"
    assert lines(nft([iif("a"), ACCEPT], [DROP])) == [
        "nft insert rule inet filter forward position 6 meta ipsec exists counter accept"
        ' comment "kube-ipsec"',
        "nft insert rule inet filter forward position 6 rt ipsec exists counter accept"
        ' comment "kube-ipsec"',
    ]
    assert lines(nft(), kernel=False) == [
        'nft add rule inet filter forward iifname "kipsec0" counter accept comment "kube-ipsec"',
        'nft add rule inet filter forward oifname "kipsec0" counter accept comment "kube-ipsec"',
    ]
    first = nft([iif("a"), ACCEPT], [DROP], table="firewalld")
    assert all(" position 5 " in line for line in lines(first))


def test_what_is_put_in_moves_no_place_that_is_still_to_come() -> None:
    """Packets in are dropped at the second rule, packets out at the fifth."""
    devices = iptables(
        "FORWARD -i a -j ACCEPT",
        "FORWARD ! -i kipsec0 -j DROP",
        "FORWARD -i b -j ACCEPT",
        "FORWARD -i c -s 192.0.2.0/24 -j DROP",
        "FORWARD -j REJECT",
    )
    wishes = Wish("in", "eth0"), Wish("out", "kipsec0")
    found = [" ".join(each) for each in opening(devices, wishes, kernel=False)]
    assert [line.split("-I ")[1].split(" -m")[0] for line in found] == [
        "FORWARD 5 -o kipsec0",
        "FORWARD 2 -i eth0",
    ]
    flows = Flow(4, "in", REMOTE, LOCAL, iif="eth0"), TUN_OUT
    told = judged([devices], {"a": flows}, kernel=False, opens=False)["a"].message
    assert told.index("-I FORWARD 5 -o kipsec0") < told.index("-I FORWARD 2 -i eth0")


def test_what_is_taken_away_moves_no_place_that_is_still_to_come() -> None:
    stale = iptables(
        "FORWARD -i old0 -m comment --comment kube-ipsec -j ACCEPT",
        "FORWARD -i a -j ACCEPT",
        "FORWARD -j REJECT",
    )
    found = lines(stale)
    assert [line.split()[5:8] for line in found] == [
        ["-D", "FORWARD", "-i"],
        ["-I", "FORWARD", "2"],
        ["-I", "FORWARD", "2"],
    ]


def test_ip6tables_is_the_program_for_ipv6() -> None:
    (base,) = saved.bases("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n", "iptables-legacy", "ip6")
    assert lines(base)[0].startswith("ip6tables-legacy -w 5 -t filter -A FORWARD ")


OURS = "FORWARD -m policy --dir {} --pol ipsec -m comment --comment kube-ipsec -j ACCEPT"


def test_what_is_open_stays_and_what_was_overtaken_moves() -> None:
    both = OURS.format("in"), OURS.format("out")
    assert lines(iptables(*both)) == []
    behind = iptables("FORWARD -j REJECT", *both)
    found = lines(behind)
    assert [line.split()[5] for line in found] == ["-D", "-D", "-I", "-I"]
    assert all(line.split()[6:8] == ["FORWARD", "1"] for line in found[2:])
    between = iptables(OURS.format("in"), "FORWARD -j REJECT", OURS.format("out"))
    found = lines(between)
    assert [line.split()[5] for line in found] == ["-D", "-I"]
    # Of what it has not to move it knows the place: behind the rule that stays.
    assert found[1].split()[6:8] == ["FORWARD", "2"]


def test_somebody_elses_accept_is_enough() -> None:
    assert lines(iptables("FORWARD -j ACCEPT")) == []


def test_closing_takes_ours_alone_and_what_is_not_wanted() -> None:
    theirs = "FORWARD -m policy --dir in --pol ipsec -m comment --comment theirs -j ACCEPT"
    base = iptables(theirs, OURS.format("in"), OURS.format("out"))
    assert len(closing(base)) == 2
    assert closing(base, WISHES) == []
    (left,) = closing(base, {Wish("in")})
    assert " ".join(left) == (
        "iptables-nft -w 5 -t filter -D FORWARD -m policy --dir out --pol ipsec"
        " -m comment --comment kube-ipsec -j ACCEPT"
    )


# -- findings


def test_a_peer_is_told_what_drops_and_what_helps() -> None:
    found = judged([iptables(), iptables("FORWARD -j ACCEPT")], {"a": (OUT, IN)}, **HOW)
    text = found["a"].message
    assert found["a"].sure
    assert text.startswith(
        "chain FORWARD of table ip filter (iptables-nft) drops packets to and from 10.2.0.0/16: on"
        " the node run iptables-nft -w 5 -t filter -A FORWARD -m policy --dir in --pol ipsec -j"
        " ACCEPT; iptables-nft"
    )
    assert "gateway.openForward" in text


HOW: dict[str, bool] = {"kernel": True, "opens": False}


def test_one_way_that_is_surely_closed_is_told_as_such() -> None:
    found = judged([iptables("FORWARD -s 10.1.0.0/16 -j ACCEPT")], {"a": (OUT, IN)}, **HOW)["a"]
    assert found.sure
    assert "drops packets from 10.2.0.0/16: on the node run" in found.message


def test_one_network_that_is_surely_closed_is_told_and_all_of_it_is_opened() -> None:
    other = Flow(4, "out", LOCAL, ip_network("10.3.0.0/16"), ipsec=True)
    base = iptables(
        "FORWARD -d 10.2.0.0/16 -m mark --mark 1 -j ACCEPT",
        "FORWARD -d 10.1.0.0/16 -m mark -j ACCEPT",
    )
    for those, sure, text in (
        ((OUT, IN), False, "may drop packets to and from 10.2.0.0/16; no rule is seen"),
        ((OUT, IN, other), True, "drops packets to 10.3.0.0/16: on the node run"),
    ):
        found = judged([base], {"a": those}, **HOW)["a"]
        assert found.sure is sure
        assert f" {text}" in found.message
        assert found.message.count("-j ACCEPT") == 2, "what helps is for both ways"


def test_nothing_is_claimed_of_other_versions() -> None:
    six = Flow(6, "out", ip_network("fd00:1::/64"), ip_network("fd00:2::/64"), ipsec=True)
    assert judged([iptables()], {"a": (six,)}, **HOW) == {}
    assert judged([nft()], {"a": (six,)}, **HOW)["a"].sure


def test_what_a_rule_about_its_networks_drops_is_somebodys_will() -> None:
    base = iptables(
        "FORWARD -s 10.1.0.0/16 -d 10.2.0.0/16 -j DROP",
        "FORWARD -j LAST",
        policy="ACCEPT",
        chains="LAST",
    )
    found = judged([base], {"a": (OUT, IN)}, **HOW)["a"]
    assert found.message.endswith(
        " drops packets to 10.2.0.0/16: a rule there names them, which is for you to mend"
    )
    assert lines(base) == []


def test_firewalld_is_told_in_its_own_words() -> None:
    base = nft([DROP], policy="accept", table="firewalld")
    text = judged([base], {"a": (OUT,)}, **HOW)["a"].message
    rule = '--add-rich-rule=\'rule family="ipv4" destination address="10.2.0.0/16" accept\''
    assert rule in text
    assert "--add-ingress-zone=ANY" in text


# -- flows


def test_flows_are_those_of_the_tunnels(make: Any) -> None:
    documents = make.files(a=[make.secret(), make.peer()])
    made = intent(LastGood().take(documents).tunnels, FACTS)
    ((name, found),) = flows(made, None).items()
    assert name == made.peers[0].name
    assert {flow.side for flow in found} == {"in", "out"}
    assert all(flow.ipsec and not flow.iif and not flow.oif for flow in found)
    assert wishes({name: found}) == WISHES
    with_device = flows(made, "kipsec0")
    assert wishes(with_device) == {Wish("in", "kipsec0"), Wish("out", "kipsec0")}
    assert {(f.source, f.destination) for f in found} == {
        (f.source, f.destination) for f in with_device[name]
    }


FACTS = Facts(resolved={"203.0.113.9": ("203.0.113.9",)}, sources={"203.0.113.9": "192.0.2.1"})


def test_what_is_routed_meets_its_sa_behind_the_hook() -> None:
    out, back = (any_of(Wish(side, "kipsec-x"), 4, kernel=True) for side in ("out", "in"))
    assert (out.ipsec, back.ipsec) == (False, True)
