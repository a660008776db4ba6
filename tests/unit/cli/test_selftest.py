"""kube-ipsec --self-test: what is missing is named, and is an error where it is needed."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from click.testing import CliRunner

from ipsec_cli import selftest
from ipsec_cli.main import cli
from ipsec_gateway import selftest as gateway
from ipsec_ike import selftest as engine


def test_the_engine_knows_its_answers():
    assert [verdict for _, verdict, _ in engine.checks()] == ["ok"] * 4


def test_a_wrong_answer_and_a_broken_library_are_seen(monkeypatch):
    def broken():
        raise RuntimeError("FIPS")

    monkeypatch.setattr(engine, "_CASES", (("one", lambda: False), ("two", broken)))
    one, two = engine.checks()
    assert one[1] == two[1] == "bad"
    assert "wrong" in one[2]
    assert "FIPS" in two[2]


def test_programs_that_are_missing_or_broken_are_named(monkeypatch, tmp_path):
    nft = tmp_path / "nft"
    nft.write_text("#!/bin/sh\necho 'no library' >&2\nexit 127\n")
    nft.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {name: (verdict, text) for name, verdict, text in gateway.checks()}
    assert found["ip"] == ("bad", "not installed: apt-get install iproute2")
    # Its interpreter is found by its full path, so that it does run.
    assert found["nft"][0] == "bad"
    assert "no library" in found["nft"][1]


class Entry:
    """An entry point."""

    def __init__(self, name, loaded):
        self.name, self.loaded = name, loaded

    def load(self):
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


@pytest.fixture
def installed(monkeypatch):
    entries = {selftest.GROUP: [], "kube_ipsec.commands": []}
    monkeypatch.setattr(selftest.metadata, "entry_points", lambda group: entries[group])
    return entries


def run(*arguments):
    return CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--self-test"], 0), (["--self-test", "operator"], 0), (["--self-test", "gateway"], 1)],
)
def test_what_gateways_lack_fails_only_gateways(arguments, code, installed):
    installed[selftest.GROUP] = [Entry("gateway", lambda: [("nft", "bad", "not installed")])]
    done = run(*arguments)
    assert done.exit_code == code
    assert "nft: not installed" in done.output
    assert done.output.startswith("bad" if code else "note")


@pytest.mark.parametrize("arguments", [["--self-test"], ["--self-test", "operator"]])
def test_the_engine_is_needed_by_all(arguments, installed):
    installed[selftest.GROUP] = [Entry("engine", lambda: [("AES", "bad", "wrong")])]
    assert run(*arguments).exit_code == 1


def test_a_command_that_cannot_be_imported_is_an_error(installed):
    installed["kube_ipsec.commands"] = [Entry("gateway", ImportError("no numpy"))]
    done = run("--self-test")
    assert done.exit_code == 1
    assert "kube-ipsec gateway: cannot be loaded (no numpy)" in done.output


def test_an_unknown_part_is_wrong_usage():
    assert run("--self-test", "nonsense").exit_code == 2


def test_the_entry_points_are_those_of_the_modules():
    found = {entry.name: entry.value for entry in metadata.entry_points(group=selftest.GROUP)}
    assert found["engine"] == "ipsec_ike.selftest:checks"
    assert found["gateway"] == "ipsec_gateway.selftest:checks"


def test_the_program_ends_with_the_code(tmp_path):
    # Outside click's standalone mode, in which CliRunner runs it, the code is only returned.
    done = subprocess.run(
        [sys.executable, "-c", "from ipsec_cli.main import main; main()", "--self-test", "gateway"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "bad   nft: not installed" in done.stdout
