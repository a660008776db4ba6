"""An SA as it travels to a packet process and as it lies there until its first packet.

An SaSpec is a tree of some twenty objects; most SAs of a large gateway are idle most of the time,
so that its process keeps the octets that it was sent, a tenth of the tree, and unpacks them when a
packet comes. What finds an SA stands in front, so that nothing is unpacked to file it::

    direction (1)  protocol (1)  SPI (4)  reqid (4)  length (1)  destination address   the rest
"""

from __future__ import annotations

import pickle
import sys
from struct import Struct
from typing import Final

from ipsec_ike.actions import SaSpec
from ipsec_ike.config import Handling, Lifetime, Mode, Offload
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Endpoint
from ipsec_ike.proposal import Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector

_HEAD: Final = Struct("!BBIIB")
_DIRECTIONS: Final = (Direction.IN, Direction.OUT)

_Flat = tuple[object, ...]
#: What nearly all of them have.
_ORDINARY: Final = Handling()


class PackedSa:
    """An SaSpec in octets, keys included: it shows none of them. The gateway has checked it."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data: Final = data

    @classmethod
    def of(cls, spec: SaSpec) -> PackedSa:
        """Pack."""
        sa, destination = spec.id, spec.id.destination.encode()
        head = _HEAD.pack(
            sa.direction is Direction.OUT, sa.protocol, sa.spi, spec.reqid, len(destination)
        )
        return cls(head + destination + pickle.dumps(_flat(spec), protocol=5))

    @property
    def octets(self) -> bytes:
        """To be sent; the constructor takes them."""
        return self._data

    @property
    def reqid(self) -> int:
        """SaSpec.reqid."""
        reqid: int = _HEAD.unpack_from(self._data)[3]
        return reqid

    @property
    def id(self) -> SaId:
        """SaSpec.id."""
        out, protocol, spi, _, length = _HEAD.unpack_from(self._data)
        destination = self._data[_HEAD.size : _HEAD.size + length].decode()
        # Few addresses, many SAs.
        return SaId(_DIRECTIONS[out], protocol, spi, sys.intern(destination))

    def unpack(self) -> SaSpec:
        """All of it."""
        rest = self._data[_HEAD.size + self._data[_HEAD.size - 1] :]
        (
            source,
            destination,
            encap,
            mode,
            encryption,
            encryption_key,
            integrity,
            integrity_key,
            esn,
            replay_window,
            local_ts,
            remote_ts,
            soft,
            hard,
            peer,
            child,
            handling,
        ) = pickle.loads(rest)  # noqa: S301 - what our own gateway sent over an inherited socket
        return SaSpec(
            id=self.id,
            source=Endpoint(*source),
            destination=Endpoint(*destination),
            encap=encap,
            reqid=self.reqid,
            mode=Mode(mode),
            encryption=Transform(*encryption),
            encryption_key=Secret(encryption_key),
            integrity=None if integrity is None else Transform(*integrity),
            integrity_key=Secret(integrity_key),
            esn=esn,
            replay_window=replay_window,
            local_ts=tuple(TrafficSelector(*ts) for ts in local_ts),
            remote_ts=tuple(TrafficSelector(*ts) for ts in remote_ts),
            soft=_lifetime(*soft),
            hard=_lifetime(*hard),
            handling=_ORDINARY if handling is None else _handling(*handling),
            peer=peer,
            child=child,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackedSa) and self._data == other._data

    def __hash__(self) -> int:
        return hash(self._data)

    def __repr__(self) -> str:
        return f"<packed {self.id}>"


def _flat(spec: SaSpec) -> _Flat:
    """The fields that are not in the head, as what pickle knows without asking our classes: that
    takes it a tenth of the time."""
    return (
        tuple(spec.source),
        tuple(spec.destination),
        spec.encap,
        spec.mode.value,
        _transform(spec.encryption),
        spec.encryption_key.reveal(),
        None if spec.integrity is None else _transform(spec.integrity),
        spec.integrity_key.reveal(),
        spec.esn,
        spec.replay_window,
        _selectors(spec.local_ts),
        _selectors(spec.remote_ts),
        _numbers(spec.soft),
        _numbers(spec.hard),
        spec.peer,
        spec.child,
        None if spec.handling == _ORDINARY else _handled(spec.handling),
    )


def _handled(how: Handling) -> _Flat:
    header = how.copy_dscp, how.keep_outer_dscp, how.ecn, how.copy_df
    return how.interface, *header, how.offload.value, how.mark


def _handling(
    interface: int,
    copy_dscp: bool,
    keep_outer_dscp: bool,
    ecn: bool,
    copy_df: bool,
    offload: str,
    mark: int,
) -> Handling:
    return Handling(
        interface=interface,
        copy_dscp=copy_dscp,
        keep_outer_dscp=keep_outer_dscp,
        ecn=ecn,
        copy_df=copy_df,
        offload=Offload(offload),
        mark=mark,
    )


def _transform(transform: Transform) -> _Flat:
    # The types are enumerations: as plain numbers they compare and hash the same.
    return int(transform.type), int(transform.id), transform.key_length


def _selectors(selectors: tuple[TrafficSelector, ...]) -> _Flat:
    return tuple((ts.start, ts.end, ts.protocol, ts.start_port, ts.end_port) for ts in selectors)


def _numbers(life: Lifetime) -> _Flat:
    return life.seconds, life.bytes, life.packets, life.margin, life.jitter


def _lifetime(seconds: float, octets: int, packets: int, margin: float, jitter: float) -> Lifetime:
    return Lifetime(seconds=seconds, bytes=octets, packets=packets, margin=margin, jitter=jitter)
