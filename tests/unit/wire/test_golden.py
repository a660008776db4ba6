"""Octets computed by hand from the boxes of RFC 7296 section 3."""

from __future__ import annotations

import pytest

from ipsec_ike.errors import InvalidMajorVersion, InvalidSyntax, LocalMisuse
from ipsec_ike.identity import Identity
from ipsec_ike.numbers import Encr, Group, Integ, NotifyType, PayloadType, Prf, Protocol
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.message import (
    Header,
    decode_header,
    decode_payloads,
    encode_clear,
    encode_payloads,
)
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


def octets(text: str) -> bytes:
    """Hex with spaces; a vertical bar separates fields for the reader."""
    return bytes.fromhex(text.replace("|", " "))


GOLDEN: dict[str, tuple[Payload, str]] = {
    # 3.3: one IKE proposal, key length as TV attribute 800e
    "SA of IKE": (
        SaPayload(
            (
                Proposal(
                    Protocol.IKE,
                    (
                        Transform(1, Encr.AES_GCM_16, 256),
                        Transform(2, Prf.HMAC_SHA2_256),
                        Transform(4, Group.CURVE25519),
                    ),
                ),
            )
        ),
        "00 00 0024 | 01 01 00 03"
        "| 03 00 000c 01 00 0014 800e 0100"
        "| 03 00 0008 02 00 0005"
        "| 00 00 0008 04 00 001f",
    ),
    # 3.3.1: two ESP proposals, numbered, with SPIs
    "SA of ESP": (
        SaPayload(
            (
                Proposal(Protocol.ESP, (Transform(1, Encr.AES_CBC, 128),), b"\xca\xfe\0\1", 1),
                Proposal(
                    Protocol.ESP,
                    (Transform(3, Integ.HMAC_SHA2_256_128), Transform(5, 0)),
                    b"\xca\xfe\0\1",
                    2,
                ),
            )
        ),
        "02 00 0018 | 01 03 04 01 | cafe0001 | 00 00 000c 01 00 000c 800e 0080"
        "| 00 00 001c | 02 03 04 02 | cafe0001 | 03 00 0008 03 00 000c | 00 00 0008 05 00 0000",
    ),
    "KE": (KePayload(Group.CURVE25519, b"\xaa\xbb"), "001f 0000 | aabb"),  # 3.4
    "IDi": (  # 3.5
        IdPayload(PayloadType.IDi, Identity.address("192.0.2.1")),
        "01 000000 | c0000201",
    ),
    "IDr": (
        IdPayload(PayloadType.IDr, Identity.fqdn("gw.example")),
        "02 000000 | 67 77 2e 65 78 61 6d 70 6c 65",
    ),
    "CERT": (CertPayload(4, b"\x30"), "04 | 30"),  # 3.6
    "CERTREQ": (CertReqPayload(4, b"\x11"), "04 | 11"),  # 3.7
    "AUTH": (AuthPayload(2, b"\1\2"), "02 000000 | 0102"),  # 3.8
    "Nonce": (NoncePayload(bytes(range(16))), "000102030405060708090a0b0c0d0e0f"),  # 3.9
    "Notify": (  # 3.10
        NotifyPayload(NotifyType.REKEY_SA, b"", Protocol.ESP, b"\0\0\1\0"),
        "03 04 4009 | 00000100",
    ),
    "COOKIE": (NotifyPayload(NotifyType.COOKIE, b"\x0c"), "00 00 4006 | 0c"),
    "Delete of children": (  # 3.11
        DeletePayload(Protocol.ESP, (b"\0\0\1\0", b"\0\0\2\0")),
        "03 04 0002 | 00000100 | 00000200",
    ),
    "Delete of the IKE SA": (DeletePayload(Protocol.IKE), "01 00 0000"),
    "Vendor": (VendorPayload(b"kube"), "6b756265"),  # 3.12
    "TSi": (  # 3.13
        TsPayload(
            PayloadType.TSi,
            (
                TrafficSelector.network("10.1.0.0/16", protocol=6, start_port=80, end_port=443),
                TrafficSelector.network("2001:db8::/64"),
            ),
        ),
        "02 000000"
        "| 07 06 0010 0050 01bb 0a010000 0a01ffff"
        "| 08 00 0028 0000 ffff"
        "  20010db8000000000000000000000000 20010db800000000ffffffffffffffff",
    ),
    "CP": (  # 3.15
        CpPayload(1, ((1, b""), (3, bytes((192, 0, 2, 53))))),
        "01 000000 | 0001 0000 | 0003 0004 c0000235",
    ),
    "EAP": (EapPayload(octets("02 07 0005 01")), "02 07 0005 01"),  # 3.16
    "unknown": (UnknownPayload(200, False, b"\5"), "05"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_payload(name: str) -> None:
    payload, text = GOLDEN[name]
    body = octets(text)
    # generic header, 3.2: no next payload, not critical, length includes the header
    chain = b"\0\0" + (4 + len(body)).to_bytes(2) + body
    assert encode_payloads([payload]) == (payload.type, chain)
    assert decode_payloads(payload.type, memoryview(chain), limit=1) == [payload]


def test_message() -> None:
    """3.1: a COOKIE request, then a chain of two payloads."""
    data = encode_clear(
        b"initiatr",
        bytes(8),
        34,
        0x08,
        0,
        [NotifyPayload(NotifyType.COOKIE, b"\xc0"), NoncePayload(bytes(16))],
    )
    assert data == octets(
        "696e697469617472 | 0000000000000000 | 29 20 22 08 | 00000000 | 00000039"
        "| 28 00 0009 00 00 4006 c0"
        "| 00 00 0014 00000000000000000000000000000000"
    )
    header = decode_header(data)
    assert header.initiator
    assert not header.response


class TestHeader:
    def header(self, **changes: int) -> bytes:
        return Header(b"i" * 8, b"r" * 8, 0, 37, 0x20, 7, 28)._replace(**changes).encode()

    def test_flags(self) -> None:
        header = decode_header(self.header())
        assert header.response
        assert not header.initiator
        assert (header.exchange, header.message_id) == (37, 7)

    def test_minor_version_is_ignored(self) -> None:
        assert decode_header(self.header(minor=9)).minor == 9

    def test_short(self) -> None:
        with pytest.raises(InvalidSyntax):
            decode_header(self.header()[:27])

    @pytest.mark.parametrize("length", [0, 27, 29, 2**32 - 1])
    def test_other_length_than_it_says(self, length: int) -> None:
        with pytest.raises(InvalidSyntax):
            decode_header(self.header(length=length))

    def test_higher_version(self) -> None:
        data = self.header(major=3)
        with pytest.raises(InvalidMajorVersion):
            decode_header(data)
        assert Header.parse(data).message_id == 7

    def test_lower_version_gets_no_answer(self) -> None:
        with pytest.raises(InvalidSyntax):
            decode_header(self.header(major=1))

    def test_spi_of_wrong_length(self) -> None:
        with pytest.raises(LocalMisuse):
            Header(b"i", b"r" * 8, 0, 37, 0, 0, 28).encode()
