"""One engine against a scripted peer: every octet that the peer sends is the test's.

talk = Script(initiator=True)       # the scripted peer initiates; the engine is on the right
talk.establish()
answers = talk.ask(talk.peer.protected(...))
"""

from __future__ import annotations

from collections.abc import Mapping

from ipsec_ike.identity import Identity
from ipsec_ike.inputs import Datagram, Endpoint
from ipsec_ike.numbers import ExchangeType, NotifyType, PayloadType
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.header import Header
from ipsec_ike.wire.payloads import NotifyPayload, Payload, SaPayload, TsPayload
from ipsec_lab.simnet_network import seeded
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import ScriptedPeer, esp_proposal
from ipsec_lab.simnet_profile import LEFT, RIGHT, Profile, calm
from ipsec_lab.simnet_world import Node


class Script:
    """``engine`` is the node under test, ``peer`` the script; the next message ID of the peer's
    requests is ``message_id``. ``changes`` are fields of the engine's PeerConfig, ``identity``
    fields of the one IdentityConfig in it."""

    def __init__(
        self,
        *,
        initiator: bool,
        profile: Profile | None = None,
        label: str = "script",
        identity: Mapping[str, object] | None = None,
        **changes: object,
    ) -> None:
        self.pair = Pair(profile or calm())
        self.name = RIGHT if initiator else LEFT
        self.pair.change(self.name, **changes)
        self.pair.change_identity(self.name, **(identity or {}))
        self.engine: Node = self.pair.nodes[self.name]
        mine, other = (LEFT, RIGHT) if initiator else (RIGHT, LEFT)
        psk = self.engine.config.identities[0].psk
        assert psk is not None
        self.peer = ScriptedPeer(
            Identity.fqdn(f"{mine}.example"),
            psk.reveal(),
            seeded(label).randbytes,
            initiator=initiator,
        )
        self.message_id = 0
        self._here = Endpoint(self.pair.profile.address(mine), 500)
        self._there = Endpoint(self.pair.profile.address(other), 500)
        self.engine.configure(self.engine.config)

    def ask(self, data: bytes) -> list[bytes]:
        """Send octets to the engine; what it sends back at once."""
        self.engine.engine.receive(Datagram(data, self._there, self._here), self.engine.now)
        self.engine.drain()
        return self.heard()

    def heard(self) -> list[bytes]:
        """What the engine has sent meanwhile."""
        heard = [packet.data for _, packet in self.pair.flying]
        self.pair.flying.clear()
        return heard

    def establish(self, *extra: Payload) -> list[Payload]:
        """IKE_SA_INIT and IKE_AUTH with a child; ``extra`` goes into the peer's IKE_AUTH message.
        Gives what the engine said in its IKE_AUTH message."""
        peer = self.peer
        if peer.initiator:
            (answer,) = self.ask(peer.init())
            peer.take_init(answer)
            child = peer.child(b"\0\0\x10\1", "10.1.0.0/24", "10.2.0.0/24")
            request = peer.protected(ExchangeType.IKE_AUTH, 1, peer.auth(*child, *extra))
            (answer,) = self.ask(request)
            self.message_id = 2
            return peer.read(answer)
        (request,) = self.heard()
        peer.take_init(request)
        peer.spi_i = Header.parse(request).spi_i
        (request,) = self.ask(peer.init())
        said = peer.read(request)
        answer_payloads = peer.auth(*answer_child(said), *extra)
        self.ask(peer.protected(ExchangeType.IKE_AUTH, 1, answer_payloads, response=True))
        return said

    def request(
        self, exchange: int, *payloads: Payload, padding: int = 0
    ) -> tuple[Header, list[Payload]]:
        """One whole exchange: the engine's answer to a request with the next message ID."""
        data = self.peer.protected(exchange, self.message_id, payloads, padding=padding)
        answers = [a for a in self.ask(data) if Header.parse(a).response]
        assert len(answers) == 1, f"{len(answers)} answers"
        header = Header.parse(answers[0])
        assert header.message_id == self.message_id
        self.message_id += 1
        return header, self.peer.read(answers[0])

    def answer_all(self, requests: list[bytes]) -> list[list[Payload]]:
        """Answer the engine's requests with nothing in it; gives what they said."""
        said: list[list[Payload]] = []
        for data in requests:
            header = Header.parse(data)
            if header.response or header.next_payload != PayloadType.SK:
                continue
            said.append(self.peer.read(data))
            self.ask(self.peer.protected(header.exchange, header.message_id, [], response=True))
        return said


def answer_child(offer: list[Payload], spi: bytes = b"\0\0\x20\1") -> list[Payload]:
    """The answer to an offered child that takes all of its selectors."""
    selectors: dict[PayloadType, tuple[TrafficSelector, ...]] = {
        p.type: p.selectors for p in offer if isinstance(p, TsPayload)
    }
    if PayloadType.TSi not in selectors:
        return []
    return [
        SaPayload((esp_proposal(spi),)),
        TsPayload(PayloadType.TSi, selectors[PayloadType.TSi]),
        TsPayload(PayloadType.TSr, selectors[PayloadType.TSr]),
    ]


def errors(payloads: list[Payload]) -> list[int]:
    """The error notifications among payloads."""
    return [
        p.notify
        for p in payloads
        if isinstance(p, NotifyPayload) and p.notify < NotifyType.INITIAL_CONTACT
    ]
