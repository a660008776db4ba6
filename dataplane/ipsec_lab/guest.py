"""Debian's kernel in a virtual machine that shares this machine's files: the host's side.

virtme-ng boots it under plain emulation (no KVM), with the files of this machine as its root, read
only, and one folder that both sides write. What is run inside is ``ipsec_lab.guest_inside``.

One processor on purpose: with two, qemu has to emulate every atomic instruction as such, and all
takes three to four times the processor time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shutil import which
from types import TracebackType
from typing import Any, Final, Self

from ipsec_lab.netns import LabError, missing_programs, run

#: Where the guest sees the shared folder.
SHARED: Final = Path("/mnt")
#: Set inside: what only makes sense there asks for it.
INSIDE: Final = "KUBE_IPSEC_GUEST"
#: Lines of the console that explain why a guest ended.
TAIL: Final = 40

_BOOT: Final = Path("/boot")
_MODULES: Final = Path("/lib/modules")
#: Proof that a kernel can do what the gateway wants.
_ESP: Final = "kernel/net/ipv4/esp4.ko"
#: Programs that the tests start again and again: the guest keeps them in memory.
_HOT: Final = (
    "ip nft nsenter setpriv sysctl ping unshare sh mount ss swanctl iptables-nft iptables-legacy "
    "conntrack iperf3 modprobe"
)
_HOT_FOLDERS: Final = ("/usr/lib/ipsec", "/usr/lib/ipsec/plugins")
_MEMORY: Final = "2G"
# Nobody attacks this kernel, and an emulated processor pays for each precaution; page tables of
# four levels are walked faster than those of five.
_COMMAND_LINE: Final = ("mitigations=off", "nokaslr", "no5lvl", "audit=0")
#: 2 ns for each instruction; where nothing is to be done, time goes by as outside.
_COUNTED: Final = "-icount shift=1,sleep=on"
PACKAGES: Final = "linux-image-amd64 qemu-system-x86 busybox-static"


def kernel() -> str | None:
    """The newest installed kernel that has ESP as a module, such as ``6.1.0-56-amd64``."""
    found = [
        version
        for image in _BOOT.glob("vmlinuz-*")
        if os.access(image, os.R_OK)
        and any(_MODULES.glob(f"{(version := image.name.removeprefix('vmlinuz-'))}/{_ESP}*"))
    ]
    return max(found, key=_version_key, default=None)


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def missing() -> str | None:
    """None if a guest can be booted here; else one line that says what lacks and what to do."""
    if importlib.util.find_spec("virtme_ng") is None:
        return "virtme-ng is not in this environment (a development dependency): make test"
    lacking = missing_programs("qemu-system-x86_64", "busybox")
    if kernel() is None:
        lacking.append(f"a kernel with ESP in {_BOOT}")
    if lacking:
        return f"missing: {', '.join(lacking)}: apt-get install --no-install-recommends {PACKAGES}"
    return None


class Guest:
    """One boot. A context manager: on exit the machine is ended.

    ``patience`` is how many seconds may pass without a line from inside, boot included. Raises
    LabError where it cannot be started, ends before it is done, or says nothing for that long; the
    end of its console is in the message.

    ``counted``: time inside is what the processor has executed, so that measurements do not depend
    on what else this machine does. It takes a third longer.
    """

    def __init__(self, *, patience: float = 600.0, counted: bool = False) -> None:
        self._patience: Final = patience
        self._counted: Final = counted
        self._folder: Final = tempfile.TemporaryDirectory(prefix="kube-ipsec-guest-")
        self.directory: Final = Path(self._folder.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._writer: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def shared(self) -> Path:
        """The folder that the guest sees as SHARED."""
        return self.directory / "shared"

    @property
    def console_path(self) -> Path:
        """What the guest's kernel and programs print."""
        return self.directory / "console.log"

    def start(self, task: str, arguments: Mapping[str, Any]) -> None:
        """Boot and run ``task``, a name ``module:function`` that guest_inside calls with
        ``arguments`` (what JSON can hold)."""
        if problem := missing():
            raise LabError(problem)
        self.shared.mkdir()
        (self.shared / "task.json").write_text(
            json.dumps(
                {
                    "task": task,
                    "arguments": arguments,
                    "environment": _environment(),
                    "hot": _hot_files(),
                }
            )
        )
        scripts = str(Path(sys.executable).parent)
        # qemu opens its standard output again, and in a file it would write over what is there.
        with self.console_path.open("wb") as console:
            self._writer = subprocess.Popen(
                ["cat"], stdin=subprocess.PIPE, stdout=console, start_new_session=True
            )
        pipe = self._writer.stdin
        assert pipe is not None
        with pipe:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=pipe,
                stderr=subprocess.STDOUT,
                # virtme-run is looked up on PATH; groups of its own so that close() gets qemu too.
                env={**os.environ, "PATH": f"{scripts}:{os.environ.get('PATH', '')}:/usr/sbin"},
                start_new_session=True,
            )
        # Reads until our end of the pipe is closed, by close() or by our death.
        self._watcher = subprocess.Popen(
            ["sh", "-c", 'read -r _; kill -s KILL -- "-$1"', "sh", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _command(self) -> Sequence[str]:
        inside = [sys.executable, "-m", "ipsec_lab.guest_inside", str(SHARED / "task.json")]
        return (
            sys.executable,
            "-m",
            "virtme_ng.run",
            "--disable-kvm",
            "--run",
            kernel() or "",
            "--user",
            "root",
            "--cpus",
            "1",
            "--memory",
            _MEMORY,
            "--verbose",
            f"--rwdir={SHARED}={self.shared}",
            *((f"--qemu-opts={_COUNTED}",) if self._counted else ()),
            *(word for option in _COMMAND_LINE for word in ("--append", option)),
            "--exec",
            " ".join(inside),
        )

    def lines(self) -> Iterator[dict[str, Any]]:
        """What the task says with ``guest_inside.say``, as it comes, until it is done."""
        path = self.shared / "said.jsonl"
        position, rest = 0, b""
        last = time.monotonic()
        while True:
            ended = self._process is None or self._process.poll() is not None
            piece = b""
            with contextlib.suppress(FileNotFoundError), path.open("rb") as said:
                said.seek(position)
                piece = said.read()
            position += len(piece)
            *complete, rest = (rest + piece).split(b"\n")
            for line in complete:
                message = json.loads(line)
                last = time.monotonic()
                if "done" in message:
                    return
                yield message
            if ended and not piece:
                raise LabError(f"the guest ended before it was done; its console:\n{self.tail()}")
            if time.monotonic() - last > self._patience:
                raise LabError(
                    f"the guest has said nothing for {self._patience:g} s; its console:\n"
                    f"{self.tail()}"
                )
            time.sleep(0.2)

    def tail(self) -> str:
        """The end of the console."""
        if not self.console_path.exists():
            return "(nothing)"
        text = self.console_path.read_bytes().decode(errors="replace").replace("\r", "")
        return "\n".join(text.splitlines()[-TAIL:])

    def close(self) -> None:
        """End the machine if it still runs. Safe to call twice."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None
        if self._writer is not None:  # it ends with the last who writes to it
            self._writer.wait()
            self._writer = None
        self._folder.cleanup()


def _hot_files() -> list[str]:
    """The programs of _HOT and their libraries."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    found = {str(Path(each).resolve()) for name in _HOT.split() if (each := which(name, path=path))}
    for folder in map(Path, _HOT_FOLDERS):
        if folder.is_dir():
            found |= {str(each.resolve()) for each in folder.iterdir() if each.is_file()}
    listing = run("ldd", *sorted(found), check=False)
    libraries = re.findall(r"(/\S+) \(0x", listing)
    # The kernel has modprobe look for every algorithm that it is asked for and has not.
    found |= {str(each.resolve()) for each in (_MODULES / (kernel() or "")).glob("modules.*.bin")}
    return sorted(found | {str(Path(each).resolve()) for each in libraries})


def _environment() -> dict[str, str]:
    """What of our environment counts inside."""
    names = ("KUBE_IPSEC_REQUIRE_TIERS", "PYTEST_ADDOPTS")
    return {name: os.environ[name] for name in names if name in os.environ} | {INSIDE: "1"}
