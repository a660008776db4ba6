"""Who translates is found with the rules that they really set, by each tool."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ipsec_gateway.translators import LEGACY, NFT, NFTABLES, backend
from ipsec_lab.masquerades import ACTORS, CASES, Actor
from ipsec_lab.netns import Namespace

#: What is said of each actor, by whom rules of nftables are.
OWNERS = {
    "kube-proxy": "kube-proxy",
    "flannel": "flannel",
    "calico": "Calico",
    "kindnet": "kindnet",
}


@pytest.fixture
def node() -> Iterator[Namespace]:
    namespace = Namespace("node")
    yield namespace
    namespace.delete()


def found(node: Namespace) -> str:
    shown = json.loads(node.run("nft", "-j", "list", "chains"))
    return backend(shown, node.run("cat", "/proc/net/ip_tables_names", check=False).split())


@pytest.mark.parametrize(("actor", "tool"), CASES, ids=[f"{a.name}{t[8:]}" for a, t in CASES])
def test_each_actor_is_found(node: Namespace, actor: Actor, tool: str) -> None:
    before = found(node)
    assert NFT not in before
    assert NFTABLES not in before
    actor.set_up(node, tool)
    owner = OWNERS.get(actor.name)
    expected = {
        LEGACY: LEGACY,
        NFT: f"{NFT} ({owner})" if owner else NFT,
        "": f"{NFTABLES} (kindnet, kube-proxy, router)",
    }[tool]
    assert found(node) == expected


def test_all_actors_are_told_apart() -> None:
    assert OWNERS.keys() | {"router", "nftables"} == {actor.name for actor in ACTORS}
