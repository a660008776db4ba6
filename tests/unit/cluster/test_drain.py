"""``kube-ipsec gateway --drain``: finds the gateway, tells it, waits for it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ipsec_gateway.cli import gateway
from ipsec_gateway.cluster import launch

_OBEDIENT = """
import json, pathlib, signal, sys
held = pathlib.Path(sys.argv[1]) / "held.json"
def drain(*_): held.write_text(json.dumps({"drained": True}))
signal.signal(signal.SIGUSR1, drain)
print("up", flush=True)
while True: signal.pause()
"""


def test_nobody_to_tell(tmp_path: Path) -> None:
    assert "no gateway" in launch.drain_running(tmp_path)
    (tmp_path / "pid").write_text("1")
    assert "is no gateway" in launch.drain_running(tmp_path)
    done = CliRunner().invoke(gateway, ["--drain", "--resume", str(tmp_path)])
    assert done.exit_code == 1
    assert "nothing to hand over" in done.output


def test_it_is_told_and_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "held.json").write_text(json.dumps({"drained": False}))
    argv = [sys.executable, "-c", _OBEDIENT, str(folder), "gateway"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (folder / "pid").write_text(str(process.pid))
        done = CliRunner().invoke(gateway, ["--drain", "--resume", str(tmp_path)])
        process.send_signal(signal.SIGKILL)
    assert done.exit_code == 0, done.output
    assert json.loads((folder / "held.json").read_text())["drained"]


@pytest.mark.parametrize("options", [["--cluster", "--manifests", "."], []])
def test_options_that_do_not_go_together(options: list[str]) -> None:
    assert CliRunner().invoke(gateway, options).exit_code == 2
