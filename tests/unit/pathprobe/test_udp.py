"""Probes by UDP: their octets, what is an echo, and what the responder answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gateway.pathprobe import pinned
from ipsec_gateway.pathprobe.answering import ProbeResponder
from ipsec_gateway.pathprobe.datagrams import DatagramSockets, is_echo
from ipsec_gateway.pathprobe.format import OVERHEAD, datagram, parse
from ipsec_gateway.pathprobe.responder import ALL, BURST, EACH, KNOWN, Arrival, Judge, Outcome
from ipsec_gateway.pathprobe.schedule import Shot

PORT = 4498
PROBE = datagram(4, 77, 84)
GOOD = Arrival(PROBE, "10.2.0.1", 40000, "10.1.0.1", "10.1.0.1", True)


# -- the format --------------------------------------------------------------------------------


@given(st.sampled_from([4, 6]), st.integers(0, 2**32 - 1), st.integers(0, 9000))
def test_a_probe_has_the_asked_size_and_is_read_again(version: int, token: int, size: int) -> None:
    data = datagram(version, token, size)
    assert len(data) == max(size - OVERHEAD[version], 12)
    assert parse(data) == token


@given(st.one_of(st.binary(max_size=100), st.binary(max_size=40).map(lambda b: PROBE[:8] + b)))
def test_what_is_read_is_a_probe_to_the_last_octet(data: bytes) -> None:
    token = parse(data)
    if token is not None:
        assert data == datagram(4, token, len(data) + OVERHEAD[4])


@pytest.mark.parametrize(
    "data",
    [b"", PROBE[:11], b"x" + PROBE[1:], PROBE[:4] + b"\2" + PROBE[5:], PROBE + b"x"],
)
def test_what_is_no_probe(data: bytes) -> None:
    assert parse(data) is None
    assert Judge(PORT).judge(GOOD._replace(data=data), 0.0) is Outcome.NO_PROBE


# -- what counts as an echo --------------------------------------------------------------------


def test_an_echo_is_the_very_same_from_where_it_went() -> None:
    shot = Shot(77, "10.1.0.1", "10.2.0.1", PORT)
    assert is_echo(shot, PROBE, "10.2.0.1", PORT)
    assert not is_echo(shot, PROBE, "10.2.0.2", PORT)
    assert not is_echo(shot, PROBE, "10.2.0.1", 7)
    assert not is_echo(replace(shot, size=1400), PROBE, "10.2.0.1", PORT)
    assert not is_echo(shot, datagram(4, 78, 84), "10.2.0.1", PORT)
    six = Shot(1, "fd01::1", "fd02:0:0::1", PORT)
    assert is_echo(six, datagram(6, 1, 84), "fd02::1", PORT)


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda data: data, True),
        (lambda data: data[:-1], False),
        (lambda data: data[:11] + bytes([data[11] ^ 2]) + data[12:], False),
    ],
)
def test_any_echo_service_will_do(change: Callable[[bytes], bytes], counts: bool) -> None:
    """RFC 862, at 127.0.0.1."""

    async def probe() -> list[int]:
        loop = asyncio.get_running_loop()
        echoes: list[int] = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
            service.bind(("127.0.0.1", 0))
            service.settimeout(5)
            address, port = service.getsockname()
            shot = Shot(77, address, address, port)
            both = asyncio.Event()

            def pending(token: int) -> Shot | None:
                if token == 78:
                    both.set()
                return shot if token == shot.token else None

            sockets = DatagramSockets(pending, echoes.append, loop)
            assert sockets.send(shot)
            data, sender = service.recvfrom(2048)
            assert (data, sender[0]) == (PROBE, address)
            service.sendto(change(data), sender)
            # Both are read once the second one has been asked about.
            service.sendto(datagram(4, 78, 84), sender)
            await asyncio.wait_for(both.wait(), 10)
            sockets.close()
        return echoes

    assert asyncio.run(probe()) == ([77] if counts else [])


# -- what the responder answers ----------------------------------------------------------------


def test_a_probe_out_of_an_sa_is_answered() -> None:
    assert Judge(PORT).judge(GOOD, 0.0) is Outcome.ANSWERED
    six = GOOD._replace(source="fd02::1", asked="fd01::1", own="fd01::1")
    assert Judge(PORT).judge(six, 0.0) is Outcome.ANSWERED


@pytest.mark.parametrize(
    ("it", "outcome"),
    [
        (GOOD._replace(protected=False), Outcome.CLEAR_TEXT),
        (GOOD._replace(port=PORT), Outcome.LOOP),
        (GOOD._replace(port=7), Outcome.LOOP),
        (GOOD._replace(port=0), Outcome.LOOP),
        (GOOD._replace(asked="10.1.255.255"), Outcome.ADDRESS),
        (GOOD._replace(asked="255.255.255.255", own="255.255.255.255"), Outcome.ADDRESS),
        (GOOD._replace(asked="224.0.0.1", own="224.0.0.1"), Outcome.ADDRESS),
        (GOOD._replace(asked="ff02::1", own="ff02::1"), Outcome.ADDRESS),
        (GOOD._replace(asked="", own=""), Outcome.ADDRESS),
        (GOOD._replace(source="255.255.255.255"), Outcome.ADDRESS),
        (GOOD._replace(source="224.0.0.1"), Outcome.ADDRESS),
        (GOOD._replace(source="127.0.0.1"), Outcome.ADDRESS),
        (GOOD._replace(source="fe80::1%eth0"), Outcome.ADDRESS),
    ],
)
def test_what_is_not_answered(it: Arrival, outcome: Outcome) -> None:
    assert Judge(PORT).judge(it, 0.0) is outcome


def test_one_address_is_not_answered_more_often_than_probing_needs() -> None:
    judge = Judge(PORT)
    first = [judge.judge(GOOD, 0.0) for _ in range(100)]
    assert first.count(Outcome.ANSWERED) == BURST
    assert judge.judge(GOOD._replace(source="10.2.0.2"), 0.0) is Outcome.ANSWERED
    later = [judge.judge(GOOD, 1.0) for _ in range(100)]
    assert later.count(Outcome.ANSWERED) == EACH
    # A clock that goes back gives nothing away.
    assert judge.judge(GOOD, 0.5) is Outcome.RATE


def test_all_together_are_not_answered_without_end_and_not_remembered_either() -> None:
    judge = Judge(PORT)
    sources = [f"10.2.{n >> 8}.{n & 255}" for n in range(ALL + 100)]
    found = [judge.judge(GOOD._replace(source=source), 0.0) for source in sources]
    assert found.count(Outcome.ANSWERED) == ALL
    assert len(judge._each) == KNOWN


# -- its sockets -------------------------------------------------------------------------------


@pytest.fixture
def free() -> int:
    """A UDP port that nobody else has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_what_the_node_sends_to_itself_does_not_get_there(free: int) -> None:
    """At 127.0.0.1; the sockets of the probes themselves have no such filter."""
    with (
        pinned.udp(socket.AF_INET, free, outside=True) as deaf,
        pinned.udp(socket.AF_INET, 0) as other,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker,
    ):
        for sock in (deaf, other):
            asker.sendto(PROBE, ("127.0.0.1", sock.getsockname()[1]))
        other.settimeout(5)
        assert other.recv(2048) == PROBE
        with pytest.raises(BlockingIOError):
            deaf.recv(2048)


def counted(port: int, *, device: str | None, before: int = 0) -> dict[Outcome, int]:
    """What becomes of one probe to 127.0.0.1, and of some before the guard is there."""

    async def run() -> dict[Outcome, int]:
        loop = asyncio.get_running_loop()
        it = ProbeResponder("gw", loop, enabled=True, device=device, port=port)
        assert it.bind(wanted=True) == port
        assert it.bind(wanted=True) == port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.bind(("127.0.0.1", 0))
            asker.settimeout(5)
            for _ in range(before):
                asker.sendto(PROBE, ("127.0.0.1", port))
            asker.sendto(b"they are there", asker.getsockname())
            asker.recv(2048)
            it.serve()
            asker.sendto(PROBE, ("127.0.0.1", port))
            for _ in range(500):
                await asyncio.sleep(0.01)
                if it.counts:
                    break
        assert it.bind(wanted=False) == 0
        return dict(it.counts)

    return asyncio.run(run())


@pytest.fixture
def hearing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The responder hears the node itself."""
    plain = pinned.udp
    monkeypatch.setattr(pinned, "udp", lambda family, port, **_: plain(family, port))


@pytest.mark.usefixtures("hearing")
def test_what_comes_by_another_device_is_not_answered(free: int) -> None:
    assert counted(free, device="none") == {Outcome.CLEAR_TEXT: 1}
    assert counted(free, device="lo") == {Outcome.ADDRESS: 1}


@pytest.mark.usefixtures("hearing")
def test_what_came_before_the_guard_is_thrown_away(free: int) -> None:
    assert counted(free, device=None, before=5) == {Outcome.ADDRESS: 1}


def test_a_port_that_is_taken_is_told_once(free: int, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        it = ProbeResponder("gw", loop, enabled=True, device=None, port=free)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("0.0.0.0", free))  # what others do
            assert it.bind(wanted=True) == 0
            assert it.bind(wanted=True) == 0
            it.serve()
        assert it.bind(wanted=True) == free
        it.close()

    asyncio.run(run())
    assert [r.message for r in caplog.records if str(free) in r.message] != []
    assert len(caplog.records) == 1


def test_switched_off(free: int) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        it = ProbeResponder("gw", loop, enabled=False, device=None, port=free)
        assert it.bind(wanted=True) == 0

    asyncio.run(run())


def test_its_metric_has_every_outcome() -> None:
    loop = asyncio.new_event_loop()
    it = ProbeResponder("gw", loop, enabled=True, device=None)
    loop.close()
    it.counts[Outcome.RATE] = 3
    (family,) = it.collect()
    found = {sample.labels["outcome"]: sample.value for sample in family.samples}
    assert found == {outcome.value: 0 for outcome in Outcome} | {"rate": 3}
