"""Numbers that the gateway puts into the kernel: mark bits, table and rule numbers, reqids.

Marks. All actors on a node share one 32-bit packet mark, so we own three documented bits of it
and never touch the others: 0x70. Others known to us: kube-proxy 0x4000 and 0x8000, Calico
0xffff0000, Cilium 0x0f00, AWS VPC CNI 0x80, the CNI portmap plugin 0x2000.

=======  ====================================================================================
bit      meaning
=======  ====================================================================================
STEER    a policy protects this packet: the rule routes it into the device
GUARD    it must not leave in clear text (``level: require`` and ``unique``, action ``discard``)
BYPASS   our own IKE and ESP, and what the gateway sends that no policy matches: routed as usual
=======  ====================================================================================

Reqids tie SAs to policies and must survive a restart, so they are a hash of the name and not a
counter. They have a range of their own, by which a restarted gateway knows its own SAs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

MARK_MASK: Final = 0x70
STEER: Final = 0x10
GUARD: Final = 0x20
BYPASS: Final = 0x40

#: nftables table (family inet). ``ipsec`` alone would be a keyword of the nft syntax.
NFT_TABLE: Final = "kube_ipsec"

#: Routes to all remote subnets.
TABLE: Final = 4500
#: The same with source address hints and without default routes.
TABLE_SOURCE: Final = 4501

#: ``to PEER fwmark BYPASS/BYPASS lookup T``: IKE and ESP to a peer that names a table of its own.
RULE_DETOUR: Final = 4499
#: ``fwmark STEER/STEER lookup TABLE``: what a policy protects.
RULE_STEER: Final = 4500
#: ``iif lo fwmark 0/MARK_MASK lookup TABLE_SOURCE``: connections that have no source address yet.
RULE_SOURCE: Final = 4501
#: ``fwmark 0/MARK_MASK lookup TABLE``, after all others: reverse path checks of decrypted packets.
RULE_LAST: Final = 32800

#: ``proto`` of our routes and rules, so that ``ip route show proto 79`` lists them.
ROUTE_PROTOCOL: Final = 79
#: Metric of the ``unreachable`` twin of every route: it takes over when the device is gone.
FALLBACK_METRIC: Final = 4294967295

#: Our reqids have this bit set and the sign bit clear.
REQID_BASE: Final = 0x40000000
_REQID_MASK: Final = REQID_BASE - 1


def reqid_of(key: str, attempt: int = 0) -> int:
    """The reqid that ``key`` gets if nobody else has it."""
    digest = hashlib.blake2b(f"{key}\0{attempt}".encode(), digest_size=8).digest()
    return REQID_BASE | (int.from_bytes(digest, "big") & _REQID_MASK)


def allocate_reqids(keys: Iterable[str]) -> dict[str, int]:
    """One reqid per key, the same for the same keys whatever their order.

    Where two keys collide (2**-30 for a pair) the one that sorts later takes its next hash, so
    that a collision concerns two tunnels and never all that follow.
    """
    taken: set[int] = set()
    result: dict[str, int] = {}
    for key in sorted(set(keys)):
        attempt = 0
        while (reqid := reqid_of(key, attempt)) in taken:
            attempt += 1
        taken.add(reqid)
        result[key] = reqid
    return result
