"""One port, two sockets: the kernel's classification by payload (RFC 3948 2)."""

import socket
import time

import pytest

from ipsec_gateway.ipsec import linux
from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.natt import NattPair, is_ike, open_natt_pair

FAMILIES = [
    pytest.param(socket.AF_INET, "127.0.0.1", id="ipv4"),
    pytest.param(socket.AF_INET6, "::1", id="ipv6"),
]
ESP = b"\x00\x00\x01\x00" + bytes(104)
IKE = bytes(4) + b"x" * 104


def received(sock: socket.socket) -> list[bytes]:
    found = []
    for _ in range(200):
        try:
            found.append(sock.recv(65535))
        except BlockingIOError:
            if found:
                return found
            time.sleep(0.01)
    return found


def exchange(family: int, host: str, payloads: list[bytes], gso: int = 0) -> NattPair:
    pair = open_natt_pair(family, 0)
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        if gso:
            sender.setsockopt(socket.IPPROTO_UDP, linux.UDP_SEGMENT, gso)
        for payload in payloads:
            sender.sendto(payload, (host, pair.ike.getsockname()[1]))
    return pair


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_each_kind_arrives_at_its_own_socket(family: int, host: str) -> None:
    pair = exchange(family, host, [IKE, ESP, b"\xff", b"", b"\0\0\0", ESP[:5]])
    try:
        ike, esp = received(pair.ike), received(pair.esp)
    finally:
        pair.close()
    assert ike == [IKE, b"\xff", b"", b"\0\0\0"]
    assert esp == [ESP, ESP[:5]]
    assert all(map(is_ike, ike))
    assert not any(map(is_ike, esp))


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_an_offloaded_burst_goes_where_its_first_datagram_belongs(family: int, host: str) -> None:
    pair = exchange(family, host, [ESP + IKE + ESP], gso=len(ESP))
    try:
        assert received(pair.esp) == [ESP + IKE + ESP]
    finally:
        pair.close()
    pair = exchange(family, host, [IKE + ESP], gso=len(ESP))
    try:
        assert received(pair.ike) == [IKE, ESP], "the IKE socket gets single datagrams"
    finally:
        pair.close()


def test_a_taken_port_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        port = taken.getsockname()[1]
        with pytest.raises(DataplaneError, match=f"UDP port {port} .IPv4"):
            open_natt_pair(socket.AF_INET, port)
