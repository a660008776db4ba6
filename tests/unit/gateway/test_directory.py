"""A folder that changes: swaps, half-written files, faults, deletion."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ipsec_gateway.sources import directory
from ipsec_gateway.sources.directory import DirectorySource, Files

SECRET = "apiVersion: v1\nkind: Secret\nmetadata: {name: %s}\nstringData: {psk: x}\n"


class Follower:
    """The snapshots of one source, one by one."""

    def __init__(self, folder: Path) -> None:
        self.source = DirectorySource(folder, interval=0.01, settle=0.01)
        self._snapshots: AsyncIterator[Files] = self.source.snapshots()

    async def next(self) -> dict[str, list[str]]:
        """Names of the objects, by file."""
        files = await asyncio.wait_for(anext(self._snapshots), 10)
        return {
            name: [item.metadata.name for item in found.objects]
            for name, found in files.files.items()
        }

    async def quiet(self) -> bool:
        """Whether nothing comes for many looks."""
        task = asyncio.ensure_future(anext(self._snapshots))
        done, _ = await asyncio.wait([task], timeout=0.3)
        if not done:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return not done


def test_it_follows_files(tmp_path: Path) -> None:
    async def work() -> None:
        (tmp_path / "a.yaml").write_text(SECRET % "a")
        (tmp_path / "b.yml").write_text(SECRET % "b")
        (tmp_path / "README.md").write_text("no manifest")
        (tmp_path / ".hidden.yaml").write_text(SECRET % "hidden")
        follower = Follower(tmp_path)
        assert await follower.next() == {"a.yaml": ["a"], "b.yml": ["b"]}
        (tmp_path / "a.yaml").write_text(SECRET % "other")
        assert await follower.next() == {"a.yaml": ["other"], "b.yml": ["b"]}
        (tmp_path / "b.yml").unlink()
        assert await follower.next() == {"a.yaml": ["other"]}
        assert await follower.quiet()

    asyncio.run(work())


def test_the_kubelets_swap_is_one_change(tmp_path: Path) -> None:
    """A ConfigMap volume: files are links through ``..data``, which is renamed over."""

    async def work() -> None:
        for version in ("1", "2"):
            (tmp_path / f"..v{version}").mkdir()
            for name in ("a", "b"):
                (tmp_path / f"..v{version}" / f"{name}.yaml").write_text(
                    SECRET % f"{name}{version}"
                )
        (tmp_path / "..data").symlink_to("..v1")
        for name in ("a", "b"):
            (tmp_path / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")
        follower = Follower(tmp_path)
        assert await follower.next() == {"a.yaml": ["a1"], "b.yaml": ["b1"]}
        (tmp_path / "..data.new").symlink_to("..v2")
        os.replace(tmp_path / "..data.new", tmp_path / "..data")
        assert await follower.next() == {"a.yaml": ["a2"], "b.yaml": ["b2"]}

    asyncio.run(work())


def test_what_is_being_written_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as two looks differ, nothing is taken; what changes while it is read starts over."""
    looks = iter([{"a.yaml": (1, 1, 1)}, {"a.yaml": (1, 5, 2)}, {"a.yaml": (1, 9, 3)}])
    last = {"a.yaml": (1, 9, 9)}
    seen: list[object] = []
    monkeypatch.setattr(directory, "_look", lambda _: next(looks, last))

    async def work() -> None:
        source = DirectorySource(tmp_path, interval=0.01, settle=0.0)
        read = source._read
        source._read = lambda stamps: seen.append(stamps) or read(stamps)  # type: ignore[method-assign,func-returns-value]
        await anext(source.snapshots())

    asyncio.run(work())
    assert seen == [last]


def test_faults_are_errors_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    (tmp_path / "broken.yaml").write_text(SECRET % "a" + "---\n{")
    files = DirectorySource(tmp_path).read_once().files
    errors = {e.file: e.message for found in files.values() for e in found.errors}
    assert "UTF-8" in errors["latin.yaml"]
    assert "cannot be read" in errors["dangling.yaml"]
    assert "not YAML" in errors["broken.yaml"]
    assert [o.metadata.name for o in files["broken.yaml"].objects] == ["a"]


def test_a_folder_that_went_away_is_an_error_and_not_a_deletion(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    files = DirectorySource(folder).read_once().files
    (error,) = files[""].errors
    assert str(folder) in error.message


def test_only_changed_files_are_parsed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    original = directory._parse
    monkeypatch.setattr(
        directory, "_parse", lambda path, name: parsed.append(name) or original(path, name)
    )

    async def work() -> None:
        (tmp_path / "a.yaml").write_text(SECRET % "a")
        (tmp_path / "b.yaml").write_text(SECRET % "b")
        follower = Follower(tmp_path)
        await follower.next()
        (tmp_path / "b.yaml").write_text(SECRET % "changed")
        await follower.next()
        assert parsed == ["a.yaml", "b.yaml", "b.yaml"]
        follower.source.refresh()
        await follower.next()
        assert parsed[3:] == ["a.yaml", "b.yaml"]

    asyncio.run(work())
