"""The cryptography of one SA on whole ESP packets (RFC 4303 2).

::

    octets 0       4       8                8+iv_length                 -icv_length
           | SPI   | seq   | IV             | ciphertext                | ICV          |

The associated data of a combined mode is SPI and sequence number, which with extended sequence
numbers is the whole 64-bit one (RFC 4106 5); with a separate integrity algorithm the high half is
authenticated behind the ciphertext (RFC 4303 2.2.1). IVs of counter modes are the 64-bit sequence
number, which never repeats under one key; CBC needs an unpredictable one.
"""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from ipsec_ike.actions import SaSpec
from ipsec_ike.crypto.ciphers import sk_cipher
from ipsec_ike.crypto.transforms import esp_transform
from ipsec_ike.errors import IntegrityFailure, LocalMisuse
from ipsec_ike.numbers import Encr

#: SPI and low half of the sequence number.
HEADER: Final = 8
Octets = bytes | bytearray | memoryview
Aead = AESGCM | AESCCM | ChaCha20Poly1305


class EspCipher:
    """One key in one direction.

    ``aead`` and ``salt`` are there for callers that encrypt many packets in a row themselves; with
    ``aead`` None only ``seal_into`` and ``open`` work. ``alignment`` is what payload, padding and
    the two trailer octets together are a multiple of. All sizes are octets.
    """

    __slots__ = (
        "_combined",
        "_random_iv",
        "_sk",
        "aead",
        "alignment",
        "esn",
        "icv_length",
        "iv_length",
        "salt",
    )

    def __init__(self, spec: SaSpec) -> None:
        """Raises LocalMisuse for suites that ESP does not have and for keys of the wrong length."""
        layout = esp_transform(spec.encryption, spec.integrity)
        key = spec.encryption_key.reveal()
        self._sk: Final = sk_cipher(
            spec.encryption, key, spec.integrity, spec.integrity_key.reveal()
        )
        self._random_iv: Final = spec.encryption.id in (Encr.AES_CBC, Encr.DES3)
        self._combined: Final = layout.aead
        self.esn: Final = spec.esn
        self.iv_length: Final = layout.iv_length
        self.icv_length: Final = layout.icv_length
        self.alignment: Final = layout.alignment
        self.salt: Final = key[-layout.salt :] if layout.salt else b""
        self.aead: Final = _aead(
            spec.encryption.id, key[: len(key) - layout.salt], layout.icv_length
        )

    @property
    def overhead(self) -> int:
        """Octets that a packet grows by at least: header, IV, pad length, next header, ICV."""
        return HEADER + self.iv_length + 2 + self.icv_length

    def seal_into(self, seq: int, plaintext: Octets, out: memoryview) -> None:
        """Fill IV, ciphertext and ICV of ``out``, whose first 8 octets are there already.

        ``plaintext`` includes the trailer; ``out`` has exactly the length of the packet.
        """
        body = HEADER + self.iv_length
        aead = self.aead
        if aead is not None:
            iv = seq.to_bytes(8, "big")
            out[8:16] = iv
            aad = bytes(out[:4]) + iv if self.esn else out[:8]
            aead.encrypt_into(self.salt + iv, plaintext, aad, out[body:])
            return
        iv = self._iv(seq)
        out[8:body] = iv
        aad, tail = self._associated(out, seq)
        out[body:] = self._sk.seal(aad, iv, plaintext, tail)

    def open(self, packet: memoryview, seq: int) -> Octets:
        """The plaintext with its trailer. Raises InvalidTag; ``packet`` holds header, IV, ICV."""
        body = HEADER + self.iv_length
        aead = self.aead
        if aead is not None:
            aad = bytes(packet[:4]) + seq.to_bytes(8, "big") if self.esn else packet[:8]
            return aead.decrypt(self.salt + packet[8:16], packet[body:], aad)
        aad, tail = self._associated(packet, seq)
        try:
            return self._sk.open(aad, bytes(packet[8:body]), packet[body:], tail)
        except (IntegrityFailure, ValueError) as exc:
            raise InvalidTag from exc

    def _iv(self, seq: int) -> bytes:
        if self._random_iv:
            return os.urandom(self.iv_length)
        return seq.to_bytes(8, "big")[: self.iv_length]

    def _associated(self, packet: memoryview, seq: int) -> tuple[bytes, bytes]:
        """(associated data, tail) for ``sk_cipher``."""
        if not self.esn:
            return bytes(packet[:8]), b""
        if self._combined:
            return bytes(packet[:4]) + seq.to_bytes(8, "big"), b""
        return bytes(packet[:8]), (seq >> 32).to_bytes(4, "big")


def check_keys(spec: SaSpec) -> None:
    """Raises LocalMisuse where ``EspCipher`` would, and makes nothing."""
    layout = esp_transform(spec.encryption, spec.integrity)
    lengths = len(spec.encryption_key), len(spec.integrity_key)
    wanted = layout.encryption_key, layout.integrity_key
    if lengths != wanted:
        raise LocalMisuse(f"keys of {lengths} octets where the suite takes {wanted}")


def _aead(encr: int, key: bytes, icv_length: int) -> Aead | None:
    """The library's object, where it computes an ICV of this length by itself."""
    if encr == Encr.AES_GCM_16:
        return AESGCM(key)
    if encr == Encr.CHACHA20_POLY1305:
        return ChaCha20Poly1305(key)
    if encr in (Encr.AES_CCM_8, Encr.AES_CCM_12, Encr.AES_CCM_16):
        return AESCCM(key, tag_length=icv_length)
    return None
