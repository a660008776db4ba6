"""The ping of ``kube-ipsec check``, which needs no right but the kernel's leave."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
from ipsec_cli.ping import NoPing, TooBig, ping
import sys

address, size, df = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "df"
try:
    print(ping(address, size, dont_fragment=df, tries=1, timeout=5.0) is not None)
except (TooBig, NoPing) as exc:
    print(type(exc).__name__)
"""


@pytest.fixture
def pinged():
    def run(address, size, df="", allowed="0 65535"):
        setup = f"ip link set lo up mtu 1400; sysctl -qw net.ipv4.ping_group_range='{allowed}'; "
        program = [sys.executable, "-c", PROGRAM, address, str(size), df]
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", setup + 'exec "$@"', "sh", *program],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    return run


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_sizes(address, pinged):
    assert pinged(address, 84) == "True"
    assert pinged(address, 1400, "df") == "True"
    assert pinged(address, 1401, "df") == "TooBig"
    assert pinged(address, 3000) == "True"


def test_nobody_answers(pinged):
    assert pinged("192.0.2.1", 84) == "False"


def test_without_leave_there_is_none(pinged):
    assert pinged("127.0.0.1", 84, allowed="1 0") == "NoPing"
