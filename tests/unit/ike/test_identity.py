"""Identities: RFC 7296 3.5."""

from __future__ import annotations

import pytest

from ipsec_ike.identity import Identity


@pytest.mark.parametrize(
    ("identity", "kind", "data", "text"),
    [
        (Identity.address("192.0.2.1"), 1, b"\xc0\0\2\1", "192.0.2.1"),
        (Identity.address("2001:DB8::1"), 5, b"\x20\1\x0d\xb8" + bytes(11) + b"\1", "2001:db8::1"),
        (Identity.fqdn("gw.example."), 2, b"gw.example", "gw.example"),
        (Identity.email("a@example"), 3, b"a@example", "a@example"),
        (Identity.key_id(b"\0\1"), 11, b"\0\1", "KEY_ID:0001"),
        (Identity.dn(b"\x30\0"), 9, b"\x30\0", "DER_ASN1_DN:3000"),
        (Identity(201, b"x"), 201, b"x", "UNKNOWN_201:78"),
        (Identity(1, b"abc"), 1, b"abc", "IPV4_ADDR:616263"),
    ],
)
def test_identity(identity: Identity, kind: int, data: bytes, text: str) -> None:
    assert (identity.type, identity.data) == (kind, data)
    assert str(identity) == text


def test_no_address() -> None:
    with pytest.raises(ValueError, match="appear"):
        Identity.address("gw.example")


@pytest.mark.parametrize("data", [b"a\nb\x1b[31m", b"\xff\xfe", "\u202e".encode()])
def test_text_cannot_forge_a_log_line(data: bytes) -> None:
    assert str(Identity(2, data)).isprintable()


def test_comparison_is_of_octets() -> None:
    assert Identity.fqdn("A.example") != Identity.fqdn("a.example")
    assert Identity.fqdn("a@b") != Identity.email("a@b")
