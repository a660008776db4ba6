"""IKE_SA_INIT as responder: strangers, at the least cost (RFC 7296 2.4, 2.6).

In this order: repetition of a request that was answered, limits, a peer for the addresses, COOKIE,
proposal, group; only then Diffie-Hellman and memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ipsec_ike.actions import SendDatagram
from ipsec_ike.crypto.groups import generate
from ipsec_ike.errors import IkeError
from ipsec_ike.events import Warned
from ipsec_ike.inputs import Datagram
from ipsec_ike.numbers import ExchangeType, NotifyType, Protocol
from ipsec_ike.proposal import Proposal
from ipsec_ike.sa import choose
from ipsec_ike.sa.nat import encapsulated
from ipsec_ike.sa.suite import ike_suite
from ipsec_ike.v2 import kin
from ipsec_ike.v2.exchange import need, notification
from ipsec_ike.v2.ike_sa import IkeSa
from ipsec_ike.v2.init import (
    CHILDLESS,
    FRAGMENTATION,
    HASHES,
    Handshake,
    detect_nat,
    nat_detection,
)
from ipsec_ike.v2.keymat import initial_keys
from ipsec_ike.v2.negotiate import NONCE_OCTETS
from ipsec_ike.v2.protected import send
from ipsec_ike.v2.rekey_ike import ike_mismatch
from ipsec_ike.v2.states import State
from ipsec_ike.v2.window import Window
from ipsec_ike.wire.message import (
    FLAG_RESPONSE,
    HEADER_LENGTH,
    Header,
    decode_payloads,
    encode_clear,
)
from ipsec_ike.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload
from ipsec_ike.wire.rules import check

if TYPE_CHECKING:
    from ipsec_ike.v2.host import Host
    from ipsec_ike.v2.peer import Peer


def respond(host: Host, header: Header, datagram: Datagram) -> None:
    """A request for a new IKE SA."""
    counters = host.counters
    if any(header.spi_r) or not any(header.spi_i) or header.message_id != 0 or not header.initiator:
        counters["dropped_malformed"] += 1
        return
    remote = datagram.remote
    key = (header.spi_i, remote.address, remote.port)
    known = host.initial.get(key)
    if known is not None:
        handshake = known.handshake
        if handshake is None:
            counters["dropped_outside_window"] += 1
            return
        if handshake.raw_i == datagram.data:
            counters["repeated_requests"] += 1
            send(known, known.window.response, datagram.local, remote)
            return
        # Another request of the same initiator, or an old copy: the initiator will know which one
        # of our answers it takes.
    why = host.half_open.refuses(remote.address)
    if why is not None:
        counters[f"dropped_{why}"] += 1
        return
    candidates = host.peers.matching(datagram.local.address, remote.address)
    if not candidates:
        _unknown_peer(host, datagram)
        return
    try:
        body = memoryview(datagram.data)[HEADER_LENGTH:]
        payloads = decode_payloads(header.next_payload, body, limit=host.limits.payloads)
        check(ExchangeType.IKE_SA_INIT, False, payloads)
    except IkeError as exc:
        counters["dropped_malformed"] += 1
        if exc.notify == NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD:
            _refuse(host, header, datagram, exc.notify, exc.data)
        return
    ni = need(payloads, NoncePayload).data
    suspicious = host.half_open.needs_cookie(remote.address)
    if suspicious and not _cookie_is_good(host, header, datagram, payloads, ni):
        cookie = host.cookies.make(ni, header.spi_i, remote, host.now)
        counters["cookies_sent"] += 1
        _refuse(host, header, datagram, NotifyType.COOKIE, cookie)
        return
    offered = need(payloads, SaPayload).proposals
    ke = need(payloads, KePayload)
    found = _choose(candidates, offered, ke.group)
    if found is None:
        counters["refused_no_proposal_chosen"] += 1
        if host.may_tell():
            config = candidates[0].config
            host.emit(ike_mismatch(config.name, config.ike_proposals, offered))
        _refuse(host, header, datagram, NotifyType.NO_PROPOSAL_CHOSEN)
        return
    peer, chosen = found
    suite = ike_suite(chosen)
    if ke.group != suite.group:
        counters["refused_invalid_ke_payload"] += 1
        wanted = suite.group.to_bytes(2)
        _refuse(host, header, datagram, NotifyType.INVALID_KE_PAYLOAD, wanted)
        return
    ours = generate(suite.group, host.rng)
    try:
        shared = ours.shared(ke.data)
    except IkeError:
        counters["dropped_malformed"] += 1
        return
    sa = IkeSa(host, peer, initiator=False, local=datagram.local, remote=remote)
    sa.spi_i, sa.spi_r = header.spi_i, host.new_ike_spi()
    sa.handshake = handshake = Handshake(ni)
    handshake.nr = host.rng(NONCE_OCTETS)
    handshake.raw_i = datagram.data
    sa.suite = suite
    sa.keys = initial_keys(suite, shared, (ni, handshake.nr), (sa.spi_i, sa.spi_r))
    mine = Proposal(Protocol.IKE, chosen.transforms, b"", chosen.number)
    answer: list[Payload] = [
        SaPayload((mine,)),
        KePayload(ours.group, ours.public),
        NoncePayload(handshake.nr),
    ]
    _admit(sa, key, payloads, answer)


def _admit(
    sa: IkeSa,
    key: tuple[bytes, str, int],
    payloads: Sequence[Payload],
    answer: list[Payload],
) -> None:
    """The request is good: remember it as half-open, and answer."""
    host, config, handshake = sa.host, sa.peer.config, sa.handshake
    assert handshake is not None
    detect_nat(sa, payloads, bytes(8))
    answer += nat_detection(config, sa.spi_i, sa.spi_r, sa.local, sa.remote)
    announced = notification(payloads, NotifyType.IKEV2_FRAGMENTATION_SUPPORTED)
    sa.fragmentation = config.fragmentation and announced is not None
    if sa.fragmentation:
        answer.append(FRAGMENTATION)
    answer.append(CHILDLESS)
    if notification(payloads, NotifyType.SIGNATURE_HASH_ALGORITHMS) is not None:
        answer.append(HASHES)
    if kin.VENDOR in payloads:
        handshake.kin = True
        answer.append(kin.VENDOR)
    handshake.raw_r = encode_clear(
        sa.spi_i, sa.spi_r, ExchangeType.IKE_SA_INIT, FLAG_RESPONSE, 0, answer
    )
    sa.window = Window(expected=1)
    sa.window.response = (handshake.raw_r,)
    sa.become(State.CONNECTING)
    sa.hard_at = host.now + host.limits.half_open_timeout
    sa.register()
    sa.half_open = key
    host.initial[key] = sa
    host.half_open.add(key[1])
    sa.peer.add(sa)
    send(sa, sa.window.response)
    host.timers.arm(sa)


def _choose(
    candidates: Sequence[Peer], offered: Sequence[Proposal], group: int
) -> tuple[Peer, Proposal] | None:
    for peer in candidates:
        chosen = choose.choose(peer.config.ike_proposals, offered, ke=group)
        if chosen is not None:
            return peer, chosen
    return None


def _cookie_is_good(
    host: Host, header: Header, datagram: Datagram, payloads: Sequence[Payload], ni: bytes
) -> bool:
    """The cookie is the first payload (RFC 7296 2.6)."""
    first = payloads[0]
    if not isinstance(first, NotifyPayload) or first.notify != NotifyType.COOKIE:
        return False
    good = host.cookies.check(first.data, ni, header.spi_i, datagram.remote, host.now)
    if not good:
        host.counters["bad_cookies"] += 1
    return good


def _refuse(
    host: Host, header: Header, datagram: Datagram, notify: NotifyType, data: bytes = b""
) -> None:
    """One notification, and nothing kept."""
    answer = encode_clear(
        header.spi_i,
        bytes(8),
        ExchangeType.IKE_SA_INIT,
        FLAG_RESPONSE,
        0,
        (NotifyPayload(notify, data),),
    )
    local = datagram.local
    host.emit(SendDatagram(local, datagram.remote, answer, encapsulated(local)))


def _unknown_peer(host: Host, datagram: Datagram) -> None:
    """No peer is configured for these addresses: silence, but not towards our own side."""
    host.counters["dropped_unknown_peer"] += 1
    if host.may_tell():
        text = f"no peer is configured for {datagram.remote} at our {datagram.local.address}"
        host.emit(Warned(message=text))
