"""Network namespaces with names, and everything that is started or opened inside of one.

``nsenter --net`` is used rather than ``ip netns exec``: the latter mounts a fresh /sys, which a
container or a user namespace may refuse.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import shutil
import socket as sockets
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final, TypeVar

T = TypeVar("T")

#: Where iproute2 keeps its names.
NETNS_DIR: Final = Path("/run/netns")
#: What every name of ours starts with; the pid of its owner follows.
PREFIX: Final = "kubeipsec"

_CLONE_NEWNET: Final = 0x40000000
_numbers = itertools.count(1)


class LabError(Exception):
    """The lab could not do what it was told. The message is one line with the command or object."""


def missing_programs(*names: str) -> list[str]:
    """Those of ``names`` that are not on PATH (the sbin folders count as on PATH)."""
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    return [name for name in names if shutil.which(name, path=path) is None]


def run(*argv: str, check: bool = True, text: str | None = None, timeout: float = 60.0) -> str:
    """Run a command to its end; stdout and stderr together. ``text`` is its input.

    Raises LabError with the first line of its complaint if it fails and ``check`` is set, or if it
    takes longer than ``timeout`` seconds.
    """
    try:
        done = subprocess.run(
            argv,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as exc:
        raise LabError(f"program not found: {argv[0]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise LabError(f"no end after {timeout:g} s: {' '.join(argv)}") from exc
    if check and done.returncode != 0:
        first = (done.stdout.strip().splitlines() or ["no output"])[0]
        raise LabError(f"{' '.join(argv)}: exit {done.returncode}: {first}")
    return done.stdout


class Namespace:
    """One network namespace. Created on construction, removed by ``delete``."""

    def __init__(self, label: str) -> None:
        self.label: Final = label
        self.name: Final = f"{PREFIX}-{os.getpid()}-{next(_numbers)}-{label}"
        self.path: Final = NETNS_DIR / self.name
        run("ip", "netns", "add", self.name)
        self.ip("link set dev lo up")
        # Nobody else is on these links: no waiting for duplicate address detection (1-3 s each).
        self.sysctl({"ipv6.conf.all.accept_dad": 0, "ipv6.conf.default.accept_dad": 0})

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    def delete(self) -> None:
        """Remove the name; the namespace goes when its last process and socket do."""
        run("ip", "netns", "del", self.name, check=False)

    def enter(self, *argv: str) -> list[str]:
        """The command line that runs ``argv`` in here, with the pid of what is started kept."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(
        self, *argv: str, check: bool = True, text: str | None = None, timeout: float = 60.0
    ) -> str:
        """``run`` in here."""
        return run(*self.enter(*argv), check=check, text=text, timeout=timeout)

    def ip(self, *lines: str) -> None:
        """Run lines of ``ip -batch`` in here, such as ``link set dev lo up``.

        Raises LabError at the first that fails.
        """
        run("ip", "-n", self.name, "-batch", "-", text="\n".join(lines) + "\n")

    def sysctl(self, values: Mapping[str, int | str]) -> None:
        """Set ``net.`` variables of this namespace; keys with or without that prefix."""
        pairs = [f"{k if k.startswith('net.') else 'net.' + k}={v}" for k, v in values.items()]
        self.run("sysctl", "-q", "-w", *pairs)

    def nft(self, script: str) -> None:
        """Run an nftables script in here, atomically. Raises LabError."""
        self.run("nft", "-f", "-", text=script)

    def nft_list(self, *what: str) -> list[dict[str, Any]]:
        """The objects that ``nft list`` shows in here. Raises LabError."""
        shown: list[dict[str, Any]] = json.loads(self.run("nft", "-j", "list", *what))["nftables"]
        return shown

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        die_with_parent: bool = True,
    ) -> subprocess.Popen[bytes]:
        """Start a process in here. Its pid is that of ``argv[0]``: all wrappers only exec.

        ``die_with_parent`` has the kernel end it when the calling THREAD ends, so that a killed lab
        leaves no daemon behind; call from the main thread.
        """
        guarded = ["setpriv", "--pdeathsig", "KILL", *argv] if die_with_parent else list(argv)
        return subprocess.Popen(
            self.enter(*guarded), stdin=stdin, stdout=stdout, stderr=stderr, env=env
        )

    def socket(
        self,
        family: int = sockets.AF_INET,
        kind: int = sockets.SOCK_STREAM,
        protocol: int = 0,
    ) -> sockets.socket:
        """A socket that lives in here whichever thread uses it (a socket keeps its namespace)."""
        try:
            return self.call(lambda: sockets.socket(family, kind, protocol))
        except OSError as exc:
            raise LabError(f"socket in {self.name}: {exc}") from exc

    def call(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in a thread that has entered this namespace, as its children do."""

        def inside() -> T:
            enter_namespace(self.path)
            return work()

        # A thread of its own: it ends with the namespace it has entered, ours never changes.
        with ThreadPoolExecutor(1, thread_name_prefix=self.label) as pool:
            return pool.submit(inside).result()

    def pids(self) -> list[int]:
        """Processes whose network namespace is this one."""
        own = self.path.stat()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):  # it ended, or belongs to another user
                theirs = (entry / "ns" / "net").stat()
                if (theirs.st_dev, theirs.st_ino) == (own.st_dev, own.st_ino):
                    found.append(int(entry.name))
        return found


def end_process(process: subprocess.Popen[bytes], *, grace: float = 5.0) -> int:
    """SIGTERM, then after ``grace`` seconds SIGKILL. Returns the exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def sweep() -> list[str]:
    """Remove namespaces of labs whose process is gone (killed before it could clean up)."""
    removed = []
    for entry in NETNS_DIR.glob(f"{PREFIX}-*") if NETNS_DIR.is_dir() else ():
        match = re.fullmatch(rf"{PREFIX}-(\d+)-\d+-.+", entry.name)
        if match and not Path("/proc", match[1]).exists():
            run("ip", "netns", "del", entry.name, check=False)
            removed.append(entry.name)
    return removed


def enter_namespace(path: Path) -> None:
    """setns(2) of the calling thread alone; os.setns comes only with Python 3.12."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(fd)
