"""Kernel variables, on a folder that stands for /proc/sys/net."""

from __future__ import annotations

import errno
import os
import stat
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from ipsec_gateway import netns, privatefiles
from ipsec_gateway.sysctls import Sysctls, forwards

FORWARD, FORWARD6 = "ipv4/ip_forward", "ipv6/conf/all/forwarding"


class Tree:
    def __init__(self, folder: Path) -> None:
        self.root, self.memory = folder / "net", folder / "run" / "kube-ipsec"
        self.write(FORWARD, "0")
        self.write(FORWARD6, "0")
        for name, value in (("all", "0"), ("eth0", "1"), ("eth0.7", "1"), ("cni0", "0")):
            self.write(f"ipv6/conf/{name}/accept_ra", value)

    def write(self, name: str, value: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")

    def all(self) -> dict[str, str]:
        return {
            str(p.relative_to(self.root)): p.read_text().strip()
            for p in self.root.rglob("*")
            if p.is_file()
        }

    def sysctls(self) -> Sysctls:
        return Sysctls(root=self.root, memory=self.memory)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_only_a_node_that_carries_for_others_forwards() -> None:
    net, own = ip_network, [ip_address("192.0.2.1")]
    host = (net("192.0.2.1/32"), net("10.2.0.0/16"))
    assert forwards([host], own) == frozenset()
    assert forwards([host, (net("10.1.0.0/16"), net("10.2.0.0/16"))], own) == {4}
    assert forwards([(net("192.0.2.7/32"), net("10.2.0.0/16"))], own) == {4}
    assert forwards([(net("fd00::/64"), net("fd01::/64"))], own) == {6}


def test_what_is_needed_is_set_and_put_back(tree: Tree) -> None:
    before = tree.all()
    it = tree.sysctls()
    assert it.apply(frozenset({4})) == []
    assert tree.all() == {**before, FORWARD: "1"}
    assert it.apply(frozenset({4, 6})) == []
    assert tree.all() == {
        **before,
        FORWARD: "1",
        FORWARD6: "1",
        # Routers' advertisements go on: a node that forwards would not listen to them.
        "ipv6/conf/eth0/accept_ra": "2",
        "ipv6/conf/eth0.7/accept_ra": "2",
    }
    assert it.changed[FORWARD] == ("0", "1")
    assert it.restore() == []
    assert tree.all() == before
    assert list(tree.memory.iterdir()) == []


def test_what_is_right_already_is_never_ours(tree: Tree) -> None:
    tree.write(FORWARD, "1")
    it = tree.sysctls()
    assert it.apply(frozenset({4})) == []
    assert not it.changed
    it.restore()
    assert tree.all()[FORWARD] == "1"


def test_a_killed_gateways_changes_are_put_back_by_the_next(tree: Tree) -> None:
    tree.sysctls().apply(frozenset({4}))
    (kept,) = tree.memory.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    successor = tree.sysctls()
    assert successor.apply(frozenset({4})) == []
    successor.restore()
    assert tree.all()[FORWARD] == "0"


def test_what_somebody_else_changed_meanwhile_stays(tree: Tree) -> None:
    it = tree.sysctls()
    it.apply(frozenset({6}))
    tree.write("ipv6/conf/eth0/accept_ra", "0")
    it.restore()
    assert tree.all()["ipv6/conf/eth0/accept_ra"] == "0"
    assert tree.all()["ipv6/conf/eth0.7/accept_ra"] == "1"


def test_a_read_only_variable_is_told_with_the_remedy(tree: Tree) -> None:
    it = tree.sysctls()
    (tree.root / FORWARD).unlink()
    (tree.root / FORWARD).mkdir()
    assert it.apply(frozenset({4})) == [], "a variable that cannot be read is not there"
    (tree.root / "ipv6/conf/eth0.7/accept_ra").unlink()
    (tree.root / FORWARD6).chmod(0o400)
    broken = Sysctls(root=tree.root, memory=Path("/proc/nowhere"))
    (problem,) = broken.apply(frozenset({6}))
    assert "sysctl -w net.ipv6.conf.eth0.accept_ra=2" in problem
    assert not broken.changed
    assert tree.all()[FORWARD6] == "0", "forwarding alone would cost the default route"


def test_nonsense_in_memory_is_not_put_back(tree: Tree) -> None:
    it = tree.sysctls()
    it.apply(frozenset({4}))
    (kept,) = tree.memory.iterdir()
    kept.write_text('["0"]')
    assert tree.sysctls().restore() == []
    assert tree.all()[FORWARD] == "1"


def test_what_cannot_be_read_now_is_not_forgotten(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.sysctls().apply(frozenset({4}))
    tree.write(FORWARD, "0")

    def full(path: Path, flags: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    it = tree.sysctls()
    with monkeypatch.context() as patch:
        patch.setattr(privatefiles, "open_private", full)
        for problems in (it.apply(frozenset({4, 6})), it.restore()):
            assert "Too many open files" in problems[0]
    assert tree.all()[FORWARD] == tree.all()[FORWARD6] == "0"
    tree.write(FORWARD, "1")
    assert it.restore() == []
    assert tree.all()[FORWARD] == "0"


def test_a_kernel_without_cookies_is_known_by_inode(monkeypatch: pytest.MonkeyPatch) -> None:
    inode = f"inode-{Path('/proc/self/ns/net').stat().st_ino}"
    assert netns.identity().isdecimal() or netns.identity() == inode, "of before Linux 5.14"
    monkeypatch.setattr(netns, "_SO_NETNS_COOKIE", 9999)
    assert netns.identity() == inode
