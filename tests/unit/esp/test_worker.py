"""The loop of a packet process (``worker``)."""

from __future__ import annotations

import os
import socket

from ipsec_gateway.ipsec.control import Body, Ping, Request, encode
from ipsec_gateway.ipsec.worker import Control, serve


def test_packets_that_wait_are_taken_before_their_sa_is_deleted() -> None:
    ours, theirs = socket.socketpair()
    shelf, shelf_end = socket.socketpair()
    readable, written = os.pipe()
    done: list[str] = []

    def packets() -> None:
        os.read(readable, 100)
        done.append("packets")

    def perform(body: Body) -> None:
        done.append("request")
        ours.close()

    with ours, theirs, shelf, shelf_end:
        ours.send(encode(Request(0, Ping())))
        os.write(written, b"datagrams")
        serve(Control(theirs, shelf), perform, [(readable, packets)])
    os.close(readable)
    os.close(written)
    assert done == ["packets", "request"]
