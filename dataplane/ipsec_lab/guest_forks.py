"""Processes that are forked off a warm interpreter instead of being started.

Under emulation the imports of our gateway take ten seconds and more. So the first process of the
guest imports it once, and every gateway of a test is a fork of that one: it begins in
``ipsec_gateway.cli`` with its own namespace, output and environment, as if it had been executed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ipsec_lab.netns import LabError, enter_namespace

_PR_SET_PDEATHSIG: Final = 1
_REQUEST_SIZE: Final = 1 << 20


class Forked:
    """A forked process, as far as it is like subprocess.Popen. Not for several threads at once."""

    def __init__(self, server: ForkClient, pid: int) -> None:
        self.pid: Final = pid
        self.returncode: int | None = None
        self._server: Final = server
        self._pidfd: Final = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit status if it has ended: negative for a signal."""
        if self.returncode is None and select.select([self._pidfd], [], [], 0)[0]:
            self.returncode = self._server.reap(self.pid)
            os.close(self._pidfd)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            select.select([self._pidfd], [], [], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(f"forked process {self.pid}", timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkClient:
    """The side of those who want processes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection: Final = connection

    def gateway(
        self, arguments: Sequence[str], *, namespace: Path, log: Path, env: Mapping[str, str]
    ) -> Forked:
        """``kube-ipsec gateway`` with these arguments. Raises LabError."""
        pid = self._ask(
            {
                "arguments": list(arguments),
                "namespace": str(namespace),
                "log": str(log),
                "env": dict(env),
            }
        )
        return Forked(self, pid)

    def reap(self, pid: int) -> int:
        """The exit status of one that has ended."""
        return self._ask({"reap": pid})

    def _ask(self, request: Mapping[str, object]) -> int:
        self._connection.sendall(json.dumps(request).encode())
        answer = self._connection.recv(_REQUEST_SIZE)
        if not answer:
            raise LabError("the process that forks gateways has ended")
        return int(json.loads(answer))


def run_beside(work: Callable[[ForkClient], int], gateway: Callable[[Sequence[str]], None]) -> int:
    """Run ``work`` in a child of this process and fork a ``gateway`` whenever it asks for one.

    Returns the exit status of ``work``. This process must have one thread.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = os.fork()
    if worker == 0:
        ours.close()
        _leave(lambda: work(ForkClient(theirs)))
    theirs.close()
    while request := ours.recv(_REQUEST_SIZE):
        asked = json.loads(request)
        if "reap" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["reap"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                ours.close()
                _leave(lambda asked=asked: _become(asked, gateway))  # type: ignore[misc]  # a default argument
        ours.sendall(json.dumps(answer).encode())
    return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])


def _become(asked: Mapping[str, object], gateway: Callable[[Sequence[str]], None]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.clear()
    env, arguments = asked["env"], asked["arguments"]
    assert isinstance(env, dict)
    assert isinstance(arguments, list)
    os.environ.update(env)
    output = os.open(str(asked["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 1024)
    enter_namespace(Path(str(asked["namespace"])))
    gateway(arguments)
    return 0


def _leave(work: Callable[[], int]) -> None:
    """Run ``work`` and end this process with what it returns, whatever happens."""
    status = 1
    try:
        status = work()
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:  # the process ends here: what went wrong has to be seen
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
