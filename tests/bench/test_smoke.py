"""Every benchmark runs, with numbers too small to measure anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from ipsec_lab import strongswan
from ipsec_lab.bench import BENCHES, IN_CLUSTER, IN_GUEST
from ipsec_lab.bench_pair import Settings
from ipsec_lab.netns import missing_programs


@pytest.mark.root
@pytest.mark.parametrize("name", [n for n in BENCHES if n not in IN_GUEST | IN_CLUSTER])
def test_every_benchmark_gives_its_rows(name: str, tmp_path: Path) -> None:
    if name == "stream" and missing_programs("iperf3"):
        pytest.skip("needs iperf3")
    rows = BENCHES[name](Settings.tiny(tmp_path))
    assert rows
    for row in rows:
        assert row.ours
        # Beside something, but for what has a goal of its own.
        absolute = row.limit is not None
        assert row.theirs or absolute or (row.reference == "charon" and strongswan.missing())


def test_an_unknown_benchmark_is_an_error_with_the_names() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ipsec_lab.bench", "--only", "nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "handshakes" in done.stderr
