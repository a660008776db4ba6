"""Datagrams to the responder of a gateway (UDP port 4498), and what comes back."""

from __future__ import annotations

import socket
import time

from ipsec_api.cluster import PROBE_PORT
from ipsec_lab.netns import Namespace


def asked(
    namespace: Namespace, target: str, data: bytes, *, source: str | None = None, wait: float = 1.0
) -> bytes:
    """What comes back from ``target`` within ``wait`` seconds; empty if nothing does."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with namespace.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(wait)
        if source is not None:
            sock.bind((source, 0))
        # Connected: an answer from another address does not count.
        sock.connect((target, PROBE_PORT))
        try:
            sock.send(data)
            return sock.recv(65535)
        except OSError:
            # Nothing in time, or nobody is there.
            return b""


def asked_until(
    namespace: Namespace,
    target: str,
    data: bytes,
    *,
    source: str | None = None,
    wait: float = 0.3,
    timeout: float = 10.0,
) -> bytes:
    """The first answer of several tries, ``timeout`` seconds at most."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if answer := asked(namespace, target, data, source=source, wait=wait):
            return answer
    return b""
