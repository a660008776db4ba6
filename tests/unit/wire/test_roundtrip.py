"""Whatever we can hold, we can send and read back unchanged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsec_ike.identity import Identity
from ipsec_ike.numbers import PayloadType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.header import Header, decode_header
from ipsec_ike.wire.message import decode_payloads, encode_clear, encode_payloads
from ipsec_ike.wire.payloads import (
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

octet = st.integers(0, 255)
short = st.integers(0, 0xFFFF)
blob = st.binary(max_size=64)

transforms = st.builds(Transform, octet, short, short)
proposals = st.one_of(
    st.builds(
        Proposal,
        st.just(1),
        st.lists(transforms, max_size=8).map(tuple),
        st.sampled_from([b"", b"\1" * 8]),
        octet,
    ),
    st.builds(
        Proposal,
        st.sampled_from([2, 3]),
        st.lists(transforms, max_size=8).map(tuple),
        st.binary(min_size=4, max_size=4),
        octet,
    ),
    st.builds(
        Proposal,
        st.integers(4, 255),
        st.lists(transforms, max_size=3).map(tuple),
        st.binary(max_size=255),
        octet,
    ),
)


@st.composite
def selectors(draw: st.DrawFn) -> TrafficSelector:
    size = draw(st.sampled_from([4, 16]))
    first, last = sorted(draw(st.binary(min_size=size, max_size=size)) for _ in "12")
    low, high = draw(
        st.one_of(st.just((65535, 0)), st.tuples(short, short).map(lambda p: (min(p), max(p))))
    )
    return TrafficSelector(first, last, draw(octet), low, high)


@st.composite
def identities(draw: st.DrawFn) -> Identity:
    kind = draw(octet)
    size = {1: 4, 5: 16}.get(kind)
    data = blob if size is None else st.binary(min_size=size, max_size=size)
    return Identity(kind, draw(data))


@st.composite
def deletes(draw: st.DrawFn) -> DeletePayload:
    protocol = draw(octet)
    size = 4 if protocol in (2, 3) else 0 if protocol == 1 else draw(st.integers(1, 16))
    if not size:
        return DeletePayload(protocol)
    spis = st.lists(st.binary(min_size=size, max_size=size), max_size=5, min_size=1)
    return DeletePayload(protocol, tuple(draw(spis)))


@st.composite
def eaps(draw: st.DrawFn) -> EapPayload:
    rest = draw(blob)
    return EapPayload(bytes((draw(octet), draw(octet))) + (4 + len(rest)).to_bytes(2) + rest)


PAYLOADS: dict[str, st.SearchStrategy[Payload]] = {
    "SA": st.builds(SaPayload, st.lists(proposals, min_size=1, max_size=4).map(tuple)),
    "KE": st.builds(KePayload, short, st.binary(min_size=1, max_size=64)),
    "ID": st.builds(
        IdPayload,
        st.sampled_from([PayloadType.IDi, PayloadType.IDr]),
        identities(),
        st.binary(min_size=3, max_size=3),
    ),
    "CERT": st.builds(CertPayload, octet, blob),
    "CERTREQ": st.builds(CertReqPayload, octet, blob),
    "AUTH": st.builds(AuthPayload, octet, blob),
    "NONCE": st.builds(NoncePayload, st.binary(min_size=16, max_size=256)),
    "NOTIFY": st.builds(NotifyPayload, short, blob, octet, st.binary(max_size=255)),
    "DELETE": deletes(),
    "VENDOR": st.builds(VendorPayload, blob),
    "TS": st.builds(
        TsPayload,
        st.sampled_from([PayloadType.TSi, PayloadType.TSr]),
        st.lists(selectors(), min_size=1, max_size=5).map(tuple),
    ),
    "CP": st.builds(
        CpPayload,
        octet,
        st.lists(st.tuples(st.integers(0, 0x7FFF), blob), max_size=5).map(tuple),
    ),
    "EAP": eaps(),
    "unknown": st.builds(
        UnknownPayload,
        st.one_of(st.integers(1, 32), st.integers(49, 52), st.integers(54, 255)),
        st.just(False),
        blob,
    ),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_payload(name: str) -> None:
    @settings(max_examples=60)
    @given(PAYLOADS[name])
    def check(payload: Payload) -> None:
        first, chain = encode_payloads([payload])
        assert first == payload.type
        assert decode_payloads(first, memoryview(chain), limit=1) == [payload]

    check()


@settings(max_examples=100)
@given(
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=8, max_size=8),
    octet,
    octet,
    st.integers(0, 0xFFFFFFFF),
    st.lists(st.one_of(*PAYLOADS.values()), max_size=8),
)
def test_message(
    spi_i: bytes,
    spi_r: bytes,
    exchange: int,
    flags: int,
    message_id: int,
    payloads: list[Payload],
) -> None:
    data = encode_clear(spi_i, spi_r, exchange, flags, message_id, payloads)
    header = decode_header(data)
    first = payloads[0].type if payloads else 0
    assert header == Header(spi_i, spi_r, first, exchange, flags, message_id, len(data))
    assert header.encode() == data[:28]
    body = memoryview(data)[28:]
    assert decode_payloads(header.next_payload, body, limit=8) == payloads
