"""Numbers of the Linux socket and TUN interfaces that the standard library does not name.

Sources: ``include/uapi/linux/{in,in6,udp,if_tun,virtio_net,filter}.h`` and
``include/uapi/asm-generic/socket.h``. They are part of the kernel's stable interface.
"""

from __future__ import annotations

from typing import Final

# asm-generic/socket.h
SO_MARK: Final = 36
SO_ATTACH_FILTER: Final = 26
SO_ATTACH_REUSEPORT_CBPF: Final = 51
SO_RCVBUFFORCE: Final = 33
SO_SNDBUFFORCE: Final = 32

# linux/in.h, level IPPROTO_IP
IP_TOS: Final = 1
IP_PKTINFO: Final = 8
IP_MTU_DISCOVER: Final = 10
IP_RECVTOS: Final = 13
IP_MTU: Final = 14
IP_PMTUDISC_DONT: Final = 0
IP_PMTUDISC_DO: Final = 2

# linux/in6.h, level IPPROTO_IPV6
IPV6_MTU_DISCOVER: Final = 23
IPV6_MTU: Final = 24
IPV6_RECVERR: Final = 25
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
IPV6_RECVTCLASS: Final = 66
IPV6_TCLASS: Final = 67

# linux/udp.h, level IPPROTO_UDP
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
#: Segments of one UDP_SEGMENT send (UDP_MAX_SEGMENTS of kernels before 6.9).
UDP_MAX_SEGMENTS: Final = 64

# linux/if_tun.h
TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNSETVNETHDRSZ: Final = 0x400454D8
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_TSO_ECN: Final = 0x08

# linux/virtio_net.h
VIRTIO_NET_HDR_F_NEEDS_CSUM: Final = 1
VIRTIO_NET_HDR_GSO_NONE: Final = 0
VIRTIO_NET_HDR_GSO_TCPV4: Final = 1
VIRTIO_NET_HDR_GSO_TCPV6: Final = 4
VIRTIO_NET_HDR_GSO_ECN: Final = 0x80

# linux/sockios.h
SIOCSIFMTU: Final = 0x8922
SIOCGIFMTU: Final = 0x8921
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
SIOCSIFTXQLEN: Final = 0x8943
IFF_UP: Final = 0x1

# IANA protocol numbers
IPPROTO_IPIP: Final = 4
IPPROTO_TCP: Final = 6
IPPROTO_UDP: Final = 17
IPPROTO_IPV6: Final = 41
IPPROTO_ESP: Final = 50
IPPROTO_NONE: Final = 59
