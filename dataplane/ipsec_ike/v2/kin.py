"""What gateways of our kind tell each other: where they answer probes.

Both say who they are by a Vendor ID in IKE_SA_INIT (RFC 7296 3.12), which is always the same. Who
has heard it from the other sends, in IKE_AUTH, a status notification for private use (3.10.1):

    version (1) | UDP port of the responder, or 0 (2) | { 4 or 6 (1) | address (4 or 16) } x 1..8

The other end believes it as much as the rest of what the peer says. It only ends up in an event,
and whoever uses it has to look whether the addresses are the peer's. What cannot be read is ignored
and counted: nothing depends on it. An initiator sends its addresses in the IKE_AUTH request, before
the responder has authenticated: whoever answers in its place reads them, as IDi and TSi, which are
sent there too. A responder sends its own to an initiator that has authenticated.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from ipsec_ike.config import PeerConfig, Responder
from ipsec_ike.numbers import NotifyType
from ipsec_ike.v2.exchange import notification
from ipsec_ike.wire.payloads import NotifyPayload, Payload, VendorPayload

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa
    from ipsec_ike.v2.init import Handshake

VENDOR: Final = VendorPayload(hashlib.sha256(b"kube-ipsec gateway 1").digest()[:16])

#: Addresses in one notification.
MOST: Final = 8

_VERSION: Final = 1
_LENGTHS: Final = {4: 4, 6: 16}
_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")


class Unreadable(ValueError):
    """A notification that makes no sense."""


def told(config: PeerConfig, handshake: Handshake) -> list[Payload]:
    """What we say in IKE_AUTH: nothing to peers of another kind."""
    if not handshake.kin or config.responder is None or not config.responder.addresses:
        return []
    return [NotifyPayload(NotifyType.PROBE_RESPONDER, encode(config.responder))]


def heard(sa: IkeSa, handshake: Handshake, payloads: Sequence[Payload]) -> Responder | None:
    """What the peer, which has proved who it is, says in IKE_AUTH."""
    if not handshake.kin:
        return None
    found = notification(payloads, NotifyType.PROBE_RESPONDER)
    if found is None:
        return None
    try:
        return decode(found.data)
    except Unreadable:
        sa.host.counters["ignored_responder"] += 1
        return None


@lru_cache(maxsize=64)
def encode(responder: Responder) -> bytes:
    """The data of the notification, with the first eight addresses."""
    parts = [bytes((_VERSION,)), responder.port.to_bytes(2)]
    for text in responder.addresses[:MOST]:
        address = ipaddress.ip_address(text)
        parts += (bytes((address.version,)), address.packed)
    return b"".join(parts)


def decode(data: bytes) -> Responder:
    """The reverse. Raises Unreadable, also for an address that cannot be a single host's."""
    if len(data) < 3 or data[0] != _VERSION:
        raise Unreadable(f"version {data[:1].hex() or 'missing'}, {len(data)} octets")
    port, offset = int.from_bytes(data[1:3]), 3
    addresses: dict[str, None] = {}
    count = 0
    while offset < len(data):
        length = _LENGTHS.get(data[offset])
        packed = data[offset + 1 : offset + 1 + (length or 0)]
        count += 1
        if length != len(packed) or count > MOST:
            raise Unreadable(f"address {count} of {len(data)} octets")
        address = ipaddress.ip_address(packed)
        if (
            address.is_multicast
            or address.is_unspecified
            or address.is_loopback
            or address.is_link_local
            or address == _BROADCAST
            or (address.version == 6 and address.ipv4_mapped is not None)
        ):
            raise Unreadable(f"address {count} is no single host's")
        addresses[str(address)] = None
        offset += 1 + length
    if not addresses:
        raise Unreadable("no address")
    return Responder(port, tuple(addresses))
