"""What the shell must do, in the order in which the engine says it. The order is the contract.

A responder's AddSa for the inbound SA precedes its SendDatagram; in a rekey the new SAs precede the
DeleteSa of the old. Events travel in the same list (``ipsec_ike.events``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ipsec_ike.config import Handling, Lifetime, Mode
from ipsec_ike.identifiers import SaId
from ipsec_ike.inputs import Endpoint
from ipsec_ike.proposal import Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send an IKE message. ``encap``: put the non-ESP marker before it (RFC 3948 2.2).

    An empty ``data`` with ``encap`` is a NAT keepalive: one octet 0xFF without marker
    (RFC 3948 2.3).
    """

    local: Endpoint
    remote: Endpoint
    data: bytes
    encap: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SaSpec:
    """One unidirectional SA, ready to be installed.

    ``source`` and ``destination`` are the outer addresses with the UDP ports used if ``encap``.
    ``encryption_key`` holds key and salt or nonce in the order of RFC 4106, 3686, 4309 and 7634;
    ``integrity`` is None for combined-mode ciphers. ``local_ts`` and ``remote_ts`` are the
    negotiated selectors seen from this gateway whatever the direction. ``soft`` has absolute
    numbers in all three dimensions; its ``margin`` and ``jitter`` mean nothing. Seconds are
    relative to now.
    """

    id: SaId
    source: Endpoint
    destination: Endpoint
    encap: bool
    reqid: int
    mode: Mode
    encryption: Transform
    encryption_key: Secret
    integrity: Transform | None
    integrity_key: Secret
    esn: bool
    replay_window: int
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    soft: Lifetime = field(default_factory=Lifetime)
    hard: Lifetime = field(default_factory=Lifetime)
    handling: Handling = field(default_factory=Handling)
    peer: str = ""
    child: str = ""


@dataclass(frozen=True, slots=True)
class AddSa:
    """Install an SA. An outbound SA replaces older ones of the same reqid for new packets."""

    spec: SaSpec


@dataclass(frozen=True, slots=True)
class UpdateSa:
    """Move an SA to new outer addresses or ports; keys, counters and replay state stay."""

    id: SaId
    source: Endpoint
    destination: Endpoint
    encap: bool


@dataclass(frozen=True, slots=True)
class DeleteSa:
    """Remove an SA; it is no error if it is gone already."""

    id: SaId
