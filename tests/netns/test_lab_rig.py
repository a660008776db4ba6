"""The lab itself: what it claims to drop is dropped, what it claims to see is seen, and it leaves
nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipsec_lab.guard import Guard
from ipsec_lab.netns import NETNS_DIR, LabError, Namespace, sweep
from ipsec_lab.sniffer import Sniffer
from ipsec_lab.topology import Topology
from ipsec_lab.traffic import ConstantPing, ping, ping_until, tcp_transfer


@pytest.fixture(scope="module")
def topology():
    with Topology() as top:
        yield top


@pytest.fixture
def guard(topology):
    guard = Guard(topology)
    yield guard
    guard.end_nat()
    guard.remove()


def both(topology):
    return [topology.b.host(0), topology.b.host(1)]


def test_without_a_guard_the_sites_talk_in_clear_text_and_the_sniffer_sees_it(topology):
    with Sniffer(topology.wan) as sniffer:
        for address in both(topology):
            ping_until(topology.lan_a, address)
        transfer = tcp_transfer(topology.lan_a, topology.lan_b, topology.b.host(), octets=1 << 20)
    assert transfer.intact
    sighting = sniffer.sighting()
    assert sighting.marked > 2
    assert sighting.encrypted == 0
    assert "to-a" in sighting.first_marked


def test_the_guard_drops_and_counts_clear_text(topology, guard):
    for address in both(topology):
        assert ping(topology.lan_a, address, count=2, wait=0.2).received == 0
    with pytest.raises(LabError, match="TCP from lan-a"):
        tcp_transfer(topology.lan_a, topology.lan_b, topology.b.host(), timeout=0.5)
    assert guard.counters().clear >= 5
    assert guard.counters().encrypted == 0


def test_clear_text_on_the_ports_of_ike_is_clear_text(topology, guard):
    with topology.lan_a.socket(kind=socket.SOCK_DGRAM) as sender:
        sender.bind(("0.0.0.0", 500))
        sender.sendto(b"x" * 40, (topology.b.host(), 4500))
    assert guard.counters().clear == 1


@pytest.mark.parametrize("version", [4, 6])
def test_the_guard_tells_ike_esp_and_esp_in_udp_apart(topology, guard, version):
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    far = topology.b.wan_address(version)
    ping_until(topology.gw_a, topology.wan_neighbour("a", version))
    with (
        topology.gw_a.socket(family, socket.SOCK_DGRAM) as udp,
        topology.gw_a.socket(family, socket.SOCK_RAW, 50) as raw,
    ):
        udp.sendto(bytes(28), (far, 500))
        udp.sendto(bytes(4) + b"ike", (far, 4500))
        udp.sendto(b"\xff", (far, 4500))
        udp.sendto(b"\0\0\1\0" + bytes(24), (far, 4500))
        raw.sendto(b"\0\0\1\0" + bytes(24), (far, 0))
        udp.sendto(bytes(28), (far, 501))
    seen = guard.counters()
    assert (seen.ike, seen.esp_udp, seen.esp, seen.clear) == (3, 1, 1, 1)


def test_fragments_between_the_gateways_pass(topology, guard):
    with topology.gw_a.socket(kind=socket.SOCK_DGRAM) as udp:
        udp.sendto(bytes(4000), (topology.b.wan_address(), 500))
    seen = guard.counters()
    assert (seen.ike, seen.fragments, seen.clear) == (1, 2, 0)


def test_a_cut_path_is_silent_and_heals(topology, guard):
    far = topology.b.wan_address()
    with topology.gw_a.socket(kind=socket.SOCK_DGRAM) as udp:
        guard.cut()
        udp.sendto(bytes(28), (far, 500))
        before = guard.counters()
        guard.restore()
        udp.sendto(bytes(28), (far, 500))
    assert (before.ike, before.weather) == (0, 1)
    assert (guard.counters().ike, guard.counters().weather) == (1, 1)


@pytest.mark.parametrize(
    ("cut", "passed"),
    [
        ({}, 0),
        ({"requests": ""}, 2),
        ({"requests": "a", "answers": False}, 2),
        ({"requests": "b", "answers": False}, 4),
    ],
)
def test_ike_can_be_cut_alone(topology, guard, cut, passed):
    """Out of a request and an answer of site a, on both ports; ESP always passes."""
    far = topology.b.wan_address()
    request, answer = bytes(28), bytes(19) + b"\x20" + bytes(8)
    with topology.gw_a.socket(kind=socket.SOCK_DGRAM) as udp:
        guard.cut_ike(**cut)
        for message in (request, answer):
            udp.sendto(message, (far, 500))
            udp.sendto(bytes(4) + message, (far, 4500))
        udp.sendto(b"\0\0\1\0" + answer, (far, 4500))
    seen = guard.counters()
    assert (seen.ike, seen.esp_udp, seen.weather) == (passed, 1, 4 - passed)


def test_loss_is_a_share(topology, guard):
    far = topology.b.wan_address()
    with (
        # Someone listens: a closed port answers with ICMP errors, which are lost and counted too.
        topology.gw_b.socket(kind=socket.SOCK_DGRAM) as listener,
        topology.gw_a.socket(kind=socket.SOCK_DGRAM) as udp,
    ):
        listener.bind((far, 500))
        guard.lose(50)
        for _ in range(400):
            udp.sendto(bytes(28), (far, 500))
    seen = guard.counters()
    assert seen.ike + seen.weather == 400
    assert 100 < seen.weather < 300


def test_behind_a_nat_the_source_is_the_routers(topology, guard):
    guard.masquerade("a")
    with (
        topology.gw_b.socket(kind=socket.SOCK_DGRAM) as server,
        topology.gw_a.socket(kind=socket.SOCK_DGRAM) as client,
    ):
        server.bind((topology.b.wan_address(), 4500))
        server.settimeout(5)
        client.bind(("0.0.0.0", 4500))
        client.sendto(bytes(8), (topology.b.wan_address(), 4500))
        _, source = server.recvfrom(100)
        client.settimeout(5)
        server.sendto(b"back", source)
        assert client.recv(10) == b"back"
    assert source[0] == str(topology.b.router(0).ip)
    assert 20000 <= source[1] < 30000


def test_a_constant_ping_names_what_was_lost(topology):
    with ConstantPing(topology.lan_a, topology.b.host()) as ping_:
        time.sleep(0.3)
        Guard(topology).cut()
        time.sleep(0.3)
        topology.wan.nft("delete table inet lab_guard")
        time.sleep(0.3)
        result = ping_.stop()
    assert result.received > 5
    assert len(result.lost) > 5
    assert list(result.lost) == list(range(result.lost[0], result.lost[-1] + 1))


def test_nothing_is_left_behind(tmp_path: Path):
    with Topology() as top, (tmp_path / "log").open("wb") as log:
        names = [n.name for n in (top.lan_a, top.gw_a, top.wan, top.gw_b, top.lan_b)]
        process = top.start(top.gw_a, ["sleep", "1000"], log=log)
        _wait_until_it_runs(process.pid)
        assert process.pid in top.gw_a.pids()
        assert all((NETNS_DIR / name).exists() for name in names)
    assert process.poll() is not None
    assert not any((NETNS_DIR / name).exists() for name in names)


def test_a_killed_lab_takes_its_daemons_along_and_is_swept_up():
    code = (
        "import time, sys\n"
        "from ipsec_lab.topology import Topology\n"
        "top = Topology().__enter__()\n"
        "p = top.start(top.gw_a, ['sleep', '1000'], log=sys.stderr.buffer)\n"
        "print(p.pid, top.gw_a.name, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as lab:
        daemon, name = lab.stdout.readline().split()
        _wait_until_it_runs(int(daemon))
        lab.kill()
    deadline = time.monotonic() + 10
    while _is_running(int(daemon)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_running(int(daemon))
    # Another lab of this machine may sweep first; what counts is that it is gone.
    sweep()
    assert not (NETNS_DIR / name.decode()).exists()


def _wait_until_it_runs(pid: int) -> None:
    """Until the wrappers have given way to the program."""
    while Path("/proc", str(pid), "comm").read_text() != "sleep\n":
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path("/proc", str(pid), "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_refused_command_is_one_line_that_names_it():
    namespace = Namespace("once")
    try:
        with pytest.raises(LabError, match="Cannot find device"):
            namespace.ip("link set dev nothing up")
    finally:
        namespace.delete()


def test_the_lab_runs_in_a_user_namespace():
    """As ``make demo`` without root does it: from an unprivileged user on."""
    code = (
        "import os\n"
        "from ipsec_lab.topology import Topology\n"
        "from ipsec_lab.guard import Guard\n"
        "from ipsec_lab.traffic import ping\n"
        "with Topology() as top:\n"
        "    guard = Guard(top)\n"
        "    ping(top.lan_a, top.b.host(), count=1, wait=0.2)\n"
        "    print('clear', guard.counters().clear)\n"
    )
    probe = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "--mount", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        pytest.skip(f"this kernel refuses user namespaces: {probe.stderr.strip()}")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from ipsec_lab.userns import reexecute\n"
            f"reexecute([sys.executable, '-c', {code!r}])",
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.stdout.strip() == "clear 1", done.stderr
