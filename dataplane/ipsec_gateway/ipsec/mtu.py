"""How large an inner packet may be, so that nothing outside needs fragments."""

from __future__ import annotations

import socket
from typing import Final

from ipsec_gateway.ipsec import linux
from ipsec_ike.actions import SaSpec
from ipsec_ike.crypto.transforms import esp_transform

#: IPv6 needs this much of every link (RFC 8200 5); below it the kernel turns IPv6 off.
MINIMUM: Final = 1280
#: Before the first SA: AES-CBC with HMAC-SHA-512 in UDP over IPv6 on Ethernet.
INITIAL: Final = 1390


def inner_mtu(path: int, spec: SaSpec) -> int:
    """Octets of the largest inner packet whose ESP packet fits ``path`` octets of outer packet."""
    layout = esp_transform(spec.encryption, spec.integrity)
    room = path - (40 if ":" in spec.destination.address else 20) - (8 if spec.encap else 0)
    room -= 8 + layout.iv_length + layout.icv_length
    return room - room % layout.alignment - 2


def path_mtu(source: str, destination: str) -> int:
    """What the kernel knows the path to carry, in octets of IP packet; 0 if there is no route."""
    v6 = ":" in destination
    family = socket.AF_INET6 if v6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((source, 0))
            probe.connect((destination, 4500))
            if v6:
                return probe.getsockopt(socket.IPPROTO_IPV6, linux.IPV6_MTU)
            return probe.getsockopt(socket.IPPROTO_IP, linux.IP_MTU)
        except OSError:
            return 0  # an address or a route is not there now; nothing is known
