"""Numbers that the gateway puts into the kernel: mark bits, table and rule numbers, reqids.

Marks. All actors on a node share one 32-bit packet mark, so we own three bits of it and never touch
the others: 0x70 unless ``--mark-bits`` says otherwise. From the lowest to the highest:

=======  ====================================================================================
bit      meaning
=======  ====================================================================================
steer    a policy protects this packet: the rule routes it into the device
guard    it must not leave in clear text (``level: require`` and ``unique``, action ``discard``)
bypass   our own IKE and ESP, and what the gateway sends that no policy matches: routed as usual
=======  ====================================================================================

Tables and rules. ``--tables N`` (4500) gives the tables N to N + 2, and rules of these priorities:

=======  ====================================================================================
rule     what
=======  ====================================================================================
N - 1    ``to PEER fwmark bypass/bypass lookup T``: IKE and ESP to a peer with its own table
N        ``fwmark steer/steer lookup N``: what a policy protects
N + 1    ``iif lo fwmark 0/mask lookup N+1``: connections that have no source address yet
N + 2,   default routes of routed policies (``interfaces``), which have the third table
N + 3
32800    ``fwmark 0/mask lookup N``, after all others: reverse path checks of decrypted packets
=======  ====================================================================================

Reqids tie SAs to policies and must survive a restart, so they are a hash of the name and not a
counter. They have a range of their own, by which a restarted gateway knows its own SAs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ipsec_api.marks import owner_of

_WHOLE: Final = 0xFFFFFFFF

#: nftables table (family inet). ``ipsec`` alone would be a keyword of the nft syntax.
NFT_TABLE: Final = "kube_ipsec"

#: Of the rule after all others, whatever the numbers of the tables.
RULE_LAST: Final = 32800
#: The last rule that goes with a table comes before the look-up in the main table (32766).
_HIGHEST: Final = 32766 - 4
#: The kernel's own tables: default, main, local.
_RESERVED: Final = frozenset((253, 254, 255))


class BadNumbers(ValueError):
    """Numbers that the gateway cannot have. The message says whose they are, and the remedy."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Mark bits and tables of one gateway. Raises BadNumbers.

    ``mask`` has the three bits, ``table`` is the first of the three tables. ``shared`` allows bits
    that others are known to use, for nodes where they do not run.
    """

    mask: int = 0x70
    table: int = 4500
    shared: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.mask <= _WHOLE or self.mask.bit_count() != 3:
            raise BadNumbers(
                f"{self.mask:#x} has not exactly three bits of 32, such as 0x70: one for steering,"
                " one for the guard, one for our own packets"
            )
        if not self.shared and (found := owner_of(self.mask)):
            raise BadNumbers(
                f"{self.mask:#x} has bits of {found}: take others, such as 0x70, or allow it where"
                " that does not run (--allow-mark-conflict)"
            )
        if not 2 <= self.table <= _HIGHEST or set(range(self.table, self.table + 3)) & _RESERVED:
            raise BadNumbers(
                f"tables from {self.table} on cannot be the gateway's: their number is the priority"
                f" of their rule, too, so take 2 to {_HIGHEST}, and not 251 to 255: 253 to 255 are"
                " the kernel's"
            )

    @property
    def steer(self) -> int:
        """The lowest bit."""
        return self.mask & -self.mask

    @property
    def guard(self) -> int:
        """The middle one."""
        return self.mask ^ self.steer ^ self.bypass

    @property
    def bypass(self) -> int:
        """The highest one."""
        return 1 << (self.mask.bit_length() - 1)

    @property
    def keep(self) -> int:
        """All bits but ours."""
        return _WHOLE & ~self.mask

    @property
    def table_source(self) -> int:
        """The table with source address hints and without default routes."""
        return self.table + 1

    @property
    def tables(self) -> tuple[int, int]:
        """Of what policies protect: both."""
        return self.table, self.table_source

    @property
    def rule_detour(self) -> int:
        """Of peers that name a table and no priority."""
        return self.table - 1

    @property
    def priorities(self) -> tuple[int, int, int]:
        """Of the rules that are always ours: to the tables, and the last."""
        return self.table, self.table + 1, RULE_LAST

    def word(self, routing_mark: int) -> int:
        """The whole mark of IKE and ESP packets of a peer with this ``routingMark``."""
        return routing_mark | self.bypass


DEFAULT: Final = Numbers()

#: ``proto`` of our routes and rules, so that ``ip route show proto 79`` lists them.
ROUTE_PROTOCOL: Final = 79
#: Metric of the ``unreachable`` twin of every route: it takes over when the device is gone.
FALLBACK_METRIC: Final = 4294967295

#: Our reqids have this bit set and the sign bit clear.
REQID_BASE: Final = 0x40000000
#: The other half is for what peers ask for (``patterns.REQIDS``).
_REQID_MASK: Final = (REQID_BASE >> 1) - 1


def reqid_of(key: str, attempt: int = 0) -> int:
    """The reqid that ``key`` gets if nobody else has it."""
    digest = hashlib.blake2b(f"{key}\0{attempt}".encode(), digest_size=8).digest()
    return REQID_BASE | (int.from_bytes(digest, "big") & _REQID_MASK)


def allocate_reqids(keys: Iterable[str]) -> dict[str, int]:
    """One reqid per key (``allocate``); two keys collide with a chance of 2**-29."""
    return allocate(keys, reqid_of)


def allocate(keys: Iterable[str], number_of: Callable[[str, int], int]) -> dict[str, int]:
    """One number per key, the same for the same keys whatever their order.

    ``number_of`` gives the number that a key gets at its first, second, ... attempt. Where two keys
    collide the one that sorts later takes its next one, so that a collision concerns two tunnels
    and never all that follow.
    """
    taken: set[int] = set()
    result: dict[str, int] = {}
    for key in sorted(set(keys)):
        attempt = 0
        while (number := number_of(key, attempt)) in taken:
            attempt += 1
        taken.add(number)
        result[key] = number
    return result
