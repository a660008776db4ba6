"""How large an inner packet may be: from the real overhead of suite, mode and encapsulation.

For the TCP MSS of what comes out of a tunnel, and for status. What goes in is limited by the kernel
too, which knows the path MTU at any moment; here it is looked at once a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from ipsec_gateway.classify import Network
from ipsec_gateway.ipsec.mtu import MINIMUM, path_mtu
from ipsec_ike.crypto.integ import integ_for
from ipsec_ike.crypto.transforms import esp_transform
from ipsec_ike.numbers import Encr, Integ, TransformType
from ipsec_ike.proposal import Transform
from ipsec_ike.sa.info import ChildSaInfo, IkeSaInfo

#: Seconds for which a path MTU is taken for granted.
REFRESH: Final = 60.0
#: Octets of a packet on a path of which nothing is known: Ethernet's.
USUAL: Final = 1500

_IP: Final = {4: 20, 6: 40}
_TCP: Final = 20
#: SPI and sequence number; length of pad and next header (RFC 4303 2).
_ESP, _TRAILER = 8, 2
#: The fixed part (RFC 4302 2); the whole is a multiple of 4 octets, in IPv6 of 8 (3.3.3.2.1).
_AH: Final = 12
_UDP: Final = 8


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a suite adds to a packet, without the outer IP and UDP headers."""

    fixed: int
    alignment: int
    esp: bool

    def largest(self, room: int) -> int:
        """Octets of the largest packet that fits ``room`` octets."""
        room -= self.fixed
        return room - room % self.alignment - _TRAILER if self.esp else room


@lru_cache(maxsize=1024)
def overhead(suite: str, version: int = 4) -> Overhead | None:
    """Of a suite's name as events and snapshots have it; None for one that has no such layout.

    ``version`` is that of the outer packet.
    """
    known = _names()
    parts = [t for name in suite.split("/") if (t := known.get(name)) is not None]
    encr = next((t for t in parts if t.type == TransformType.ENCR), None)
    integ = next((t for t in parts if t.type == TransformType.INTEG), None)
    if encr is not None:
        layout = esp_transform(encr, integ)
        return Overhead(_ESP + layout.iv_length + layout.icv_length, layout.alignment, esp=True)
    if integ is None:
        return None
    unit = 4 if version == 4 else 8
    octets = _AH + integ_for(integ.id).icv_length
    return Overhead(octets + -octets % unit, 1, esp=False)


@lru_cache(maxsize=1)
def _names() -> dict[str, Transform]:
    every = [
        *(Transform(TransformType.ENCR, e, k) for e in Encr for k in (0, 128, 192, 256)),
        *(Transform(TransformType.INTEG, i) for i in Integ if i != Integ.NONE),
    ]
    return {str(t): t for t in every}


def child_mtu(child: ChildSaInfo, *, path: int, version: int) -> int | None:
    """Octets of the largest packet that ``child`` carries over a path of ``path`` octets.

    ``version`` is that of the outer packet. None if the suite says nothing.
    """
    added = overhead(child.suite, version)
    if added is None:
        return None
    room = path - _IP[version] - (_UDP if child.encap else 0)
    # In transport mode the IP header is outside of ESP, and counts as part of the packet.
    return added.largest(room) + (_IP[version] if child.mode == "transport" else 0)


@dataclass(frozen=True, slots=True)
class Sized:
    """What came out: octets of the largest inner packet by peer and by reqid, and remote networks
    by MSS."""

    mtus: dict[str, int]
    clamps: dict[int, tuple[Network, ...]]
    reqids: dict[int, int] = field(default_factory=dict)


class Sizes:
    """Remembers paths. ``path_of`` is replaced in tests."""

    def __init__(self, path_of: Callable[[str, str], int] = path_mtu) -> None:
        self._path_of: Final = path_of
        self._paths: dict[tuple[str, str], tuple[float, int]] = {}

    def of(
        self, sas: Iterable[IkeSaInfo], now: float, routed: frozenset[int] = frozenset()
    ) -> Sized:
        """The sizes of what is up now; ``now`` in seconds of any clock. Of ``routed`` reqids the
        remote networks mean nothing: what they carry is found by its interface."""
        mtus: dict[str, int] = {}
        reqids: dict[int, int] = {}
        clamps: dict[Network, int] = {}
        for sa in sas:
            ends = (sa.local.address, sa.remote.address)
            for child in sa.children:
                version = 6 if ":" in ends[1] else 4
                mtu = child_mtu(child, path=self._path(ends, now), version=version)
                if mtu is None:
                    continue
                mtus[sa.peer] = min(mtu, mtus.get(sa.peer, mtu))
                reqids[child.reqid] = min(mtu, reqids.get(child.reqid, mtu))
                if child.reqid in routed:
                    continue
                for selector in child.remote_ts:
                    for network in selector.networks:
                        mss = mtu - _IP[network.version] - _TCP
                        clamps[network] = min(mss, clamps.get(network, mss))
        by_mss: dict[int, list[Network]] = {}
        for network, mss in clamps.items():
            by_mss.setdefault(mss, []).append(network)
        return Sized(mtus, {mss: tuple(each) for mss, each in sorted(by_mss.items())}, reqids)

    def _path(self, ends: tuple[str, str], now: float) -> int:
        known = self._paths.get(ends)
        if known is None or known[0] < now:
            found = max(self._path_of(*ends), MINIMUM) if ends[0] else USUAL
            known = self._paths[ends] = (now + REFRESH, found)
        return known[1]
