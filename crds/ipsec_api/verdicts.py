"""Conditions before they have a time and a generation: what the operator and the gateway say alike
of one resource. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ipsec_api.rejection import Finding

#: Longest message of a condition that we write; the schema allows more.
LONGEST_MESSAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one thing: whether it is so, why not, and what helps."""

    type: str
    status: str
    reason: str
    message: str = ""


#: What is not accepted, or lacks something that it refers to, is in no data plane.
NOT_IN_FORCE: Final = Verdict(
    "Programmed", "False", "NotAccepted", "not in force: see Accepted and ResolvedRefs"
)


def judged(
    kind: str, faults: Iterable[Finding], advice: Iterable[Finding], *, held: bool
) -> Verdict:
    """``Accepted`` or ``ResolvedRefs``, which ``kind`` says. ``held``: an earlier version of the
    resource is in force."""
    own = [f for f in faults if f.condition == kind]
    if not own:
        text = "; ".join(_said(f) for f in advice if f.condition == kind)
        return Verdict(kind, "True", kind, text[:LONGEST_MESSAGE])
    text = "; ".join(_said(f) for f in own)
    if held:
        text += "; its last good version stays in force"
    return Verdict(kind, "False", own[0].reason, text[:LONGEST_MESSAGE])


def _said(finding: Finding) -> str:
    return f"{finding.field}: {finding.message}" if finding.field else finding.message
