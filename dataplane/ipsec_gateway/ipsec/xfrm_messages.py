"""XFRM messages, to bytes and back. Pure; the envelope (``nlmsghdr``) is the socket's.

===========================  ===========================================================
message                      fixed part
===========================  ===========================================================
NEWSA, UPDSA                 xfrm_usersa_info (224 octets)
DELSA, GETSA                 xfrm_usersa_id (24)
NEWPOLICY, UPDPOLICY         xfrm_userpolicy_info (168)
DELPOLICY, GETPOLICY         xfrm_userpolicy_id (64)
ALLOCSPI                     xfrm_userspi_info (232)
ACQUIRE                      xfrm_user_acquire (280)
EXPIRE                       xfrm_user_expire (232)
POLEXPIRE                    xfrm_user_polexpire (176)
MAPPING                      xfrm_user_mapping (64)
NEWSPDINFO                   flags (4)
===========================  ===========================================================
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ipsec_gateway.ipsec.xfrm_attributes import (
    Encapsulation,
    Limits,
    Replay,
    Template,
    XfrmFormatError,
    attribute,
    attributes,
    decode_templates,
    last_used,
    pack_address,
    source_attribute,
    threshold_attribute,
    unpack,
    unpack_address,
    word,
    word_attribute,
)
from ipsec_gateway.ipsec.xfrm_numbers import (
    INFINITE,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    Attr,
    Dir,
    KernelMode,
    Msg,
    SpdAttr,
    Verdict,
)

_SELECTOR: Final = struct.Struct("=16s16s2sH2sHHBBB3xiI")
_LIFETIMES: Final = struct.Struct("=8Q4Q")
_STATE: Final = struct.Struct("=56s16s4sB3x16s96sIIIIIHBBB7x")
_TOTALS: Final = struct.Struct("=160xQQ16xIII")
_STATE_ID: Final = struct.Struct("=16s4sHBx")
_POLICY: Final = struct.Struct("=56s96sIIBBBB4x")
_POLICY_ID: Final = struct.Struct("=56sIB3x")
_SPI_RANGE: Final = struct.Struct("=II")
_ACQUIRE: Final = struct.Struct("=16s4sB3x16s56s168s4I")
_MAPPING: Final = struct.Struct("=24sI16s16s2s2s")
_HARD_OFFSET: Final = {Msg.EXPIRE: 224, Msg.POLEXPIRE: 168}
_POLEXPIRE: Final = 176
_ANY_FLAGS: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Message:
    """One message to send. ``body`` may hold keys and is in no ``repr``."""

    kind: int
    body: bytes = field(repr=False)
    flags: int = NLM_F_REQUEST | NLM_F_ACK


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which packets: prefixes, and ports under masks (struct xfrm_selector).

    ``family`` 0 with nothing else matches all. For ICMP the type is the source port and the code
    the destination port. Empty addresses are "any".
    """

    family: int = 0
    source: str = ""
    source_length: int = 0
    destination: str = ""
    destination_length: int = 0
    protocol: int = 0
    source_port: int = 0
    source_mask: int = 0
    destination_port: int = 0
    destination_mask: int = 0
    ifindex: int = 0

    def encode(self) -> bytes:
        return _SELECTOR.pack(
            pack_address(self.destination),
            pack_address(self.source),
            self.destination_port.to_bytes(2),
            _swap(self.destination_mask),
            self.source_port.to_bytes(2),
            _swap(self.source_mask),
            self.family,
            self.destination_length,
            self.source_length,
            self.protocol,
            self.ifindex,
            0,
        )

    @classmethod
    def decode(cls, value: bytes | memoryview) -> Selector:
        """Raises XfrmFormatError."""
        parts = unpack(_SELECTOR, memoryview(value))
        daddr, saddr, dport, dmask, sport, smask, family, dlen, slen, protocol, ifindex, _ = parts
        known = family in (socket.AF_INET, socket.AF_INET6)
        return cls(
            family=family,
            source=unpack_address(saddr, family) if known else "",
            source_length=slen,
            destination=unpack_address(daddr, family) if known else "",
            destination_length=dlen,
            protocol=protocol,
            source_port=int.from_bytes(sport),
            source_mask=_swap(smask),
            destination_port=int.from_bytes(dport),
            destination_mask=_swap(dmask),
            ifindex=ifindex,
        )


def _swap(mask: int) -> int:
    """Between host order and the network order in which port masks are kept."""
    return socket.htons(mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The fixed part of an SA (struct xfrm_usersa_info). ``protocol`` is 50 (ESP) or 51 (AH).

    ``window`` is the replay window without ESN, up to 32. ``counted`` is (octets, packets, time
    added, time of first use) and ``failures`` (outside the window, replayed, of integrity); both
    are the kernel's to say. ``limits`` None leaves all of them out, in a request for an SPI.
    """

    spi: int
    protocol: int
    source: str
    destination: str
    reqid: int = 0
    mode: int = KernelMode.TUNNEL
    selector: Selector = field(default_factory=Selector)
    window: int = 0
    flags: int = 0
    limits: Limits | None = field(default_factory=Limits)
    counted: tuple[int, int, int, int] = (0, 0, 0, 0)
    failures: tuple[int, int, int] = (0, 0, 0)
    sequence: int = 0

    def encode(self) -> bytes:
        return _STATE.pack(
            self.selector.encode(),
            pack_address(self.destination),
            self.spi.to_bytes(4),
            self.protocol,
            pack_address(self.source),
            _LIFETIMES.pack(*(self.limits.values() if self.limits else (0,) * 8), *self.counted),
            *self.failures,
            self.sequence,
            self.reqid,
            socket.AF_INET6 if ":" in self.destination else socket.AF_INET,
            self.mode,
            self.window,
            self.flags,
        )

    @classmethod
    def decode(cls, value: memoryview) -> State:
        """Raises XfrmFormatError."""
        parts = unpack(_STATE, value)
        selector, daddr, spi, protocol, saddr, packed = parts[:6]
        family = parts[11]
        lifetimes = _LIFETIMES.unpack(packed)
        return cls(
            spi=int.from_bytes(spi),
            protocol=protocol,
            source=unpack_address(saddr, family),
            destination=unpack_address(daddr, family),
            reqid=parts[10],
            mode=parts[12],
            selector=Selector.decode(selector),
            window=parts[13],
            flags=parts[14],
            limits=Limits(*(0 if v == INFINITE else v for v in lifetimes[:6])),
            counted=lifetimes[8:12],
            failures=parts[6:9],
            sequence=parts[9],
        )

    def is_soft(self, now: float) -> bool:
        """Whether it has reached a soft limit; ``now`` is seconds since the epoch."""
        limits, (octets, packets, added, _) = self.limits or Limits(), self.counted
        return (
            0 < limits.soft_bytes <= octets
            or 0 < limits.soft_packets <= packets
            or 0 < limits.soft_seconds <= now - added
        )


#: What finds a state in the kernel: IP protocol, SPI, destination.
StateKey = tuple[int, int, str]


def raw_key(key: StateKey) -> bytes:
    """A state's key as it stands in its message."""
    protocol, spi, destination = key
    return pack_address(destination) + spi.to_bytes(4) + bytes((protocol,))


class Totals(NamedTuple):
    """What an SA has counted; ``key`` is its ``raw_key``, ``used`` as in Installed."""

    key: bytes
    octets: int
    packets: int
    outside: int
    replayed: int
    failed: int
    used: int


def totals(body: memoryview) -> Totals:
    """The counters out of a NEWSA, for tables of thousands. Raises XfrmFormatError."""
    octets, packets, outside, replayed, failed = unpack(_TOTALS, body)
    used = last_used(dict(attributes(body[_STATE.size :])))
    return Totals(bytes(body[56:77]), octets, packets, outside, replayed, failed, used)


@dataclass(frozen=True, slots=True)
class Installed:
    """An SA as the kernel tells it. ``raw`` has all attributes, keys included, for a copy."""

    state: State
    encapsulation: Encapsulation | None
    replay: Replay | None
    #: Seconds since the epoch; 0 is never.
    used: int
    raw: dict[int, bytes] = field(repr=False)

    @classmethod
    def decode(cls, body: memoryview) -> Installed:
        """NEWSA out of a dump or as an answer to GETSA. Raises XfrmFormatError."""
        state = State.decode(body)
        values = dict(attributes(body[_STATE.size :]))
        encap, replay = values.get(Attr.ENCAP), values.get(Attr.REPLAY_ESN_VAL)
        return cls(
            state,
            None if encap is None else Encapsulation.decode(encap),
            None if replay is None else Replay.decode(replay),
            last_used(values),
            {kind: bytes(value) for kind, value in values.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One entry of the SPD (struct xfrm_userpolicy_info and its templates).

    Lower ``priority`` wins. ``index`` 0 lets the kernel choose; its lowest three bits are the
    direction. ``if_id`` is that of the interface whose traffic it is for, 0 for all other traffic.
    """

    selector: Selector
    direction: Dir
    priority: int = 0
    verdict: Verdict = Verdict.ALLOW
    flags: int = 0
    index: int = 0
    templates: tuple[Template, ...] = ()
    if_id: int = 0

    def info(self) -> bytes:
        """The fixed part: also the value of the IP_XFRM_POLICY socket option."""
        return _POLICY.pack(
            self.selector.encode(),
            _LIFETIMES.pack(*Limits().values(), 0, 0, 0, 0),
            self.priority,
            self.index,
            self.direction,
            self.verdict,
            self.flags,
            0,
        )

    @classmethod
    def decode(cls, body: memoryview, fixed: int = _POLICY.size) -> Policy:
        """NEWPOLICY out of a dump, POLEXPIRE. Raises XfrmFormatError.

        ``fixed`` is where the attributes begin, in octets.
        """
        selector, _, priority, index, direction, verdict, flags, _ = unpack(_POLICY, body)
        values = dict(attributes(body[fixed:]))
        templates = values.get(Attr.TMPL)
        try:
            kind = Dir(direction)
        except ValueError as exc:
            raise XfrmFormatError(f"policy with direction {direction}") from exc
        return cls(
            selector=Selector.decode(selector),
            direction=kind,
            priority=priority,
            verdict=Verdict.BLOCK if verdict else Verdict.ALLOW,
            flags=flags,
            index=index,
            templates=() if templates is None else decode_templates(templates),
            if_id=word(values, Attr.IF_ID),
        )


@dataclass(frozen=True, slots=True)
class AcquireReport:
    """A packet found a policy and no SA. ``selector`` is the packet's own."""

    selector: Selector
    templates: tuple[Template, ...]


@dataclass(frozen=True, slots=True)
class ExpireReport:
    """An SA reached a limit; after a hard one it is gone."""

    state: State
    hard: bool


@dataclass(frozen=True, slots=True)
class PolicyExpireReport:
    """A policy reached a limit."""

    policy: Policy
    hard: bool


@dataclass(frozen=True, slots=True)
class MappingReport:
    """ESP in UDP that verified came from a new address or port."""

    spi: int
    destination: str
    reqid: int
    source: str
    port: int


Report = AcquireReport | ExpireReport | PolicyExpireReport | MappingReport


def decode_report(kind: int, body: memoryview) -> Report | None:
    """An event, or None for a message that is none. Raises XfrmFormatError."""
    match kind:
        case Msg.ACQUIRE:
            selector = unpack(_ACQUIRE, body)[4]
            values = dict(attributes(body[_ACQUIRE.size :]))
            templates = values.get(Attr.TMPL)
            found = () if templates is None else decode_templates(templates)
            return AcquireReport(Selector.decode(selector), found)
        case Msg.EXPIRE:
            return ExpireReport(State.decode(body), _hard(kind, body))
        case Msg.POLEXPIRE:
            return PolicyExpireReport(Policy.decode(body, _POLEXPIRE), _hard(kind, body))
        case Msg.MAPPING:
            sa_id, reqid, _, address, _, port = unpack(_MAPPING, body)
            destination, spi, family, _ = _STATE_ID.unpack(sa_id)
            return MappingReport(
                int.from_bytes(spi),
                unpack_address(destination, family),
                reqid,
                unpack_address(address, family),
                int.from_bytes(port),
            )
        case _:
            return None


def _hard(kind: int, body: memoryview) -> bool:
    offset = _HARD_OFFSET[Msg(kind)]
    if len(body) <= offset:
        raise XfrmFormatError(f"{Msg(kind).name} of {len(body)} octets")
    return bool(body[offset])


def put_state(state: State, values: bytes, *, update: bool = False) -> Message:
    """Add an SA, or change ports and limits of one. ``values`` are its attributes."""
    return Message(Msg.UPDSA if update else Msg.NEWSA, state.encode() + values)


def state_id(spi: int, protocol: int, destination: str, source: str = "") -> bytes:
    """What finds an SA; ``source`` matters to no kernel that looks for an SPI."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    body = _STATE_ID.pack(pack_address(destination), spi.to_bytes(4), family, protocol)
    return body + (source_attribute(source) if source else b"")


def delete_state(spi: int, protocol: int, destination: str, source: str = "") -> Message:
    """Remove an SA."""
    return Message(Msg.DELSA, state_id(spi, protocol, destination, source))


def get_state(spi: int, protocol: int, destination: str) -> Message:
    """Ask for one SA; the answer is a NEWSA."""
    return Message(Msg.GETSA, state_id(spi, protocol, destination), NLM_F_REQUEST)


def dump_states() -> Message:
    """Ask for all SAs.

    A dump has no header of its own: what follows the message's is attributes to the kernel, which
    complains in its log of what are none.
    """
    return Message(Msg.GETSA, b"", NLM_F_REQUEST | NLM_F_DUMP)


def allocate_spi(state: State, low: int, high: int, if_id: int = 0) -> Message:
    """Give a larval SA of the same addresses, reqid and interface an SPI, or make one that has
    it."""
    padding = bytes(232 - _STATE.size - _SPI_RANGE.size)
    body = state.encode() + _SPI_RANGE.pack(low, high) + padding + _interface(if_id)
    return Message(Msg.ALLOCSPI, body, NLM_F_REQUEST)


def _interface(if_id: int) -> bytes:
    return word_attribute(Attr.IF_ID, if_id) if if_id else b""


def put_policy(policy: Policy, values: bytes = b"", *, update: bool) -> Message:
    """Add a policy; with ``update`` one with the same selector is replaced, in one step."""
    if policy.templates:
        packed = b"".join(each.encode() for each in policy.templates)
        values = attribute(Attr.TMPL, packed) + values
    body = policy.info() + values + _interface(policy.if_id)
    return Message(Msg.UPDPOLICY if update else Msg.NEWPOLICY, body)


def delete_policy(selector: Selector, direction: Dir, index: int = 0, if_id: int = 0) -> Message:
    """Remove the policy with this selector, or with this index."""
    body = _POLICY_ID.pack(selector.encode(), index, direction)
    return Message(Msg.DELPOLICY, body + _interface(if_id))


def dump_policies() -> Message:
    """Ask for the whole SPD; without a header, as ``dump_states``."""
    return Message(Msg.GETPOLICY, b"", NLM_F_REQUEST | NLM_F_DUMP)


def set_thresholds(v4: tuple[int, int], v6: tuple[int, int]) -> Message:
    """From which prefix lengths (local, remote) on policies are found by hash."""
    return Message(
        Msg.NEWSPDINFO,
        struct.pack("=I", _ANY_FLAGS)
        + threshold_attribute(SpdAttr.IPV4_HTHRESH, *v4)
        + threshold_attribute(SpdAttr.IPV6_HTHRESH, *v6),
    )


def word_of(installed: Installed, kind: Attr) -> int:
    """A number of 32 bits among the attributes of an SA; 0 where absent."""
    values: dict[int, Any] = (
        {kind: memoryview(installed.raw[kind])} if kind in installed.raw else {}
    )
    return word(values, kind)
