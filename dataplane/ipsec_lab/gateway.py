"""Our own gateway in a namespace: ``kube-ipsec gateway`` on a folder of manifests."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final, Protocol

import yaml
from prometheus_client.samples import Sample

from ipsec_lab import manifests
from ipsec_lab.manifests import Document
from ipsec_lab.netns import LabError, Namespace
from ipsec_lab.scrape import samples
from ipsec_lab.topology import Topology

#: Where the gateway serves /healthz, /readyz and /metrics; each has a namespace of its own.
HTTP: Final = ("127.0.0.1", 9500)
_COMMAND: Final = (sys.executable, "-c", "from ipsec_cli.main import main; main()", "gateway")


class Process(Protocol):
    """What a started gateway is: a subprocess.Popen, or a process that was forked."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...

    def terminate(self) -> None: ...


class GatewayProcess:
    """One gateway. ``directory`` gets its manifests, state and log; it must exist.

    The topology ends it. Raises LabError where it does not come up or a wait takes too long.
    """

    def __init__(self, topology: Topology, namespace: Namespace, directory: Path) -> None:
        self._topology: Final = topology
        self.namespace: Final = namespace
        self.manifests: Final = directory / "manifests"
        self.state: Final = directory / "state"
        self.log_path: Final = directory / "gateway.log"
        self._process: Process | None = None
        self._log: IO[bytes] | None = None
        self.manifests.mkdir(exist_ok=True)
        self.state.mkdir(exist_ok=True)

    @property
    def pid(self) -> int:
        """Of the running gateway. Raises LabError if it was not started."""
        if self._process is None:
            raise LabError("the gateway is not running")
        return self._process.pid

    def apply(self, *documents: Document) -> None:
        """Put documents into the folder; the gateway follows by itself."""
        manifests.write(self.manifests, *documents)

    def remove(self, *documents: Document) -> None:
        """Take documents out of the folder."""
        manifests.remove(self.manifests, *documents)

    def start(self, *options: str, timeout: float = 20.0) -> None:
        """Start it and wait until /readyz says yes."""
        self._process = self._launch(
            [
                "--manifests",
                str(self.manifests),
                "--state",
                str(self.state),
                "--listen",
                "{}:{}".format(*HTTP),
                *options,
            ]
        )
        deadline = time.monotonic() + timeout
        while self.get("/readyz")[0] != 200:
            if self._process.poll() is not None:
                raise LabError(f"the gateway ended at once: {self._last_words()}")
            if time.monotonic() > deadline:
                raise LabError(
                    f"the gateway is not ready after {timeout:g} s: {self._last_words()}"
                )
            time.sleep(0.05)

    def _launch(self, options: Sequence[str]) -> Process:
        self._log = self.log_path.open("ab")
        return self._topology.start(
            self.namespace,
            [*_COMMAND, *options],
            log=self._log,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def stop(self, *, timeout: float = 15.0) -> int:
        """SIGTERM, and its exit status. Raises LabError if it does not end in time."""
        if self._process is None:
            raise LabError("the gateway is not running")
        self._process.terminate()
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired as exc:
            self.kill()
            raise LabError(f"the gateway does not end within {timeout:g} s of SIGTERM") from exc
        self._closed()
        return status

    def kill(self) -> None:
        """SIGKILL: it has no chance to say good-bye."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._closed()

    def _closed(self) -> None:
        self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def get(self, path: str, *, timeout: float = 5.0) -> tuple[int, str]:
        """Status and body of a page of its HTTP server; status 0 where nobody answers."""
        connection = http.client.HTTPConnection(*HTTP, timeout=timeout)
        try:
            connection.sock = self.namespace.socket(socket.AF_INET)
            connection.sock.settimeout(timeout)
            connection.sock.connect(HTTP)
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError as exc:
            return 0, str(exc)
        finally:
            connection.close()

    def samples(self, name: str, **labels: str) -> list[Sample]:
        """Those of a metric with these labels, as of now. Raises LabError where there is no such
        metric, and where the page cannot be had."""
        code, page = self.get("/metrics")
        if code != 200:
            raise LabError(f"/metrics: {code} {page}")
        return samples(page, name, **labels)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of ``samples``."""
        return sum(each.value for each in self.samples(name, **labels))

    def status(self, kind: str, name: str, *, namespace: str = "default") -> dict[str, Any]:
        """The status of an object, or an empty dict while there is none."""
        path = self.state / "status" / kind.lower() / namespace / f"{name}.yaml"
        try:
            status = yaml.safe_load(path.read_text())["status"]
        except FileNotFoundError:
            return {}
        assert isinstance(status, dict)
        return status

    def condition(self, name: str, condition: str, *, kind: str = "IPsecPeer") -> dict[str, Any]:
        """One condition of an object, or an empty dict."""
        for entry in self.status(kind, name).get("conditions", ()):
            if entry["type"] == condition:
                return dict(entry)
        return {}

    def wait_condition(
        self,
        name: str,
        condition: str = "Ready",
        status: str = "True",
        *,
        reason: str | None = None,
        kind: str = "IPsecPeer",
        timeout: float = 10.0,
    ) -> dict[str, Any]:
        """Wait until a condition has this status (and reason), and give it back."""

        def reached() -> bool:
            entry = self.condition(name, condition, kind=kind)
            return entry.get("status") == status and reason in (None, entry.get("reason"))

        wanted = f"{condition}={status}" + (f" ({reason})" if reason else "")
        try:
            self.wait(reached, f"{kind} {name} {wanted}", timeout=timeout)
        except LabError as exc:
            raise LabError(f"{exc}; status: {self.status(kind, name)}") from exc
        return self.condition(name, condition, kind=kind)

    def wait(self, reached: Callable[[], bool], what: str, *, timeout: float = 10.0) -> None:
        """Poll until ``reached``. Raises LabError naming ``what``."""
        deadline = time.monotonic() + timeout
        while not reached():
            if self._process is not None and self._process.poll() is not None:
                raise LabError(f"{what}: the gateway has ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise LabError(f"{what}: not within {timeout:g} s")
            time.sleep(0.05)

    def log(self) -> str:
        """Everything it has logged so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def _last_words(self) -> str:
        lines = self.log().strip().splitlines()
        return lines[-1] if lines else f"no output, see {self.log_path}"
