"""IKE_SA_INIT (RFC 7296 1.2, 2.6, 2.7, 2.14, 2.23).

    HDR, [N(COOKIE),] SAi1, KEi, Ni, N(NAT_DETECTION_*), ...  -->
                           <--  HDR, SAr1, KEr, Nr, N(NAT_DETECTION_*), ...
          or               <--  HDR, N(COOKIE)  /  N(INVALID_KE_PAYLOAD)  /  N(NO_PROPOSAL_CHOSEN)

The responder keeps nothing before it has answered with its half of the Diffie-Hellman.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ipsec_ike.config import ChildConfig, PeerConfig
from ipsec_ike.crypto.groups import KeyExchange, generate
from ipsec_ike.errors import IkeError, InvalidSyntax, NoProposalChosen
from ipsec_ike.events import Event, Reason
from ipsec_ike.inputs import Datagram, Endpoint
from ipsec_ike.numbers import ExchangeType, NotifyType, SignatureHash
from ipsec_ike.sa import choose
from ipsec_ike.sa.nat import IKE_PORT, NATT_PORT, detection_hash
from ipsec_ike.sa.suite import ike_suite
from ipsec_ike.v2 import kin
from ipsec_ike.v2.auth import AuthExchange
from ipsec_ike.v2.create_child import Packet
from ipsec_ike.v2.exchange import Exchange, error_in, name_of, need, notification
from ipsec_ike.v2.keymat import initial_keys
from ipsec_ike.v2.negotiate import Offer
from ipsec_ike.v2.protected import send
from ipsec_ike.v2.rekey_ike import ike_mismatch
from ipsec_ike.v2.states import State
from ipsec_ike.wire.message import (
    FLAG_INITIATOR,
    HEADER_LENGTH,
    Header,
    decode_payloads,
    encode_clear,
)
from ipsec_ike.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload
from ipsec_ike.wire.rules import check

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa

_NO_SPI: Final = bytes(8)
#: How often a responder may ask for another cookie or group before we call it a failure.
_MOST_COOKIES: Final = 5
#: Seconds for which the true answer may still come after a refusal or nonsense: nothing of
#: IKE_SA_INIT is authenticated, so anybody who sees our request can make one up (RFC 7296 2.21.1).
_DOUBT: Final = 3.0

FRAGMENTATION: Final = NotifyPayload(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED)
CHILDLESS: Final = NotifyPayload(NotifyType.CHILDLESS_IKEV2_SUPPORTED)
#: RFC 7427 4: what we can verify.
HASHES: Final = NotifyPayload(
    NotifyType.SIGNATURE_HASH_ALGORITHMS,
    b"".join(
        h.to_bytes(2)
        for h in (SignatureHash.SHA2_256, SignatureHash.SHA2_384, SignatureHash.SHA2_512)
    ),
)


class Refusal(NamedTuple):
    """What the attempt ends with if no better answer comes."""

    reason: Reason
    message: str
    event: Event | None = None


class Handshake:
    """What only lives until the peer is authenticated: nonces, first messages, wishes."""

    __slots__ = (
        "child",
        "cookie",
        "cookie_group",
        "cookies",
        "group",
        "ke",
        "kin",
        "ni",
        "nr",
        "offer",
        "packet",
        "raw_i",
        "raw_r",
        "refusal",
        "replaces",
        "tried",
    )

    def __init__(self, ni: bytes) -> None:
        self.ni = ni
        self.nr = b""
        #: IKE_SA_INIT request and response as they were on the wire; AUTH signs them.
        self.raw_i = b""
        self.raw_r = b""
        self.ke: KeyExchange | None = None
        self.group = 0
        self.tried: tuple[int, ...] = ()
        self.cookie = b""
        #: The group of the request that was answered with it.
        self.cookie_group = 0
        self.cookies = 0
        self.refusal: Refusal | None = None
        #: Whether the peer is a gateway of our kind.
        self.kin = False
        #: The child to negotiate in IKE_AUTH, the packet that wants it, and what was offered.
        self.child: ChildConfig | None = None
        self.packet: Packet = (None, None)
        self.offer: Offer | None = None
        #: The IKE SA that this one reauthenticates.
        self.replaces: IkeSa | None = None


class InitExchange(Exchange):
    """Marks IKE_SA_INIT as the request under way; it is not protected and goes its own way."""

    __slots__ = ()

    type = ExchangeType.IKE_SA_INIT

    def request(self, sa: IkeSa) -> list[Payload] | None:
        raise NotImplementedError("IKE_SA_INIT is sent by start()")

    def finish(self, sa: IkeSa, payloads: Sequence[Payload]) -> None:
        raise NotImplementedError("IKE_SA_INIT is answered to finish()")


def start(sa: IkeSa, handshake: Handshake) -> None:
    """Send the first message."""
    sa.spi_i = sa.host.new_ike_spi()
    sa.register()
    sa.handshake = handshake
    sa.become(State.CONNECTING)
    handshake.group = choose.groups(sa.peer.config.ike_proposals)[0]
    _send(sa, handshake)


def _send(sa: IkeSa, handshake: Handshake) -> None:
    host, config = sa.host, sa.peer.config
    if handshake.ke is None or handshake.ke.group != handshake.group:
        handshake.ke = generate(handshake.group, host.rng)
    payloads: list[Payload] = []
    if handshake.cookie:
        payloads.append(NotifyPayload(NotifyType.COOKIE, handshake.cookie))
    payloads += (
        SaPayload(choose.with_spi(config.ike_proposals, b"")),
        KePayload(handshake.group, handshake.ke.public),
        NoncePayload(handshake.ni),
        *nat_detection(config, sa.spi_i, _NO_SPI, sa.local, sa.remote),
    )
    if config.fragmentation:
        payloads.append(FRAGMENTATION)
    payloads += (HASHES, kin.VENDOR)
    handshake.raw_i = encode_clear(
        sa.spi_i, _NO_SPI, ExchangeType.IKE_SA_INIT, FLAG_INITIATOR, 0, payloads
    )
    handshake.refusal = None
    sa.current = InitExchange()
    sa.window.sent((handshake.raw_i,), host.now, config.retransmission)
    send(sa, (handshake.raw_i,))
    host.timers.arm(sa)


def nat_detection(
    config: PeerConfig, spi_i: bytes, spi_r: bytes, local: Endpoint, remote: Endpoint
) -> tuple[NotifyPayload, NotifyPayload]:
    """Our view of both endpoints. With forced encapsulation the source is one that cannot be."""
    source = Endpoint(local.address, 0) if config.force_encapsulation else local
    return (
        NotifyPayload(NotifyType.NAT_DETECTION_SOURCE_IP, detection_hash(spi_i, spi_r, source)),
        NotifyPayload(
            NotifyType.NAT_DETECTION_DESTINATION_IP, detection_hash(spi_i, spi_r, remote)
        ),
    )


def detect_nat(sa: IkeSa, payloads: Sequence[Payload], spi_r: bytes) -> None:
    """Compare what the peer saw with what we see (RFC 7296 2.23). ``spi_r`` is the one in the
    header of the message: zero in a request."""
    sources: list[bytes] = []
    destinations: list[bytes] = []
    for payload in payloads:
        if isinstance(payload, NotifyPayload):
            if payload.notify == NotifyType.NAT_DETECTION_SOURCE_IP:
                sources.append(payload.data)
            elif payload.notify == NotifyType.NAT_DETECTION_DESTINATION_IP:
                destinations.append(payload.data)
    if not sources or not destinations:
        # The peer cannot do NAT traversal.
        return
    sa.nat_remote = detection_hash(sa.spi_i, spi_r, sa.remote) not in sources
    sa.nat_local = detection_hash(sa.spi_i, spi_r, sa.local) not in destinations
    sa.encap = sa.nat_remote or sa.nat_local or sa.peer.config.force_encapsulation


def finish(sa: IkeSa, header: Header, datagram: Datagram) -> None:
    """The answer to our IKE_SA_INIT. It is not authenticated: what cannot be read is dropped."""
    handshake, counters = sa.handshake, sa.host.counters
    if (
        handshake is None
        or sa.keys is not None
        or header.message_id != 0
        or not isinstance(sa.current, InitExchange)
        or datagram.remote.address != sa.remote.address
    ):
        counters["dropped_unexpected_response"] += 1
        return
    try:
        body = memoryview(datagram.data)[HEADER_LENGTH:]
        payloads = decode_payloads(header.next_payload, body, limit=sa.host.limits.payloads)
        check(ExchangeType.IKE_SA_INIT, True, payloads)
    except IkeError:
        counters["dropped_malformed"] += 1
        return
    cookie = notification(payloads, NotifyType.COOKIE)
    error = error_in(payloads)
    if cookie is not None:
        _return_cookie(sa, handshake, cookie)
    elif error is not None:
        _refused(sa, handshake, error)
    else:
        try:
            _agree(sa, handshake, header, payloads)
        except IkeError as exc:
            counters["dropped_malformed"] += 1
            text = f"answer to IKE_SA_INIT: {exc}"
            _doubt(sa, handshake, Refusal(Reason.INVALID_MESSAGE, text))
            return
        handshake.raw_r = datagram.data
        handshake.ke = handshake.refusal = None
        sa.current = None
        sa.window.answered()
        if sa.encap and sa.local.port == IKE_PORT:
            sa.local = Endpoint(sa.local.address, NATT_PORT)
            sa.remote = Endpoint(sa.remote.address, NATT_PORT)
        if handshake.child is None and not sa.childless:
            text = "the peer takes no IKE SA without a CHILD_SA (RFC 6023), and none is wanted"
            sa.close(Reason.CONFIGURATION, text, notify=False)
            return
        sa.enqueue(AuthExchange())


def _return_cookie(sa: IkeSa, handshake: Handshake, cookie: NotifyPayload) -> None:
    """RFC 7296 2.6: the same request again, with the cookie first.

    Another cookie is believed only if there was no answer to the first one for a while, or if the
    request has another group since: anybody on the way can make one up, and following it changes
    what AUTH will sign (RFC 7296 2.6.1).
    """
    fresh = sa.window.tries or handshake.cookie_group != handshake.group
    again = handshake.cookie and (cookie.data == handshake.cookie or not fresh)
    if again or not 1 <= len(cookie.data) <= 64 or handshake.cookies >= _MOST_COOKIES:
        sa.host.counters["dropped_cookie"] += 1
        return
    handshake.cookies += 1
    handshake.cookie = cookie.data
    handshake.cookie_group = handshake.group
    _send(sa, handshake)


def _refused(sa: IkeSa, handshake: Handshake, error: NotifyPayload) -> None:
    config = sa.peer.config
    text = f"{sa.remote.address} port {sa.remote.port} answers {name_of(error)} to IKE_SA_INIT"
    if error.notify == NotifyType.INVALID_KE_PAYLOAD:
        group = int.from_bytes(error.data)
        offered = choose.groups(config.ike_proposals)
        if group == handshake.group or group in handshake.tried:
            # A copy of an answer that we have followed already.
            sa.host.counters["dropped_unexpected_response"] += 1
            return
        if group in offered:
            handshake.tried = (*handshake.tried, handshake.group)
            handshake.group = group
            _send(sa, handshake)
            return
        text += f": it wants group {group}, we offer {', '.join(map(str, offered))}"
        refusal = Refusal(Reason.NO_PROPOSAL_CHOSEN, text)
    elif error.notify == NotifyType.NO_PROPOSAL_CHOSEN:
        text += "; compare the IKE proposals and the addresses by which the peer selects them"
        mismatch = ike_mismatch(config.name, config.ike_proposals, ())
        refusal = Refusal(Reason.NO_PROPOSAL_CHOSEN, text, mismatch)
    else:
        refusal = Refusal(Reason.PEER_ERROR, text)
    _doubt(sa, handshake, refusal)


def _doubt(sa: IkeSa, handshake: Handshake, refusal: Refusal) -> None:
    """Go on asking for a moment, because the answer may be forged; then it counts."""
    host, window = sa.host, sa.window
    if handshake.refusal is None:
        window.give_up_at = min(window.give_up_at, host.now + _DOUBT)
        window.deadline = min(window.deadline, window.give_up_at)
        host.timers.arm(sa)
    handshake.refusal = refusal


def _agree(sa: IkeSa, handshake: Handshake, header: Header, payloads: Sequence[Payload]) -> None:
    config = sa.peer.config
    if not any(header.spi_r):
        raise InvalidSyntax("the responder's SPI is zero")
    ours = choose.with_spi(config.ike_proposals, b"")
    chosen = choose.confirm(ours, need(payloads, SaPayload).proposals)
    if chosen is None:
        raise NoProposalChosen("a proposal that was not offered")
    suite = ike_suite(chosen)
    theirs = need(payloads, KePayload)
    assert handshake.ke is not None
    if theirs.group != suite.group or theirs.group != handshake.ke.group:
        raise InvalidSyntax(f"KE payload of group {theirs.group}")
    shared = handshake.ke.shared(theirs.data)
    handshake.nr = need(payloads, NoncePayload).data
    detect_nat(sa, payloads, header.spi_r)
    sa.spi_r = header.spi_r
    sa.suite = suite
    sa.keys = initial_keys(suite, shared, (handshake.ni, handshake.nr), (sa.spi_i, sa.spi_r))
    handshake.kin = kin.VENDOR in payloads
    announced = notification(payloads, NotifyType.IKEV2_FRAGMENTATION_SUPPORTED)
    sa.fragmentation = config.fragmentation and announced is not None
    sa.childless = notification(payloads, NotifyType.CHILDLESS_IKEV2_SUPPORTED) is not None
