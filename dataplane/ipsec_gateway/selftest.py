"""What a gateway needs of its machine: ``kube-ipsec --self-test``."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.probe import probe

#: Program, option that ends it at once, Debian package.
_PROGRAMS: Final = (("ip", "-Version", "iproute2"), ("nft", "--version", "nftables"))
#: What there may be: without them chains of iptables are not opened, and are judged by what nft
#: shows of them, those of legacy iptables not at all.
_HELPERS: Final = ("iptables-nft", "iptables-legacy")
_TUN: Final = Path("/dev/net/tun")


def checks() -> Iterator[tuple[str, str, str]]:
    """What was tried, ``ok``, ``bad`` or ``note``, and what was found or is to be done."""
    for program, option, package in _PROGRAMS:
        yield program, *_program(program, option, package)
    for program in _HELPERS:
        verdict, text = _program(program, "--version", "iptables")
        without = "its chains are not opened for tunnels' traffic, and not judged in full"
        yield program, *(("ok", text) if verdict == "ok" else ("note", f"{text}; {without}"))
    if os.geteuid() != 0:
        yield "kernel", "note", "not tried: only root can ask the kernel what it has"
        return
    try:
        kernel = probe()
    except DataplaneError as exc:
        lacks = str(exc)
    else:
        lacks = kernel.lacks
        if kernel.usable:
            yield "kernel", "ok", str(kernel)
            return
    # Building an image, say: no gateway runs there.
    carrier = "userspace ESP" if _TUN.exists() else f"nor is there {_TUN} for userspace ESP"
    yield "kernel", "note", f"{lacks}; {carrier}"


def _program(program: str, option: str, package: str) -> tuple[str, str]:
    path = shutil.which(program)
    if path is None:
        return "bad", f"not installed: apt-get install {package}"
    try:
        done = subprocess.run(  # noqa: S603 - the path is that of a fixed name
            [path, option], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return "bad", f"does not run ({exc}): apt-get install --reinstall {package}"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return "bad", f"does not run ({lines[0]}): apt-get install --reinstall {package}"
    return "ok", (done.stdout or done.stderr).strip().splitlines()[0]
