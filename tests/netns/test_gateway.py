"""Whole gateway processes in namespaces: ``kube-ipsec gateway`` at both sites, userspace ESP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from ipsec_lab import manifests
from ipsec_lab.leftovers import footprint
from ipsec_lab.sites import PSK, SECRET, Sites
from ipsec_lab.traffic import ConstantPing, ping, ping_until


def test_from_manifests_to_traffic_and_back_to_nothing(sites: Sites) -> None:
    top = sites.topology
    assert not sites.answers(), "the rig itself: nothing passes without a tunnel"
    clear = sites.guard.counters().clear
    sites.start()
    for lan in (0, 1):
        ping_until(top.lan_a, top.b.host(lan))
        assert ping(top.lan_b, top.a.host(lan), count=5).received == 5
        # The gateway itself is in its LAN too, and so may talk through the tunnel.
        assert ping(top.gw_a, top.b.host(lan), count=2).received == 2
    assert sites.guard.counters().clear == clear
    assert sites.guard.counters().encrypted > 0

    status = sites.a.status("IPsecPeer", "b")
    assert status["remoteAddress"].startswith(top.b.wan_address())
    assert status["childSAs"] == {"installed": 1, "expected": 1}
    assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
        ("Accepted", "ResolvedRefs", "Programmed", "Established", "Ready"), "True"
    )
    assert sites.a.metric("ipsec_peer_up", peer="b") == 1
    assert sites.a.metric("ipsec_child_sa_rx_packets_total", policy="b") >= 10
    (dropped,) = sites.a.samples("ipsec_unencrypted_drops_total", direction="out")
    assert dropped.value == 0
    code, text = sites.a.get("/status")
    assert code == 200
    assert json.loads(text)["objects"][0]["name"] == "b"
    assert sites.a.get("/healthz")[0] == 200

    # Deleting the peer at one end takes it away at both, and everything that was set up for it.
    sites.a.remove(sites.peer_b)
    sites.a.wait(lambda: not sites.left("a"), "nothing left at a")
    sites.b.wait_condition("a", "Established", "False", reason="PeerDeleted")
    assert sites.a.status("IPsecPeer", "b") == {}
    assert sites.a.get("/readyz")[0] == 200
    assert sites.a.stop() == 0
    assert sites.b.stop() == 0
    assert sites.left("b") == []
    for gateway in (sites.a, sites.b):
        assert PSK.decode() not in gateway.log()
        assert "Traceback" not in gateway.log()


def test_bad_documents_disturb_nothing(sites: Sites) -> None:
    top = sites.topology
    sites.start()
    ping_until(top.lan_a, top.b.host())
    with ConstantPing(top.lan_a, top.b.host()) as constant:
        # A new one that is bad, the old one becomes bad, a file that is no YAML, a lost Secret.
        bad = sites.peer("b")
        bad["metadata"]["name"] = "other"
        bad["spec"]["remoteSubnets"] = ["nonsense"]
        sites.a.apply(bad)
        condition = sites.a.wait_condition("other", "Accepted", "False", reason="Invalid")
        assert "spec.remoteSubnets" in condition["message"]
        sites.a.apply(sites.peer("b", address="not an address!"))
        condition = sites.a.wait_condition("b", "Accepted", "False")
        assert "last good version stays in force" in condition["message"]
        (sites.a.manifests / "broken.yaml").write_text("{")
        sites.a.wait(lambda: "broken.yaml" in sites.a.log(), "the fault is logged")
        sites.a.remove(SECRET)
        sites.a.apply(sites.peer_b)
        sites.a.wait_condition("b", "ResolvedRefs", "False", reason="SecretNotFound")
        sites.a.apply(SECRET)
        sites.a.wait_condition("b")
        # What is new and good is taken all the same.
        more = manifests.policy("more", peer_name="b", selectors=[("10.7.0.0/24", "10.8.0.0/24")])
        sites.a.apply(more)
        sites.a.wait(
            lambda: (
                sites.a.condition("more", "Programmed", kind="IPsecPolicy").get("status") == "True"
            ),
            "the good one is programmed",
        )
        assert constant.stop().lost == ()
    sites.a.remove(bad)
    (sites.a.manifests / "broken.yaml").unlink()
    sites.a.wait(lambda: sites.a.status("IPsecPeer", "other") == {}, "the status goes too")


def test_a_killed_gateway_leaks_nothing_and_its_successor_takes_over(sites: Sites) -> None:
    top = sites.topology
    sites.start()
    ping_until(top.lan_a, top.b.host())
    clear = sites.guard.counters().clear
    sites.a.kill()
    for address in (top.b.host(0), top.b.host(1)):
        assert not sites.answers(address)
    assert not ping(top.gw_a, top.b.host(), count=2, wait=0.3).received
    assert sites.guard.counters().clear == clear
    sites.a.start()
    sites.a.wait_condition("b", timeout=15)
    ping_until(top.lan_a, top.b.host())
    assert sites.guard.counters().clear == clear
    assert sites.a.stop() == 0
    assert sites.left("a") == []


def test_a_killed_gateway_without_documents_is_cleaned_up_by_its_successor(sites: Sites) -> None:
    sites.start()
    sites.a.kill()
    assert sites.left("a")
    sites.a.remove(SECRET, sites.peer_b)
    sites.a.start()
    assert sites.left("a") == []
    sites.a.wait(lambda: sites.a.status("IPsecPeer", "b") == {}, "the old status goes")


def test_the_same_documents_again_touch_nothing(sites: Sites) -> None:
    top = sites.topology
    sites.start()
    ping_until(top.lan_a, top.b.host())
    before = footprint(top.gw_a)
    established = sites.a.status("IPsecPeer", "b")["establishedAt"]
    with ConstantPing(top.lan_a, top.b.host()) as constant:
        for _ in range(3):
            sites.a.apply(SECRET, sites.peer_b)
            time.sleep(0.8)
        assert constant.stop().lost == ()
    assert footprint(top.gw_a) == before
    assert sites.a.status("IPsecPeer", "b")["establishedAt"] == established
    assert sites.a.log().count("IKE SA established") == 1


def test_a_new_subnet_is_added_hot(sites: Sites) -> None:
    top = sites.topology
    sites.start()
    ping_until(top.lan_a, top.b.host())
    drop = manifests.policy("drop", peer_name="b", selectors=[("10.1.0.0/24", "10.9.0.0/24")])
    drop["spec"]["action"] = "discard"
    with ConstantPing(top.lan_a, top.b.host()) as constant:
        sites.a.apply(drop)
        sites.a.wait(
            lambda: sites.a.status("IPsecPolicy", "drop").get("state") == "Discarding", "in force"
        )
        assert constant.stop().lost == ()
    assert not sites.answers("10.9.0.1")
    assert sites.a.metric("ipsec_policy_discards_total", direction="out") >= 1


def test_another_ike_daemon_is_named(sites: Sites) -> None:
    holder = sites.topology.gw_a.popen(
        [
            sys.executable,
            "-c",
            "import socket,time;s=socket.socket(2,2);s.bind(('',500));print(flush=True);"
            "time.sleep(99)",
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    with holder.stdout:
        holder.stdout.readline()
        command = [sys.executable, "-c", "from ipsec_cli.main import main; main()", "gateway"]
        done = subprocess.run(
            sites.topology.gw_a.enter(*command, "--manifests", str(sites.a.manifests)),
            capture_output=True,
            text=True,
            timeout=30,
        )
        holder.kill()
        holder.wait()
    assert done.returncode == 4
    assert f"pid {holder.pid}" in done.stderr.splitlines()[-1]
    assert "UDP port 500" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_sighup_reads_again_and_sigterm_ends(sites: Sites) -> None:
    sites.start()
    os.kill(sites.a.pid, signal.SIGHUP)
    ping_until(sites.topology.lan_a, sites.topology.b.host())
    assert sites.a.stop() == 0
    sites.b.wait_condition("a", "Established", "False", reason="PeerDeleted")
    assert sites.left("a") == []
