"""Rules of the house that no other tool checks."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = ("crds", "dataplane", "operator")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked(pattern: str) -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "-C", ROOT, "ls-files", pattern],
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).exists()]


@pytest.mark.parametrize("folder", SOURCES)
def test_the_folders_of_packages_are_no_packages(folder: str) -> None:
    # operator/__init__.py with the checkout on sys.path hides the standard module, and
    # Python does not start.
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("folder", SOURCES)
def test_no_package_has_the_name_of_a_standard_module(folder: str) -> None:
    packages = {path.name for path in (ROOT / folder).iterdir() if path.is_dir()}
    assert not packages & set(sys.stdlib_module_names)


@pytest.mark.parametrize("folder", SOURCES)
def test_every_package_is_typed_checked_and_under_the_import_contract(folder: str) -> None:
    for init in (ROOT / folder).glob("*/__init__.py"):
        package = init.parent.name
        assert (init.parent / "py.typed").exists(), package
        assert package in PYPROJECT["tool"]["mypy"]["packages"]
        assert package in PYPROJECT["tool"]["importlinter"]["root_packages"]


def test_modules_stay_within_600_lines() -> None:
    long = {
        path.name: n for path in tracked("*.py") if (n := len(path.read_text().splitlines())) > 600
    }
    assert not long


def test_tests_are_no_packages() -> None:
    # pytest runs with --import-mode=importlib: two test files may have one name, in two folders.
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_every_exemption_from_a_check_says_why() -> None:
    bare = re.compile(r"#\s*(?:noqa|type:\s*ignore)(?::\s*[A-Z0-9, ]+|\[[a-z, -]+\])?\s*$")
    found = []
    for path in (path for folder in SOURCES for path in tracked(f"{folder}/*.py")):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            said_above = number > 0 and lines[number - 1].lstrip().startswith("#")
            if bare.search(line) and not said_above:
                found.append(f"{path.relative_to(ROOT)}:{number + 1}")
    assert not found


def test_the_makefile_has_the_commands_everyone_relies_on() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in ("demo", "test", "test-kernel", "bench", "lint"):
        assert re.search(rf"^{command}:.*## ", makefile, re.MULTILINE), command


@pytest.mark.parametrize("script", [".ci/run", ".ci/packages"])
def test_scripts_can_be_run(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111 == 0o111
    subprocess.run(["bash", "-n", ROOT / script], check=True)
