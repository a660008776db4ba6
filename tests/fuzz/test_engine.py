"""Any bytes into the engine give actions or a counted drop, never an exception, in bounded memory.

Three kinds of senders: one who knows nothing, one who has heard a conversation, and one who has the
keys and puts nonsense inside. The last one may break its own IKE SA, but nothing else.
"""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ipsec_ike.actions import SendDatagram
from ipsec_ike.engine import Engine
from ipsec_ike.errors import IntegrityFailure
from ipsec_ike.inputs import Datagram, Endpoint
from ipsec_ike.numbers import ExchangeType, NotifyType, PayloadType
from ipsec_ike.wire.header import Header
from ipsec_ike.wire.message import encode_payloads
from ipsec_ike.wire.payloads import (
    CpPayload,
    DeletePayload,
    NotifyPayload,
    Payload,
    UnknownPayload,
)
from ipsec_lab.mutation import mutate, with_length
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm
from ipsec_lab.simnet_script import Script, answer_child

INIT = ExchangeType.IKE_SA_INIT
AUTH = ExchangeType.IKE_AUTH
CREATE = ExchangeType.CREATE_CHILD_SA
INFO = ExchangeType.INFORMATIONAL


def assert_bounded(engine: Engine) -> None:
    """Nothing that strangers or one peer can do makes these grow for ever."""
    host, limits = engine.host, engine.host.limits
    assert host.half_open.total <= limits.half_open_max
    assert len(host.initial) <= limits.half_open_max
    assert len(host.sas) <= limits.half_open_max + 16
    assert len(host.children) <= limits.children + 8
    assert len(host.counters) < 200
    assert all(len(name) < 60 for name in host.counters)


class Target:
    """A responder that anyone may talk to."""

    def __init__(self) -> None:
        self.pair = Pair(calm())
        self.right = self.pair.right
        self.right.configure(self.right.config)
        self.sent = 0

    def receive(self, data: bytes, port: int = 500) -> list[bytes]:
        """One datagram; gives the answers, which are never larger than a first message needs."""
        local, remote = Endpoint("192.0.2.2", port), Endpoint("198.51.100.1", port)
        self.right.engine.receive(Datagram(data, local, remote), self.right.now)
        answers = [a for a in self.right.engine.take_actions() if isinstance(a, SendDatagram)]
        self.pair.now += 0.01
        return [a.data for a in answers]


TARGET = Target()


@settings(max_examples=300)
@given(st.binary(max_size=300), st.sampled_from([500, 4500]))
def test_any_bytes(data: bytes, port: int) -> None:
    TARGET.receive(data, port)
    assert_bounded(TARGET.right.engine)


@settings(max_examples=300)
@given(
    st.integers(0, 255),
    st.sampled_from([34, 35, 36, 37, 43, 99]),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2**32 - 1]),
    st.sampled_from([bytes(8), b"responsr"]),
    st.binary(max_size=120),
)
def test_any_body_behind_a_good_header(
    first: int, exchange: int, flags: int, message_id: int, spi_r: bytes, body: bytes
) -> None:
    header = Header(b"initiatr", spi_r, first, exchange, flags, message_id, 28 + len(body))
    data = header.encode() + body
    answers = TARGET.receive(data)
    # 2.21.4: nothing is amplified
    assert sum(map(len, answers)) <= len(data) + 40
    assert_bounded(TARGET.right.engine)


def conversation() -> tuple[Pair, list[tuple[str, bytes]]]:
    """Two engines that are up, and everything they said: (receiver, message)."""
    pair = Pair(calm(children=2, pfs=True, small_fragments=True))
    said: list[tuple[str, bytes]] = []
    pair.start()

    def listen() -> None:
        while pair.flying:
            name, packet = pair.flying.pop(0)
            said.append((RIGHT if name == LEFT else LEFT, packet.data))
            pair.deliver(packet)

    listen()
    spi = next(iter(pair.left.dataplane.inbound))
    pair.tell(LEFT, lambda engine, now: engine.rekey_child(spi, now))
    listen()
    pair.tell(RIGHT, lambda engine, now: engine.rekey_ike(LEFT, now))
    listen()
    pair.now += 11.0
    pair.run_until(pair.now + 1.0)
    listen()
    return pair, said


def test_what_was_overheard_changes_nothing() -> None:
    """Replayed or mutated, without the keys: both ends stay as they are."""
    rng = random.Random(4711)
    pair, said = conversation()
    assert pair.states(LEFT) == pair.states(RIGHT) == ["established"]
    before = {name: node.dataplane.inbound.copy() for name, node in pair.nodes.items()}
    for _ in range(4000):
        receiver, data = rng.choice(said)
        if rng.random() < 0.1:
            receiver = LEFT if receiver == RIGHT else RIGHT
        if rng.random() < 0.9:
            data = with_length(mutate(data, rng)) if rng.random() < 0.8 else mutate(data, rng)
        node = pair.nodes[receiver]
        local = Endpoint(node.address, 500)
        remote = Endpoint(node.other.address, 500)
        node.engine.receive(Datagram(data, local, remote), node.now)
        node.drain()
        pair.flying.clear()
        assert_bounded(node.engine)
    for name, node in pair.nodes.items():
        assert "established" in pair.states(name)
        assert node.dataplane.inbound == before[name]


def chains(talk: Script) -> list[tuple[int, int, bytes]]:
    """(exchange, first payload, chain) of requests that make sense."""
    peer = talk.peer
    child = peer.child(b"\0\0\x10\2", "10.1.0.0/24", "10.2.0.0/24", nonce=bytes(range(32)))
    rekey: list[Payload] = [NotifyPayload(NotifyType.REKEY_SA, b"", 3, b"\0\0\x10\1"), *child]
    messages: list[tuple[int, list[Payload]]] = [
        (INFO, [DeletePayload(3, (b"\0\0\x10\1",)), NotifyPayload(11, b"\0\0\x10\1")]),
        (INFO, [DeletePayload(1), UnknownPayload(99, False, b"x")]),
        (INFO, [CpPayload(1, ((1, b""),)), NotifyPayload(NotifyType.AUTH_LIFETIME, bytes(4))]),
        (CREATE, child),
        (CREATE, rekey),
        (CREATE, [*child[:2]]),
        (AUTH, peer.auth(*child)),
    ]
    return [(exchange, *encode_payloads(payloads)) for exchange, payloads in messages]


def test_nonsense_from_an_authenticated_peer() -> None:
    rng = random.Random(5996)
    ended = 0
    talk = Script(initiator=True)
    talk.establish()
    for number in range(2500):
        exchange, first, chain = rng.choice(chains(talk))
        if rng.random() < 0.85:
            chain = mutate(chain, rng)
        if rng.random() < 0.1:
            first = rng.choice((0, 33, 40, 41, 42, 44, 46, 53, 200, rng.randrange(256)))
        data = talk.peer.raw(
            exchange, talk.message_id, first, chain, padding=rng.choice((0, 0, 255))
        )
        answers = [a for a in talk.ask(data) if Header.parse(a).response]
        assert_bounded(talk.engine.engine)
        for answer in answers:
            talk.peer.read(answer)
        talk.message_id += len(answers)
        if not any(state in ("established", "rekeying") for state in talk.pair.states(RIGHT)):
            ended += 1
            talk = Script(initiator=True, label=f"again {number}")
            talk.establish()
    assert 10 < ended < 2000  # some of it ends the IKE SA, most of it does not


def test_nonsense_in_the_first_exchanges() -> None:
    """A peer that knows the secret sends a broken IKE_AUTH."""
    rng = random.Random(7427)
    established = 0
    for number in range(300):
        talk = Script(initiator=True, label=f"first {number}")
        peer = talk.peer
        first = peer.init()
        if rng.random() < 0.3:
            talk.ask(with_length(mutate(first, rng)))
        answers = talk.ask(first)
        if not answers:
            continue
        peer.take_init(answers[0])
        child = peer.child(b"\0\0\x10\1", "10.1.0.0/24", "10.2.0.0/24")
        kind, chain = encode_payloads(peer.auth(*child))
        if rng.random() < 0.9:
            chain = mutate(chain, rng)
        talk.ask(peer.raw(AUTH, 1, kind, chain))
        established += "established" in talk.pair.states(RIGHT)
        assert_bounded(talk.engine.engine)
    assert 10 < established < 290


def test_nonsense_in_answers() -> None:
    """The engine is the initiator; what it gets back is broken."""
    rng = random.Random(3748)
    for number in range(300):
        talk = Script(initiator=False, label=f"answer {number}")
        peer = talk.peer
        (request,) = talk.heard()
        peer.take_init(request)
        answer = peer.init()
        heard = talk.ask(with_length(mutate(answer, rng)) if rng.random() < 0.3 else answer)
        heard = [data for data in heard if Header.parse(data).exchange == AUTH]
        if not heard:
            continue
        try:
            said = peer.read(heard[0])
        except IntegrityFailure:  # the mutation changed what the keys come from
            continue
        kind, chain = encode_payloads(peer.auth(*answer_child(said)))
        if rng.random() < 0.9:
            chain = mutate(chain, rng)
        requests = talk.ask(peer.raw(AUTH, 1, kind, chain, response=True))
        for data in requests:
            header = Header.parse(data)
            if header.next_payload == PayloadType.SK and not header.response:
                broken = mutate(chain, rng)
                talk.ask(peer.raw(header.exchange, header.message_id, kind, broken, response=True))
        assert_bounded(talk.engine.engine)
