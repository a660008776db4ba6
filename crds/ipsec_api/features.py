"""What the resources can say and this release does not do yet.

A field in these tables makes ``compile`` reject the resource with ``NotYetSupported``; nothing that
a user asks for is ignored in silence. Who builds the behaviour deletes the line, and the reference
page (``docs/resources.md``) follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from ipsec_api.algorithms import DhGroup, EncryptionAlgorithm, HashAlgorithm
from ipsec_api.peer import Authentication, IPsecPeerSpec
from ipsec_api.policy import IPsecPolicySpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unbuilt(Generic[T]):
    """``asked`` tells whether the part of a spec asks for it. ``field`` is relative to that
    part."""

    field: str
    asked: Callable[[T], bool]
    remedy: str


PEER: Final[tuple[Unbuilt[IPsecPeerSpec], ...]] = (
    Unbuilt("exchangeMode", lambda s: s.exchange_mode != "ike2", "set exchangeMode: ike2"),
    Unbuilt("profileRef", lambda s: s.profile_ref is not None, "write the profile in spec.profile"),
    Unbuilt(
        "deletionPolicy", lambda s: s.deletion_policy != "Graceful", "set deletionPolicy: Graceful"
    ),
    Unbuilt("deletionTimeout", lambda s: s.deletion_timeout != "60s", "remove it"),
)

#: Of spec.authentication and of each entry of spec.identities.
AUTHENTICATION: Final[tuple[Unbuilt[Authentication], ...]] = (
    Unbuilt("method", lambda a: a.method != "preSharedKey", "set method: preSharedKey"),
    Unbuilt("modeConfigRef", lambda a: a.mode_config_ref is not None, "remove it"),
)

POLICY: Final[tuple[Unbuilt[IPsecPolicySpec], ...]] = (
    Unbuilt(
        "ipsecProtocols",
        lambda s: len(s.ipsec_protocols) > 1,
        "IKEv2 agrees on one protocol for each SA; write [esp], which proves the origin too, or"
        " [ah]",
    ),
    Unbuilt("proposalRef", lambda s: s.proposal_ref is not None, "write it in spec.proposal"),
    Unbuilt(
        "selectors",
        lambda s: any(x.src_from is not None for x in s.selectors or ()),
        "write the networks in src instead of srcFrom",
    ),
)

#: The kind as a whole.
MODE_CONFIG_BUILT: Final = False

#: Names that the models know and the engine does not.
ALGORITHMS: Final[frozenset[str]] = frozenset(
    {
        EncryptionAlgorithm.CAMELLIA128,
        EncryptionAlgorithm.CAMELLIA192,
        EncryptionAlgorithm.CAMELLIA256,
        EncryptionAlgorithm.TWOFISH,
        EncryptionAlgorithm.BLOWFISH,
        EncryptionAlgorithm.DES3,
        EncryptionAlgorithm.DES,
        EncryptionAlgorithm.NULL,
        HashAlgorithm.MD5,
        DhGroup.MODP1536,
        DhGroup.MODP1024,
        DhGroup.MODP768,
        DhGroup.EC2N155,
        DhGroup.EC2N185,
    }
)
