"""The command line: one line and an exit code for whatever is wrong."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest
import yaml

from ipsec_cli import main as entry
from ipsec_gateway import cli


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["kube-ipsec", *arguments])
    code = 0
    try:
        entry.main()
    except SystemExit as exc:
        code = int(exc.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_version_imports_no_command(monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        importlib.metadata.EntryPoint, "load", lambda self: pytest.fail(f"loads {self.name}")
    )
    code, out, _ = run(monkeypatch, capsys, "--version")
    assert code == 0
    assert out.startswith("kube-ipsec, version ")
    code, out, _ = run(monkeypatch, capsys, "--help")
    assert code == 0
    assert "gateway" in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "--help"),
        (["--nonsense"], 2, "--nonsense"),
        (["no-such-command"], 2, "no-such-command"),
        (["gateway"], 2, "--manifests"),
        (["gateway", "--manifests", "/no/such/folder"], 2, "/no/such/folder"),
        (["gateway", "--manifests", "/", "--listen", "nonsense"], 2, "ADDR:PORT"),
        (["gateway", "--manifests", "/", "--listen", "127.0.0.1:99999"], 2, "ADDR:PORT"),
        (["gateway", "--manifests", "/", "--service-cidr", "10.96.0.1/12"], 2, "10.96.0.0/12"),
        (["gateway", "--manifests", "/", "--mark-bits", "seventy"], 2, "such as 0x70"),
        (["gateway", "--manifests", "/", "--mark-bits", "0xc000"], 2, "three bits"),
        (["gateway", "--manifests", "/", "--mark-bits", "0x4030"], 2, "kube-proxy (0xc000)"),
        (["gateway", "--manifests", "/", "--tables", "254"], 2, "the kernel's"),
        (["gateway", "--manifests", "/etc/passwd"], 2, "/etc/passwd"),
        (["gateway", "--manifests", "/", "--state", "/etc/passwd"], 2, "/etc/passwd"),
        (["gateway", "--manifests", "/", "--log-level", "loud"], 2, "loud"),
        (["gateway", "--manifests", "/", "surplus"], 2, "surplus"),
        (["demo", "--peer", "nobody"], 2, "nobody"),
        (["demo", "--megabytes", "0"], 2, "--megabytes"),
        (["demo", "--examples", "/no/such/folder"], 2, "/no/such/folder"),
        (["bench", "--only", "nothing"], 2, "nothing"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, code, says) -> None:
    found, out, err = run(monkeypatch, capsys, *arguments)
    assert found == code
    assert out == ""
    assert err.count("\n") == 1
    assert says in err
    assert err.startswith("kube-ipsec")


def test_missing_programs_are_named(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = run(monkeypatch, capsys, "gateway", "--manifests", str(tmp_path))
    assert code == 3
    assert "apt-get install iproute2" in err


def test_a_start_that_fails_says_why(monkeypatch, capsys, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("nothing listens to me")

    monkeypatch.setattr(cli, "_lacking", lambda **_: "")
    monkeypatch.setattr(cli, "_run", fail)
    code, _, err = run(
        monkeypatch, capsys, "gateway", "--manifests", str(tmp_path), "--dataplane", "userspace"
    )
    assert code == 1
    assert "ended by RuntimeError: nothing listens to me" in err


def test_a_dry_run_says_what_would_be_done(monkeypatch, capsys, tmp_path: Path, make) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([make.secret(), make.peer()]))
    code, out, err = run(monkeypatch, capsys, "gateway", "--manifests", str(tmp_path), "--dry-run")
    assert (code, err) == (0, "")
    assert "IPsecPeer default/hq: 203.0.113.9" in out
    assert "10.1.0.0/16 to 10.2.0.0/16: encrypt" in out
    assert "correct horse" not in out
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(make.peer("bad", exchangeMode="main")))
    code, out, _ = run(monkeypatch, capsys, "gateway", "--manifests", str(tmp_path), "--dry-run")
    assert code == 5
    assert "IPsecPeer default/hq" in out
    assert "rejected: IPsecPeer default/bad: spec.exchangeMode" in out
