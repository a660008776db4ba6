"""Tiers that share the machine stay on one worker each."""

from __future__ import annotations

import os

import pytest


def test_tests_of_a_tier_are_in_its_group(request: pytest.FixtureRequest) -> None:
    """pytest-xdist writes the group into the identifier of a test."""
    spread = "PYTEST_XDIST_WORKER" in os.environ
    for item in request.session.items:
        group = item.get_closest_marker("xdist_group")
        if group is not None:
            assert item.nodeid.endswith(f"@{group.args[0]}") == spread, item.nodeid
