"""``kube-ipsec operator``: settings, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest


def run(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    code = "from ipsec_operator.cli import operator; operator()"
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **env},
    )


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("image: x\n", 0, "good"),
        ("image: x\nimages: y\n", 2, "images"),
        (None, 2, "cannot be read"),
    ],
)
def test_settings_are_checked(tmp_path: Path, text: str | None, code: int, said: str) -> None:
    file = tmp_path / "operator.yaml"
    if text is not None:
        file.write_text(text)
    done = run("--settings", str(file), "--check")
    assert done.returncode == code
    assert said in done.stdout + done.stderr


def test_without_a_cluster_it_says_so(tmp_path: Path) -> None:
    file = tmp_path / "operator.yaml"
    file.write_text("image: x\n")
    done = run("--settings", str(file))
    assert done.returncode == 3
    assert "KUBECONFIG" in done.stderr
    assert "Traceback" not in done.stderr
