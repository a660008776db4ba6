"""Connections that were masqueraded before their tunnel came get their own source back."""

from __future__ import annotations

import socket
from ipaddress import ip_network

from ipsec_gateway import conntrack
from ipsec_gateway.classify import Network
from ipsec_lab.steering_rig import PROTECT4, PROTECT6, Rig, addresses

PAIR = (ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16"))
PAIR6 = (ip_network("fd00:1::/64"), ip_network("fd00:2::/64"))


def flush(rig: Rig, *pairs: tuple[Network, Network]) -> int:
    async def work() -> int:
        return conntrack.flush(pairs)

    return rig.run(work)


def test_masqueraded_connections_end_with_the_first_tunnel(rig: Rig) -> None:
    # Not "masquerade": that gives up by itself when the interface changes.
    rig.gw.nft(
        "table inet r { chain post { type nat hook postrouting priority 100;"
        " oifname wan0 snat ip to 192.0.2.1; oifname wan0 snat ip6 to 2001:db8::1; }; }"
    )
    with (
        rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        rig.lan.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client6,
        rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):

        def send() -> None:
            client.sendto(b"x", ("10.2.0.9", 9))
            client6.sendto(b"x", ("fd00:2::9", 9))
            other.sendto(b"x", ("10.3.0.9", 9))

        send()
        assert flush(rig, (ip_network("10.1.0.0/16"), ip_network("10.9.0.0/16"))) == 0
        rig.apply(PROTECT4, PROTECT6, settle=False)
        send()
        assert {addresses(p)[0] for p in rig.tunnelled()} == {"192.0.2.1", "2001:db8::1"}, (
            "conntrack keeps the translation"
        )
        assert flush(rig, PAIR, PAIR6) == 2, "and not the one of 10.3.0.9"
        send()
        assert {addresses(p)[0] for p in rig.tunnelled()} == {"10.1.0.2", "fd00:1::2"}
        assert flush(rig, PAIR, PAIR6) == 0, "what is exempted stays"


def test_behind_a_service_address_and_from_the_other_side(rig: Rig) -> None:
    rig.gw.nft(
        "table ip r { chain pre { type nat hook prerouting priority -100;"
        " ip daddr 10.96.0.1 dnat to 10.2.0.9; };"
        " chain post { type nat hook postrouting priority 100; masquerade; }; }"
    )
    with (
        rig.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        rig.wan.socket(socket.AF_INET, socket.SOCK_DGRAM) as remote,
    ):
        client.sendto(b"x", ("10.96.0.1", 9))
        remote.bind(("10.2.0.9", 7))
        remote.sendto(b"x", ("10.1.0.2", 9))
        assert flush(rig, PAIR) == 2
