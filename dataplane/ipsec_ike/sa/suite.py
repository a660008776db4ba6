"""A chosen proposal, ready for use: algorithms, key lengths and a readable name.

Suites are shared by all SAs that chose the same, so an SA pays one reference for them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from ipsec_ike.crypto.prf import Prf, prf_for
from ipsec_ike.crypto.transforms import encr_key_octets, integ_key_octets
from ipsec_ike.errors import LocalMisuse
from ipsec_ike.numbers import Encr, Esn, Integ, Protocol, TransformType
from ipsec_ike.proposal import Proposal, Transform

_NULL: Final = Transform(TransformType.ENCR, Encr.NULL)


class IkeSuite:
    """The algorithms of an IKE SA. Key lengths are octets; ``encr_octets`` includes the salt."""

    __slots__ = (
        "encr",
        "encr_octets",
        "group",
        "integ",
        "integ_octets",
        "name",
        "prf",
        "transforms",
    )

    def __init__(self, transforms: tuple[Transform, ...]) -> None:
        self.transforms: Final = transforms
        one = {t.type: t for t in transforms}
        self.encr: Final = one[TransformType.ENCR]
        self.integ: Final = _integrity(one)
        self.prf: Final[Prf] = prf_for(one[TransformType.PRF].id)
        self.group: Final = one[TransformType.KE].id
        self.encr_octets: Final = encr_key_octets(self.encr)
        self.integ_octets: Final = integ_key_octets(self.integ)
        self.name: Final = _name(transforms)


class ChildSuite:
    """The algorithms of a CHILD_SA. For AH ``encr`` is NULL without a key."""

    __slots__ = (
        "encr",
        "encr_octets",
        "esn",
        "integ",
        "integ_octets",
        "name",
        "protocol",
        "transforms",
    )

    def __init__(self, protocol: int, transforms: tuple[Transform, ...]) -> None:
        self.transforms: Final = transforms
        one = {t.type: t for t in transforms}
        self.protocol: Final = protocol
        self.encr: Final = one.get(TransformType.ENCR, _NULL)
        self.integ: Final = _integrity(one)
        esn = one.get(TransformType.ESN)
        self.esn: Final = esn is not None and esn.id == Esn.ESN
        self.encr_octets: Final = encr_key_octets(self.encr)
        self.integ_octets: Final = integ_key_octets(self.integ)
        if protocol == Protocol.ESP and self.encr.id == Encr.NULL and self.integ is None:
            raise LocalMisuse("ESP with neither encryption nor integrity")
        self.name: Final = _name(transforms)


def ike_suite(chosen: Proposal) -> IkeSuite:
    """The suite of a chosen IKE proposal."""
    return _ike_suite(chosen.transforms)


def child_suite(chosen: Proposal) -> ChildSuite:
    """The suite of a chosen ESP or AH proposal."""
    return _child_suite(chosen.protocol, chosen.transforms)


# What is chosen is always in our configuration, so strangers cannot fill these.
_ike_suite = lru_cache(maxsize=1024)(IkeSuite)
_child_suite = lru_cache(maxsize=1024)(ChildSuite)


def _integrity(one: dict[int, Transform]) -> Transform | None:
    integ = one.get(TransformType.INTEG)
    return None if integ is None or integ.id == Integ.NONE else integ


def _name(transforms: tuple[Transform, ...]) -> str:
    """Like ``AES_GCM_16_256/HMAC_SHA2_256/CURVE25519``; what is NONE is left out."""
    shown = (t for t in transforms if t.id or t.type == TransformType.ENCR)
    return "/".join(str(t) for t in shown if t.type != TransformType.ESN or t.id)
