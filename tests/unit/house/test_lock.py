"""The lock file: every dependency in it, within its bounds, with hashes, and no index named."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
PINS = dict(re.findall(r"^([a-z0-9.-]+)==([^ \\]+)", LOCK, re.MULTILINE))
RUNTIME = PYPROJECT["project"]["dependencies"]
DEV = PYPROJECT["dependency-groups"]["dev"]


@pytest.mark.parametrize("line", RUNTIME + DEV)
def test_dependency_is_locked_within_its_bounds(line: str) -> None:
    wanted = Requirement(line)
    assert wanted.specifier.contains(PINS[canonicalize_name(wanted.name)])


@pytest.mark.parametrize("line", RUNTIME)
def test_dependency_has_a_lower_and_an_upper_bound(line: str) -> None:
    operators = {part.operator for part in Requirement(line).specifier}
    assert ">=" in operators
    assert operators & {"<", "=="}


def test_every_pin_has_hashes() -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", LOCK)
    pins = [block for block in blocks if "==" in block.splitlines()[0]]
    assert len(pins) == len(PINS)
    assert all("--hash=sha256:" in block for block in pins)


def test_no_file_names_a_package_index() -> None:
    # Where packages come from is the machine's own setting.
    for name in ("requirements.lock", "pyproject.toml", "Makefile"):
        text = (ROOT / name).read_text()
        assert "index-url " not in text.replace("--no-emit-index-url", "")
        assert "find-links" not in text


def test_the_build_requirement_is_in_the_lock() -> None:
    # The project is installed with --no-build-isolation.
    for line in PYPROJECT["build-system"]["requires"]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(PINS[canonicalize_name(wanted.name)])


RUNTIME_LOCK = (ROOT / "requirements-runtime.lock").read_text()


def test_images_have_the_versions_that_were_tested() -> None:
    pins = dict(re.findall(r"^([a-z0-9.-]+)==([^ \\]+)", RUNTIME_LOCK, re.MULTILINE))
    assert pins.items() <= PINS.items()
    assert {canonicalize_name(Requirement(line).name) for line in RUNTIME} <= set(pins)
    assert not {"pytest", "ruff"} & set(pins)
    assert RUNTIME_LOCK.count("--hash=sha256:") >= len(pins)
