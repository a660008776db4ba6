"""The table of the benchmarks: ratios, verdicts, Markdown."""

from pathlib import Path

import pytest

from ipsec_lab import bench_report
from ipsec_lab.bench_report import Row, cells, markdown, write


def row(**kwargs: object) -> Row:
    return Row(**{"what": "figure", "unit": "ms", "ours": (4.0,), "theirs": (8.0,), **kwargs})  # type: ignore[arg-type]  # keywords of tests


def test_the_ratio_is_of_the_medians() -> None:
    assert row(ours=(1, 4, 100), theirs=(2, 2, 50)).ratio == 2


@pytest.mark.parametrize(
    ("goal", "verdict"),
    [
        ({"at_least": 0.5}, "met"),
        ({"at_least": 0.51}, "missed"),
        ({"at_most": 0.5}, "met"),
        ({"at_most": 0.49}, "missed"),
        ({}, ""),
    ],
)
def test_a_goal_is_met_or_missed(goal: dict[str, float], verdict: str) -> None:
    assert row(**goal).verdict == verdict


@pytest.mark.parametrize(
    ("ours", "verdict"), [((50, 1, 50), "met"), ((51,), "missed"), ((), "not measured")]
)
def test_a_limit_needs_nothing_beside(ours: tuple[float, ...], verdict: str) -> None:
    limited = row(ours=ours, theirs=(), limit=50)
    assert limited.verdict == verdict
    assert "at most 50 ms" in cells(limited)


def test_nothing_at_all_can_be_the_limit() -> None:
    assert row(ours=(0,), theirs=(), limit=0).verdict == "met"


@pytest.mark.parametrize("empty", [{"ours": ()}, {"theirs": ()}])
def test_a_goal_without_both_sides_is_not_measured(empty: dict[str, tuple[float, ...]]) -> None:
    assert row(at_most=1, **empty).verdict == "not measured"
    assert "met" not in cells(row(at_most=1, **empty))


def test_the_table_shows_median_range_reference_and_goal() -> None:
    shown = cells(row(ours=(1, 4, 100), theirs=(2, 2, 50), at_least=2))
    assert shown == (
        "figure", "ms", "4 (1..100)", "2 (2..50) (charon)", "2.00x", "at least 2x", "met",
    )  # fmt: skip


def test_markdown_has_surroundings_rows_and_each_note_once() -> None:
    text = markdown([row(note="how"), row(note="how"), row(what="other")], ["a machine"])
    assert text.startswith("- a machine\n")
    assert text.count("| figure | ms |") == 2
    assert text.count("- figure: how") == 1


def test_writing_replaces_what_is_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{bench_report.BEGIN}\nold\n{bench_report.END}\nafter\n")
    write(page, "new")
    write(page, "newest")
    assert page.read_text() == (
        f"before\n{bench_report.BEGIN}\nnewest\n{bench_report.END}\nafter\n"
    )


def test_writing_needs_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no lines"):
        write(page, "new")
    assert page.read_text() == "no marks"


def test_the_page_in_the_repository_has_the_marks() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    assert bench_report.BEGIN in page
    assert bench_report.END in page


def test_surroundings_name_versions_machine_and_command() -> None:
    text = "\n".join(bench_report.surroundings("kube-ipsec bench"))
    for word in ("kube-ipsec", "Python", "cryptography", "OpenSSL", "strongSwan", "kernel", "GiB"):
        assert word in text
