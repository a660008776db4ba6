"""Identities and their keys: what the Secrets of a snapshot say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import SecretBytes

from ipsec_api.peer import Authentication, IPsecPeerSpec, PeerIdentity
from ipsec_api.references import SecretRef
from ipsec_api.rejection import Reason
from ipsec_api.snapshot import Secret
from ipsec_api.tunnel import IdentityType, TunnelIdentity

#: (field, reason, message)
Fault = tuple[str, Reason, str]


class CredentialError(Exception):
    """A key cannot be had. The text never holds the key."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class SecretIndex:
    """The Secrets of a snapshot by namespace and name."""

    _data: Mapping[tuple[str, str], Mapping[str, bytes]] = field(repr=False)

    @classmethod
    def of(cls, secrets: Iterable[Secret]) -> SecretIndex:
        return cls({s.metadata.key: s.data for s in secrets})

    def keys(self, namespace: str, ref: SecretRef) -> tuple[bytes, bytes | None]:
        """The pre-shared key and, during a rotation, the previous one.

        Raises CredentialError: no such Secret, no such key in it, an empty one, or 0x without hex.
        """
        data = self._data.get((namespace, ref.name))
        if data is None:
            message = f"no Secret {namespace}/{ref.name}: create it with the key {ref.key}"
            raise CredentialError("SecretNotFound", message)
        if ref.key not in data:
            message = (
                f"Secret {namespace}/{ref.name} has no key {ref.key}: add it, or set secretRef.key"
            )
            raise CredentialError("KeyMissing", message)
        previous = f"{ref.key}-previous"
        place = f"key {{}} of Secret {namespace}/{ref.name}"
        return (
            pre_shared_key(data[ref.key], place.format(ref.key)),
            pre_shared_key(data[previous], place.format(previous)) if previous in data else None,
        )


def pre_shared_key(value: bytes, place: str) -> bytes:
    """The octets that a Secret's value stands for.

    One trailing newline is removed (editors and ``kubectl create secret --from-file`` leave it). A
    value that begins with ``0x`` is hexadecimal, anything else is taken octet by octet (RFC 7296
    2.15). Raises CredentialError, whose text names ``place`` and no part of the value.
    """
    text = value.removesuffix(b"\n").removesuffix(b"\r")
    if not text.startswith(b"0x"):
        if not text:
            raise CredentialError("KeyMissing", f"{place} is empty: set the pre-shared key")
        return text
    try:
        key = bytes.fromhex(text[2:].decode("ascii"))
    except ValueError:
        message = (
            f"{place} begins with 0x and is not hexadecimal: write pairs of the digits 0-9, a-f"
        )
        raise CredentialError("Invalid", message) from None
    if not key:
        raise CredentialError("KeyMissing", f"{place} is empty: set the pre-shared key")
    return key


def entries(spec: IPsecPeerSpec) -> Iterator[tuple[str, str, Authentication]]:
    """(name, field, entry) of each identity of a peer."""
    if spec.authentication is not None:
        yield "default", "spec.authentication", spec.authentication
    for number, identity in enumerate(spec.identities or ()):
        yield identity.name, f"spec.identities[{number}]", identity


def resolve(
    namespace: str, spec: IPsecPeerSpec, secrets: SecretIndex
) -> tuple[list[TunnelIdentity], list[Fault]]:
    """The identities of a peer with their keys. Only pre-shared keys are looked up."""
    identities: list[TunnelIdentity] = []
    faults: list[Fault] = []
    remotes: dict[tuple[IdentityType, str], str] = {}
    for name, where, entry in entries(spec):
        local, remote = _pair(entry.local_id), _pair(entry.remote_id)
        # Whatever is expected, "anybody" cannot be told from "anybody" (nor from an automatic ID).
        kind, value = remote
        expected = (IdentityType.IGNORE, "") if not value else (kind, value)
        if expected in remotes:
            message = (
                f"{remotes[expected]} expects the same remote identity, so this one would never be"
                " found: give each identity a remoteID of its own"
            )
            faults.append((f"{where}.remoteID", "Invalid", message))
            continue
        remotes[expected] = where
        if entry.secret_ref is None or entry.method != "preSharedKey":
            continue
        try:
            psk, previous = secrets.keys(namespace, entry.secret_ref)
        except CredentialError as exc:
            faults.append((f"{where}.secretRef", exc.reason, str(exc)))
            continue
        identities.append(
            TunnelIdentity(
                name=name,
                local_type=local[0],
                local_value=local[1],
                remote_type=kind,
                remote_value=value,
                psk=SecretBytes(psk),
                psk_previous=None if previous is None else SecretBytes(previous),
                generate=entry.generate_policy,
                template_group=entry.policy_template_group or "",
            )
        )
    return identities, faults


def _pair(identity: PeerIdentity | None) -> tuple[IdentityType, str]:
    if identity is None:
        return IdentityType.AUTO, ""
    return identity.type, identity.value or ""
