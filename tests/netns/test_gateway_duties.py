"""What a whole gateway owes its operators: crashes, logs, metrics, list order, bad input."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipsec_gateway.ipsec import linux
from ipsec_gateway.ipsec.sa import RESERVE
from ipsec_lab import manifests
from ipsec_lab.manifests import Document
from ipsec_lab.netns import LabError
from ipsec_lab.sites import PSK, SECRET, Sites
from ipsec_lab.topology import Topology
from ipsec_lab.traffic import ConstantPing, ping, ping_until

ETH_P_IP = 0x0800
NATT_PORT = 4500


# -- a crashed packet process ------------------------------------------------------------------


def packet_process(gateway: int, direction: str) -> int:
    """The pid of the child of a gateway that carries packets in this direction."""
    for children in Path(f"/proc/{gateway}/task").glob("*/children"):
        for child in children.read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            if "ipsec_gateway.ipsec.worker" in words and direction in words:
                return int(child)
    raise LabError(f"gateway {gateway} has no packet process {direction}")


def esp_headers(wire: socket.socket, source: str) -> list[tuple[int, int]]:
    """(SPI, sequence number) of what the capture has got from this address, in order."""
    found = []
    while True:
        try:
            frame = wire.recv(1 << 16)
        except BlockingIOError:
            return found
        packet = frame[14:]
        if packet[12:16] != socket.inet_aton(source) or packet[9] != socket.IPPROTO_UDP:
            continue
        udp = (packet[0] & 15) * 4
        port, spi, sequence = struct.unpack_from(">2xH4xII", packet, udp)
        if port == NATT_PORT and spi:  # SPI zero is the non-ESP marker of IKE (RFC 3948 2.2)
            found.append((spi, sequence))


@pytest.mark.parametrize("direction", ["out", "in"])
def test_a_crashed_packet_process_is_replaced_with_a_gap(sites: Sites, direction: str) -> None:
    top = sites.topology
    sites.start()
    ping_until(top.lan_a, top.b.host())
    with top.wan.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP)) as wire:
        wire.setblocking(False)
        wire.setsockopt(socket.SOL_SOCKET, linux.SO_RCVBUFFORCE, 1 << 24)
        wire.bind(("to-a", ETH_P_IP))
        with ConstantPing(top.lan_a, top.b.host()):
            assert ping(top.lan_a, top.b.host(), count=5).lost == ()
            victim = packet_process(sites.a.pid, direction)
            os.kill(victim, signal.SIGKILL)
            sites.a.wait(lambda: sites.a.metric("ipsec_dataplane_restarts_total") == 1, "counted")
            ping_until(top.lan_a, top.b.host())
            assert ping(top.lan_a, top.b.host(), count=5).lost == ()
        headers = esp_headers(wire, top.a.wan_address())
    assert packet_process(sites.a.pid, direction) != victim
    assert len({spi for spi, _ in headers}) == 1, "the SA is the same as before"
    numbers = [number for _, number in headers]
    assert len(numbers) == len(set(numbers)), "a sequence number was used twice"
    gaps = [b - a for a, b in itertools.pairwise(numbers)]
    # The gap is what was reserved and not used; a packet that the capture missed is none.
    assert (max(gaps) > RESERVE // 2) == (direction == "out")
    assert "a packet process was replaced" in sites.a.log()
    assert sites.a.log().count("IKE SA established") == 1
    assert sites.a.get("/healthz")[0] == 200


# -- logs and secrets --------------------------------------------------------------------------


def secret_forms(key: bytes) -> list[str]:
    return [key.decode(), key.hex(), base64.b64encode(key).decode(), repr(key)]


def everything_readable(sites: Sites) -> dict[str, str]:
    """All that a gateway shows to others: log, statuses, pages, command lines of its processes."""
    shown = {}
    for name, gateway in (("a", sites.a), ("b", sites.b)):
        shown[f"log {name}"] = gateway.log()
        for page in ("/metrics", "/status", "/readyz", "/healthz"):
            shown[f"{page} {name}"] = gateway.get(page)[1]
        for path in gateway.state.rglob("*"):
            if path.is_file():
                shown[str(path)] = path.read_text()
        for pid in gateway.namespace.pids():
            for part in ("cmdline", "environ"):
                text = Path(f"/proc/{pid}/{part}").read_bytes().decode(errors="replace")
                shown[f"{part} of {pid}"] = text
    return shown


def test_json_logs_and_no_secret_anywhere(sites: Sites) -> None:
    top = sites.topology
    wrong = b"yet another secret that is wrong"
    sites.a.apply(manifests.secret("psk", wrong), sites.peer_b)
    sites.b.apply(SECRET, sites.peer_a)
    options = ("--log-format", "json", "--log-level", "debug")
    sites.b.start(*options)
    sites.a.start(*options)
    sites.a.wait_condition("b", "Established", "False", reason="AuthFailed")
    bad = sites.peer("b")
    bad["metadata"]["name"] = "bad"
    bad["spec"]["authentication"]["psk"] = PSK.decode()  # where no secret belongs
    sites.a.apply(SECRET, bad)
    sites.a.wait_condition("b", timeout=20)
    sites.a.wait_condition("bad", "Accepted", "False")
    ping_until(top.lan_a, top.b.host())
    shown = everything_readable(sites)
    for key in (PSK, wrong):
        for form in secret_forms(key):
            assert [where for where, text in shown.items() if form in text] == []
    for gateway in (sites.a, sites.b):
        lines = [json.loads(line) for line in gateway.log().splitlines()]
        assert all({"time", "level", "msg"} <= line.keys() for line in lines)
        up = [line for line in lines if line.get("event") == "IkeSaUp"]
        assert [line["peer"] for line in up] == [f"default/{'b' if gateway is sites.a else 'a'}"], (
            "one event, which names the peer"
        )
        assert any(line["level"] == "WARNING" for line in lines)


# -- metrics -----------------------------------------------------------------------------------

#: Names and labels of kubernetes-peers.md 1e, as far as what they count is built.
METRICS = {
    "ipsec_peer_up": {"namespace", "peer", "gateway"},
    "ipsec_ike_sa_established_timestamp_seconds": {"namespace", "peer", "gateway"},
    "ipsec_child_sa_rx_bytes_total": {"namespace", "peer", "gateway", "policy"},
    "ipsec_child_sa_tx_bytes_total": {"namespace", "peer", "gateway", "policy"},
    "ipsec_child_sa_rx_packets_total": {"namespace", "peer", "gateway", "policy"},
    "ipsec_child_sa_tx_packets_total": {"namespace", "peer", "gateway", "policy"},
    "ipsec_rekeys_total": {"namespace", "peer", "gateway", "kind", "result"},
    "ipsec_ike_failures_total": {"namespace", "peer", "gateway", "reason"},
    "ipsec_unencrypted_drops_total": {"gateway", "direction"},
    "ipsec_reconcile_total": {"gateway", "result"},
    "ipsec_reconcile_duration_seconds_total": {"gateway"},
}


def test_metrics_have_the_agreed_names_and_labels(sites: Sites) -> None:
    top = sites.topology
    sites.a.apply(manifests.secret("psk", b"wrong"))
    sites.b.apply(SECRET, sites.peer_a)
    quick = sites.peer("b", profile={"lifetime": "3s"})
    sites.a.apply(quick)
    sites.b.start()
    sites.a.start()
    sites.a.wait_condition("b", "Established", "False", reason="AuthFailed")
    sites.a.apply(SECRET)
    sites.a.wait_condition("b", timeout=20)
    ping_until(top.lan_a, top.b.host())
    sites.a.wait(
        lambda: sites.a.metric("ipsec_rekeys_total", kind="ike", result="ok") >= 1,
        "a rekey is counted",
    )
    for name, labels in METRICS.items():
        samples = sites.a.samples(name)
        assert samples, f"{name} has no sample"
        for sample in samples:
            assert sample.labels.keys() == labels, name
    assert sites.a.metric("ipsec_ike_failures_total", reason="AuthFailed") >= 1
    assert sites.a.metric("ipsec_peer_up") == 1
    assert sites.a.metric("ipsec_child_sa_rx_packets_total") >= 1
    since = sites.a.metric("ipsec_ike_sa_established_timestamp_seconds")
    assert abs(time.time() - since) < 120
    code, text = sites.a.get("/metrics")
    assert code == 200
    assert not re.search(r'="(0x)?[0-9a-f]{8}"', text), "an SPI in a label"


# -- policies ----------------------------------------------------------------------------------


def rule(name: str, action: str, dst: str, priority: int) -> Document:
    return manifests.policy(
        name,
        peer_name="b",
        selectors=[("10.1.0.0/24", dst)],
        action=action,
        priority=priority,
    )


def state_is(sites: Sites, name: str, state: str) -> None:
    sites.a.wait(
        lambda: sites.a.status("IPsecPolicy", name).get("state") == state, f"{name} {state}"
    )


def test_the_first_policy_of_the_list_decides(sites: Sites) -> None:
    """encrypt for the LAN; before it none for the host; before that discard; and back again."""
    top = sites.topology
    sites.start()
    ping_until(top.lan_a, top.b.host())
    before = sites.guard.counters()

    def seen() -> tuple[bool, bool]:
        """(answered, tried in clear text) of a ping."""
        clear = sites.guard.counters().clear
        answered = sites.answers()
        return answered, sites.guard.counters().clear > clear

    assert seen() == (True, False)
    none = rule("open", "none", top.b.host() + "/32", 200)
    sites.a.apply(none)
    state_is(sites, "open", "Passing")
    assert seen() == (False, True), "in clear text, which the guard drops"
    discard = rule("shut", "discard", "10.2.0.0/25", 100)
    sites.a.apply(discard)
    state_is(sites, "shut", "Discarding")
    assert seen() == (False, False)
    assert sites.a.metric("ipsec_policy_discards_total", direction="out") >= 2
    sites.a.remove(discard)
    sites.a.wait(lambda: seen() == (False, True), "the next in the list decides")
    sites.a.remove(none)
    sites.a.wait(lambda: seen() == (True, False), "encrypted again")
    assert (sites.guard.counters() - before).encrypted > 0
    assert sites.a.log().count("IKE SA established") == 1


def test_clear_text_from_a_protected_network_is_dropped_and_counted(sites: Sites) -> None:
    """``level: require``, inbound: the other gateway is gone and its LAN talks in clear text."""
    top = sites.topology
    sites.start()
    ping_until(top.lan_b, top.a.host())
    assert sites.b.stop() == 0
    top.wan.nft("insert rule inet lab_guard forward accept")
    assert ping(top.lan_b, top.a.host(), count=3, wait=0.5).received == 0
    assert sites.a.metric("ipsec_unencrypted_drops_total", direction="in") >= 3


# -- the folder --------------------------------------------------------------------------------


def test_a_swapped_folder_is_one_change(sites: Sites) -> None:
    """As the kubelet updates a ConfigMap volume: what is in both versions is not interrupted."""
    top = sites.topology
    folder = sites.a.manifests

    def version(number: int, *documents: Document) -> None:
        data = folder / f"..v{number}"
        data.mkdir()
        manifests.write(data, *documents)
        fresh = folder / "..data.new"
        fresh.symlink_to(data.name)
        os.replace(fresh, folder / "..data")

    def point_to(*documents: Document) -> None:
        for document in documents:
            name = manifests.file_name(document)
            (folder / name).symlink_to(f"..data/{name}")

    old, new = rule("old", "discard", "10.8.0.0/24", 5), rule("new", "discard", "10.9.0.0/24", 5)
    version(1, SECRET, sites.peer_b, old)
    point_to(SECRET, sites.peer_b, old, new)  # dangling, until there is a new one
    (folder / manifests.file_name(new)).unlink()
    sites.b.apply(SECRET, sites.peer_a)
    sites.b.start()
    sites.a.start()
    sites.a.wait_condition("b")
    state_is(sites, "old", "Discarding")
    ping_until(top.lan_a, top.b.host())
    with ConstantPing(top.lan_a, top.b.host()) as constant:
        version(2, SECRET, sites.peer_b, new)
        (folder / manifests.file_name(old)).unlink()
        point_to(new)
        state_is(sites, "new", "Discarding")
        sites.a.wait(lambda: sites.a.status("IPsecPolicy", "old") == {}, "the old one is gone")
        assert constant.stop().lost == ()
    assert sites.a.log().count("IKE SA established") == 1


# -- bad input ---------------------------------------------------------------------------------


def broken(sites: Sites, path: str, value: Any) -> Document:
    """A peer that is good but for one field."""
    document: Document = sites.peer("b")
    *parents, last = path.split(".")
    place: Any = document
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = value
    return document


#: A field and a value that it cannot have.
BAD_PEERS = [
    ("spec.address", "not an address!"),
    ("spec.address", 7),
    ("spec.port", 70000),
    ("spec.exchangeMode", "sideways"),
    ("spec.nonsense", True),
    ("spec.remoteSubnets", ["10.2.0.0/33"]),
    ("spec.localSubnets", "10.1.0.0/24"),
    ("spec.authentication.method", "handshake"),
    ("spec.authentication.secretRef", {}),
    ("spec.profile", {"lifetime": "soon"}),
    ("spec.profile", {"encAlgorithms": ["rot13"]}),
    ("spec.profile", {"dpd": {"interval": "5m", "maxFailures": 100}}),
    ("spec.localAddress", "2001:db8::zz"),
    ("apiVersion", "kubeipsec.dev/v9"),
]


def test_a_batch_of_bad_manifests_disturbs_nothing(sites: Sites) -> None:
    top = sites.topology
    sites.start()
    ping_until(top.lan_a, top.b.host())
    expected: dict[str, str] = {}
    with ConstantPing(top.lan_a, top.b.host()) as constant:
        for number, (field, value) in enumerate(BAD_PEERS):
            document = broken(sites, field, value)
            document["metadata"]["name"] = f"bad{number}"
            expected[f"bad{number}"] = field
            sites.a.apply(document)
        whole = {
            "binary.yaml": b"\x00\x01\xff",
            "list.yaml": b"- 1\n- 2\n",
            "nameless.yaml": b"apiVersion: kubeipsec.dev/v1alpha1\nkind: IPsecPeer\nspec: {}\n",
            "tabs.yaml": b"a:\n\t- b\n",
            "twice.yaml": b"kind: Secret\nkind: Secret\n",
        }
        for name, content in whole.items():
            (sites.a.manifests / name).write_bytes(content)
        lost = manifests.policy(
            "lost", peer_name="nobody", selectors=[("10.1.0.0/24", "10.7.0.0/24")]
        )
        sites.a.apply(lost)
        for name, field in expected.items():
            condition = sites.a.wait_condition(name, "Accepted", "False")
            assert field in condition["message"], name
        condition = sites.a.wait_condition("lost", "ResolvedRefs", "False", kind="IPsecPolicy")
        assert "spec.peerRef" in condition["message"]
        sites.a.wait(lambda: all(name in sites.a.log() for name in whole), "all files are named")
        assert constant.stop().lost == ()
    log = sites.a.log()
    for name, field in expected.items():
        faults = [line for line in log.splitlines() if f"default/{name}:" in line]
        assert any(field in line for line in faults), f"{name}: {faults}"
    errors = json.loads(sites.a.get("/status")[1])["errors"]
    assert {name for name in whole if any(name in each for each in errors)} == set(whole)
    assert "Traceback" not in log
    assert log.count("IKE SA established") == 1
    assert sites.a.condition("b", "Ready")["status"] == "True"


COMMAND = (sys.executable, "-c", "from ipsec_cli.main import main; main()", "gateway")
#: Uid 1000 of a user namespace, without a capability.
NOBODY = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")


@pytest.mark.parametrize(
    ("prefix", "options", "code", "says"),
    [
        (NOBODY, (), 3, "run it as root"),
        ((), ("--state", "/proc/nowhere"), 3, "--state /proc/nowhere cannot be used"),
        ((), ("--listen", "203.0.113.1:9500"), 4, "choose another address with --listen"),
    ],
    ids=["no rights", "no state folder", "no such address"],
)
def test_what_this_machine_refuses_is_one_line(
    sites: Sites, prefix: tuple[str, ...], options: tuple[str, ...], code: int, says: str
) -> None:
    argv = [*prefix, *COMMAND, "--manifests", str(sites.a.manifests), *options]
    done = subprocess.run(
        sites.topology.gw_a.enter(*argv), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (code, "")
    # Its log, if it came so far, and then the reason.
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sites.left("a") == []


def test_every_object_has_a_status_file(sites: Sites) -> None:
    mode = {
        "apiVersion": manifests.API_VERSION,
        "kind": "ModeConfig",
        "metadata": {"name": "pool"},
        "spec": {"responder": True, "addressPool": {"cidrs": ["10.9.0.0/24"]}},
    }
    sites.a.apply(rule("drop", "discard", "10.9.0.0/24", 5), mode)
    sites.start()
    for kind, name in (("IPsecPeer", "b"), ("IPsecPolicy", "drop"), ("ModeConfig", "pool")):
        path = sites.a.state / "status" / kind.lower() / "default" / f"{name}.yaml"
        sites.a.wait(path.exists, f"{kind} has a status")
        document = yaml.safe_load(path.read_text())
        assert (document["kind"], document["metadata"]["name"]) == (kind, name)
        assert document["status"]["conditions"]
    assert not [p for p in sites.a.state.rglob("*") if p.suffix not in ("", ".yaml")]


# -- leaving nothing ---------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["a", "b"])
def test_stopping_takes_everything_away_at_both_ends(sites: Sites, who: str) -> None:
    """The initiator or the responder is stopped; the SAs go at both ends, the peer stays."""
    sites.start()
    stopped, other, peer = (sites.a, sites.b, "a") if who == "a" else (sites.b, sites.a, "b")
    assert sites.left(who)
    assert stopped.stop() == 0
    assert sites.left(who) == []
    condition = other.wait_condition(peer, "Established", "False")
    assert condition["reason"] in ("PeerDeleted", "Connecting", "Timeout")
    assert other.status("IPsecPeer", peer)["childSAs"]["installed"] == 0


def test_a_topology_of_its_own_is_gone_afterwards(tmp_path: Path) -> None:
    """No process of a gateway outlives it, whatever way it ends."""
    with Topology() as topology:
        both = Sites(topology, tmp_path)
        both.start()
        both.a.kill()
        both.b.stop()
        for gateway in (both.a, both.b):
            both.b.wait(lambda g=gateway: g.namespace.pids() == [], "no process is left")
