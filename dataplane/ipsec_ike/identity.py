"""Identities as IKE carries them: a type and its octets (RFC 7296 3.5)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from ipsec_ike.numbers import IdType


@dataclass(frozen=True, slots=True)
class Identity:
    """The body of an IDi or IDr payload. Compared octet by octet, never case-folded.

    RFC 7296 3.5 leaves matching to policy; a byte comparison is the only one that cannot be talked
    into accepting somebody else.
    """

    type: int
    data: bytes

    @classmethod
    def address(cls, text: str) -> Identity:
        """ID_IPV4_ADDR or ID_IPV6_ADDR. Raises ValueError if the text is no address."""
        ip = ipaddress.ip_address(text)
        return cls(IdType.IPV4_ADDR if ip.version == 4 else IdType.IPV6_ADDR, ip.packed)

    @classmethod
    def fqdn(cls, name: str) -> Identity:
        """ID_FQDN, without a trailing dot."""
        return cls(IdType.FQDN, name.rstrip(".").encode("ascii"))

    @classmethod
    def email(cls, name: str) -> Identity:
        """ID_RFC822_ADDR."""
        return cls(IdType.RFC822_ADDR, name.encode("utf-8"))

    @classmethod
    def key_id(cls, data: bytes) -> Identity:
        """ID_KEY_ID: opaque octets."""
        return cls(IdType.KEY_ID, data)

    @classmethod
    def dn(cls, der: bytes) -> Identity:
        """ID_DER_ASN1_DN: the DER encoding of a Name."""
        return cls(IdType.DER_ASN1_DN, der)

    def __str__(self) -> str:
        kind = IdType(self.type)
        if kind in (IdType.IPV4_ADDR, IdType.IPV6_ADDR) and len(self.data) in (4, 16):
            return str(ipaddress.ip_address(self.data))
        if kind in (IdType.FQDN, IdType.RFC822_ADDR):
            text = self.data.decode("utf-8", "backslashreplace")
            return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
        return f"{kind.name}:{self.data.hex()}"
