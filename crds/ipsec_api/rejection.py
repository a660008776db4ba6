"""What ``compile`` says about resources that it does not accept, or accepts with a warning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ipsec_api.tunnel import ObjectRef

Reason = Literal[
    # Accepted
    "Invalid",
    "Overlap",
    "InsecureAlgorithm",
    "NotYetSupported",
    "PeerNotAccepted",
    "Ignored",
    "MarkConflict",
    # ResolvedRefs
    "SecretNotFound",
    "KeyMissing",
    "RefNotFound",
]
_REFERENCES: Final[frozenset[Reason]] = frozenset({"SecretNotFound", "KeyMissing", "RefNotFound"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of one resource. ``message`` holds the cause and the remedy, never a secret.

    ``field`` is a path such as ``spec.profile.encAlgorithms``; empty where the whole object is
    meant.
    """

    source: ObjectRef
    field: str
    reason: Reason
    message: str

    @property
    def kind(self) -> str:
        return self.source.kind

    @property
    def namespace(self) -> str:
        return self.source.namespace

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def condition(self) -> Literal["Accepted", "ResolvedRefs"]:
        """The condition that the fault makes False."""
        return "ResolvedRefs" if self.reason in _REFERENCES else "Accepted"

    def __str__(self) -> str:
        where = f"{self.source}: {self.field}" if self.field else str(self.source)
        return f"{where}: {self.message}"


@dataclass(frozen=True, slots=True)
class Rejection(Finding):
    """The resource, or the policy that it stands for, is not in force."""


@dataclass(frozen=True, slots=True)
class Advice(Finding):
    """The resource is in force, and its owner should know this."""
