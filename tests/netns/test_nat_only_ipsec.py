"""Services that are accepted only out of an SA: a discard policy below the tunnels'."""

from __future__ import annotations

import socket

import pytest

from ipsec_gateway.intent import Intent
from ipsec_gateway.ipsec.base import PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.protected import ProtectedService
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.steering_rig import PROTECT4, Rig, ipv4

#: L2TP to one of the gateway's own addresses, from anywhere.
ONLY = PolicySpec(
    id=PolicyId(
        PolicyDirection.OUT,
        TrafficSelector.network("10.1.0.1/32", protocol=17, start_port=1701, end_port=1701),
        TrafficSelector.network("0.0.0.0/0", protocol=17),
    ),
    action=PolicyAction.DISCARD,
    priority=2,
)


def test_a_port_is_open_to_tunnels_only(rig: Rig) -> None:
    rig.apply_intent(
        Intent(
            policies=(PROTECT4, ONLY),
            pairs=((PROTECT4.id.source.networks[0], PROTECT4.id.destination.networks[0]),),
        )
    )
    with (
        rig.gw.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        rig.gw.socket(socket.AF_INET, socket.SOCK_DGRAM) as another,
        rig.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
        rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as neighbour,
    ):
        server.bind(("10.1.0.1", 1701))
        server.settimeout(5)
        another.bind(("10.1.0.1", 1702))
        another.settimeout(5)
        for sender in (stranger, neighbour):
            sender.sendto(b"no", ("10.1.0.1", 1701))
            sender.sendto(b"yes", ("10.1.0.1", 1702))
            assert another.recv(9) == b"yes"
        assert rig.counter("discarded_in") == 2
        rig.inject(ipv4("10.2.0.9", "10.1.0.1", 17, bytes.fromhex("000706a5000b0000") + b"in!"))
        assert server.recvfrom(9) == (b"in!", ("10.2.0.9", 7))
        # Its answer goes back into the tunnel, and to nobody else.
        server.sendto(b"out", ("10.2.0.9", 7))
        assert [p[-3:] for p in rig.tunnelled()] == [b"out"]
        with pytest.raises(PermissionError):
            server.sendto(b"out", ("192.0.2.2", 7))
        assert rig.counter("discarded_out") == 1


def test_a_whole_protocol_leaves_ike_open(rig: Rig) -> None:
    """``requireIPsec`` of all of UDP: tunnels come up by UDP."""
    rig.apply_intent(Intent(services=(ProtectedService(17, None, name="default/hq"),)))
    with (
        rig.gw.socket(socket.AF_INET, socket.SOCK_DGRAM) as ike,
        rig.gw.socket(socket.AF_INET, socket.SOCK_DGRAM) as another,
        rig.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        another.bind(("192.0.2.1", 501))
        ike.bind(("192.0.2.1", 500))
        ike.settimeout(5)
        stranger.sendto(b"no", ("192.0.2.1", 501))
        stranger.sendto(b"yes", ("192.0.2.1", 500))
        assert ike.recv(9) == b"yes"
        assert rig.counter("unencrypted_in") == 1
