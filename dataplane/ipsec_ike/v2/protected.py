"""Messages of an IKE SA that has keys: in and out, whole and in fragments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from ipsec_ike.actions import SendDatagram
from ipsec_ike.inputs import Endpoint
from ipsec_ike.numbers import Encr, PayloadType
from ipsec_ike.proposal import AEAD
from ipsec_ike.sa.nat import encapsulated
from ipsec_ike.wire.fragment import Reassembler, seal_fragments
from ipsec_ike.wire.message import FLAG_INITIATOR, FLAG_RESPONSE, Header, open_sk, seal
from ipsec_ike.wire.payloads import Payload

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa

__all__ = ["Payload", "protect", "send", "unprotect"]

_UDP_AND_MARKER: Final = 8 + 4
_COUNTED: Final = AEAD | {Encr.AES_CTR}


def protect(
    sa: IkeSa, exchange: int, message_id: int, payloads: Sequence[Payload], *, response: bool
) -> tuple[bytes, ...]:
    """The datagrams of one message: fragments where the peer takes them and the size needs it."""
    sa.host.touch(sa)
    _, keys = sa.crypto
    flags = (FLAG_INITIATOR if sa.initiator else 0) | (FLAG_RESPONSE if response else 0)
    cipher = keys.cipher(initiator=sa.initiator)
    rng = partial(_iv, sa)
    if not sa.fragmentation:
        return (seal(sa.spi_i, sa.spi_r, exchange, flags, message_id, payloads, cipher, rng),)
    ip_header = 40 if ":" in sa.remote.address else 20
    return tuple(
        seal_fragments(
            sa.spi_i,
            sa.spi_r,
            exchange,
            flags,
            message_id,
            payloads,
            cipher,
            rng,
            max_size=sa.peer.config.fragment_size - ip_header - _UDP_AND_MARKER,
        )
    )


def _iv(sa: IkeSa, octets: int) -> bytes:
    """A counter where an IV must never repeat under its key (RFC 5282 3, RFC 5930 3), random octets
    where it must not be predictable either (RFC 3602 3)."""
    suite, _ = sa.crypto
    if suite.encr.id not in _COUNTED:
        return sa.host.rng(octets)
    sa.sealed += 1
    return sa.sealed.to_bytes(octets)


def unprotect(sa: IkeSa, data: bytes, header: Header) -> list[Payload] | None:
    """The payloads, or None while fragments are missing.

    Raises IntegrityFailure for whatever does not prove to be the peer's; other IkeErrors only
    after it did.
    """
    _, keys = sa.crypto
    cipher = keys.cipher(initiator=not sa.initiator)
    limits = sa.host.limits
    if header.next_payload != PayloadType.SKF:
        return open_sk(data, header, cipher, limit=limits.payloads)
    window = sa.window
    if header.response:
        window.reply_fragments = parts = window.reply_fragments or Reassembler(limits)
    else:
        window.fragments = parts = window.fragments or Reassembler(limits)
    return parts.add(data, header, cipher)


def verify(sa: IkeSa, data: bytes, header: Header) -> None:
    """Whether a message, or one fragment of it, is the peer's. Raises an IkeError if it is not."""
    _, keys = sa.crypto
    cipher = keys.cipher(initiator=not sa.initiator)
    limits = sa.host.limits
    if header.next_payload == PayloadType.SKF:
        Reassembler(limits).add(data, header, cipher)
    else:
        open_sk(data, header, cipher, limit=limits.payloads)


def send(
    sa: IkeSa,
    datagrams: Sequence[bytes],
    local: Endpoint | None = None,
    remote: Endpoint | None = None,
) -> None:
    """Hand datagrams to the shell; without addresses they go where requests of this SA go."""
    host = sa.host
    local, remote = local or sa.local, remote or sa.remote
    encap = encapsulated(local)
    sa.sent_at = host.now
    for data in datagrams:
        host.emit(SendDatagram(local, remote, data, encap))
