"""Identities of the resources to the octets that IKE carries (RFC 7296 3.5)."""

from __future__ import annotations

from cryptography import x509

from ipsec_api.tunnel import IdentityType
from ipsec_ike.identity import Identity


class BadIdentity(ValueError):
    """The text is no identity of its type. The message says what is wrong and how to write it."""


def identity(kind: IdentityType, value: str) -> Identity | None:
    """The identity, or None where the engine chooses (``auto``) or accepts any (``ignore``).

    A DN is written as RFC 4514 has it (``CN=gw,O=Example,C=DE``: most specific first). A key ID is
    text, or ``0x`` and hexadecimal digits.
    """
    try:
        match kind:
            case IdentityType.AUTO | IdentityType.IGNORE:
                return None
            case IdentityType.ADDRESS:
                return Identity.address(value)
            case IdentityType.FQDN:
                return Identity.fqdn(value)
            case IdentityType.EMAIL:
                return Identity.email(value)
            case IdentityType.DN:
                return Identity.dn(x509.Name.from_rfc4514_string(value).public_bytes())
            case IdentityType.KEY_ID:
                if value.startswith("0x"):
                    return Identity.key_id(bytes.fromhex(value[2:]))
                return Identity.key_id(value.encode())
    except ValueError as exc:
        raise BadIdentity(f"{value!r} is not an identity of type {kind.value}: {exc}") from exc
