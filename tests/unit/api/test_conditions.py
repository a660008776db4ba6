"""A condition is set once per type, and its transition time moves only with its status."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ipsec_api.conditions import Condition, set_condition


def condition(kind: str, status: str, when: int, **more: Any) -> Condition:
    fields = {
        "type": kind,
        "status": status,
        "lastTransitionTime": f"2027-01-01T00:00:{when:02}Z",
        "reason": "Reason",
    }
    return Condition.model_validate({**fields, **more})


def test_new_types_go_to_the_end() -> None:
    first, second = condition("Accepted", "True", 1), condition("Ready", "False", 2)
    assert set_condition([], first) == (first,)
    assert set_condition([first], second) == (first, second)


def test_the_time_stays_while_the_status_does() -> None:
    old, other = condition("Ready", "False", 1), condition("Accepted", "True", 1)
    new = condition("Ready", "False", 9, reason="Timeout", message="why", observedGeneration=4)
    (ready, untouched) = set_condition([old, other], new)
    assert untouched is other
    assert ready.last_transition_time == old.last_transition_time
    assert (ready.reason, ready.message, ready.observed_generation) == ("Timeout", "why", 4)


def test_the_time_moves_with_the_status() -> None:
    old, new = condition("Ready", "False", 1), condition("Ready", "True", 9)
    assert set_condition([old], new) == (new,)


def test_setting_the_same_again_is_no_difference() -> None:
    old = (condition("Ready", "True", 1), condition("Accepted", "True", 1))
    assert set_condition(old, condition("Ready", "True", 9)) == old


def test_doubles_collapse() -> None:
    a, b = condition("Ready", "True", 1), condition("Ready", "False", 2)
    assert len(set_condition([a, b], condition("Ready", "True", 9))) == 1


@pytest.mark.parametrize("change", [{"status": "Maybe"}, {"reason": "two words"}, {"reason": ""}])
def test_what_is_no_condition(change: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        condition("Ready", change.pop("status", "True"), 1, **change)
