"""The responder's sockets: the shell around ``responder``.

Clear text is kept away by the guard (``protected.protected_services``), and once more here: where a
device carries what tunnels bring, nothing else is answered. What this node sends to itself, which
the guard does not look at, never gets to the sockets. ``serve`` comes after the guard; what has
come to the port before is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from ipsec_api.cluster import PROBE_PORT
from ipsec_gateway.ipsec import linux
from ipsec_gateway.pathprobe import pinned
from ipsec_gateway.pathprobe.responder import Arrival, Judge, Outcome
from ipsec_gateway.pathprobe.sockets import BURST

log = logging.getLogger("ipsec_gateway")

_ANCILLARY: Final = 256
#: Of a kernel without IPv6.
_NO_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


class ProbeResponder(Collector):
    """``device`` brings what tunnels carry; None: the kernel's IPsec does. Also collects its
    metric."""

    def __init__(
        self,
        gateway: str,
        loop: asyncio.AbstractEventLoop,
        *,
        enabled: bool,
        device: str | None,
        port: int = PROBE_PORT,
    ) -> None:
        self._gateway: Final = gateway
        self._loop: Final = loop
        self._enabled: Final = enabled
        self._device: Final = device
        self._port: Final = port
        self._judge: Final = Judge(port)
        self._sockets: list[socket.socket] = []
        self._serving = False
        self._told = False
        self.counts: Counter[Outcome] = Counter()

    def bind(self, *, wanted: bool) -> int:
        """Take the port, or with ``wanted`` False let go of it. Gives the port, 0 without one."""
        if not wanted or not self._enabled:
            self.close()
            return 0
        if self._sockets:
            return self._port
        found: list[socket.socket] = []
        try:
            for family in (socket.AF_INET, socket.AF_INET6):
                with contextlib.suppress(_NoFamily):
                    found.append(_open(family, self._port))
        except OSError as exc:
            for sock in found:
                sock.close()
            if not self._told:
                self._told = True
                log.warning(
                    "probes by UDP of other gateways are not answered: UDP port %d: %s; free it, or"
                    " say --no-probe-responder",
                    self._port,
                    exc.strerror,
                )
            return 0
        self._sockets, self._told = found, False
        return self._port if found else 0

    def serve(self) -> None:
        """Answer from now on. The guard is in place."""
        if self._serving or not self._sockets:
            return
        self._serving = True
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                while True:
                    sock.recv(1)
            self._loop.add_reader(sock, self._readable, sock)

    def close(self) -> None:
        """Give the port back."""
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets, self._serving = [], False

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks for."""
        answers = CounterMetricFamily(
            "ipsec_probe_responder",
            "Probes by UDP that came to this gateway, by what became of them.",
            labels=("gateway", "outcome"),
        )
        for outcome in Outcome:
            answers.add_metric((self._gateway, outcome.value), self.counts[outcome])
        yield answers

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(BURST):
            try:
                data, ancillary, _, sender = sock.recvmsg(65535, _ANCILLARY)
            except OSError:
                # Nothing more, or an ICMP error of an earlier answer.
                return
            asked, own, interface = _where(ancillary)
            it = Arrival(data, sender[0], sender[1], asked, own, self._brought(interface))
            outcome = self._judge.judge(it, self._loop.time())
            if outcome is Outcome.ANSWERED:
                try:
                    pinned.fragment(sock, never=False)
                    sock.sendmsg([data], [pinned.source(asked)], 0, sender)
                except OSError:
                    outcome = Outcome.UNSENT
            self.counts[outcome] += 1

    def _brought(self, interface: int) -> bool:
        """Whether what comes by this interface came out of an SA, as far as it can be seen here."""
        if self._device is None:
            return True
        try:
            return interface == socket.if_nametoindex(self._device)
        except OSError:
            # There is no such device (any more).
            return False


class _NoFamily(Exception):
    """The kernel has no such IP version."""


def _open(family: int, port: int) -> socket.socket:
    try:
        return pinned.udp(family, port, outside=True)
    except OSError as exc:
        if exc.errno in _NO_FAMILY:
            raise _NoFamily from exc
        raise


def _where(ancillary: list[tuple[int, int, bytes]]) -> tuple[str, str, int]:
    """(address in the header, address of ours, interface); empty if the kernel did not say."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, linux.IP_PKTINFO):
            header, own = (socket.inet_ntop(socket.AF_INET, data[n : n + 4]) for n in (8, 4))
            return header, own, int.from_bytes(data[:4], sys.byteorder)
        if (level, kind) == (socket.IPPROTO_IPV6, linux.IPV6_PKTINFO):
            header = socket.inet_ntop(socket.AF_INET6, data[:16])
            return header, header, int.from_bytes(data[16:20], sys.byteorder)
    return "", "", 0
