"""The images: what their Dockerfiles say, and their root file systems under chroot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "rootfs"
DOCKERFILES = {"operator": ROOT / "operator/Dockerfile", "gateway": ROOT / "dataplane/Dockerfile"}
BOTH = pytest.mark.parametrize("part", DOCKERFILES)


def lines(part):
    text = re.sub(r"\\\n\s*", "", DOCKERFILES[part].read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@BOTH
def test_bases_are_pinned_by_digest(part):
    bases = [line.split()[1] for line in lines(part) if line.startswith("FROM ")]
    assert bases[-1] == "scratch"
    assert all(re.search(r"@sha256:[0-9a-f]{64}$", base) for base in bases[:-1])


def test_both_have_the_same_base():
    assert lines("operator")[0] == lines("gateway")[0]


@BOTH
def test_what_is_copied_exists_and_is_what_the_script_takes(part):
    sources = [
        name
        for line in lines(part)
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    ]
    assert all((ROOT / name).exists() for name in sources)
    taken = re.search(r"pyproject\.toml README\.md LICENSE \\\n +([a-z ]+)\)", SCRIPT.read_text())
    assert set(taken[1].split()) < set(sources)
    readme = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["readme"]
    assert readme in sources


@BOTH
def test_the_image_tries_itself_and_names_its_contents(part):
    text = "\n".join(lines(part))
    assert f".ci/rootfs {part} /rootfs" in text
    assert f"--self-test {part}" in text
    assert 'ENTRYPOINT ["/usr/local/bin/kube-ipsec"]' in text
    (path,) = re.findall(r'dev\.kubeipsec\.sbom="/([^"]+)"', text)
    assert f'"$dir/{path}"' in SCRIPT.read_text()


def test_the_operator_is_not_root():
    assert "USER 65532:65532" in lines("operator")


class TestScript:
    def test_is_a_program(self):
        assert os.access(SCRIPT, os.X_OK)
        subprocess.run(["bash", "-n", SCRIPT], check=True)

    @pytest.mark.parametrize("arguments", [[], ["nonsense", "x"], ["operator"]])
    def test_wrong_usage(self, arguments):
        done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: ")

    def test_another_python_is_refused(self, tmp_path):
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\nexit 1\n")
        python.chmod(0o755)
        done = subprocess.run(
            [SCRIPT, "operator", tmp_path / "root"],
            env={**os.environ, "PYTHON": str(python)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "is not Python 3.11" in done.stderr

    def test_a_folder_with_files_is_not_touched(self, tmp_path):
        (tmp_path / "file").touch()
        done = subprocess.run(
            [SCRIPT, "operator", tmp_path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "is not empty" in done.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.root
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    os.environ.get("KUBE_IPSEC_REQUIRE_TIERS") != "1",
    reason="takes a minute: .ci/run does it, and make rootfs",
)
def test_the_gateways_file_system_runs(tmp_path):
    """As under containerd: another root, and nothing of this machine in it."""
    apt = subprocess.run(["apt-cache", "policy", "nftables"], capture_output=True, text=True)
    if "Candidate: (none)" in apt.stdout or not apt.stdout:
        pytest.skip("apt has no package lists here")
    root = tmp_path / "root"
    built = subprocess.run(
        [SCRIPT, "gateway", root],
        env={**os.environ, "PYTHON": sys.executable, "COMPILE": "no"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr

    def inside(*command):
        return subprocess.run(
            ["/usr/sbin/chroot", root, *command],
            capture_output=True,
            text=True,
            check=False,
            env={},
        )

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert inside("/usr/local/bin/kube-ipsec", "--version").stdout.split()[-1] == version
    tried = inside(
        "/usr/bin/python3",
        "-c",
        "import os; os.environ['PATH'] = '/usr/local/bin:/usr/sbin:/usr/bin';"
        "os.execlp('kube-ipsec', 'kube-ipsec', '--self-test', 'gateway')",
    )
    assert tried.returncode == 0, tried.stdout
    assert re.search(r"^ok +nft: nftables", tried.stdout, re.MULTILINE)
    for flavour in ("nft", "legacy"):
        assert re.search(rf"^ok +iptables-{flavour}: iptables", tried.stdout, re.MULTILINE)
        assert inside(f"/usr/sbin/ip6tables-{flavour}-save", "--version").returncode == 0
    assert not re.search(r"^bad", tried.stdout, re.MULTILINE)
    for program in ("sh", "bash", "dpkg", "apt-get", "perl"):
        assert not list(root.glob(f"usr/*bin/{program}")), program
    contents = json.loads((root / "usr/share/sbom/kube-ipsec.cdx.json").read_text())
    names = {component["name"] for component in contents["components"]}
    assert {"kube-ipsec", "nftables", "cryptography", "libc6"} <= names
    assert not {"pytest", "helm-python-sdk"} & names
