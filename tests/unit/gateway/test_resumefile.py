"""The files of the records: locked, private, in memory; no state twice, none that is too old."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipsec_gateway import privatefiles, resumefile
from ipsec_gateway.privatefiles import NotPrivate
from ipsec_gateway.resumefile import InUse, ResumeFile
from ipsec_ike.engine import Record

SECRET = "5ec2e7"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory on tmpfs."""
    base = Path(f"/dev/shm/kube-ipsec-test-{os.getpid()}")
    if not base.parent.is_dir() or privatefiles.file_system(base.parent) not in privatefiles.MEMORY:
        pytest.skip("no tmpfs at /dev/shm")
    base.mkdir()
    yield base / "state"
    shutil.rmtree(base)


def life(folder: Path, *records: Record, now: float = 100.0) -> ResumeFile:
    """Open, write, and end without a word, as a killed process does."""
    it = ResumeFile(folder, now)
    it.write(records, now)
    it.close()
    return it


ONE = Record("sa 01", {"keys": SECRET, "n": 1})
TWO = Record("sa 02", {"keys": SECRET, "n": 2})


def test_the_next_life_reads_what_the_last_one_wrote(folder: Path) -> None:
    first = life(folder, ONE, TWO)
    assert first.records == {}
    assert first.refused == ""
    second = ResumeFile(folder, 107.0)
    assert second.records == {"sa 01": ONE.data, "sa 02": TWO.data}
    assert (second.refused, second.age, second.generation) == ("", 7.0, first.generation + 1)
    second.write([Record("sa 01", None), Record("sa 02", {"n": 3})], 108.0)
    second.close()
    third = ResumeFile(folder, 109.0)
    assert third.records == {"sa 02": {"n": 3}}
    assert third.generation == first.generation + 2
    third.remove()
    assert not folder.exists()


def test_only_root_can_read_it(folder: Path) -> None:
    life(folder, ONE)
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("mark", "journal"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    (folder / "journal").chmod(0o644)
    with pytest.raises(NotPrivate, match="not a file for us alone"):
        ResumeFile(folder, 101.0)


def test_a_link_is_not_followed(folder: Path) -> None:
    folder.mkdir()
    (folder / "mark").symlink_to(folder / "elsewhere")
    with pytest.raises(OSError, match="is a link"):
        ResumeFile(folder, 100.0)


def test_keys_do_not_go_to_a_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privatefiles, "file_system", lambda _: "ext4")
    with pytest.raises(NotPrivate, match="is on ext4: keys are kept on tmpfs only"):
        ResumeFile(folder, 100.0)
    assert not folder.exists()


def test_two_at_a_time(folder: Path) -> None:
    first = ResumeFile(folder, 100.0)
    with pytest.raises(InUse, match=f"pid {os.getpid()}"):
        ResumeFile(folder, 100.0)
    first.write([ONE], 100.0)
    first.close()
    assert ResumeFile(folder, 100.0).records


def test_an_older_copy_is_refused(folder: Path, tmp_path: Path) -> None:
    life(folder, ONE)
    shutil.copy(folder / "journal", tmp_path / "old")
    second = life(folder, TWO)
    assert second.records
    shutil.copy(tmp_path / "old", folder / "journal")
    third = ResumeFile(folder, 101.0)
    assert third.records == {}
    assert third.refused == "it is an older copy"
    third.write([TWO], 101.0)
    third.close()
    fourth = ResumeFile(folder, 102.0)
    assert fourth.records == {"sa 02": TWO.data}, "and after that all is well"
    fourth.close()


def test_an_older_copy_of_the_same_life_is_refused(folder: Path) -> None:
    it = ResumeFile(folder, 100.0)
    it.write([ONE], 100.0)
    old = (folder / "journal").read_bytes()
    it.write([TWO], 100.0)
    it.close()
    (folder / "journal").write_bytes(old)
    again = ResumeFile(folder, 101.0)
    assert again.refused == "it is damaged, or an older copy"
    again.close()


def test_a_copied_directory_is_refused(folder: Path) -> None:
    life(folder, ONE)
    shutil.copytree(folder, folder.parent / "copy")
    copy = ResumeFile(folder.parent / "copy", 101.0)
    assert copy.records == {}
    assert copy.refused == "it is not of this directory and boot"
    copy.close()
    assert ResumeFile(folder, 101.0).records


def test_another_boot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life(folder, ONE)
    monkeypatch.setattr(resumefile, "_boot_id", lambda: b"0" * 36)
    it = ResumeFile(folder, 101.0)
    assert it.refused == "it is not of this directory and boot"
    it.close()


def test_a_clock_that_went_back(folder: Path) -> None:
    life(folder, ONE, now=100.0)
    it = ResumeFile(folder, 99.0)
    assert it.refused == "its clock is ahead of ours"
    it.close()


@pytest.mark.parametrize("cut", [1, 30])
def test_a_line_that_was_not_finished_does_not_count(folder: Path, cut: int) -> None:
    """The process ended while it wrote, before the mark: nothing was sent in consequence."""
    life(folder, ONE)
    with (folder / "journal").open("ab") as journal:
        journal.write(resumefile._line([TWO.key, TWO.data])[:-cut])
    it = ResumeFile(folder, 101.0)
    assert it.records == {"sa 01": ONE.data}
    assert it.refused == ""
    it.write([TWO], 102.0)
    it.close()
    assert set(ResumeFile(folder, 103.0).records) == {"sa 01", "sa 02"}


def test_a_line_that_was_written_but_not_marked_counts(folder: Path) -> None:
    life(folder, ONE)
    with (folder / "journal").open("ab") as journal:
        journal.write(resumefile._line([TWO.key, TWO.data]))
    assert set(ResumeFile(folder, 101.0).records) == {"sa 01", "sa 02"}


def test_damage_is_refused_and_shows_no_secret(folder: Path) -> None:
    life(folder, ONE, TWO)
    data = bytearray((folder / "journal").read_bytes())
    for at in range(0, len(data), 7):
        data[at] ^= 1
        (folder / "journal").write_bytes(data)
        it = ResumeFile(folder, 101.0)
        assert it.records == {}
        assert it.refused
        assert SECRET not in it.refused
        it.close()
        folder.joinpath("journal").unlink()
        data[at] ^= 1
        shutil.rmtree(folder)
        life(folder, ONE, TWO)
        data = bytearray((folder / "journal").read_bytes())


def test_a_damaged_mark_is_refused(folder: Path) -> None:
    life(folder, ONE)
    (folder / "mark").write_bytes(b"x" * 20)
    it = ResumeFile(folder, 101.0)
    assert it.refused == "it is not of this directory and boot"
    it.close()


def test_a_state_that_breaks_the_gateway_is_given_up(folder: Path) -> None:
    life(folder, ONE)
    for _ in range(resumefile.MOST_ATTEMPTS - 1):
        it = life(folder)
        assert it.records
    it = ResumeFile(folder, 101.0)
    assert it.refused == "5 lives in a row ended soon after they used it"
    it.write([ONE], 101.0)
    it.close()
    for _ in range(10):
        it = ResumeFile(folder, 102.0)
        assert it.records
        it.settled()
        it.close()


def test_the_journal_is_written_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumefile, "_SLACK", 1000)
    it = ResumeFile(folder, 100.0)
    it.write([TWO], 100.0)
    sizes = []
    for number in range(200):
        it.write([Record("sa 01", {"keys": SECRET, "n": number})], 100.0)
        sizes.append((folder / "journal").stat().st_size)
    assert max(sizes) < 1200
    assert not (folder / "journal.new").exists()
    it.close()
    assert ResumeFile(folder, 101.0).records == {
        "sa 01": {"keys": SECRET, "n": 199},
        "sa 02": TWO.data,
    }


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_the_end_while_the_journal_is_written_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    it = ResumeFile(folder, 100.0)
    it.write([ONE], 100.0)
    rename = Path.rename

    def dies(path: Path, target: Path) -> Path:
        if moment == "after the rename":
            rename(path, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            it._renew()
    it.close()
    again = ResumeFile(folder, 101.0)
    assert again.refused == ""
    assert again.records == {"sa 01": ONE.data}
    again.close()


def test_a_full_file_system_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = ResumeFile(folder, 100.0)
    monkeypatch.setattr(resumefile, "_write", _full)
    with pytest.raises(OSError, match="full"):
        it.write([ONE], 100.0)
    it.remove()
    assert not folder.exists()


def _full(_: int, __: bytes) -> None:
    raise OSError("full")


def test_the_mark_is_as_long_as_it_says() -> None:
    """The numbers at its end are written alone."""
    assert resumefile._MARK.size == struct.calcsize("=8s36s4xQQQQdQQQQ")
    values = (b"m" * 8, b"b" * 36, 1, 2, 3, 4, 5.0, 6, 7, 8, 9)
    packed = resumefile._MARK.pack(*values)
    assert resumefile._JOURNALS.unpack_from(packed, resumefile._JOURNALS_AT) == (6, 7, 8, 9)
    assert resumefile._LENGTH.unpack_from(packed, resumefile._JOURNALS_AT + 8) == (7,)
    assert resumefile._TIME.unpack_from(packed, resumefile._TIME_AT) == (5.0,)
