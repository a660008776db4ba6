"""The look at others' chains: what it runs, what it makes of odd answers, what it says once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ipsec_gateway.forward import keeper
from ipsec_gateway.forward.keeper import INTERVAL, Forwarding
from ipsec_gateway.intent import Facts, Intent, intent
from ipsec_gateway.lastgood import LastGood
from ipsec_gateway.tools import ToolError

HOSTS = ("203.0.113.9", "203.0.113.10")
FACTS = Facts(resolved={h: (h,) for h in HOSTS}, sources=dict.fromkeys(HOSTS, "192.0.2.1"))
OPEN = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
CLOSED = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"
OURS = "-A FORWARD -m policy --dir {} --pol ipsec -m comment --comment kube-ipsec -j ACCEPT"


class Node:
    """What the programs answer; ``ran`` is what was run that changes something."""

    def __init__(self) -> None:
        self.now = 0.0
        self.chains: Any = {"nftables": [chain("filter", "FORWARD", family="ip")]}
        self.saved = CLOSED
        self.asked: list[str] = []
        self.ran: list[str] = []
        self.refuses = ""
        #: What this says when it was run cannot be read.
        self.odd = ""

    async def run_json(self, *command: str) -> Any:
        line = " ".join(command)
        self.asked.append(" ".join(command[2:]))
        if self.refuses and self.refuses in line:
            raise ToolError(f"{line}: no")
        return self.chains

    async def run(self, *command: str) -> str:
        line = " ".join(command)
        if command[0].endswith("-save"):
            self.asked.append(line)
            return self.saved
        if self.refuses and self.refuses in line:
            raise ToolError(f"{line}: no")
        self.ran.append(line)
        if self.odd and self.odd in line:
            raise UnicodeError(self.odd)
        return ""


def chain(table: str, name: str, *, family: str = "inet", policy: str = "drop") -> dict[str, Any]:
    return {
        "chain": {
            "family": family,
            "table": table,
            "name": name,
            "type": "filter",
            "hook": "forward",
            "policy": policy,
        }
    }


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    node = Node()
    monkeypatch.setattr(keeper, "run", node.run)
    monkeypatch.setattr(keeper, "run_json", node.run_json)
    monkeypatch.setattr(keeper, "_LEGACY", {})
    monkeypatch.setattr(keeper.shutil, "which", lambda program: f"/usr/sbin/{program}")
    return node


@pytest.fixture
def wanted(make: Any) -> Intent:
    documents = make.files(
        a=[
            make.secret(),
            make.peer(),
            make.peer("two", HOSTS[1], remoteSubnets=["10.3.0.0/16"]),
        ]
    )
    tunnels = LastGood().take(documents).tunnels
    return intent(tunnels, FACTS)


def looker(node: Node, *, opens: bool = False) -> tuple[Forwarding, Callable[[Intent], Any]]:
    it = Forwarding(None, opens=opens, clock=lambda: node.now)
    return it, lambda wanted: asyncio.run(it.look(wanted, ()))


def test_it_looks_once_a_minute_and_when_tunnels_change(node: Node, wanted: Intent) -> None:
    _, look = looker(node)
    assert look(wanted).keys() == {"default/hq", "default/two"}
    before = len(node.asked)
    node.now = INTERVAL - 1
    look(wanted)
    assert len(node.asked) == before
    look(replace(wanted, peers=wanted.peers[:1]))
    assert len(node.asked) == 2 * before
    node.now += INTERVAL
    node.saved = OPEN
    assert look(wanted) == {}
    assert node.ran == []


def test_a_chain_is_logged_once_however_many_peers_it_concerns(
    node: Node, wanted: Intent, caplog: pytest.LogCaptureFixture
) -> None:
    _, look = looker(node)
    for saved, lines in ((CLOSED, 1), (CLOSED, 1), (OPEN, 1), (CLOSED, 2)):
        node.saved, node.now = saved, node.now + INTERVAL
        look(wanted)
        assert caplog.text.count("chain FORWARD of table ip filter") == lines
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_table_that_iptables_cannot_show_is_read_with_nft(node: Node, wanted: Intent) -> None:
    node.saved = "# Table `filter' is incompatible, use 'nft' tool.\n"
    _, look = looker(node, opens=True)
    assert all("(nftables)" in blocked.message for blocked in look(wanted).values())
    assert node.ran[0].startswith("nft add rule ip filter FORWARD meta ipsec exists")


def test_without_iptables_its_chains_are_judged_and_not_opened(
    node: Node, wanted: Intent, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper.shutil, "which", lambda _: None)
    where = {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 7}
    stale = {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "old0"}
    ours = {"comment": "kube-ipsec", "expr": [{"match": stale}, {"accept": None}]}
    node.chains["nftables"].append({"rule": where | ours})
    it, look = looker(node, opens=True)
    for now in (0, INTERVAL):
        node.now = now
        found = look(wanted)
        assert found
        for blocked in found.values():
            assert "chain FORWARD of table ip filter (iptables-nft) may drop" in blocked.message
            assert "on the node run iptables-nft -w 5 -t filter" in blocked.message
    assert caplog.text.count("and not opened: install iptables") == 1
    asyncio.run(it.close())
    assert set(node.ran) == {"nft delete rule ip filter FORWARD handle 7"}


@pytest.mark.parametrize(
    "odd",
    [
        {"nftables": [{"chain": {"hook": "forward", "type": "filter"}}]},
        {"nftables": [{"chain": [1]}]},
        {"nftables": [None]},
        {"nftables": 5},
        [],
    ],
)
def test_odd_answers_claim_nothing_and_end_nothing(
    node: Node, wanted: Intent, odd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    node.chains = odd
    it, look = looker(node)
    assert look(wanted) == {}
    asyncio.run(it.close())
    assert ("is not known" in caplog.text) == (odd != [])


def test_a_look_that_fails_closes_nothing_and_the_next_one_knows_as_much(
    node: Node, wanted: Intent, caplog: pytest.LogCaptureFixture
) -> None:
    _, look = looker(node, opens=True)
    node.refuses = "list chains"
    assert look(wanted) == {}
    assert "what else forwards on this node is not known: ToolError" in caplog.text
    before = len(node.asked)
    look(wanted)
    assert len(node.asked) == before, "once a minute, as ever"
    node.refuses, node.now = "", INTERVAL
    node.saved = (
        f"*filter\n:FORWARD DROP [0:0]\n{OURS.format('in')}\n{OURS.format('out')}\nCOMMIT\n"
    )
    assert look(wanted) == {}
    assert node.ran == []
    node.saved, node.now = CLOSED, 2 * INTERVAL
    assert look(wanted).keys() == {"default/hq", "default/two"}
    assert [line.split()[5] for line in node.ran] == ["-A", "-A"]


def test_what_cannot_be_opened_is_said_with_the_remedy(
    node: Node, wanted: Intent, caplog: pytest.LogCaptureFixture
) -> None:
    node.refuses = "-A FORWARD"
    _, look = looker(node, opens=True)
    found = look(wanted)
    assert "forwarding cannot be opened: iptables-nft -w 5 -t filter -A FORWARD" in caplog.text
    assert all("--open-forward" not in blocked.message for blocked in found.values())


def test_closing_goes_on_where_it_fails_and_is_tried_again(
    node: Node, wanted: Intent, caplog: pytest.LogCaptureFixture
) -> None:
    node.saved = f"*filter\n:FORWARD DROP [0:0]\n{OURS.format('in')}\nCOMMIT\n"
    it, look = looker(node, opens=True)
    look(wanted)
    node.refuses, node.ran = "-D", []
    asyncio.run(it.close())
    assert "rules of ours may be left" in caplog.text
    node.refuses = ""
    asyncio.run(it.close())
    assert [line.split()[5] for line in node.ran] == ["-D"]
    asyncio.run(it.close())
    assert len(node.ran) == 1, "nothing is left to look for"


def test_a_rule_that_stays_for_a_failure_is_taken_away_by_a_later_look(
    node: Node, wanted: Intent, caplog: pytest.LogCaptureFixture
) -> None:
    """That of an earlier life of the gateway, which opened; nobody closes that chain any more."""
    node.saved = f"*filter\n:FORWARD ACCEPT [0:0]\n{OURS.format('in')}\nCOMMIT\n"
    node.refuses = "-D"
    it, look = looker(node)
    look(wanted)
    assert "rules of ours may be left in others' chains: iptables-nft -w 5" in caplog.text
    assert "cannot be opened" not in caplog.text
    node.refuses, node.now = "", INTERVAL
    look(wanted)
    assert [line.split()[5] for line in node.ran] == ["-D"]
    asyncio.run(it.close())
    assert len(node.ran) == 1, "nothing is left to look for"


def test_closing_tries_every_chain(
    node: Node, wanted: Intent, caplog: pytest.LogCaptureFixture
) -> None:
    node.chains["nftables"].append(chain("filter", "FORWARD", family="ip6"))
    node.saved = f"*filter\n:FORWARD DROP [0:0]\n{OURS.format('in')}\nCOMMIT\n"
    it, _ = looker(node, opens=True)
    node.refuses = "iptables-nft -w"
    asyncio.run(it.close())
    assert [line.split()[0] for line in node.ran] == ["ip6tables-nft"]
    assert caplog.text.count("rules of ours may be left") == 1


def test_what_was_opened_before_a_look_failed_is_closed(node: Node, wanted: Intent) -> None:
    it, look = looker(node, opens=True)
    asyncio.run(it.close())
    node.odd = "-A FORWARD"
    look(wanted)
    assert len(node.ran) == 1
    node.odd = ""
    node.saved = f"*filter\n:FORWARD DROP [0:0]\n{OURS.format('in')}\nCOMMIT\n"
    asyncio.run(it.close())
    assert [line.split()[5] for line in node.ran] == ["-A", "-D"]
