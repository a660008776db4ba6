"""Algorithm names of a spec to proposals, and what is to be said about the names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from ipsec_api import features
from ipsec_api.algorithms import (
    DEFAULT_HASHES,
    AutoHash,
    EncryptionAlgorithm,
    HashAlgorithm,
    PfsGroup,
    insecure_names,
    is_aead,
)
from ipsec_api.peer import Profile
from ipsec_api.policy import Proposal
from ipsec_api.rejection import Reason
from ipsec_api.tunnel import TunnelProposal

_INSECURE = insecure_names()


def _runs(
    names: Sequence[EncryptionAlgorithm],
) -> Iterator[tuple[bool, tuple[EncryptionAlgorithm, ...]]]:
    """Combined-mode ciphers and the others may not share a proposal (RFC 7296 3.3), and a change of
    kind in the list is a change of preference: each run becomes one proposal."""
    for aead, run in groupby(names, key=is_aead):
        yield aead, tuple(run)


def _texts(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(n) for n in names)


def ike_proposals(profile: Profile) -> tuple[TunnelProposal, ...]:
    """Proposals of the IKE SA, most preferred first."""
    hashes = _hashes(profile.hash)
    prfs = hashes if profile.prf is AutoHash.AUTO else _hashes(profile.prf)
    return tuple(
        TunnelProposal(
            encryption=_texts(run),
            integrity=() if aead else _texts(hashes),
            prf=_texts(prfs),
            groups=_texts(profile.dh_groups),
        )
        for aead, run in _runs(profile.enc_algorithms)
    )


def child_proposals(
    proposal: Proposal, profile: Profile, *, ah: bool = False
) -> tuple[TunnelProposal, ...]:
    """Proposals of a child SA, most preferred first. With AH there is nothing to encrypt, so the
    ciphers do not matter."""
    if proposal.pfs_group is PfsGroup.NONE:
        groups: tuple[str, ...] = ()
    elif proposal.pfs_group is PfsGroup.AUTO:
        groups = _texts(profile.dh_groups)
    else:
        groups = (str(proposal.pfs_group),)
    esn = (True, False) if proposal.esn else (False,)
    hashes = _texts(proposal.auth_algorithms or DEFAULT_HASHES)
    if ah:
        return (TunnelProposal(encryption=(), integrity=hashes, groups=groups, esn=esn),)
    return tuple(
        TunnelProposal(
            encryption=_texts(run),
            integrity=() if aead else hashes,
            groups=groups,
            esn=esn,
        )
        for aead, run in _runs(proposal.enc_algorithms)
    )


def _hashes(name: AutoHash) -> tuple[HashAlgorithm, ...]:
    return DEFAULT_HASHES if name is AutoHash.AUTO else (HashAlgorithm(str(name)),)


def profile_names(profile: Profile) -> dict[str, tuple[str, ...]]:
    """The algorithm names of a profile by field."""
    return {
        "encAlgorithms": _texts(profile.enc_algorithms),
        "hash": (str(profile.hash),),
        "prf": (str(profile.prf),),
        "dhGroups": _texts(profile.dh_groups),
    }


def proposal_names(proposal: Proposal) -> dict[str, tuple[str, ...]]:
    """The algorithm names of a proposal by field."""
    return {
        "encAlgorithms": _texts(proposal.enc_algorithms),
        "authAlgorithms": _texts(proposal.auth_algorithms),
        "pfsGroup": (str(proposal.pfs_group),),
    }


def judge(
    names: dict[str, tuple[str, ...]], *, allow_insecure: bool, where: str
) -> tuple[list[tuple[str, Reason, str]], list[tuple[str, Reason, str]]]:
    """(faults, warnings) about names, each as (field, reason, message).

    ``where`` says in words which resource must have ``allowInsecure``.
    """
    faults: list[tuple[str, Reason, str]] = []
    warnings: list[tuple[str, Reason, str]] = []
    for field, values in names.items():
        insecure = [v for v in values if v in _INSECURE]
        unbuilt = [v for v in values if v in features.ALGORITHMS]
        if insecure and not allow_insecure:
            message = (
                f"{', '.join(insecure)} is not safe any more: take another algorithm, or set"
                f" allowInsecure: true on {where}"
            )
            faults.append((field, "InsecureAlgorithm", message))
        elif unbuilt:
            message = f"{', '.join(unbuilt)} is not built yet: take another algorithm"
            faults.append((field, "NotYetSupported", message))
        elif insecure:
            message = f"{', '.join(insecure)} is not safe any more: take another algorithm soon"
            warnings.append((field, "InsecureAlgorithm", message))
    return faults, warnings
