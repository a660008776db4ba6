"""The way to the API server out of a namespace: through, cut, and through again."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ipsec_lab.forwarder import Forwarder, server_of


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while chunk := self.request.recv(4096):
            self.request.sendall(chunk)


@pytest.fixture
def forwarder() -> Iterator[Forwarder]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        listener = socket.create_server(("127.0.0.1", 0))
        try:
            with Forwarder(listener, ("127.0.0.1", server.server_address[1])) as it:
                yield it
        finally:
            server.shutdown()
            thread.join()


def connect(forwarder: Forwarder) -> socket.socket:
    return socket.create_connection(("127.0.0.1", forwarder.port), timeout=10)


def echoed(line: socket.socket, text: bytes) -> bytes:
    line.sendall(text)
    return line.recv(100)


def broken(line: socket.socket) -> bool:
    try:
        return line.recv(100) == b""
    except ConnectionError:
        return True


def test_it_carries_breaks_and_carries_again(forwarder: Forwarder) -> None:
    with connect(forwarder) as first, connect(forwarder) as second:
        assert echoed(first, b"one") == b"one"
        assert echoed(second, b"two") == b"two"
        forwarder.cut()
        assert broken(first)
        assert broken(second)
        with connect(forwarder) as during:
            assert broken(during)
        forwarder.mend()
        with connect(forwarder) as after:
            assert echoed(after, b"three") == b"three"
            after.shutdown(socket.SHUT_WR)
            assert after.recv(100) == b"", "the end is passed on, too"
    assert forwarder.connections == 3


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("https://192.0.2.1:6443", ("192.0.2.1", 6443)),
        ("https://kube.example", ("kube.example", 443)),
        ("http://[2001:db8::1]", ("2001:db8::1", 80)),
    ],
)
def test_where_the_server_is(tmp_path: Path, server: str, expected: tuple[str, int]) -> None:
    document = {
        "current-context": "b",
        "contexts": [
            {"name": "a", "context": {"cluster": "other"}},
            {"name": "b", "context": {"cluster": "this"}},
        ],
        "clusters": [
            {"name": "other", "cluster": {"server": "https://127.0.0.1"}},
            {"name": "this", "cluster": {"server": server}},
        ],
    }
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(document))
    assert server_of(file) == expected
