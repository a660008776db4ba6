"""The first process in the guest: prepares the machine, imports the gateway, and runs a task.

``python -m ipsec_lab.guest_inside TASK.json``; the file comes from ``ipsec_lab.guest``. A task is a
function of (arguments, forks); it speaks to the host with ``say``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ipsec_lab.guest import INSIDE, SHARED
from ipsec_lab.guest_forks import ForkClient, run_beside

Task = Callable[[Mapping[str, Any], ForkClient], int]

_MODULES: Final = (
    "esp4 esp6 ah4 ah6 ipcomp ipcomp6 xfrm_user xfrm_interface veth dummy tun ip_gre bonding "
    "l2tp_netlink l2tp_eth "
    "nf_tables nft_chain_nat nft_masq nft_ct nft_numgen nft_xfrm nft_counter nft_reject "
    "sch_netem echainiv seqiv gcm ccm ctr cbc hmac authenc authencesn sha1_generic sha256_generic "
    "sha512_generic aesni_intel cmac xcbc des3_ede_x86_64 chacha20poly1305 crypto_null"
)


def say(message: Mapping[str, Any]) -> None:
    """One line for the host."""
    uptime = Path("/proc/uptime").read_text().split()[0]
    with (SHARED / "said.jsonl").open("a") as said:
        said.write(json.dumps({**message, "uptime": float(uptime)}) + "\n")


def inside() -> bool:
    """Whether this is the guest."""
    return os.environ.get(INSIDE) == "1"


def main() -> None:
    """Prepare, run the task, say that it is done."""
    description = json.loads(Path(sys.argv[1]).read_text())
    os.environ.update(description["environment"])
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    say({"stage": "booted"})
    _prepare(description["hot"])
    say({"stage": "prepared"})
    task = task_of(description["task"])
    for name in ("ipsec_gateway.cli", "ipsec_gateway.ipsec.xfrm"):
        importlib.import_module(name)
    say({"stage": "imported"})
    status = run_beside(lambda forks: task(description["arguments"], forks), _gateway)
    say({"done": status})


def task_of(name: str) -> Task:
    """The function that ``module:function`` names."""
    module, _, function = name.partition(":")
    task: Task = getattr(importlib.import_module(module), function)
    return task


def _gateway(arguments: Sequence[str]) -> None:
    from ipsec_gateway.cli import gateway

    gateway.main(args=list(arguments), prog_name="kube-ipsec gateway")


def pytest_task(arguments: Mapping[str, Any], forks: ForkClient) -> int:
    """Run pytest on ``arguments["nodes"]``; tests/kernel/conftest.py says what becomes of them."""
    import pytest

    global FORKS
    FORKS = forks
    nodes = Path("/tmp/nodes")  # noqa: S108  # of this machine, which nobody else uses
    nodes.write_text("\n".join(arguments["nodes"]))
    os.chdir(arguments["root"])
    options = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-q", "--timeout=600"]
    return int(pytest.main([*options, *arguments["options"], f"@{nodes}"]))


#: Who forks gateways for the tests in here; None outside.
FORKS: ForkClient | None = None


def _prepare(hot: Sequence[str]) -> None:
    # It goes on after a module that is not there: that may be built in.
    subprocess.run(["modprobe", "--all", "--quiet", *_MODULES.split()], check=False)
    for name in hot:
        # Any change of attributes has the overlay copy the file from the host into memory, where
        # the start of a program takes a tenth.
        with contextlib.suppress(OSError):  # of a part of the file system that cannot be written
            os.chmod(name, os.stat(name).st_mode & 0o7777)


if __name__ == "__main__":
    try:
        main()
    except BaseException:  # the console is the only place where the host can see it
        traceback.print_exc()
        say({"stage": "failed"})
        raise
