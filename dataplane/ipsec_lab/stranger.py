"""A stranger who opens IKE SAs and never goes on: what half-open limits and cookies are for."""

from __future__ import annotations

import secrets
import socket
from typing import Final

from ipsec_ike.numbers import Encr, ExchangeType, Group, Prf, Protocol, TransformType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.wire.message import encode_clear
from ipsec_ike.wire.payloads import KePayload, NoncePayload
from ipsec_ike.wire.sa import SaPayload
from ipsec_lab.netns import Namespace

_INITIATOR: Final = 0x08
_NO_SPI: Final = bytes(8)


def ike_sa_init() -> bytes:
    """A request for AES-GCM-16-128, HMAC-SHA2-256 and Curve25519, with a fresh SPI and nonce."""
    proposal = Proposal(
        Protocol.IKE,
        (
            Transform(TransformType.ENCR, Encr.AES_GCM_16, 128),
            Transform(TransformType.PRF, Prf.HMAC_SHA2_256),
            Transform(TransformType.KE, Group.CURVE25519),
        ),
    )
    payloads = (
        SaPayload((proposal,)),
        KePayload(Group.CURVE25519, secrets.token_bytes(32)),
        NoncePayload(secrets.token_bytes(32)),
    )
    spi = secrets.token_bytes(8)
    return encode_clear(spi, _NO_SPI, ExchangeType.IKE_SA_INIT, _INITIATOR, 0, payloads)


def open_half(source: Namespace, addresses: tuple[str, ...], target: str, count: int) -> int:
    """Send ``count`` requests from each of our ``addresses`` to port 500 of ``target``, one after
    the other. Returns how many were answered at all, be it with a COOKIE."""
    answered = 0
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    for address in addresses:
        with source.socket(family, socket.SOCK_DGRAM) as client:
            client.bind((address, 0))
            client.settimeout(1.0)
            for _ in range(count):
                client.sendto(ike_sa_init(), (target, 500))
                try:
                    client.recv(4096)
                    answered += 1
                except TimeoutError:
                    continue
    return answered
