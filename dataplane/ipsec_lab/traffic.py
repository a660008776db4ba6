"""Test traffic: pings and TCP transfers that carry the marker the sniffer looks for."""

from __future__ import annotations

import contextlib
import hashlib
import re
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import Final, Self

from ipsec_lab.echo import echo
from ipsec_lab.netns import LabError, Namespace, end_process
from ipsec_lab.sniffer import MARKER

_DONE: Final = b"done"
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_REPLY: Final = re.compile(rb"icmp_seq=(\d+) .*time=([\d.]+) ms")


@dataclass(frozen=True)
class PingResult:
    """``lost`` are the sequence numbers without an answer, ``times`` the round trips in ms."""

    sent: int
    lost: tuple[int, ...]
    times: tuple[float, ...]

    @property
    def received(self) -> int:
        return self.sent - len(self.lost)

    @property
    def median(self) -> float:
        """Round trip in ms. Raises ValueError if there was no answer at all."""
        if not self.times:
            raise ValueError("no ping was answered")
        return sorted(self.times)[len(self.times) // 2]


def ping(
    namespace: Namespace,
    address: str,
    *,
    count: int = 3,
    interval: float = 0.05,
    size: int = 56,
    wait: float = 3.0,
    fragment: bool = True,
    source: str | None = None,
) -> PingResult:
    """``count`` echo requests of ``size`` octets; at most ``wait`` seconds for the last answers.

    ``fragment`` False sets DF; ``source`` is an address of ``namespace``.
    """
    answers = echo(
        namespace,
        address,
        count=count,
        interval=interval,
        wait=wait,
        payload=(MARKER * (size // len(MARKER) + 1))[:size],
        fragment=fragment,
        source=source,
    )
    lost = tuple(n for n in range(1, count + 1) if n not in answers)
    return PingResult(count, lost, tuple(answers.values()))


def ping_until(
    namespace: Namespace, address: str, *, timeout: float = 10.0, source: str | None = None
) -> float:
    """Ping until an answer comes; seconds it took. Raises LabError after ``timeout`` seconds."""
    start = time.monotonic()
    while time.monotonic() - start < timeout:
        if ping(namespace, address, count=1, wait=0.3, source=source).received:
            return time.monotonic() - start
    raise LabError(f"no answer from {address} to {namespace.label} within {timeout:g} s")


class ConstantPing:
    """A ping that runs in the background, ``interval`` seconds apart. A context manager."""

    def __init__(
        self, namespace: Namespace, address: str, *, interval: float = 0.02, size: int = 56
    ) -> None:
        self._output: Final = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__
        options = ["-n", "-i", f"{interval:g}", "-s", str(size), "-p", MARKER.hex()]
        argv = ["ping", *options, address]
        self._process: Final = namespace.popen(argv, stdout=self._output, stderr=subprocess.STDOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_process(self._process)
        self._output.close()

    def stop(self) -> PingResult:
        """End it. Requests after the last answered one are not judged: they may be on their way."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(10)
        self._output.seek(0)
        out = self._output.read()
        answers = {int(m[1]): float(m[2]) for m in _REPLY.finditer(out)}
        sent = max(answers, default=0)
        lost = tuple(n for n in range(1, sent + 1) if n not in answers)
        return PingResult(sent, lost, tuple(answers.values()))


@dataclass(frozen=True)
class Transfer:
    """A finished TCP transfer. ``intact``: the checksums at both ends agree."""

    octets: int
    seconds: float
    intact: bool

    @property
    def mbit_per_second(self) -> float:
        return self.octets * 8 / self.seconds / 1e6


def tcp_transfer(
    source: Namespace,
    destination: Namespace,
    address: str,
    *,
    octets: int = 16 << 20,
    port: int = 5001,
    timeout: float = 60.0,
    source_address: str | None = None,
) -> Transfer:
    """Send ``octets`` from ``source`` to ``address`` in ``destination`` and compare SHA-256.

    Afterwards neither end knows of the connection, so that nothing is repeated later, when there
    may be no tunnel any more.

    Raises LabError if the connection fails or stands still for ``timeout`` seconds.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    received = hashlib.sha256()
    arrived = 0
    failed: list[OSError] = []
    listener = destination.socket(family)
    client = source.socket(family)

    def receive() -> None:
        nonlocal arrived
        try:
            server, _ = listener.accept()
            with server:
                server.settimeout(timeout)
                while arrived < octets and (data := server.recv(1 << 20)):
                    received.update(data)
                    arrived += len(data)
                server.sendall(_DONE)
                with contextlib.suppress(ConnectionResetError):
                    server.recv(1)
        except OSError as exc:
            failed.append(exc)

    with listener, client:
        listener.settimeout(timeout)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(1)
        thread = threading.Thread(target=receive, name="transfer", daemon=True)
        thread.start()
        sent = hashlib.sha256()
        block = _block()
        start = time.monotonic()
        try:
            client.settimeout(timeout)
            if source_address is not None:
                client.bind((source_address, 0))
            client.connect((address, port))
            left = octets
            while left:
                piece = block[:left]
                client.sendall(piece)
                sent.update(piece)
                left -= len(piece)
            client.recv(len(_DONE), socket.MSG_WAITALL)
            seconds = time.monotonic() - start
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            client.close()
        except OSError as exc:
            raise LabError(
                f"TCP from {source.label} to {address}:{port}: {exc} "
                f"({arrived} of {octets} octets arrived)"
            ) from exc
        finally:
            listener.close()
            thread.join(timeout)
    if failed:
        raise LabError(f"TCP receiver on {address}:{port}: {failed[0]}")
    return Transfer(octets, seconds, arrived == octets and sent.digest() == received.digest())


def _block() -> memoryview:
    """256 KiB of lines that never repeat, each with the marker: swapped packets change the sum."""
    lines = (MARKER + hashlib.sha256(n.to_bytes(4, "big")).digest() for n in range(1 << 13))
    return memoryview(b"".join(lines))[: 1 << 18]
