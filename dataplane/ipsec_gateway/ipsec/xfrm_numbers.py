"""Numbers of the kernel's XFRM interface (``include/uapi/linux/xfrm.h``, ``netlink.h``).

They are part of the kernel's stable interface. What a kernel does not know yet is noted with the
version that brought it.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

NETLINK_XFRM: Final = 6

# netlink.h: message types and flags
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_CAPPED: Final = 0x100
NLM_F_ACK_TLVS: Final = 0x200
NLM_F_DUMP: Final = 0x300

# netlink.h: socket options, level SOL_NETLINK
SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11

#: A limit that is none (XFRM_INF).
INFINITE: Final = 2**64 - 1

#: linux/udp.h: level IPPROTO_UDP, and the kind of encapsulation of RFC 3948.
UDP_ENCAP: Final = 100
UDP_ENCAP_ESPINUDP: Final = 2

# linux/in.h and in6.h: a policy of one socket (struct xfrm_userpolicy_info).
IP_XFRM_POLICY: Final = 17
IPV6_XFRM_POLICY: Final = 35


class Msg(IntEnum):
    """Message types (XFRM_MSG_*)."""

    NEWSA = 0x10
    DELSA = 0x11
    GETSA = 0x12
    NEWPOLICY = 0x13
    DELPOLICY = 0x14
    GETPOLICY = 0x15
    ALLOCSPI = 0x16
    ACQUIRE = 0x17
    EXPIRE = 0x18
    UPDPOLICY = 0x19
    UPDSA = 0x1A
    POLEXPIRE = 0x1B
    FLUSHSA = 0x1C
    FLUSHPOLICY = 0x1D
    MIGRATE = 0x21
    NEWSPDINFO = 0x24
    GETSPDINFO = 0x25
    MAPPING = 0x26


class Attr(IntEnum):
    """Attribute types (XFRMA_*)."""

    ALG_AUTH = 1
    ALG_CRYPT = 2
    ALG_COMP = 3
    ENCAP = 4
    TMPL = 5
    SA = 6
    POLICY = 7
    LTIME_VAL = 9
    REPLAY_VAL = 10
    SRCADDR = 13
    LASTUSED = 15
    POLICY_TYPE = 16
    ALG_AEAD = 18
    ALG_AUTH_TRUNC = 20
    MARK = 21
    REPLAY_ESN_VAL = 23
    SA_EXTRA_FLAGS = 24
    OFFLOAD_DEV = 28
    SET_MARK = 29
    SET_MARK_MASK = 30
    IF_ID = 31
    #: Linux 5.17.
    MTIMER_THRESH = 32
    #: Linux 6.10.
    SA_DIR = 33


class SpdAttr(IntEnum):
    """Attributes of NEWSPDINFO (XFRMA_SPD_*)."""

    IPV4_HTHRESH = 3
    IPV6_HTHRESH = 4


class Group(IntEnum):
    """Multicast groups (XFRMNLGRP_*)."""

    ACQUIRE = 1
    EXPIRE = 2
    MAPPING = 8


class KernelMode(IntEnum):
    """XFRM_MODE_*."""

    TRANSPORT = 0
    TUNNEL = 1


class Dir(IntEnum):
    """Of a policy (XFRM_POLICY_*)."""

    IN = 0
    OUT = 1
    FORWARD = 2
    #: Policies of single sockets, in dumps.
    SOCKET_IN = 3
    SOCKET_OUT = 4


class SaDir(IntEnum):
    """Of a state, where the kernel asks (XFRM_SA_DIR_*)."""

    IN = 1
    OUT = 2


class Verdict(IntEnum):
    """Of a policy (XFRM_POLICY_ALLOW, _BLOCK). ALLOW with templates means encrypt."""

    ALLOW = 0
    BLOCK = 1


class Share(IntEnum):
    """Of a template (XFRM_SHARE_*). The kernel keeps it and does nothing with it."""

    ANY = 0
    SESSION = 1
    UNIQUE = 3


class StateFlag(IntFlag):
    """XFRM_STATE_*."""

    NOECN = 1
    DECAP_DSCP = 2
    NOPMTUDISC = 4
    WILDRECV = 8
    ICMP = 16
    AF_UNSPEC = 32
    ALIGN4 = 64
    ESN = 128


class ExtraFlag(IntFlag):
    """XFRM_SA_XFLAG_*."""

    DONT_ENCAP_DSCP = 1


class PolicyFlag(IntFlag):
    """XFRM_POLICY_*."""

    LOCALOK = 1
    ICMP = 2


class OffloadFlag(IntFlag):
    """XFRM_OFFLOAD_*."""

    IPV6 = 1
    INBOUND = 2
    #: Linux 6.2: encapsulation too is the device's.
    PACKET = 4
