"""SAs that a network card computes, where there is one that can.

The kernel finds the card itself: it is the device on the way to the peer. A device that has no such
driver makes it a software SA without a word, and a driver that cannot take the SA (ESP in UDP, a
cipher, ESN) refuses it. So the SA is looked at afterwards; with ``AUTO`` a refusal means software,
and nothing is tried while no device of the node has ``esp-hw-offload`` switched on.
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from ipsec_gateway.ipsec import ethtool
from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.xfrm_messages import Installed, StateKey, delete_state, get_state
from ipsec_gateway.ipsec.xfrm_netlink import XfrmError, XfrmSocket
from ipsec_gateway.ipsec.xfrm_numbers import Attr
from ipsec_gateway.ipsec.xfrm_sa import Treatment, add_state
from ipsec_ike.actions import SaSpec
from ipsec_ike.config import Offload
from ipsec_ike.identifiers import Direction, SaId

log = logging.getLogger(__name__)

#: Seconds for which the list of devices is taken for granted.
REFRESH: Final = 60.0
_INDEX: Final = struct.Struct("=I")


def capable() -> list[str]:
    """Devices of this network namespace that compute ESP."""
    return [name for _, name in socket.if_nameindex() if ethtool.ESP in ethtool.features(name)]


class Offloads:
    """What was found and told. ``devices`` and ``clock`` are replaced in tests."""

    def __init__(
        self,
        devices: Callable[[], Iterable[str]] = capable,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._devices: Final = devices
        self._clock: Final = clock
        self._known: tuple[str, ...] = ()
        self._due = float("-inf")
        self._told: Final[set[str]] = set()
        #: The reqid and the device of each SA that one computes.
        self._taken: Final[dict[SaId, tuple[int, str]]] = {}

    def install(self, kernel: XfrmSocket, spec: SaSpec, key: StateKey, how: Treatment) -> None:
        """Add the SA, to a card if that is wanted and can be. Raises XfrmError, DataplaneError."""
        wanted = spec.handling.offload
        if wanted is Offload.OFF or (wanted is Offload.AUTO and not self._any()):
            kernel.call(add_state(spec, how))
            return
        try:
            kernel.call(add_state(spec, how, offload=True))
        except XfrmError as exc:
            if wanted is not Offload.AUTO:
                raise DataplaneError(
                    f"hwOffload: the device refuses it ({exc}): {_REMEDY}"
                ) from exc
            kernel.call(add_state(spec, how))
            self._tell(spec, f"in software, because {', '.join(self._known)} refused it ({exc})")
            return
        index = offloaded_to(kernel, key)
        if index:
            device = _name(index)
            self._taken[spec.id] = spec.reqid, device
            self._tell(spec, f"in hardware: {device}")
        elif wanted is not Offload.AUTO:
            protocol, spi, destination = key
            kernel.call(delete_state(spi, protocol, destination))
            raise DataplaneError(
                f"hwOffload: the device on the way to {spec.destination.address} cannot compute ESP"
                f" (`ethtool -k`: {ethtool.ESP}): {_REMEDY}"
            )

    def inherit(self, sa: SaId, reqid: int, raw: Mapping[int, bytes]) -> None:
        """An SA of an earlier life, with its attributes."""
        if index := _index(raw):
            self._taken[sa] = reqid, _name(index)

    def forget(self, sa: SaId) -> None:
        """An SA is gone."""
        self._taken.pop(sa, None)

    def taken(self) -> dict[tuple[int, Direction], str]:
        """The device that computes the SAs of a reqid in one direction."""
        return {(reqid, sa.direction): name for sa, (reqid, name) in self._taken.items()}

    def _any(self) -> bool:
        now = self._clock()
        if now >= self._due:
            self._known, self._due = tuple(self._devices()), now + REFRESH
        return bool(self._known)

    def _tell(self, spec: SaSpec, what: str) -> None:
        """Once for each child and outcome: a rekey is no news."""
        text = f"{spec.peer}/{spec.child} ({spec.id.direction.value}): {what}"
        if text not in self._told:
            self._told.add(text)
            log.info("%s", text)


_REMEDY: Final = "set hwOffload: Auto, which takes software then"


def offloaded_to(kernel: XfrmSocket, key: StateKey) -> int:
    """The index of the device that computes an SA, 0 if the kernel does. Raises XfrmError."""
    protocol, spi, destination = key
    return _index(Installed.decode(kernel.ask(get_state(spi, protocol, destination))).raw)


def _index(raw: Mapping[int, bytes]) -> int:
    value = raw.get(Attr.OFFLOAD_DEV)
    return 0 if value is None else int(_INDEX.unpack_from(value)[0])


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"device {index}"  # it has just gone
