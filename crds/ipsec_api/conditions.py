"""Conditions as metav1 has them, and how one is set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from ipsec_api.rules import ListOf, SpecModel
from ipsec_api.scalars import LongText, Timestamp

ConditionType = Literal[
    "Accepted", "ResolvedRefs", "Programmed", "Established", "Forwarding", "Healthy", "Ready"
]


class Condition(SpecModel):
    """One aspect of the current state; True is always the good news."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """Accepted, ResolvedRefs, Programmed, Established, Forwarding, Healthy or Ready."""

    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The metadata.generation that this condition was set for."""

    last_transition_time: Timestamp
    """When status last changed."""

    reason: Annotated[
        str,
        Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"),
    ]
    """Cause in one CamelCase word."""

    message: LongText = ""
    """Cause and remedy for people."""


Conditions = Annotated[tuple[Condition, ...], Field(max_length=16), ListOf("map", "type")]


def set_condition(conditions: Sequence[Condition], new: Condition) -> tuple[Condition, ...]:
    """``conditions`` with ``new`` in place of the one of its type, or at the end.

    ``last_transition_time`` of ``new`` is the present time; it is kept back at the old value as
    long as ``status`` does not change, so that a rewrite of the same state is no difference.
    """
    result = []
    placed = False
    for old in conditions:
        if old.type != new.type:
            result.append(old)
            continue
        if not placed:
            same = old.status == new.status
            when = old.last_transition_time if same else new.last_transition_time
            result.append(new.model_copy(update={"last_transition_time": when}))
            placed = True
    if not placed:
        result.append(new)
    return tuple(result)
