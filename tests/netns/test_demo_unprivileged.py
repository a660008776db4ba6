"""The demo without root: a process with no rights makes its own user namespace and goes on there.

What starts it here is no root either: uid 1000 of a user namespace, without a capability.
"""

import subprocess
import sys

import pytest

from ipsec_lab import strongswan

NOBODY = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
DEMO = (sys.executable, "-c", "from ipsec_cli.main import main; main()", "demo")


@pytest.fixture(scope="module", autouse=True)
def _user_namespaces() -> None:
    probe = subprocess.run(
        [*NOBODY, "unshare", "--user", "--map-root-user", "--net", "--mount", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        pytest.skip(f"this kernel refuses user namespaces: {probe.stderr.strip()}")


def demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NOBODY, *DEMO, "--megabytes", "4", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


@pytest.mark.parametrize(
    "peer", ["kube-ipsec", pytest.param("strongswan", marks=pytest.mark.strongswan)]
)
def test_the_demo_passes(peer):
    done = demo("--peer", peer)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "not root: continuing in a user namespace"
    assert lines[-1] == "passed: the traffic crossed the WAN encrypted, and only so"


def test_where_strongswan_is_missing_one_line_says_so(tmp_path):
    """As on a machine without the packages, where nobody may install them."""
    code = (
        "from pathlib import Path\n"
        "from ipsec_lab import strongswan\n"
        f"strongswan.CHARON = Path({str(tmp_path / 'charon')!r})\n"
        "from ipsec_cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [*NOBODY, sys.executable, "-c", code, "demo", "--peer", "strongswan"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "strongSwan is not complete here" in line
    assert strongswan.PACKAGES in line
