"""A packet process: one direction, one loop. Started by ``supervisor`` as

    python -m ipsec_gateway.ipsec.worker out|in CONTROL SHELF TUN SHARED SOCKET,SOCKET,...

where the words in capitals are inherited descriptors. It ends when the gateway closes the control
socket or is gone.
"""

from __future__ import annotations

import gc
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final

from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.control import (
    AddSa,
    Body,
    Decoder,
    DeliverEsp,
    Message,
    Ping,
    PutPolicies,
    Refused,
    Reply,
    Request,
    encode,
)
from ipsec_gateway.ipsec.outer import Outer
from ipsec_gateway.ipsec.receive import Receiver
from ipsec_gateway.ipsec.shared import SharedState
from ipsec_gateway.ipsec.transmit import Transmitter
from ipsec_ike.actions import UpdateSa
from ipsec_ike.errors import LocalMisuse
from ipsec_ike.identifiers import SaId

#: Octets of events that may wait for the gateway; later ones are lost, replies never are.
BACKLOG: Final = 1 << 20
#: More than the largest frame that is put on the shelf.
_FRAME: Final = 1 << 16


class Control:
    """The process's ends of the control socket and of the shelf, where new SAs lie."""

    def __init__(self, sock: socket.socket, shelf: socket.socket) -> None:
        sock.setblocking(False)
        shelf.setblocking(False)
        self.sock: Final = sock
        self._shelf: Final = shelf
        self._decoder: Final = Decoder()
        self._shelf_decoder: Final = Decoder()
        self._waiting: Final = bytearray()

    def backlog(self) -> int:
        """Octets that wait to be sent."""
        return len(self._waiting)

    def emit(self, message: Message) -> None:
        """Send an event, unless the gateway is too far behind."""
        if len(self._waiting) < BACKLOG:
            self._waiting.extend(encode(message))

    def work(self, perform: Callable[[Body], None]) -> bool:
        """Do what the gateway has said. False when it is gone."""
        alive = True
        try:
            data = self.sock.recv(1 << 16)
            alive = bool(data)
        except BlockingIOError:
            data = b""
        except ConnectionError:
            return False
        # Whatever was put on the shelf before these requests were sent is there by now, and they
        # may be about it.
        self._take(perform)
        self._perform(perform, self._decoder, data)
        return alive

    def _take(self, perform: Callable[[Body], None]) -> None:
        """What is on the shelf."""
        while True:
            try:
                frame = self._shelf.recv(_FRAME)
            except (BlockingIOError, ConnectionError):
                return
            if not frame:
                return
            self._perform(perform, self._shelf_decoder, frame)

    def _perform(self, perform: Callable[[Body], None], decoder: Decoder, data: bytes) -> None:
        for message in decoder.feed(data):
            if isinstance(message, Request):
                _answer(self, perform, message)

    def reply(self, number: int, error: str = "") -> None:
        """Answer a request."""
        self._waiting.extend(encode(Reply(number, error)))

    def flush(self) -> bool:
        """Send as much as the socket takes. False when the gateway is gone."""
        while self._waiting:
            try:
                sent = self.sock.send(self._waiting)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            del self._waiting[:sent]
        return True


def serve(
    control: Control,
    perform: Callable[[Body], None],
    sources: Sequence[tuple[int, Callable[[], None]]],
) -> None:
    """Until the gateway is gone: whichever of ``sources`` is readable first, then requests."""
    poll = select.poll()
    ready = dict(sources)
    for descriptor in ready:
        poll.register(descriptor, select.POLLIN)
    control_fd = control.sock.fileno()
    poll.register(control_fd, select.POLLIN)
    control.reply(0)
    alive = control.flush()
    while alive:
        events = poll.poll()
        # Packets first: those that wait came before their SA was deleted. One that came because of
        # a request finds it (``catch_up``).
        for descriptor, _ in events:
            if descriptor != control_fd:
                ready[descriptor]()
        if any(descriptor == control_fd for descriptor, _ in events) and not control.work(perform):
            return
        if control.backlog():
            alive = control.flush()
            wanted = select.POLLIN | (select.POLLOUT if control.backlog() else 0)
            poll.modify(control_fd, wanted)


def _answer(control: Control, perform: Callable[[Body], None], request: Request) -> None:
    error = ""
    try:
        perform(request.body)
    except (DataplaneError, LocalMisuse) as exc:
        error = str(exc) or type(exc).__name__
    if request.number:
        control.reply(request.number, error)
    elif error and isinstance(request.body, AddSa):
        control.emit(Refused(request.body.spec.id, error))


def run_out(control: Control, tun: int, state: SharedState, sockets: list[socket.socket]) -> None:
    """The outbound process."""
    transmitter = Transmitter(
        tun,
        lambda failed, report: Outer(sockets, failed, report),
        state,
        control.emit,
        catch_up=lambda: control.work(perform),
    )

    def perform(body: Body) -> None:
        match body:
            case AddSa(spec, slot):
                transmitter.add_sa(spec, slot)
            case UpdateSa():
                transmitter.update_sa(body)
            case SaId():
                transmitter.delete_sa(body)
            case PutPolicies(put, delete):
                transmitter.put_policies(put, delete)
            case Ping() | DeliverEsp():
                pass

    serve(control, perform, [(tun, transmitter.drain)])


def run_in(control: Control, tun: int, state: SharedState, sockets: list[socket.socket]) -> None:
    """The inbound process."""
    receiver = Receiver(tun, state, control.emit, catch_up=lambda: control.work(perform))

    def perform(body: Body) -> None:
        match body:
            case AddSa(spec, slot):
                receiver.add_sa(spec, slot)
            case UpdateSa():
                receiver.update_sa(body)
            case SaId():
                receiver.delete_sa(body)
            case DeliverEsp(data, remote):
                receiver.deliver(data, remote)
            case Ping() | PutPolicies():
                pass

    def reader(sock: socket.socket) -> Callable[[], None]:
        drain = receiver.drain_udp if sock.type == socket.SOCK_DGRAM else receiver.drain_raw
        return lambda: drain(sock)

    serve(control, perform, [(sock.fileno(), reader(sock)) for sock in sockets])


def main(argv: Sequence[str]) -> None:
    """Entry point; ``argv`` without the program's name."""
    # The gateway decides when this process ends, not a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    direction, control_fd, shelf_fd, tun, shared, sockets = argv
    control = Control(socket.socket(fileno=int(control_fd)), socket.socket(fileno=int(shelf_fd)))
    state = SharedState.attach(int(shared))
    opened = [socket.socket(fileno=int(fd)) for fd in sockets.split(",") if fd]
    # Nothing in the packet path makes cycles; the collector would only look at the modules again.
    gc.collect()
    gc.freeze()
    run = {"out": run_out, "in": run_in}[direction]
    run(control, int(tun), state, opened)


if __name__ == "__main__":
    main(sys.argv[1:])
