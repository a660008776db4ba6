"""A peer that says what it is told to: for messages that no engine of ours would send.

It has its own small key schedule over ``ipsec_ike.crypto``, one suite (AES-GCM-128, HMAC-SHA2-256,
x25519) and a pre-shared key. It keeps no window and checks nothing but integrity: the test does.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import Final

from ipsec_ike.crypto.ciphers import SkCipher, sk_cipher
from ipsec_ike.crypto.groups import KeyExchange, generate
from ipsec_ike.crypto.prf import prf_for, prf_plus
from ipsec_ike.identity import Identity
from ipsec_ike.numbers import (
    AuthMethod,
    Encr,
    Esn,
    ExchangeType,
    Group,
    PayloadType,
    Prf,
    Protocol,
    TransformType,
)
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.header import FLAG_INITIATOR, FLAG_RESPONSE, HEADER_LENGTH, Header
from ipsec_ike.wire.message import (
    decode_payloads,
    encode_clear,
    encode_payloads,
    open_sk,
)
from ipsec_ike.wire.payloads import (
    AuthPayload,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    Payload,
    SaPayload,
    TsPayload,
)

_ENCR: Final = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
IKE_PROPOSAL: Final = Proposal(
    Protocol.IKE,
    (
        _ENCR,
        Transform(TransformType.PRF, Prf.HMAC_SHA2_256),
        Transform(TransformType.KE, Group.CURVE25519),
    ),
)
_KEY: Final = 20  # AES-128 and salt
_PRF: Final = 32
_LIMIT: Final = 64


def esp_proposal(spi: bytes, *, esn: bool = False) -> Proposal:
    """What the peer offers or chooses for a child."""
    return Proposal(
        Protocol.ESP,
        (_ENCR, Transform(TransformType.ESN, Esn.ESN if esn else Esn.NO_ESN)),
        spi,
    )


class ScriptedPeer:
    """``initiator``: of the IKE SA. ``sent`` and ``received`` count nothing: message IDs are the
    test's."""

    def __init__(
        self, identity: Identity, psk: bytes, rng: Callable[[int], bytes], *, initiator: bool
    ) -> None:
        self.identity = identity
        self.initiator = initiator
        self.spi_i = rng(8) if initiator else bytes(8)
        self.spi_r = bytes(8) if initiator else rng(8)
        self.nonce = rng(32)
        self.peer_nonce = b""
        self.psk = psk
        self._rng = rng
        self._ke: KeyExchange = generate(Group.CURVE25519, rng)
        self._first: bytes = b""  # our IKE_SA_INIT message, which AUTH covers
        self._peer_first: bytes = b""
        self._keys: bytes = b""

    # -- IKE_SA_INIT -------------------------------------------------------------------------

    def init(self, *extra: Payload, before: Sequence[Payload] = ()) -> bytes:
        """The IKE_SA_INIT request or response. ``before``: a COOKIE goes first."""
        payloads = (
            *before,
            SaPayload((IKE_PROPOSAL,)),
            KePayload(Group.CURVE25519, self._ke.public),
            NoncePayload(self.nonce),
            *extra,
        )
        self._first = self.clear(ExchangeType.IKE_SA_INIT, 0, payloads, response=not self.initiator)
        return self._first

    def take_init(self, data: bytes) -> list[Payload]:
        """The other side's IKE_SA_INIT; derives the keys if it has what is needed."""
        header = Header.parse(data)
        self._peer_first = data
        if self.initiator:
            self.spi_r = header.spi_r
        else:
            self.spi_i = header.spi_i
        body = memoryview(data)[HEADER_LENGTH:]
        payloads = decode_payloads(header.next_payload, body, limit=_LIMIT)
        for payload in payloads:
            if isinstance(payload, NoncePayload):
                self.peer_nonce = payload.data
        for payload in payloads:
            if isinstance(payload, KePayload):
                self._derive(payload.data)
        return payloads

    def _derive(self, public: bytes) -> None:
        nonces = (self.nonce, self.peer_nonce) if self.initiator else (self.peer_nonce, self.nonce)
        prf = prf_for(Prf.HMAC_SHA2_256)
        seed = prf.mac(b"".join(nonces), self._ke.shared(public))
        octets = b"".join((*nonces, self.spi_i, self.spi_r))
        self._keys = prf_plus(prf, seed, octets, 3 * _PRF + 2 * _KEY)

    # -- IKE_AUTH ----------------------------------------------------------------------------

    def auth(self, *extra: Payload, psk: bytes | None = None) -> list[Payload]:
        """Identity and AUTH, then what else the message shall have."""
        kind = PayloadType.IDi if self.initiator else PayloadType.IDr
        ident = IdPayload(kind, self.identity)
        at = -2 * _PRF if self.initiator else -_PRF
        sk_p = self._keys[at : at + _PRF or None]
        octets = self._first + self.peer_nonce + hmac.digest(sk_p, ident.encode(), "sha256")
        pad = hmac.digest(self.psk if psk is None else psk, b"Key Pad for IKEv2", "sha256")
        mac = hmac.digest(pad, octets, "sha256")
        return [ident, AuthPayload(AuthMethod.SHARED_KEY, mac), *extra]

    def child(self, spi: bytes, local: str, remote: str, *, nonce: bytes = b"") -> list[Payload]:
        """SA, (nonce,) TSi and TSr of a child as its initiator offers them."""
        nonces: list[Payload] = [NoncePayload(nonce)] if nonce else []
        return [
            SaPayload((esp_proposal(spi),)),
            *nonces,
            TsPayload(PayloadType.TSi, (TrafficSelector.network(local),)),
            TsPayload(PayloadType.TSr, (TrafficSelector.network(remote),)),
        ]

    # -- messages ----------------------------------------------------------------------------

    def clear(
        self, exchange: int, message_id: int, payloads: Sequence[Payload], *, response: bool
    ) -> bytes:
        """An unprotected message."""
        return encode_clear(
            self.spi_i, self.spi_r, exchange, self._flags(response), message_id, payloads
        )

    def protected(
        self,
        exchange: int,
        message_id: int,
        payloads: Sequence[Payload],
        *,
        response: bool = False,
        padding: int = 0,
    ) -> bytes:
        """A message in an SK payload with that much padding (0-255 octets)."""
        first, chain = encode_payloads(payloads)
        return self.raw(exchange, message_id, first, chain, response=response, padding=padding)

    def raw(
        self,
        exchange: int,
        message_id: int,
        first: int,
        chain: bytes,
        *,
        response: bool = False,
        padding: int = 0,
    ) -> bytes:
        """A message whose content, right or wrong, is properly protected."""
        cipher = self._cipher(ours=True)
        plaintext = chain + bytes(padding) + bytes((padding,))
        size = 4 + cipher.iv_length + len(plaintext) + cipher.icv_length
        flags = self._flags(response)
        header = Header(
            self.spi_i, self.spi_r, PayloadType.SK, exchange, flags, message_id, 28 + size
        )
        aad = header.encode() + bytes((first, 0)) + size.to_bytes(2)
        iv = self._rng(cipher.iv_length)
        return aad + iv + cipher.seal(aad, iv, plaintext)

    def read(self, data: bytes) -> list[Payload]:
        """What the other side says. Raises IkeError."""
        return open_sk(data, Header.parse(data), self._cipher(ours=False), limit=_LIMIT)

    def _flags(self, response: bool) -> int:
        return (FLAG_RESPONSE if response else 0) | (FLAG_INITIATOR if self.initiator else 0)

    def _cipher(self, *, ours: bool) -> SkCipher:
        """SK_ei and SK_er follow SK_d; a combined mode has no SK_a."""
        at = _PRF if ours is self.initiator else _PRF + _KEY
        return sk_cipher(_ENCR, self._keys[at : at + _KEY])


def notified(payloads: Sequence[Payload]) -> list[int]:
    """The types of the notifications in a message."""
    return [p.notify for p in payloads if isinstance(p, NotifyPayload)]
