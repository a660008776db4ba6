"""The page of fields is what the models and the table of features say."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipsec_api import features, reference

ROOT = Path(__file__).parents[3]


def test_committed_page_is_current() -> None:
    assert (ROOT / "docs/resources.md").read_text() == reference.render(), (
        "run python -m ipsec_api.reference"
    )


def test_drift_is_found_and_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "PAGE", tmp_path / "docs" / "resources.md")
    assert reference.main(["--check"]) == 1
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0


def test_every_unbuilt_field_is_marked() -> None:
    marked = {
        line.split("`")[1]
        for line in reference.render().splitlines()
        if "Not yet**" in line and "`" in line
    }
    wanted = {row.field for row in features.PEER}
    wanted |= {f"authentication.{row.field}" for row in features.AUTHENTICATION}
    wanted |= {row.field for row in features.POLICY if row.field != "selectors"}
    assert marked == wanted | {"selectors[].srcFrom"}
