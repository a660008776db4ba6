"""Lengths, counts and values out of range: InvalidSyntax from the peer, LocalMisuse from us."""

from __future__ import annotations

import pytest

from ipsec_ike.errors import InvalidSyntax, LocalMisuse, UnsupportedCriticalPayload
from ipsec_ike.numbers import PayloadType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.message import decode_payloads, encode_payloads
from ipsec_ike.wire.payloads import (
    CpPayload,
    DeletePayload,
    NoncePayload,
    Payload,
    SaPayload,
    TsPayload,
    UnknownPayload,
    VendorPayload,
)
from ipsec_ike.wire.sa import _decode_cached, _encode_transforms


def decode(kind: int, text: str) -> Payload:
    body = bytes.fromhex(text)
    chain = b"\0\0" + (4 + len(body)).to_bytes(2) + body
    (payload,) = decode_payloads(kind, memoryview(chain), limit=1)
    return payload


ENCR = "0300 000c 0100 000c 800e 0080"  # AES-CBC-128, more to come
LAST_PRF = "0000 0008 0200 0005"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        pytest.param(33, "", id="SA without a proposal"),
        pytest.param(33, "0000 0008 0101 00", id="SA that ends in a proposal"),
        pytest.param(33, "0000 0010 0101 0001 0000 0008 0200 0005 00", id="octets after the last"),
        pytest.param(33, "0000 0011 0101 0001 0000 0008 0200 0005", id="proposal beyond its end"),
        pytest.param(33, "0000 0007 0101 0001", id="proposal shorter than its header"),
        pytest.param(33, "0200 0010 0101 0001 0000 0008 0200 0005", id="more announced"),
        pytest.param(33, "0100 0010 0101 0001 0000 0008 0200 0005", id="unknown last marker"),
        pytest.param(
            33,
            "0000 0008 0101 0000 0000 0008 0101 0000",
            id="proposal after the one that is marked last",
        ),
        pytest.param(33, "0000 000c 0103 0400", id="SPI beyond the end"),
        pytest.param(33, "0000 000a 0103 0200 0101", id="ESP with an SPI of 2"),
        pytest.param(33, "0000 000c 0101 0400 00000001", id="IKE with an SPI of 4"),
        pytest.param(33, "0000 0010 0101 0002" + LAST_PRF, id="fewer transforms than announced"),
        pytest.param(33, "0000 0014 0101 0002" + ENCR, id="one transform where two are announced"),
        pytest.param(33, "0000 0018 0101 0001" + LAST_PRF + LAST_PRF, id="more transforms"),
        pytest.param(33, "0000 0010 0101 0001 0300 0008 0200 0005", id="last transform says more"),
        pytest.param(33, "0000 0018 0101 0002" + LAST_PRF + LAST_PRF, id="first says last"),
        pytest.param(33, "0000 0010 0101 0001 0000 0007 0200 0005", id="transform too short"),
        pytest.param(33, "0000 0010 0101 0001 0000 0009 0200 0005", id="transform too long"),
        pytest.param(33, "0000 0012 0101 0001 0000 000a 0200 0005 800e", id="half an attribute"),
        pytest.param(
            33, "0000 0014 0101 0001 0000 000c 0100 000c 0011 0001", id="TLV beyond the end"
        ),
        pytest.param(34, "001f 0000", id="KE without data"),
        pytest.param(34, "001f", id="KE without group"),
        pytest.param(35, "0100 00", id="ID without a header"),
        pytest.param(35, "01 000000 c00002", id="IPv4 address of 3"),
        pytest.param(36, "05 000000 c0000201", id="IPv6 address of 4"),
        pytest.param(37, "", id="CERT"),
        pytest.param(38, "", id="CERTREQ"),
        pytest.param(39, "020000", id="AUTH"),
        pytest.param(40, "00" * 15, id="nonce of 15"),
        pytest.param(40, "00" * 257, id="nonce of 257"),
        pytest.param(41, "0000 40", id="Notify"),
        pytest.param(41, "0304 4009 000001", id="Notify with half an SPI"),
        pytest.param(42, "0304 00", id="Delete"),
        pytest.param(42, "0304 0002 00000001", id="Delete with fewer SPIs"),
        pytest.param(42, "0304 0001 00000001 00", id="Delete with more octets"),
        pytest.param(42, "0308 0001 0000000000000001", id="Delete of ESP with an SPI of 8"),
        pytest.param(42, "0108 0001 0000000000000001", id="Delete of IKE with an SPI"),
        pytest.param(44, "", id="TS"),
        pytest.param(44, "00 000000", id="TS without selectors"),
        pytest.param(44, "01 000000", id="TS with fewer selectors"),
        pytest.param(44, "01 000000 0700 0003", id="selector too short"),
        pytest.param(44, "01 000000 0700 0011 0000 ffff 0a000000 0a0000ff", id="too long"),
        pytest.param(44, "01 000000 0700 000c 0000 ffff 0a000000", id="half an IPv4 range"),
        pytest.param(45, "01 000000 0800 0010 0000 ffff 0a000000 0a0000ff", id="IPv6 of 4"),
        pytest.param(44, "01 000000 0700 0010 0000 ffff 0a0000ff 0a000000", id="end < start"),
        pytest.param(44, "01 000000 0700 0010 0050 0000 0a000000 0a0000ff", id="ports inverted"),
        pytest.param(44, "01 000000 0700 0010 0000 ffff 0a000000 0a0000ff 00", id="rest"),
        pytest.param(47, "0100 00", id="CP"),
        pytest.param(47, "01 000000 0001", id="CP with half an attribute"),
        pytest.param(47, "01 000000 0001 0004 c00002", id="CP attribute beyond the end"),
        pytest.param(48, "02 07 00", id="EAP"),
        pytest.param(48, "02 07 0006 01", id="EAP that is longer than it is"),
        pytest.param(46, "00" * 40, id="SK inside"),
        pytest.param(53, "00" * 40, id="SKF inside"),
    ],
)
def test_syntax(kind: int, text: str) -> None:
    with pytest.raises(InvalidSyntax):
        decode(kind, text)


class TestChain:
    def test_empty(self) -> None:
        assert decode_payloads(0, memoryview(b""), limit=4) == []
        assert encode_payloads([]) == (0, b"")

    def test_missing_payload(self) -> None:
        with pytest.raises(InvalidSyntax):
            decode_payloads(43, memoryview(b""), limit=4)

    def test_octets_after_the_last(self) -> None:
        with pytest.raises(InvalidSyntax):
            decode_payloads(0, memoryview(b"\0"), limit=4)

    @pytest.mark.parametrize("length", [0, 3, 6])
    def test_length(self, length: int) -> None:
        with pytest.raises(InvalidSyntax):
            decode_payloads(43, memoryview(b"\0\0\0" + bytes((length,)) + b"v"), limit=4)

    def test_too_many(self) -> None:
        first, chain = encode_payloads([VendorPayload(b"")] * 5)
        assert len(decode_payloads(first, memoryview(chain), limit=5)) == 5
        with pytest.raises(InvalidSyntax):
            decode_payloads(first, memoryview(chain), limit=4)

    def test_unknown_critical(self) -> None:
        first, chain = encode_payloads([VendorPayload(b""), UnknownPayload(210, True, b"x")])
        with pytest.raises(UnsupportedCriticalPayload) as caught:
            decode_payloads(first, memoryview(chain), limit=4)
        assert caught.value.data == b"\xd2"

    def test_critical_bit_of_a_known_payload_means_nothing(self) -> None:
        assert decode_payloads(43, memoryview(b"\0\x80\0\5v"), limit=1) == [VendorPayload(b"v")]


class TestTransforms:
    """RFC 7296 3.3.6: what is not understood is refused, not misread."""

    def decode(self, *transforms: str, count: int | None = None) -> tuple[Proposal, ...]:
        body = bytes.fromhex("".join(transforms))
        head = bytes((0, 0)) + (8 + len(body)).to_bytes(2)
        head += bytes((1, 1, 0, len(transforms) if count is None else count))
        payload = decode(33, (head + body).hex())
        assert isinstance(payload, SaPayload)
        return payload.proposals

    def test_key_length(self) -> None:
        (proposal,) = self.decode(ENCR, LAST_PRF)
        assert proposal.transforms == (Transform(1, 12, 128), Transform(2, 5))

    def test_unknown_attribute_makes_its_transform_unusable(self) -> None:
        strange = "0300 000c 0100 000c 8011 0001"  # TV attribute 17
        (proposal,) = self.decode(strange, ENCR, LAST_PRF)
        assert proposal.transforms == (Transform(1, 12, 128), Transform(2, 5))

    @pytest.mark.parametrize(
        "strange",
        [
            pytest.param("0300 000c 0100 000c 8011 0001", id="TV 17"),
            pytest.param("0300 000e 0100 000c 0011 0002 abcd", id="TLV 17"),
            pytest.param("0300 000e 0100 000c 000e 0002 0080", id="key length as TLV"),
            pytest.param("0300 0010 0100 000c 800e 0080 8011 0001", id="key length and TV 17"),
            pytest.param("0300 0010 0100 000c 8011 0001 800e 0080", id="TV 17 and key length"),
            pytest.param("0300 0010 0100 000c 800e 0080 800e 0100", id="key length twice"),
        ],
    )
    def test_proposal_without_usable_transform_of_a_type_is_out(self, strange: str) -> None:
        assert self.decode(strange, LAST_PRF) == ()

    def test_other_proposals_stay(self) -> None:
        good = "0000 0010 0201 0001" + LAST_PRF
        bad = "0200 0014 0101 0001 0000 000c 0100 000c 8011 0001"
        payload = decode(33, bad + good)
        assert payload == SaPayload((Proposal(1, (Transform(2, 5),), b"", 2),))

    def test_unknown_type_stays_as_a_number(self) -> None:
        (proposal,) = self.decode(ENCR, "0000 0008 f100 0001")
        assert proposal.transforms[1] == Transform(0xF1, 1)

    def test_reserved_octets_are_ignored(self) -> None:
        (proposal,) = self.decode("00ff 0008 02ff 0005")
        assert proposal.transforms == (Transform(2, 5),)

    def test_proposal_without_transforms(self) -> None:
        assert self.decode() == (Proposal(1, ()),)

    def test_strangers_cannot_grow_the_caches(self) -> None:
        for number in range(1000):
            text = f"0000 0008 0400 {number:04x}"
            assert self.decode(text)[0].transforms == (Transform(4, number),)
        long = ["0300 0008 0400 001f"] * 99 + ["0000 0008 0400 001f"]
        assert len(self.decode(*long)[0].transforms) == 100
        for cached in (_decode_cached, _encode_transforms):
            info = cached.cache_info()
            assert info.maxsize is not None
            assert info.currsize <= info.maxsize <= 128


class TestSelectors:
    def test_unknown_types_are_left_out(self) -> None:
        known = "0700 0010 0000 ffff 0a000000 0a0000ff"
        payload = decode(44, "02 000000 0900 0008 deadbeef" + known)
        assert payload == TsPayload(PayloadType.TSi, (TrafficSelector.network("10.0.0.0/24"),))

    def test_all_unknown(self) -> None:
        assert decode(45, "01 000000 0900 0004") == TsPayload(PayloadType.TSr, ())

    def test_opaque_ports(self) -> None:
        payload = decode(44, "01 000000 0706 0010 ffff 0000 0a000000 0a0000ff")
        assert isinstance(payload, TsPayload)
        assert payload.selectors[0].is_opaque


def test_delete_of_ike_with_a_count_names_no_spi() -> None:
    assert decode(42, "0100 0001") == DeletePayload(1)


def test_delete_of_no_child() -> None:
    assert decode(42, "0304 0000") == DeletePayload(3)


def test_reserved_bit_of_configuration_attributes() -> None:
    assert decode(47, "02 000000 8001 0000") == CpPayload(2, ((1, b""),))


def selector(start: bytes, end: bytes) -> TsPayload:
    return TsPayload(PayloadType.TSi, (TrafficSelector(start, end),))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(SaPayload(()), id="no proposal"),
        pytest.param(SaPayload((Proposal(3, (), bytes(256)),)), id="long SPI"),
        pytest.param(SaPayload((Proposal(1, (Transform(1, 1),) * 256),)), id="256 transforms"),
        pytest.param(TsPayload(PayloadType.TSi, ()), id="no selector"),
        pytest.param(
            TsPayload(PayloadType.TSi, (TrafficSelector.network("10.0.0.0/8"),) * 256),
            id="256 selectors",
        ),
        pytest.param(selector(bytes(5), bytes(5)), id="address of 5"),
        pytest.param(selector(bytes(4), bytes(16)), id="two families"),
        pytest.param(DeletePayload(3, (bytes(4), bytes(8))), id="two sizes of SPI"),
        pytest.param(CpPayload(1, ((0x8000, b""),)), id="attribute type"),
        pytest.param(CpPayload(1, ((1, bytes(0x10000)),)), id="attribute length"),
        pytest.param(VendorPayload(bytes(0xFFFC)), id="payload length"),
    ],
)
def test_misuse(payload: Payload) -> None:
    with pytest.raises(LocalMisuse):
        encode_payloads([payload])


def test_largest_payload() -> None:
    _, chain = encode_payloads([VendorPayload(bytes(0xFFFB))])
    assert len(chain) == 0xFFFF


def test_nothing_of_the_message_is_kept_alive() -> None:
    """A payload holds copies: a small one does not pin a datagram of 64 kB."""
    nonce = decode(40, "00" * 16)
    assert isinstance(nonce, NoncePayload)
    assert type(nonce.data) is bytes
