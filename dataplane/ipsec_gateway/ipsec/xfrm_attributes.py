"""Attributes of XFRM messages, to bytes and back. Pure.

Each ``..._attribute`` function gives one whole attribute, header and padding included; a message is
its fixed part and any number of them. Layouts are those of ``include/uapi/linux/xfrm.h`` on 64-bit
machines; SPIs and ports are in network order, all else in host order, which is little-endian or not
as the machine is. Lengths of keys and ICVs are bits there and here.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ipsec_gateway.ipsec.xfrm_numbers import (
    INFINITE,
    UDP_ENCAP_ESPINUDP,
    Attr,
    KernelMode,
    SaDir,
    Share,
    SpdAttr,
)

_HEADER: Final = struct.Struct("=HH")
_ALGORITHM: Final = struct.Struct("=64sI")
_TRUNCATED: Final = struct.Struct("=64sII")
_ENCAP: Final = struct.Struct("=H2s2s2x16s")
_TEMPLATE: Final = struct.Struct("=16s4sB3xH2x16sIBBBxIII")
_REPLAY_ESN: Final = struct.Struct("=6I")
_LIFETIME: Final = struct.Struct("=4Q")
_TWO: Final = struct.Struct("=II")
_ONE: Final = struct.Struct("=I")
_OFFLOAD: Final = struct.Struct("=IB3x")
_LAST_USED: Final = struct.Struct("=Q")

_V4_PADDING: Final = bytes(12)
#: Any algorithm may serve a template.
_ALL: Final = 2**32 - 1


class XfrmFormatError(ValueError):
    """A message of the kernel that is shorter than its type says."""


def pack_address(address: str) -> bytes:
    """An address as xfrm_address_t: 16 octets. Empty text is "any"."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return socket.inet_pton(socket.AF_INET, address or "0.0.0.0") + _V4_PADDING  # noqa: S104  # "any"


def unpack_address(packed: bytes | memoryview, family: int) -> str:
    """The text of an xfrm_address_t of AF_INET or AF_INET6."""
    if family == socket.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, packed)
    return socket.inet_ntop(socket.AF_INET, packed[:4])


def family_of(address: str) -> int:
    """AF_INET or AF_INET6."""
    return int(socket.AF_INET6 if ":" in address else socket.AF_INET)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute of any kind."""
    length = _HEADER.size + len(value)
    return _HEADER.pack(length, kind) + value + bytes(-length % 4)


def attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(type, value) of each attribute. Raises XfrmFormatError."""
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _HEADER.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise XfrmFormatError(f"attribute of {length} octets at {offset} of {end}")
        yield kind, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _named(name: str) -> bytes:
    return name.encode("ascii")


def encryption_attribute(name: str, key: bytes) -> bytes:
    """A cipher that brings no integrity (struct xfrm_algo)."""
    return attribute(Attr.ALG_CRYPT, _ALGORITHM.pack(_named(name), len(key) * 8) + key)


def aead_attribute(name: str, key: bytes, icv_bits: int) -> bytes:
    """A combined-mode cipher; ``key`` includes the salt (struct xfrm_algo_aead)."""
    return attribute(Attr.ALG_AEAD, _TRUNCATED.pack(_named(name), len(key) * 8, icv_bits) + key)


def integrity_attribute(name: str, key: bytes, icv_bits: int) -> bytes:
    """An integrity algorithm with the length of its ICV (struct xfrm_algo_auth).

    The length is always given: left to itself the kernel cuts SHA-256 to 96 bits instead of the 128
    of RFC 4868.
    """
    return attribute(
        Attr.ALG_AUTH_TRUNC, _TRUNCATED.pack(_named(name), len(key) * 8, icv_bits) + key
    )


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """ESP in UDP: the ports as the packet carries them (struct xfrm_encap_tmpl)."""

    source_port: int
    destination_port: int
    kind: int = UDP_ENCAP_ESPINUDP

    def attribute(self) -> bytes:
        """The attribute; the original address of transport mode is left out (RFC 3948 3.1.2)."""
        return attribute(
            Attr.ENCAP,
            _ENCAP.pack(
                self.kind,
                self.source_port.to_bytes(2),
                self.destination_port.to_bytes(2),
                bytes(16),
            ),
        )

    @classmethod
    def decode(cls, value: memoryview) -> Encapsulation:
        """Raises XfrmFormatError."""
        kind, source, destination, _ = unpack(_ENCAP, value)
        return cls(int.from_bytes(source), int.from_bytes(destination), kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What must protect a packet (struct xfrm_user_tmpl). ``protocol`` is 50 or 51.

    Empty addresses match any SA of the reqid. ``family`` is that of the outer addresses.
    """

    protocol: int
    reqid: int
    mode: KernelMode
    family: int
    source: str = ""
    destination: str = ""
    spi: int = 0
    optional: bool = False
    share: int = Share.ANY
    #: Bits of the authentication, encryption and compression algorithms that will do.
    algorithms: tuple[int, int, int] = (_ALL, _ALL, _ALL)

    def encode(self) -> bytes:
        return _TEMPLATE.pack(
            pack_address(self.destination),
            self.spi.to_bytes(4),
            self.protocol,
            self.family,
            pack_address(self.source),
            self.reqid,
            self.mode,
            self.share,
            self.optional,
            *self.algorithms,
        )


def templates_attribute(templates: tuple[Template, ...]) -> bytes:
    """All templates of a policy, the one nearest to the payload first."""
    return attribute(Attr.TMPL, b"".join(each.encode() for each in templates))


def decode_templates(value: memoryview) -> tuple[Template, ...]:
    """The templates of a policy or an ACQUIRE. Raises XfrmFormatError."""
    found = []
    for offset in range(0, len(value), _TEMPLATE.size):
        parts = unpack(_TEMPLATE, value[offset:])
        destination, spi, protocol, family, source, reqid, mode, share, optional = parts[:9]
        found.append(
            Template(
                protocol=protocol,
                reqid=reqid,
                mode=KernelMode(mode) if mode in (0, 1) else KernelMode.TUNNEL,
                family=family,
                source=_unless_any(source, family),
                destination=_unless_any(destination, family),
                spi=int.from_bytes(spi),
                optional=bool(optional),
                share=share,
                algorithms=parts[9:],
            )
        )
    return tuple(found)


def _unless_any(packed: bytes, family: int) -> str:
    return unpack_address(packed, family) if any(packed) else ""


@dataclass(frozen=True, slots=True)
class Replay:
    """Sequence numbers and window of one SA (struct xfrm_replay_state_esn), 64 bits each.

    ``window`` is packets; ``bitmap`` has a bit for each, in words of 32; empty is all zeros.
    """

    window: int
    sent: int = 0
    seen: int = 0
    bitmap: tuple[int, ...] = field(default=(), repr=False)

    def attribute(self) -> bytes:
        """For ESN, and for windows over 32 without it."""
        return attribute(
            Attr.REPLAY_ESN_VAL,
            _REPLAY_ESN.pack(
                len(self.bitmap) or -(-self.window // 32),
                self.sent & _ALL,
                self.seen & _ALL,
                self.sent >> 32,
                self.seen >> 32,
                self.window,
            )
            + struct.pack(f"={len(self.bitmap)}I", *self.bitmap),
        )

    @classmethod
    def decode(cls, value: memoryview) -> Replay:
        """Raises XfrmFormatError."""
        words, sent, seen, sent_high, seen_high, window = unpack(_REPLAY_ESN, value)
        if len(value) < _REPLAY_ESN.size + 4 * words:
            raise XfrmFormatError(f"replay bitmap of {words} words is cut off")
        bitmap = struct.unpack_from(f"={words}I", value, _REPLAY_ESN.size)
        return cls(window, sent | sent_high << 32, seen | seen_high << 32, bitmap)


@dataclass(frozen=True, slots=True)
class Limits:
    """When an SA ends, soft and hard (struct xfrm_lifetime_cfg). 0 is no limit."""

    soft_bytes: int = 0
    hard_bytes: int = 0
    soft_packets: int = 0
    hard_packets: int = 0
    #: Seconds since it was added.
    soft_seconds: int = 0
    hard_seconds: int = 0

    def values(self) -> tuple[int, ...]:
        """The eight numbers of the structure. The kernel ends at once what has the limit 0."""
        volumes = (self.soft_bytes, self.hard_bytes, self.soft_packets, self.hard_packets)
        return (*(v or INFINITE for v in volumes), self.soft_seconds, self.hard_seconds, 0, 0)


def current_lifetime_attribute(values: tuple[int, int, int, int]) -> bytes:
    """(octets, packets, time added, time of first use) that an SA begins with."""
    return attribute(Attr.LTIME_VAL, _LIFETIME.pack(*values))


def mark_attribute(value: int, mask: int) -> bytes:
    """The mark that packets must have (struct xfrm_mark)."""
    return attribute(Attr.MARK, _TWO.pack(value, mask))


def set_mark_attributes(value: int, mask: int) -> bytes:
    """The mark that packets get: outer ones of an outbound SA, inner ones of an inbound SA."""
    return word_attribute(Attr.SET_MARK, value) + word_attribute(Attr.SET_MARK_MASK, mask)


def word_attribute(kind: int, value: int) -> bytes:
    """Any attribute that is one number of 32 bits: IF_ID, SA_EXTRA_FLAGS, MTIMER_THRESH."""
    return attribute(kind, _ONE.pack(value))


def direction_attribute(direction: SaDir | int) -> bytes:
    """The direction of an SA, since Linux 6.10."""
    return attribute(Attr.SA_DIR, bytes((direction,)))


def offload_attribute(ifindex: int, flags: int) -> bytes:
    """The device that does the work (struct xfrm_user_offload)."""
    return attribute(Attr.OFFLOAD_DEV, _OFFLOAD.pack(ifindex, flags))


def source_attribute(address: str) -> bytes:
    """The source address beside an SA's id."""
    return attribute(Attr.SRCADDR, pack_address(address))


def threshold_attribute(kind: SpdAttr, local: int, remote: int) -> bytes:
    """Prefix lengths from which on policies are found by hash (struct xfrmu_spdhthresh)."""
    return attribute(kind, bytes((local, remote)))


def word(values: Mapping[int, memoryview], kind: Attr, default: int = 0) -> int:
    """A number of 32 bits that may be absent."""
    value = values.get(kind)
    return default if value is None else int(unpack(_ONE, value)[0])


def last_used(values: Mapping[int, memoryview]) -> int:
    """Seconds since the epoch at which the SA carried its last packet; 0 is never."""
    value = values.get(Attr.LASTUSED)
    return 0 if value is None else int(unpack(_LAST_USED, value)[0])


def unpack(layout: struct.Struct, data: memoryview) -> tuple[Any, ...]:
    """The numbers at the beginning of ``data``. Raises XfrmFormatError."""
    if len(data) < layout.size:
        raise XfrmFormatError(f"{len(data)} octets where {layout.size} are needed")
    return layout.unpack_from(data)
