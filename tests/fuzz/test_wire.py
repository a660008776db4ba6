"""Any bytes into the decoders give a result or an IkeError, nothing else, in bounded memory."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsec_ike.config import Limits
from ipsec_ike.crypto.ciphers import sk_cipher
from ipsec_ike.errors import IkeError
from ipsec_ike.identity import Identity
from ipsec_ike.numbers import PayloadType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.fragment import Reassembler, seal_fragments
from ipsec_ike.wire.message import (
    HEADER_LENGTH,
    Header,
    decode_header,
    decode_payloads,
    encode_clear,
    encode_payloads,
    open_sk,
    seal,
    seal_chain,
)
from ipsec_ike.wire.payloads import (
    DECODERS,
    AuthPayload,
    CertPayload,
    CertReqPayload,
    CpPayload,
    DeletePayload,
    EapPayload,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    Payload,
    SaPayload,
    TsPayload,
    UnknownPayload,
    VendorPayload,
)
from ipsec_ike.wire.rules import check
from ipsec_lab.mutation import mutate, with_length

LIMIT = 64
SPI_I, SPI_R = b"i" * 8, b"r" * 8

TRANSFORMS = (
    Transform(1, 20, 256),
    Transform(1, 12, 128),
    Transform(2, 5),
    Transform(3, 12),
    Transform(4, 31),
    Transform(9, 9),
)
EVERYTHING: list[Payload] = [
    SaPayload((Proposal(1, TRANSFORMS), Proposal(3, TRANSFORMS, b"abcd", 2))),
    KePayload(31, bytes(32)),
    IdPayload(PayloadType.IDi, Identity.address("192.0.2.1")),
    IdPayload(PayloadType.IDr, Identity.fqdn("gw.example")),
    CertPayload(4, b"cert"),
    CertReqPayload(4, b"ca"),
    AuthPayload(2, bytes(32)),
    NoncePayload(bytes(32)),
    NotifyPayload(16393, b"", 3, b"abcd"),
    DeletePayload(3, (b"abcd", b"efgh")),
    VendorPayload(b"vendor"),
    TsPayload(PayloadType.TSi, (TrafficSelector.network("10.0.0.0/8"),) * 2),
    TsPayload(PayloadType.TSr, (TrafficSelector.network("2001:db8::/32"),)),
    CpPayload(1, ((1, b""), (3, b"abcd"))),
    EapPayload(b"\1\2\0\5\1"),
    UnknownPayload(200, False, b"?"),
]


def attempt(data: bytes) -> bool:
    """Whether the message could be read. Anything but an IkeError fails the test."""
    try:
        header = decode_header(data)
        payloads = decode_payloads(
            header.next_payload, memoryview(data)[HEADER_LENGTH:], limit=LIMIT
        )
        assert len(payloads) <= LIMIT
        check(header.exchange, header.response, payloads)
    except IkeError as error:
        assert error.notify.is_error  # noqa: PT017  which IkeError it is does not matter
        return False
    return True


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_message(data: bytes) -> None:
    attempt(data)


@settings(max_examples=300)
@given(st.integers(0, 255), st.binary(max_size=200))
def test_any_chain(first: int, body: bytes) -> None:
    header = Header(SPI_I, SPI_R, first, 34, 8, 0, HEADER_LENGTH + len(body))
    attempt(header.encode() + body)


@pytest.mark.parametrize("kind", sorted(DECODERS), ids=lambda k: PayloadType(k).name)
def test_any_body(kind: int) -> None:
    @settings(max_examples=150)
    @given(st.binary(max_size=80))
    def decode(body: bytes) -> None:
        try:
            payload = DECODERS[kind](memoryview(body))
        except IkeError:
            return
        assert payload.type == kind
        nothing_usable = payload in (SaPayload(()), TsPayload(PayloadType(kind), ()))
        if not nothing_usable:
            payload.encode()

    decode()


def test_mutations() -> None:
    rng = random.Random(7296)
    whole = encode_clear(SPI_I, SPI_R, 34, 8, 0, EVERYTHING)
    singles = [encode_clear(SPI_I, SPI_R, 35, 8, 1, [payload]) for payload in EVERYTHING]
    readable = sum(
        attempt(with_length(mutate(rng.choice((whole, *singles)), rng))) for _ in range(10_000)
    )
    assert readable > 300  # the mutations are not all refused at the first octet


def test_sealed_mutations() -> None:
    """Authenticated but malformed inside, and mutated outside."""
    rng = random.Random(3706)
    key = sk_cipher(Transform(1, 20, 128), bytes(range(20)))
    first, chain = encode_payloads(EVERYTHING)
    frame = Header(SPI_I, SPI_R, PayloadType.SK, 37, 8, 2, 0)
    sealed = seal(SPI_I, SPI_R, 37, 8, 2, EVERYTHING, key, rng.randbytes)
    results = {True: 0, False: 0}
    for _ in range(3000):
        inside = seal_chain(frame, first, b"", mutate(chain, rng), key, rng.randbytes)
        for data in (inside, with_length(mutate(sealed, rng))):
            try:
                open_sk(data, decode_header(data), key, limit=LIMIT)
            except IkeError:
                results[False] += 1
            else:
                results[True] += 1
    assert min(results.values()) > 100


def test_fragments_mutated() -> None:
    rng = random.Random(7383)
    key = sk_cipher(Transform(1, 20, 128), bytes(range(20)))
    limits = Limits(fragments=16, message_size=4000)
    receiver = Reassembler(limits)
    whole = 0
    for number in range(1500):
        parts = seal_fragments(
            SPI_I,
            SPI_R,
            35,
            8,
            number % 4,
            EVERYTHING,
            key,
            rng.randbytes,
            max_size=rng.choice((120, 200)),
        )
        for part in rng.sample(parts, len(parts)):
            data = with_length(mutate(part, rng)) if rng.random() < 0.05 else part
            with contextlib.suppress(IkeError):
                whole += receiver.add(data, decode_header(data), key) is not None
            assert receiver.pending < limits.fragments
    assert whole > 500
