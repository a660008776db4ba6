"""What two lists of proposals have in common (RFC 7296 2.7, 3.3).

Our order of preference wins over the peer's, except that a key exchange method for which the peer
has already sent a KE payload is taken if we accept it: it saves a round trip.

"None" has several spellings that mean the same: no INTEG transform or NONE beside a combined-mode
cipher, no ESN transform or NO_ESN, no KE transform or NONE. An answer repeats the spelling of the
offer. A transform type that we do not know makes a proposal unacceptable unless it offers ID 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from ipsec_ike.numbers import Esn, Group, Integ, Protocol, TransformType
from ipsec_ike.proposal import AEAD, Proposal, Transform

#: What absence of a type stands for.
_ABSENT: Final[dict[int, Transform]] = {
    TransformType.INTEG: Transform(TransformType.INTEG, Integ.NONE),
    TransformType.KE: Transform(TransformType.KE, Group.NONE),
    TransformType.ESN: Transform(TransformType.ESN, Esn.NO_ESN),
}
_NO_INTEG: Final = _ABSENT[TransformType.INTEG]
_LEFT_OUT: Final = "none"

Transforms = tuple[Transform, ...]

#: The same offers come over and over. Longer ones are not remembered, so that strangers can make
#: the memory of them neither large nor slow.
_CACHED_LENGTH: Final = 16


def without_ke(proposals: Sequence[Proposal]) -> tuple[Proposal, ...]:
    """The proposals without key exchange methods, as IKE_AUTH carries them (RFC 7296 1.2)."""
    return tuple(map(_without_ke, proposals))


def _without_ke(proposal: Proposal) -> Proposal:
    kept = tuple([t for t in proposal.transforms if t.type != TransformType.KE])
    if len(kept) == len(proposal.transforms):
        return proposal
    return Proposal(proposal.protocol, kept, proposal.spi, proposal.number)


def with_spi(proposals: Sequence[Proposal], spi: bytes) -> tuple[Proposal, ...]:
    """The proposals numbered from 1, each with our SPI."""
    return tuple(
        Proposal(p.protocol, p.transforms, spi, number)
        for number, p in enumerate(proposals, start=1)
    )


def groups(proposals: Sequence[Proposal]) -> tuple[int, ...]:
    """The key exchange methods in order of preference, without NONE and duplicates."""
    found = dict.fromkeys(
        t.id for p in proposals for t in p.transforms if t.type == TransformType.KE and t.id
    )
    return tuple(found)


def choose(
    ours: Sequence[Proposal], theirs: Sequence[Proposal], *, ke: int | None = None
) -> Proposal | None:
    """The proposal to answer with: the peer's number and SPI, one transform of each type.

    ``ke`` is the group of the KE payload that came with the offer, if any.
    """
    for own in ours:
        for offered in theirs:
            transforms = _common(own, offered, ke)
            if transforms is not None:
                return Proposal(offered.protocol, transforms, offered.spi, offered.number)
    return None


def confirm(ours: Sequence[Proposal], answer: Sequence[Proposal]) -> Proposal | None:
    """The peer's choice if it is one of what we offered, else None.

    ``ours`` are numbered as they were sent. The result has the peer's SPI.
    """
    if len(answer) != 1:
        return None
    chosen = answer[0]
    for own in ours:
        if own.number != chosen.number:
            continue
        types = [t.type for t in chosen.transforms]
        if len(types) != len(set(types)):
            return None
        transforms = _common(own, chosen, None)
        if transforms is not None:
            return Proposal(chosen.protocol, transforms, chosen.spi, chosen.number)
    return None


def _common(ours: Proposal, theirs: Proposal, ke: int | None) -> Transforms | None:
    if ours.protocol != theirs.protocol:
        return None
    agree = _agree_cached if len(theirs.transforms) <= _CACHED_LENGTH else _agree
    return agree(ours.transforms, theirs.transforms, ke)


def _agree(ours: Transforms, theirs: Transforms, ke: int | None) -> Transforms | None:
    own, other = _by_type(ours), _by_type(theirs)
    chosen: list[Transform] = []
    for kind in sorted(own.keys() | other.keys()):
        if kind == TransformType.INTEG:
            continue
        pick = _pick(own.get(kind), other.get(kind), kind, ke)
        if pick is None:
            return None
        if kind in other:
            chosen.append(pick)
    encr = next((t for t in chosen if t.type == TransformType.ENCR), None)
    integ = _integrity(own, other, combined=encr is not None and encr.id in AEAD)
    if integ is None:
        # The preferred cipher leads nowhere; another one of the same proposal may.
        return _retry(ours, theirs, encr, ke)
    if TransformType.INTEG in other:
        chosen.append(integ)
        chosen.sort(key=lambda t: t.type)
    return tuple(chosen)


_agree_cached = lru_cache(maxsize=256)(_agree)


def _retry(
    ours: Transforms, theirs: Transforms, encr: Transform | None, ke: int | None
) -> Transforms | None:
    if encr is None:
        return None
    rest = tuple(t for t in ours if t != encr)
    if not any(t.type == TransformType.ENCR for t in rest):
        return None
    return _agree(rest, theirs, ke)


def _by_type(transforms: Transforms) -> dict[int, list[Transform]]:
    types: dict[int, list[Transform]] = {}
    for transform in transforms:
        types.setdefault(transform.type, []).append(transform)
    return types


def _pick(
    own: list[Transform] | None, other: list[Transform] | None, kind: int, ke: int | None
) -> Transform | None:
    """The transform to use, also where it is meant by absence; None if there is none in common."""
    absent = _ABSENT.get(kind)
    if own is None:
        if absent is None:
            absent = Transform(kind, 0)
        own = [absent]
    if other is None:
        if absent is None:
            return None
        other = [absent]
    if kind == TransformType.KE and ke is not None:
        wanted = Transform(TransformType.KE, ke)
        if wanted in own and wanted in other:
            return wanted
    for transform in own:
        if transform in other:
            return transform
    return None


def _integrity(
    own: dict[int, list[Transform]], other: dict[int, list[Transform]], *, combined: bool
) -> Transform | None:
    """INTEG depends on the cipher: none beside a combined-mode one (RFC 5282 8)."""
    mine = own.get(TransformType.INTEG, [_NO_INTEG])
    yours = other.get(TransformType.INTEG, [_NO_INTEG])
    if combined:
        return _NO_INTEG if _NO_INTEG in yours else None
    return next((t for t in mine if t in yours and t != _NO_INTEG), None)


def differences(ours: Sequence[Proposal], theirs: Sequence[Proposal]) -> tuple[str, ...]:
    """Why ``choose`` gave nothing: one line for each attribute that cannot match.

    Of all pairs of proposals the one with the fewest such attributes is shown.
    """
    best: tuple[str, ...] | None = None
    for own in ours:
        for offered in theirs:
            lines = _mismatches(own, offered)
            if best is None or len(lines) < len(best):
                best = lines
    if best is None:
        return ("no proposal at all",)
    return best


def _mismatches(ours: Proposal, theirs: Proposal) -> tuple[str, ...]:
    if ours.protocol != theirs.protocol:
        names = Protocol(ours.protocol).name, Protocol(theirs.protocol).name
        return (_line("protocol", *names),)
    own, other = _by_type(ours.transforms), _by_type(theirs.transforms)
    lines: list[str] = []
    for kind in sorted(own.keys() | other.keys()):
        mine, yours = own.get(kind), other.get(kind)
        if kind == TransformType.INTEG:
            if not _integrity_can_match(own, other):
                lines.append(_line("INTEG", _names(mine), _names(yours)))
        elif _pick(mine, yours, kind, None) is None:
            lines.append(_line(TransformType(kind).name, _names(mine), _names(yours)))
    if not lines:
        lines.append("no single choice of cipher and integrity fits both")
    return tuple(lines)


def _integrity_can_match(
    own: dict[int, list[Transform]], other: dict[int, list[Transform]]
) -> bool:
    return any(_integrity(own, other, combined=c) is not None for c in (True, False))


def _names(transforms: list[Transform] | None) -> str:
    return ", ".join(map(str, transforms)) if transforms else _LEFT_OUT


def _line(attribute: str, ours: str, theirs: str) -> str:
    return f"{attribute}: ours {ours}, theirs {theirs}"


def permits(ours: Sequence[Proposal], transforms: Sequence[Transform]) -> bool:
    """Whether one of our proposals has all of these transforms."""
    return any(all(t in own.transforms for t in transforms) for own in ours)
