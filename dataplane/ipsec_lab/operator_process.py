"""The operator as a process of its own, against the cluster that a kubeconfig names."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import yaml

from ipsec_lab.bench_process import Usage, usage
from ipsec_lab.netns import LabError

_COMMAND: Final = (sys.executable, "-c", "from ipsec_cli.main import main; main()", "operator")
#: No node has it: gateways and route agents of a test are never started.
NOWHERE: Final = {"kube-ipsec.test/nowhere": "true"}


def settings(namespace: str, *watched: str, **more: Any) -> dict[str, Any]:
    """Settings of an operator in ``namespace`` whose DaemonSets find no node."""
    return {
        "namespace": namespace,
        "watchNamespaces": list(watched),
        "image": "registry.invalid/kube-ipsec/gateway:test",
        "gateway": {"nodeSelector": NOWHERE},
        "routeAgent": {"nodeSelector": NOWHERE},
        "clusterSubnets": {"pods": ["10.244.0.0/16"], "services": ["10.96.0.0/16"]},
        "logFormat": "text",
        **more,
    }


class OperatorProcess:
    """One replica. ``folder`` gets its settings and its log; ``with`` ends it.

    Raises LabError where it ends at once or a wait takes too long.
    """

    def __init__(
        self, folder: Path, kubeconfig: Path, chosen: Mapping[str, Any], name: str = "operator-0"
    ) -> None:
        self.name: Final = name
        self.log_path: Final = folder / f"{name}.log"
        self._settings: Final = folder / f"{name}.yaml"
        self._kubeconfig: Final = kubeconfig
        self._port: Final = _free_port()
        self._settings.write_text(yaml.safe_dump({**chosen, "port": self._port}))
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> OperatorProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the running operator. Raises LabError if it was not started."""
        if self._process is None:
            raise LabError("the operator is not running")
        return self._process.pid

    def start(self) -> None:
        """Start it; ``wait_leading`` or ``wait_ready`` says when it works."""
        self._log = self.log_path.open("ab")
        env = {k: v for k, v in os.environ.items() if k != "POD_NAMESPACE"}
        self._process = subprocess.Popen(
            [*_COMMAND, "--settings", str(self._settings)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={
                **env,
                "KUBECONFIG": str(self._kubeconfig),
                "POD_NAME": self.name,
                "PYTHONUNBUFFERED": "1",
            },
        )

    def wait_ready(self, timeout: float = 30.0) -> str:
        """Until /readyz says yes, and what it says: ``leading`` or ``waiting for the Lease``."""
        return self._wait("", timeout)

    def wait_leading(self, timeout: float = 60.0) -> None:
        """Until it leads and has listed everything."""
        self._wait("leading", timeout)

    def _wait(self, said: str, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while True:
            status, text = self.get("/readyz")
            if status == 200 and said in text:
                return text.strip()
            if self._process is None or self._process.poll() is not None:
                raise LabError(f"the operator has ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise LabError(f"the operator says {text.strip()!r}: {self._last_words()}")
            time.sleep(0.05)

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page; status 0 while nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def usage(self) -> Usage:
        """Processor time and memory until now."""
        return usage(self.pid)

    def peak(self) -> int:
        """The most memory that was resident at once, octets."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024

    def log(self) -> str:
        """All that it has logged."""
        return self.log_path.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL: it has no time to give anything back."""
        self._end(signal.SIGKILL, 10.0)

    def stop(self, timeout: float = 20.0) -> int | None:
        """SIGTERM, and its exit status; None if it was not running."""
        return self._end(signal.SIGTERM, timeout)

    def _end(self, number: signal.Signals, timeout: float) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.send_signal(number)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise LabError(f"the operator does not end: {self._last_words()}") from None
        finally:
            if self._log is not None:
                self._log.close()

    def _last_words(self) -> str:
        return " | ".join(self.log().splitlines()[-3:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
