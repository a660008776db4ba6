""".ci/packages on machines that lack something, where nobody may install it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[3] / ".ci" / "packages"
#: What the script itself needs.
TOOLS = ("bash", "dirname", "id", "cat")


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has no package manager, and none of the programs of a group.

    A copy of the script leaves /usr/sbin out too.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in TOOLS:
        (programs / tool).symlink_to(shutil.which(tool) or tool)
    script = tmp_path / "project" / ".ci" / "packages"
    script.parent.mkdir(parents=True)
    text = PACKAGES.read_text()
    assert "/usr/sbin:/sbin" in text
    text = text.replace(':/usr/sbin:/sbin"', '"').replace("/usr/lib/ipsec", f"{tmp_path}/ipsec")
    script.write_text(text)
    return {"PATH": str(programs), "SCRIPT": str(script)}


def run(bare: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("bash") or "bash", bare["SCRIPT"], *options],
        env={"PATH": bare["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_needed_and_missing_is_one_line_and_an_error(bare):
    done = run(bare, "--need", "net strongswan", "--want", "bench")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    missing = "iproute2 nftables iputils-ping procps strongswan-charon strongswan-swanctl"
    assert line.startswith(f"missing Debian packages: {missing} ")
    assert "(as root: apt-get install --no-install-recommends iproute2 " in line
    assert "iperf3" not in line


def test_what_is_only_wanted_is_a_note(bare):
    done = run(bare, "--want", "bench", "--along", "strongswan")
    assert done.returncode == 0
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith("note: missing Debian packages: iperf3;")


def test_what_is_there_is_not_asked_for(bare):
    (Path(bare["PATH"]) / "iperf3").symlink_to(shutil.which("true") or "true")
    done = run(bare, "--need", "bench")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_wrong_usage_is_one_line(bare):
    done = run(bare, "--nonsense")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_script_is_executable():
    assert os.access(PACKAGES, os.X_OK)
