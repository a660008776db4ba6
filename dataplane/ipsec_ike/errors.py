"""The two ways in which things go wrong, and what goes on the wire for each.

``IkeError`` is the peer's doing: the exception carries the Notify type with which it is answered,
so that no caller needs a mapping. ``LocalMisuse`` is our caller's doing and never results from
bytes that came from the network.
"""

from __future__ import annotations

from ipsec_ike.numbers import NotifyType


class LocalMisuse(ValueError):
    """The engine was called in a way that its documentation forbids."""


class IkeError(Exception):
    """The peer's message cannot be honoured.

    ``notify`` is the Notify type to answer with, ``data`` its notification data (RFC 7296 3.10).
    The message is for our log: it names fields and sizes, never key material.
    """

    notify: NotifyType = NotifyType.INVALID_SYNTAX

    def __init__(self, message: str, *, data: bytes = b"") -> None:
        super().__init__(message)
        self.data = data


class InvalidSyntax(IkeError):
    """RFC 7296 2.21: a length, count or value is out of range. Also drops before authentication."""


class UnsupportedCriticalPayload(IkeError):
    """RFC 7296 2.5; ``data`` is the one-octet payload type."""

    notify = NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD


class InvalidMajorVersion(IkeError):
    """RFC 7296 2.5."""

    notify = NotifyType.INVALID_MAJOR_VERSION


class NoProposalChosen(IkeError):
    """RFC 7296 2.7."""

    notify = NotifyType.NO_PROPOSAL_CHOSEN


class InvalidKePayload(IkeError):
    """RFC 7296 1.2, 1.3: wrong group; ``data`` is the two-octet group that we want."""

    notify = NotifyType.INVALID_KE_PAYLOAD


class AuthenticationFailed(IkeError):
    """RFC 7296 2.21.2: says nothing about the reason to the peer."""

    notify = NotifyType.AUTHENTICATION_FAILED


class TsUnacceptable(IkeError):
    """RFC 7296 2.9."""

    notify = NotifyType.TS_UNACCEPTABLE


class SinglePairRequired(IkeError):
    """RFC 7296 2.9."""

    notify = NotifyType.SINGLE_PAIR_REQUIRED


class TemporaryFailure(IkeError):
    """RFC 7296 2.25."""

    notify = NotifyType.TEMPORARY_FAILURE


class ChildSaNotFound(IkeError):
    """RFC 7296 2.25."""

    notify = NotifyType.CHILD_SA_NOT_FOUND


class NoAdditionalSas(IkeError):
    """RFC 7296 1.3: childless-only or a limit is reached."""

    notify = NotifyType.NO_ADDITIONAL_SAS


class FailedCpRequired(IkeError):
    """RFC 7296 3.15.4."""

    notify = NotifyType.FAILED_CP_REQUIRED


class IntegrityFailure(IkeError):
    """The SK or SKF payload does not verify. Never answered: the sender may be anyone."""
