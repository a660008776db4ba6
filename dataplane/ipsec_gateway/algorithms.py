"""Algorithm names of the resources to the proposals of the engine.

Combined-mode ciphers exclude an integrity transform, all others require one, so a list that names
both kinds becomes two proposals (RFC 7296 3.3); the kind that is named first comes first.

Thousands of tunnels have the same few lists: equal lists give the same objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ipsec_api import algorithms as names
from ipsec_api.tunnel import TunnelProposal
from ipsec_gateway.ipsec.abilities import Abilities
from ipsec_ike.numbers import Esn, Group, Prf, Protocol, TransformType
from ipsec_ike.proposal import Proposal, Transform


class UnknownAlgorithm(ValueError):
    """A name that is not in the tables of ``ipsec_api.algorithms``, or has no number in IKEv2."""


class NothingLeft(ValueError):
    """The data plane can do none of the proposals. The message says which algorithms it has."""


#: PRFs of a proposal that names neither a PRF nor an integrity algorithm (RFC 7296 needs one).
DEFAULT_PRFS = (
    Transform(TransformType.PRF, Prf.HMAC_SHA2_256),
    Transform(TransformType.PRF, Prf.HMAC_SHA2_384),
    Transform(TransformType.PRF, Prf.HMAC_SHA2_512),
)


@lru_cache(maxsize=1024)
def ike_proposals(listed: tuple[TunnelProposal, ...]) -> tuple[Proposal, ...]:
    """Proposals for an IKE SA. Raises UnknownAlgorithm."""
    result: list[tuple[Transform, ...]] = []
    for each in listed:
        prfs = tuple(_prf(name) for name in each.prf or each.integrity) or DEFAULT_PRFS
        groups = tuple(_group(name) for name in each.groups)
        for ciphers, integrity in _kinds(each):
            result.append((*ciphers, *prfs, *integrity, *groups))
    return _numbered(Protocol.IKE, result)


@lru_cache(maxsize=1024)
def esp_proposals(listed: tuple[TunnelProposal, ...]) -> tuple[Proposal, ...]:
    """Proposals for an ESP SA; groups are those for perfect forward secrecy."""
    result: list[tuple[Transform, ...]] = []
    for each in listed:
        groups = tuple(_group(name) for name in each.groups)
        for ciphers, integrity in _kinds(each):
            result.append((*ciphers, *integrity, *groups, *_esn(each)))
    return _numbered(Protocol.ESP, result)


@lru_cache(maxsize=1024)
def ah_proposals(listed: tuple[TunnelProposal, ...]) -> tuple[Proposal, ...]:
    """Proposals for an AH SA."""
    return _numbered(
        Protocol.AH,
        [
            (
                *(_integrity(name) for name in each.integrity),
                *(_group(name) for name in each.groups),
                *_esn(each),
            )
            for each in listed
        ],
    )


@lru_cache(maxsize=1024)
def restricted(proposals: tuple[Proposal, ...], abilities: Abilities) -> tuple[Proposal, ...]:
    """The ESP or AH proposals with what the data plane can do. Raises NothingLeft."""
    kept = []
    for proposal in proposals:
        ah = proposal.protocol == Protocol.AH
        found = tuple(t for t in proposal.transforms if abilities.can(t, ah=ah))
        types = {t.type for t in found}
        if {t.type for t in proposal.transforms} == types:
            kept.append(found)
    if not kept:
        asked = dict.fromkeys(str(t) for p in proposals for t in p.transforms if _protects(t))
        raise NothingLeft(
            f"the {abilities.dataplane} data plane of this gateway has none of"
            f" {', '.join(asked)}: name algorithms that it has (its log lists them)"
        )
    return _numbered(Protocol(proposals[0].protocol), kept)


def _protects(transform: Transform) -> bool:
    return transform.type in (TransformType.ENCR, TransformType.INTEG)


def _kinds(
    each: TunnelProposal,
) -> list[tuple[tuple[Transform, ...], tuple[Transform, ...]]]:
    """(ciphers, integrity) for the combined-mode ciphers and for the others."""
    ciphers = [_cipher(name) for name in each.encryption]
    integrity = tuple(_integrity(name) for name in each.integrity)
    combined = tuple(transform for aead, transform in ciphers if aead)
    plain = tuple(transform for aead, transform in ciphers if not aead)
    kinds: list[tuple[tuple[Transform, ...], tuple[Transform, ...]]] = []
    if combined:
        kinds.append((combined, ()))
    if plain:
        kinds.append((plain, integrity))
    if ciphers and not ciphers[0][0]:
        kinds.reverse()
    return kinds


def _numbered(protocol: Protocol, listed: Sequence[tuple[Transform, ...]]) -> tuple[Proposal, ...]:
    return tuple(
        Proposal(protocol, tuple(dict.fromkeys(transforms)), number=number)
        for number, transforms in enumerate(listed, start=1)
    )


def _esn(each: TunnelProposal) -> tuple[Transform, ...]:
    values = each.esn or (False,)
    return tuple(Transform(TransformType.ESN, Esn.ESN if value else Esn.NO_ESN) for value in values)


def _cipher(name: str) -> tuple[bool, Transform]:
    try:
        cipher = names.ENCRYPTION[names.EncryptionAlgorithm(name)]
    except ValueError:
        raise UnknownAlgorithm(f"no such cipher: {name}") from None
    if not cipher.id:
        raise UnknownAlgorithm(f"cipher {name} has no transform number in IKEv2")
    return cipher.aead, Transform(TransformType.ENCR, cipher.id, cipher.key_bits)


def _mac(name: str) -> names.Mac:
    try:
        return names.HASHES[names.HashAlgorithm(name)]
    except ValueError:
        raise UnknownAlgorithm(f"no such hash: {name}") from None


def _prf(name: str) -> Transform:
    return Transform(TransformType.PRF, _mac(name).prf_id)


def _integrity(name: str) -> Transform:
    return Transform(TransformType.INTEG, _mac(name).integrity_id)


def _group(name: str) -> Transform:
    if name == names.PfsGroup.NONE:
        return Transform(TransformType.KE, Group.NONE)
    try:
        return Transform(TransformType.KE, names.GROUPS[names.DhGroup(name)].id)
    except ValueError:
        raise UnknownAlgorithm(f"no such key exchange group: {name}") from None
