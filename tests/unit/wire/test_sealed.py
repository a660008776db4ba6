"""SK and SKF payloads over a transparent cipher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsec_ike.config import Limits
from ipsec_ike.errors import (
    IntegrityFailure,
    InvalidSyntax,
    LocalMisuse,
    UnsupportedCriticalPayload,
)
from ipsec_ike.numbers import PayloadType
from ipsec_ike.wire.fragment import Reassembler, seal_fragments
from ipsec_ike.wire.message import (
    Header,
    decode_header,
    encode_payloads,
    open_sk,
    seal,
    seal_chain,
)
from ipsec_ike.wire.payloads import NoncePayload, Payload, UnknownPayload, VendorPayload

Make = Callable[..., Any]
I, R = b"i" * 8, b"r" * 8  # noqa: E741  RFC 7296's own names for the two SPIs


def rng(count: int) -> bytes:
    return b"\xee" * count


def sealed(payloads: list[Payload], cipher: Any, message_id: int = 3) -> bytes:
    return seal(I, R, 37, 0x08, message_id, payloads, cipher, rng)


def opened(data: bytes, cipher: Any, limit: int = 16) -> list[Payload]:
    return open_sk(data, decode_header(data), cipher, limit=limit)


def raw(plaintext: bytes, first: int, cipher: Any, before: bytes = b"", kind: int = 46) -> bytes:
    """A correctly protected message with exactly this plaintext, padding and all."""
    length = 28 + len(before) + 4 + cipher.iv_length + len(plaintext) + cipher.icv_length
    aad = Header(I, R, kind, 37, 8, 3, length).encode() + before
    aad += bytes((first, 0)) + (length - 28 - len(before)).to_bytes(2)
    iv = rng(cipher.iv_length)
    return aad + iv + bytes(cipher.seal(aad, iv, plaintext))


class TestSk:
    def test_golden(self, plain_cipher: Make) -> None:
        """RFC 7296 3.14, empty INFORMATIONAL of an AEAD cipher: no padding, pad length 0."""
        cipher = plain_cipher(icv_length=4)
        data = sealed([], cipher)
        assert data[:-4] == bytes.fromhex(
            "6969696969696969 7272727272727272 2e202508 00000003 0000002d"
            "0000 0011 eeeeeeeeeeeeeeee 00"
        )
        assert opened(data, cipher) == []

    @pytest.mark.parametrize("block_size", [1, 4, 8, 16])
    @pytest.mark.parametrize("size", range(20))
    def test_alignment(self, plain_cipher: Make, block_size: int, size: int) -> None:
        cipher = plain_cipher(iv_length=block_size, block_size=block_size)
        payloads: list[Payload] = [VendorPayload(bytes(size)), NoncePayload(bytes(16))]
        data = sealed(payloads, cipher)
        assert opened(data, cipher) == payloads
        padding = data[-17]
        assert padding < block_size
        assert len(data) == 28 + 4 + block_size + (4 + size) + 20 + padding + 1 + 16

    @pytest.mark.parametrize("padding", [0, 1, 16, 254, 255])
    def test_any_padding_is_taken(self, plain_cipher: Make, padding: int) -> None:
        cipher = plain_cipher()
        _, chain = encode_payloads([VendorPayload(b"v")])
        data = raw(chain + b"\xaa" * padding + bytes((padding,)), 43, cipher)
        assert opened(data, cipher) == [VendorPayload(b"v")]

    def test_padding_of_everything(self, plain_cipher: Make) -> None:
        assert opened(raw(bytes(255) + b"\xff", 0, plain_cipher()), plain_cipher()) == []

    @pytest.mark.parametrize("plaintext", [b"\1", b"\0\0\3", b"\xff" * 255])
    def test_more_padding_than_content(self, plain_cipher: Make, plaintext: bytes) -> None:
        with pytest.raises(InvalidSyntax):
            opened(raw(plaintext, 0, plain_cipher()), plain_cipher())

    def test_no_ciphertext(self, plain_cipher: Make) -> None:
        with pytest.raises(IntegrityFailure):
            opened(raw(b"", 0, plain_cipher()), plain_cipher())

    def test_not_a_block(self, plain_cipher: Make) -> None:
        data = raw(bytes(15), 0, plain_cipher())
        with pytest.raises(IntegrityFailure):
            opened(data, plain_cipher(block_size=16))

    def test_every_bit_is_covered(self, plain_cipher: Make) -> None:
        cipher = plain_cipher()
        data = sealed([VendorPayload(b"v")], cipher)
        for index in range(len(data)):
            changed = bytearray(data)
            changed[index] ^= 1
            with pytest.raises(IntegrityFailure):
                open_sk(bytes(changed), Header.parse(bytes(changed)), cipher, limit=4)

    def test_unknown_payload_before_is_ignored(self, plain_cipher: Make) -> None:
        data = raw(b"\0", 0, plain_cipher(), before=bytes((46, 0, 0, 5, 9)), kind=200)
        assert opened(data, plain_cipher()) == []

    @pytest.mark.parametrize(
        ("before", "kind"),
        [
            pytest.param(bytes((46, 0x80, 0, 5, 9)), 200, id="critical"),
            pytest.param(bytes((46, 0, 0, 5, 9)), PayloadType.VENDOR, id="known"),
            pytest.param(bytes((46, 0, 0, 5, 9)), PayloadType.SKF, id="SKF"),
            pytest.param(bytes((46, 0, 0, 3)), 200, id="length"),
            pytest.param(b"", 0, id="none"),
            pytest.param(bytes((46, 0, 255, 255)), 200, id="beyond the end"),
        ],
    )
    def test_unprotected_payloads_are_refused(
        self, plain_cipher: Make, before: bytes, kind: int
    ) -> None:
        with pytest.raises(IntegrityFailure):
            opened(raw(b"\0", 0, plain_cipher(), before=before, kind=kind), plain_cipher())

    def test_payload_after_sk(self, plain_cipher: Make) -> None:
        data = sealed([], plain_cipher()) + b"\0\0\0\5v"
        data = decode_header_length(data)
        with pytest.raises(IntegrityFailure):
            opened(data, plain_cipher())

    def test_many_payloads_before(self, plain_cipher: Make) -> None:
        data = raw(b"\0", 0, plain_cipher(), before=bytes((200, 0, 0, 4)) * 9, kind=200)
        with pytest.raises(IntegrityFailure):
            opened(data, plain_cipher(), limit=8)

    def test_critical_inside(self, plain_cipher: Make) -> None:
        data = sealed([UnknownPayload(99, True, b"")], plain_cipher())
        with pytest.raises(UnsupportedCriticalPayload):
            opened(data, plain_cipher())

    def test_too_large(self, plain_cipher: Make) -> None:
        with pytest.raises(LocalMisuse):
            sealed([VendorPayload(bytes(65520))], plain_cipher())


def decode_header_length(data: bytes) -> bytes:
    return Header.parse(data)._replace(length=len(data)).encode() + data[28:]


PAYLOADS: list[Payload] = [NoncePayload(bytes(range(200))), VendorPayload(b"v" * 300)]


def fragments(cipher: Any, max_size: int, message_id: int = 3) -> list[bytes]:
    return seal_fragments(I, R, 35, 0x08, message_id, PAYLOADS, cipher, rng, max_size=max_size)


class TestFragments:
    @pytest.mark.parametrize("block_size", [1, 16])
    @pytest.mark.parametrize("max_size", [80, 81, 95, 96, 97, 200, 540])
    def test_sizes(self, plain_cipher: Make, block_size: int, max_size: int) -> None:
        cipher = plain_cipher(block_size=block_size)
        parts = fragments(cipher, max_size)
        assert all(len(part) <= max_size for part in parts)
        assert len(parts[0]) > max_size - block_size  # no room is wasted
        receiver = Reassembler(Limits())
        results = [receiver.add(part, decode_header(part), cipher) for part in parts]
        assert results == [None] * (len(parts) - 1) + [PAYLOADS]
        assert receiver.pending == 0

    def test_golden(self, plain_cipher: Make) -> None:
        """RFC 7383 2.5: next payload only in the first; number and total before the IV."""
        first, second, *_ = fragments(plain_cipher(), 100)
        total = -(-508 // (100 - 61))
        assert (
            first[16:40]
            == bytes.fromhex("35202308 00000003 00000064 28000048 0001")
            + bytes((0, total))
            + b"\xee" * 4
        )
        assert second[28:36] == bytes((0, 0, 0, 0x48, 0, 2, 0, total))

    def test_what_fits_is_not_fragmented(self, plain_cipher: Make) -> None:
        cipher = plain_cipher()
        whole = seal(I, R, 35, 0x08, 3, PAYLOADS, cipher, rng)
        assert fragments(cipher, len(whole)) == [whole]
        assert len(fragments(cipher, len(whole) - 1)) == 2

    def test_no_room(self, plain_cipher: Make) -> None:
        with pytest.raises(LocalMisuse):
            fragments(plain_cipher(), 60)

    def test_too_many(self, plain_cipher: Make) -> None:
        with pytest.raises(LocalMisuse):
            seal_fragments(
                I,
                R,
                35,
                0,
                0,
                [VendorPayload(bytes(60000)), VendorPayload(bytes(60000))],
                plain_cipher(),
                rng,
                max_size=62,
            )

    @settings(max_examples=50)
    @given(st.data())
    def test_any_order_and_duplicates(self, data: st.DataObject) -> None:
        cipher = self.cipher
        parts = fragments(cipher, 120)
        order = data.draw(st.permutations(parts + parts[:3]))
        receiver = Reassembler(Limits())
        results = []
        for part in order:
            results.append(receiver.add(part, decode_header(part), cipher))
            if results[-1] is not None:
                break
        assert results[-1] == PAYLOADS

    @pytest.fixture(autouse=True)
    def _cipher(self, plain_cipher: Make) -> None:
        self.cipher = plain_cipher()

    def add(self, receiver: Reassembler, part: bytes) -> list[Payload] | None:
        return receiver.add(part, decode_header(part), self.cipher)

    def test_forgery_is_not_kept(self) -> None:
        receiver = Reassembler(Limits())
        part = bytearray(fragments(self.cipher, 120)[0])
        part[-1] ^= 1
        with pytest.raises(IntegrityFailure):
            self.add(receiver, bytes(part))
        assert receiver.pending == 0

    def test_forgery_of_another_message_drops_nothing(self) -> None:
        receiver = Reassembler(Limits())
        self.add(receiver, fragments(self.cipher, 120)[0])
        other = bytearray(fragments(self.cipher, 120, message_id=4)[0])
        other[-1] ^= 1
        with pytest.raises(IntegrityFailure):
            self.add(receiver, bytes(other))
        assert receiver.pending == 1

    def test_higher_total_starts_anew(self) -> None:
        """RFC 7383 2.6: the peer found that smaller pieces are needed."""
        receiver = Reassembler(Limits())
        large, small = fragments(self.cipher, 300), fragments(self.cipher, 120)
        assert len(small) > len(large)
        assert self.add(receiver, large[0]) is None
        assert [self.add(receiver, part) for part in small[:-1]] == [None] * (len(small) - 1)
        assert self.add(receiver, large[1]) is None  # a late one of the earlier attempt
        assert self.add(receiver, small[-1]) == PAYLOADS

    def test_other_message_starts_anew(self) -> None:
        receiver = Reassembler(Limits())
        self.add(receiver, fragments(self.cipher, 120)[1])
        other: list[Payload] = [VendorPayload(b"w" * 504)]  # as long as the first message
        parts = seal_fragments(I, R, 35, 8, 4, other, self.cipher, rng, max_size=120)
        assert [self.add(receiver, part) for part in parts][-1] == other

    def test_reset(self) -> None:
        receiver = Reassembler(Limits())
        self.add(receiver, fragments(self.cipher, 120)[1])
        receiver.reset()
        assert receiver.pending == 0

    def test_limits_are_inclusive(self) -> None:
        parts = fragments(self.cipher, 120)
        receiver = Reassembler(Limits(fragments=len(parts), message_size=508))
        assert [self.add(receiver, part) for part in parts][-1] == PAYLOADS

    def test_limit_of_fragments(self) -> None:
        receiver = Reassembler(Limits(fragments=2))
        with pytest.raises(IntegrityFailure):
            self.add(receiver, fragments(self.cipher, 120)[0])
        assert receiver.pending == 0

    def test_limit_of_size(self) -> None:
        receiver = Reassembler(Limits(message_size=200))
        parts = fragments(self.cipher, 150)
        self.add(receiver, parts[0])
        self.add(receiver, parts[1])
        with pytest.raises(InvalidSyntax):
            self.add(receiver, parts[2])

    @pytest.mark.parametrize(
        ("first", "number", "total"), [(43, 0, 1), (43, 2, 1), (43, 0, 0), (0, 1, 2), (43, 2, 2)]
    )
    def test_fields(self, first: int, number: int, total: int) -> None:
        fields = number.to_bytes(2) + total.to_bytes(2)
        header = Header(I, R, PayloadType.SKF, 35, 8, 3, 0)
        part = seal_chain(header, first, fields, b"\0\0\0\4", self.cipher, rng)
        with pytest.raises(IntegrityFailure):
            self.add(Reassembler(Limits()), part)

    def test_shorter_than_its_fields(self) -> None:
        part = Header(I, R, PayloadType.SKF, 35, 8, 3, 34).encode() + bytes((0, 0, 0, 6, 0, 1))
        with pytest.raises(IntegrityFailure):
            self.add(Reassembler(Limits()), part)

    def test_sk_is_no_fragment(self) -> None:
        with pytest.raises(IntegrityFailure):
            self.add(Reassembler(Limits()), sealed([], self.cipher))
