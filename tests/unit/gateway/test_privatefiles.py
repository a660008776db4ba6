"""Files that are replaced whole, and read only if they are ours alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipsec_gateway import privatefiles


def test_an_object_is_kept_for_us_alone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "x.json"
    assert privatefiles.read_object(path) == {}
    privatefiles.write_object(path, {"a": 1})
    privatefiles.write_object(path, {"a": 2})
    assert privatefiles.read_object(path) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("data", [b"", b"[1", b"[1]", b"\xff", b"[" * 100_000])
def test_any_rubbish_is_survived(tmp_path: Path, data: bytes) -> None:
    privatefiles.write(tmp_path / "x", data)
    assert privatefiles.read_object(tmp_path / "x") == {}


def test_what_others_may_read_or_is_a_link_is_told_and_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x"
    assert privatefiles.read(path) == b""
    assert not caplog.records, "nothing is there yet"
    privatefiles.write_object(path, {"a": 1})
    (tmp_path / "link").symlink_to(path)
    assert privatefiles.read(tmp_path / "link") == b""
    path.chmod(0o640)
    assert privatefiles.read(path) == b""
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        f"{tmp_path}/link is a link: remove it",
        f"{path} is not a file for us alone: remove it",
    ]


def test_what_cannot_be_read_now_is_an_error(tmp_path: Path) -> None:
    """Else it would be taken for nothing, and replaced."""
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        privatefiles.read_object(tmp_path / "file" / "x")


def test_what_a_life_left_half_written_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.new").symlink_to(tmp_path / "elsewhere")
    privatefiles.write(tmp_path / "x", b"all")
    assert privatefiles.read(tmp_path / "x") == b"all"
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_the_file_system_of_a_path() -> None:
    assert privatefiles.file_system(Path("/proc")) == "proc"
