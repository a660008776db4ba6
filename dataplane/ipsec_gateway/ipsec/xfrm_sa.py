"""SAs to the kernel's states, and their moves. Pure.

What happens to the outer header is said by each SA (``Handling``), with defaults that fit nearly
everybody: the DF bit of IPv4 and the DSCP go from the inner to the outer header, a DSCP that was
changed on the way does not come back in, ECN works as in RFC 6040.

Inbound SAs let ICMP errors pass whose own addresses are outside the selectors but which are about a
packet inside (XFRM_STATE_ICMP). That flag is also how an inbound SA is told from an outbound one
where the kernel does not know directions (before Linux 6.10).

Moving an SA to other addresses:

=====================================  =========================================================
what changes                           what is done
=====================================  =========================================================
ports                                  changed in place (UPDSA)
inbound: the peer's address            nothing: the kernel finds the SA by our address and SPI
outbound: the peer's address           a copy under the new address, whose sequence numbers begin
                                       far beyond those in use; then policies, then the old one
outbound: ours; encapsulation on/off   the copy replaces the old one in one system call
=====================================  =========================================================
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import Final

from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.xfrm_algorithms import algorithm_attributes
from ipsec_gateway.ipsec.xfrm_attributes import (
    Encapsulation,
    Limits,
    Replay,
    attribute,
    attributes,
    direction_attribute,
    family_of,
    offload_attribute,
    pack_address,
    set_mark_attributes,
    word_attribute,
)
from ipsec_gateway.ipsec.xfrm_messages import Message, Selector, State, put_state
from ipsec_gateway.ipsec.xfrm_numbers import (
    Attr,
    ExtraFlag,
    KernelMode,
    Msg,
    OffloadFlag,
    SaDir,
    StateFlag,
)
from ipsec_gateway.ipsec.xfrm_policy import IP_PROTOCOL
from ipsec_gateway.ipsec.xfrm_selector import kernel_selectors
from ipsec_gateway.marks import DEFAULT
from ipsec_ike.actions import SaSpec
from ipsec_ike.config import Lifetime, Mode
from ipsec_ike.identifiers import Direction
from ipsec_ike.numbers import Protocol

#: Windows up to this fit into the fixed part, without ESN.
SMALL_WINDOW: Final = 32
#: Largest window that the kernel takes.
LARGEST_WINDOW: Final = 4096
#: Sequence numbers that a moved SA leaves out: more packets than leave while it is being copied.
JUMP: Final = 1 << 20
#: Seconds between two reports of a changed address of one SA (Linux 5.17).
MAPPING_INTERVAL: Final = 10

# Offsets in struct xfrm_usersa_info.
_DADDR, _SADDR, _CURRENT, _SEQUENCE, _FAMILY, _FIXED = 56, 80, 160, 204, 212, 224
_REPLAY_VAL: Final = struct.Struct("=III")
#: What a dump has and a new SA has not, or gets anew.
_NOT_COPIED: Final = frozenset(
    (
        Attr.ALG_AUTH,
        Attr.ENCAP,
        Attr.LTIME_VAL,
        Attr.LASTUSED,
        Attr.SRCADDR,
        Attr.REPLAY_VAL,
        Attr.REPLAY_ESN_VAL,
        27,  # XFRMA_PAD
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What is the same for all SAs of a gateway.

    ``output_mark`` is (value, mask) that outer packets get whose SA names none. ``directions``:
    this kernel knows SA_DIR.
    """

    output_mark: tuple[int, int] | None = (DEFAULT.bypass, DEFAULT.bypass)
    directions: bool = False


def add_state(spec: SaSpec, how: Treatment, *, offload: bool = False) -> Message:
    """The message that installs ``spec``. Raises DataplaneError for what has no form there.

    With ``offload`` the device on the way to the peer is to do the cryptography; the kernel finds
    out which device that is.
    """
    outbound = spec.id.direction is Direction.OUT
    ah = spec.id.protocol == Protocol.AH
    if ah and spec.encap:
        raise DataplaneError("AH cannot pass a NAT (RFC 3948 1): use esp")
    if spec.replay_window > LARGEST_WINDOW:
        raise DataplaneError(f"replay window of {spec.replay_window}: at most {LARGEST_WINDOW}")
    window = _window(spec, outbound, how)
    extended = spec.esn or window > SMALL_WINDOW
    state = State(
        spi=spec.id.spi,
        protocol=IP_PROTOCOL[Protocol(spec.id.protocol)],
        source=spec.source.address,
        destination=spec.destination.address,
        reqid=spec.reqid,
        mode=KernelMode.TUNNEL if spec.mode is Mode.TUNNEL else KernelMode.TRANSPORT,
        selector=_selector(spec) if outbound else Selector(),
        window=0 if extended else window,
        flags=_flags(spec, outbound),
        limits=_limits(spec.soft, spec.hard),
    )
    parts = [
        algorithm_attributes(
            None if ah else spec.encryption,
            spec.encryption_key.reveal(),
            spec.integrity,
            spec.integrity_key.reveal(),
        )
    ]
    if spec.encap:
        parts.append(Encapsulation(spec.source.port, spec.destination.port).attribute())
        if not outbound:
            parts.append(word_attribute(Attr.MTIMER_THRESH, MAPPING_INTERVAL))
    if extended:
        parts.append(Replay(window).attribute())
    if outbound and not spec.handling.copy_dscp:
        parts.append(word_attribute(Attr.SA_EXTRA_FLAGS, ExtraFlag.DONT_ENCAP_DSCP))
    if offload:
        parts.append(offload_attribute(0, 0 if outbound else OffloadFlag.INBOUND))
    if outbound and spec.handling.mark:
        parts.append(set_mark_attributes(spec.handling.mark, 0xFFFFFFFF))
    elif outbound and how.output_mark is not None:
        parts.append(set_mark_attributes(*how.output_mark))
    if spec.handling.interface:
        parts.append(word_attribute(Attr.IF_ID, spec.handling.interface))
    if how.directions:
        parts.append(direction_attribute(SaDir.OUT if outbound else SaDir.IN))
    return put_state(state, b"".join(parts))


def _window(spec: SaSpec, outbound: bool, how: Treatment) -> int:
    """Nobody replays to a sender; but before SA_DIR the kernel wants a window wherever ESN is."""
    if not outbound:
        return max(spec.replay_window, 1) if spec.esn else spec.replay_window
    return 1 if spec.esn and not how.directions else 0


def _flags(spec: SaSpec, outbound: bool) -> int:
    how, flags = spec.handling, 0
    if spec.mode is Mode.TUNNEL:
        flags |= StateFlag.AF_UNSPEC
    if spec.esn:
        flags |= StateFlag.ESN
    if spec.id.protocol == Protocol.AH and ":" not in spec.source.address:
        # The header of AH is padded to 32 bits over IPv4 (RFC 4302 3.3.3.2.1); without this flag
        # Linux pads it to 64 as over IPv6, and an ICV of 128 bits is where nobody expects it.
        flags |= StateFlag.ALIGN4
    if not how.ecn:
        flags |= StateFlag.NOECN
    if outbound:
        if not how.copy_df:
            flags |= StateFlag.NOPMTUDISC
    else:
        flags |= StateFlag.ICMP
        if how.keep_outer_dscp:
            flags |= StateFlag.DECAP_DSCP
    return flags


def _selector(spec: SaSpec) -> Selector:
    """What was negotiated, if the kernel has one selector for it, else everything.

    A packet of the policy that is outside has no SA then, and is told with an ACQUIRE.
    """
    if len(spec.local_ts) != 1 or len(spec.remote_ts) != 1:
        return Selector()
    try:
        found = kernel_selectors(spec.local_ts[0], spec.remote_ts[0])
    except DataplaneError:
        return Selector()
    return found[0] if len(found) == 1 else Selector()


def _limits(soft: Lifetime, hard: Lifetime) -> Limits:
    return Limits(
        soft.bytes,
        hard.bytes,
        soft.packets,
        hard.packets,
        math.ceil(soft.seconds),
        math.ceil(hard.seconds),
    )


def direction_of(state: State) -> Direction:
    """Of an SA that ``add_state`` made."""
    return Direction.IN if state.flags & StateFlag.ICMP else Direction.OUT


def repeat_state(
    body: memoryview,
    source: str,
    destination: str,
    encap: Encapsulation | None,
    *,
    update: bool = False,
) -> Message:
    """The SA that the kernel told in ``body`` (NEWSA) at other addresses or ports.

    With ``update`` as a change of the one that is there. Else it goes on where the other one
    stopped: counters, replay window, and sequence numbers with a gap of ``JUMP``.
    """
    fixed = bytearray(body[:_FIXED])
    fixed[_SADDR : _SADDR + 16] = pack_address(source)
    fixed[_DADDR : _DADDR + 16] = pack_address(destination)
    fixed[_SEQUENCE : _SEQUENCE + 4] = bytes(4)
    fixed[_FAMILY : _FAMILY + 2] = struct.pack("=H", family_of(destination))
    values = dict(attributes(body[_FIXED:]))
    parts = [attribute(kind, bytes(v)) for kind, v in values.items() if kind not in _NOT_COPIED]
    if encap is not None:
        parts.append(encap.attribute())
    state = State.decode(body)
    jump = JUMP if not update and direction_of(state) is Direction.OUT else 0
    highest = 2**64 - 2 if state.flags & StateFlag.ESN else 2**32 - 2
    replay, short = values.get(Attr.REPLAY_ESN_VAL), values.get(Attr.REPLAY_VAL)
    if replay is not None:
        old = Replay.decode(replay)
        parts.append(replace(old, sent=min(old.sent + jump, highest)).attribute())
    elif short is not None and not update:
        sent, seen, bits = _REPLAY_VAL.unpack_from(short)
        value = _REPLAY_VAL.pack(min(sent + jump, highest), seen, bits)
        parts.append(attribute(Attr.REPLAY_VAL, value))
    if not update:
        parts.append(attribute(Attr.LTIME_VAL, bytes(fixed[_CURRENT : _CURRENT + 32])))
    return Message(Msg.UPDSA if update else Msg.NEWSA, bytes(fixed) + b"".join(parts))
