"""Steering and guard with a real kernel (the rig is in ``ipsec_lab.steering_rig``)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ipsec_gateway.ipsec.base import Level, PolicyAction
from ipsec_gateway.steering import Steering, current
from ipsec_gateway.tools import ToolError
from ipsec_lab.masquerades import keeps_sources
from ipsec_lab.netns import end_process
from ipsec_lab.steering_rig import (
    DEVICE,
    PROTECT4,
    PROTECT6,
    Rig,
    addresses,
    echo_request,
    ipv4,
    mss,
    reaches,
    received,
    spec,
    state,
)


def test_protected_traffic_goes_into_the_device_and_nothing_else_does(rig: Rig) -> None:
    assert reaches(rig.lan, "10.2.0.9"), "the rig itself: clear text must pass before the guard"
    rig.apply(PROTECT4, PROTECT6)
    assert not reaches(rig.lan, "10.2.0.9")
    assert not reaches(rig.lan, "fd00:2::9")
    assert [addresses(p) for p in rig.tunnelled()] == [
        ("10.1.0.2", "10.2.0.9"),
        ("fd00:1::2", "fd00:2::9"),
    ]
    assert reaches(rig.lan, "10.3.0.9"), "what no policy matches passes as ever"
    assert rig.tunnelled() == []
    # The gateway's own traffic gets a source address that the policy covers.
    assert not reaches(rig.gw, "10.2.0.9")
    assert not reaches(rig.gw, "fd00:2::9")
    assert [addresses(p) for p in rig.tunnelled()] == [
        ("10.1.0.1", "10.2.0.9"),
        ("fd00:1::1", "fd00:2::9"),
    ]
    # An address that no policy covers takes the usual route.
    assert reaches(rig.gw, "10.2.0.9", "-I", "192.0.2.1")


def test_sources_are_kept_where_nobody_knows_who_translates(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails() -> str:
        raise ToolError("nft is busy")

    rig.steering = Steering(DEVICE, lazy=True)
    monkeypatch.setattr(rig.steering, "translators", fails)
    rig.apply(PROTECT4)
    assert keeps_sources(rig.gw)


def test_decrypted_traffic_passes_strict_reverse_path_filters(rig: Rig) -> None:
    rig.apply(PROTECT4)
    before = received(rig.lan)
    rig.inject(echo_request("10.2.0.9", "10.1.0.2"))
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.2", "10.2.0.9")], "the echo reply"
    assert received(rig.lan) == before + 1
    # Also to the gateway itself.
    rig.inject(echo_request("10.2.0.9", "10.1.0.1"))
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.1", "10.2.0.9")]


def test_clear_text_from_a_protected_network_is_dropped_and_counted(rig: Rig) -> None:
    rig.apply(PROTECT4)
    assert not reaches(rig.wan, "10.1.0.2", "-I", "10.2.0.9")
    assert rig.counter("unencrypted_in") == 1
    assert reaches(rig.wan, "10.1.0.2", "-I", "10.3.0.9")


def test_the_guard_outlives_the_device(rig: Rig) -> None:
    """A killed gateway: the device and its routes are gone, nothing may leak."""
    rig.apply(PROTECT4, PROTECT6)
    os.kill(rig.tun.pid, 9)
    rig.tun.wait()
    deadline = time.monotonic() + 5
    while DEVICE in rig.gw.run("ip", "-br", "link") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert DEVICE not in rig.gw.run("ip", "-br", "link")
    for address in ("10.2.0.9", "fd00:2::9"):
        assert not reaches(rig.lan, address)
        assert not reaches(rig.gw, address)
    # The fallback routes refuse; without them too the guard holds.
    for version in ("-4", "-6"):
        rig.gw.run("ip", version, "route", "flush", "table", "4500")
    for address in ("10.2.0.9", "fd00:2::9"):
        assert not reaches(rig.lan, address)
    assert rig.counter("unencrypted_out") == 2


def test_first_match_decides(rig: Rig) -> None:
    rig.apply(
        spec("10.1.0.0/16", "10.2.0.9/32", PolicyAction.NONE),
        spec("10.1.0.0/16", "10.3.0.0/16", PolicyAction.DISCARD),
        PROTECT4,
    )
    assert reaches(rig.lan, "10.2.0.9")
    assert reaches(rig.gw, "10.2.0.9", "-I", "10.1.0.1")
    assert reaches(rig.wan, "10.1.0.2", "-I", "10.2.0.9")
    assert not reaches(rig.lan, "10.3.0.9")
    assert rig.counter("discarded_out") == 1
    assert not reaches(rig.wan, "10.1.0.2", "-I", "10.3.0.9")
    assert rig.counter("discarded_in") == 1
    assert not reaches(rig.lan, "10.2.0.10")
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.2", "10.2.0.10")]


def test_level_use_is_clear_without_an_sa(rig: Rig) -> None:
    rig.apply(spec("10.1.0.0/16", "10.2.0.0/16", level=Level.USE))
    assert reaches(rig.lan, "10.2.0.9")
    rig.apply(spec("10.1.0.0/16", "10.2.0.0/16", level=Level.USE), live=frozenset({7}))
    assert not reaches(rig.lan, "10.2.0.9")
    assert len(rig.tunnelled()) == 1
    # Clear text in is tolerated; the answer is protected.
    assert not reaches(rig.wan, "10.1.0.2", "-I", "10.2.0.9")
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.2", "10.2.0.9")]
    assert rig.counter("unencrypted_in") == 0


def test_only_the_protocol_and_ports_of_the_policy(rig: Rig) -> None:
    rig.apply(
        spec("10.1.0.0/16", "10.2.0.0/16", protocol=17, start_port=7, end_port=9),
        spec("10.1.0.0/16", "10.3.0.0/16", protocol=1),
    )
    assert reaches(rig.lan, "10.2.0.9")
    assert not reaches(rig.lan, "10.3.0.9")
    assert len(rig.tunnelled()) == 1
    send = "import socket,sys;socket.socket(2,2).sendto(b'x',('10.2.0.9',int(sys.argv[1])))"
    rig.lan.run(sys.executable, "-c", send, "10")
    assert rig.tunnelled() == []
    rig.lan.run(sys.executable, "-c", send, "8")
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.2", "10.2.0.9")]


def test_others_masquerade_does_not_touch_protected_traffic(rig: Rig) -> None:
    rig.gw.nft(
        "table ip cni { chain post { type nat hook postrouting priority srcnat; masquerade; }; }"
    )
    rig.apply(PROTECT4)
    assert not reaches(rig.lan, "10.2.0.9")
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.2", "10.2.0.9")]
    with rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("10.1.0.2", 9))
        receiver.settimeout(5)
        rig.inject(ipv4("10.2.0.9", "10.1.0.2", 17, bytes.fromhex("0007000900090000") + b"x"))
        assert receiver.recvfrom(9) == (b"x", ("10.2.0.9", 7)), "seen with its own address"
    assert reaches(rig.lan, "10.3.0.9"), "all other traffic is masqueraded as before"


def test_a_policy_to_everything_leaves_the_gateway_its_own_way_out(rig: Rig) -> None:
    rig.apply(
        spec("10.1.0.0/24", "10.1.0.0/24", PolicyAction.NONE), spec("10.1.0.0/24", "0.0.0.0/0")
    )
    assert reaches(rig.gw, "192.0.2.2")
    assert reaches(rig.gw, "10.1.0.2")
    assert reaches(rig.lan, "10.1.0.1")
    assert rig.tunnelled() == []
    assert not reaches(rig.lan, "10.3.0.9")
    assert not reaches(rig.gw, "10.3.0.9", "-I", "10.1.0.1")
    assert [addresses(p) for p in rig.tunnelled()] == [
        ("10.1.0.2", "10.3.0.9"),
        ("10.1.0.1", "10.3.0.9"),
    ]
    rig.inject(echo_request("198.51.100.1", "10.1.0.2"))
    assert [addresses(p) for p in rig.tunnelled()] == [("10.1.0.2", "198.51.100.1")]


def test_ike_and_esp_to_a_peer_inside_its_own_remote_subnet(rig: Rig) -> None:
    rig.apply(spec("192.0.2.1/32", "192.0.2.2/32"))
    assert not reaches(rig.gw, "192.0.2.2")
    assert len(rig.tunnelled()) == 1
    server = "import socket;s=socket.socket(2,2);s.bind(('192.0.2.2',500));print(1,flush=1);"
    server += "d,a=s.recvfrom(9);s.sendto(d,a)"
    client = "import socket;s=socket.socket(2,2);s.bind(('192.0.2.1',500));s.settimeout(3);"
    client += "s.sendto(b'ike',('192.0.2.2',500));print(s.recv(9).decode())"
    answering = rig.wan.popen([sys.executable, "-c", server], stdout=subprocess.PIPE)
    assert answering.stdout is not None
    with answering.stdout:
        assert answering.stdout.readline() == b"1\n"
        assert rig.gw.run(sys.executable, "-c", client) == "ike\n"
        end_process(answering)
    assert rig.tunnelled() == []


def test_the_same_again_changes_nothing_and_removal_leaves_nothing(rig: Rig) -> None:
    pristine = state(rig)
    rig.apply(PROTECT4, PROTECT6, spec("10.1.0.0/24", "0.0.0.0/0"))
    first = state(rig)
    assert first != pristine
    rig.apply(PROTECT4, PROTECT6, spec("10.1.0.0/24", "0.0.0.0/0"))
    assert state(rig) == first
    # A new process that finds the state of a killed one takes it over.
    rig.steering = Steering(DEVICE)
    rig.apply(PROTECT4, PROTECT6, spec("10.1.0.0/24", "0.0.0.0/0"))
    assert state(rig) == first
    rig.apply(PROTECT4)
    assert "10.2.0.0/16" in state(rig)
    assert "fd00:2::" not in state(rig)
    rig.run(rig.steering.unroute)
    rig.run(rig.steering.unguard)
    assert state(rig) == pristine
    routes = rig.run(current)
    assert not routes.routes
    assert not routes.rules


def test_the_listing_names_whose_each_pair_is(rig: Rig) -> None:
    one = replace(PROTECT4, name="default/" + "a" * 63)
    two = replace(spec("10.1.0.0/16", "10.4.0.0/16"), name="n" * 63 + "/" + "b" * 253)
    rig.apply(one, two)
    listing = rig.gw.run("nft", "list", "table", "inet", "kube_ipsec")
    assert f'10.1.0.0/16 . 10.2.0.0/16 comment "{one.name}"' in listing
    assert f'10.1.0.0/16 . 10.4.0.0/16 comment "{two.name[:127]}"' in listing, "as long as fits"
    rig.apply(one)
    listing = rig.gw.run("nft", "list", "table", "inet", "kube_ipsec")
    assert one.name in listing
    assert "10.4.0.0/16" not in listing


def test_counters_survive_a_change_of_policies(rig: Rig) -> None:
    rig.apply(PROTECT4)
    assert not reaches(rig.wan, "10.1.0.2", "-I", "10.2.0.9")
    rig.apply(PROTECT4, PROTECT6, spec("10.1.0.0/16", "10.9.0.0/16", PolicyAction.NONE))
    assert rig.counter("unencrypted_in") == 1


def test_mss_is_clamped_to_what_fits_the_device(rig: Rig) -> None:
    rig.apply(PROTECT4)
    connect = "import socket;s=socket.socket();s.settimeout(0.3);s.connect_ex(('10.2.0.9',80))"
    rig.lan.run(sys.executable, "-c", connect)
    (syn,) = {p[20:] for p in rig.tunnelled()}
    assert mss(syn) == 1360


def test_forwarding_is_switched_on_and_off_again(rig: Rig) -> None:
    rig.gw.sysctl({"ipv4.ip_forward": 0, "ipv6.conf.all.forwarding": 0})
    rig.gw.sysctl({"ipv6.conf.wan0.accept_ra": 1})
    rig.apply(PROTECT4, PROTECT6)
    names = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.wan0.accept_ra")
    assert rig.gw.run("sysctl", "-n", *names).split() == ["1", "1", "2"]
    rig.run(rig.steering.unroute)
    rig.run(rig.steering.unguard)
    assert rig.gw.run("sysctl", "-n", *names).split() == ["0", "0", "1"]


def test_somebody_else_in_our_table_is_refused_and_left_alone(rig: Rig) -> None:
    rig.gw.ip("route add 10.77.0.0/16 via 192.0.2.2 table 4500 proto static")
    with pytest.raises(ToolError, match=r"10\.77\.0\.0/16 in table 4500 is of protocol 4 "):
        rig.apply(PROTECT4)
    routes = rig.gw.run("ip", "route", "show", "table", "4500")
    assert routes.split() == ["10.77.0.0/16", "via", "192.0.2.2", "dev", "wan0", "proto", "static"]
    assert not reaches(rig.lan, "10.2.0.9"), "guarded all the same"
    rig.run(rig.steering.unroute)
    assert "10.77.0.0/16" in rig.gw.run("ip", "route", "show", "table", "4500")
