"""IKE_AUTH with shared keys, and with it the first child (RFC 7296 1.2, 2.15, RFC 6023, RFC 4478).

    HDR, SK {IDi, [N(INITIAL_CONTACT),] [IDr,] AUTH, [SAi2, TSi, TSr]}  -->
                                   <--  HDR, SK {IDr, AUTH, [SAr2, TSi, TSr]}

A responder that does not know the identity does the same work with a key that nobody has, so that a
wrong identity and a wrong secret look alike from outside, also to a clock.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ipsec_ike.config import Childless, IdentityConfig, Responder
from ipsec_ike.crypto.prf import psk_auth
from ipsec_ike.errors import AuthenticationFailed, IkeError, InvalidSyntax
from ipsec_ike.events import AuthFailed, IkeSaUp, Reason
from ipsec_ike.identity import Identity
from ipsec_ike.numbers import AuthMethod, ExchangeType, IdType, NotifyType, PayloadType
from ipsec_ike.sa import choose
from ipsec_ike.sa.narrowing import specific_first
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.secret import Secret
from ipsec_ike.v2 import children, create_child, kin, negotiate, successor, unique
from ipsec_ike.v2.exchange import (
    Exchange,
    error_in,
    find,
    find_id,
    name_of,
    notification,
)
from ipsec_ike.v2.negotiate import Offer, as_notify
from ipsec_ike.v2.states import State
from ipsec_ike.wire.payloads import (
    AuthPayload,
    IdPayload,
    NotifyPayload,
    Payload,
    SaPayload,
)

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa
    from ipsec_ike.v2.init import Handshake
    from ipsec_ike.v2.peer import Peer

_INITIAL_CONTACT: Final = NotifyPayload(NotifyType.INITIAL_CONTACT)
_ADDRESSES: Final = (IdType.IPV4_ADDR, IdType.IPV6_ADDR)
#: In place of the secret of somebody we do not know. What it is does not matter: whatever it
#: verifies is refused.
_NOBODY: Final = Secret(bytes(32))


class AuthExchange(Exchange):
    """Our IKE_AUTH as initiator."""

    __slots__ = ()

    type = ExchangeType.IKE_AUTH

    def request(self, sa: IkeSa) -> list[Payload] | None:
        handshake, identity = sa.handshake, sa.identity
        assert handshake is not None
        assert identity is not None
        sa.local_id = identity.local_id or Identity.address(sa.local.address)
        own = IdPayload(PayloadType.IDi, sa.local_id)
        secret = sa.peer.secret(identity)
        payloads: list[Payload] = [own]
        if sa.peer.config.send_initial_contact and unique.is_first_contact(sa):
            payloads.append(_INITIAL_CONTACT)
        if identity.remote_id is not None:
            payloads.append(IdPayload(PayloadType.IDr, identity.remote_id))
        payloads.append(_proof(sa, handshake, own, secret, initiator=True))
        config = handshake.child
        if config is not None and not (
            sa.childless and sa.peer.config.childless is Childless.PREFER
        ):
            local, remote = handshake.packet
            selected = (
                specific_first(local, config.local_ts),
                specific_first(remote, config.remote_ts),
            )
            handshake.offer = offer = Offer(sa, config, selected, in_auth=True)
            payloads += offer.payloads()
        payloads += kin.told(sa.peer.config, handshake)
        return payloads

    def finish(self, sa: IkeSa, payloads: Sequence[Payload]) -> None:
        handshake, identity = sa.handshake, sa.identity
        assert handshake is not None
        assert identity is not None
        error = error_in(payloads)
        proof, theirs = find(payloads, AuthPayload), find_id(payloads, PayloadType.IDr)
        if proof is None or theirs is None:
            _refused(sa, identity, error)
            return
        why = _verify_responder(sa, handshake, identity, theirs, proof)
        if why is not None:
            sa.host.emit(
                AuthFailed(
                    peer=sa.peer.config.name,
                    remote=sa.remote,
                    remote_id=str(theirs.identity),
                    ours=False,
                    message=why,
                )
            )
            sa.close(Reason.AUTH_FAILED, why, notify=True)
            return
        establish(sa, identity, theirs.identity, kin.heard(sa, handshake, payloads))
        lifetime = notification(payloads, NotifyType.AUTH_LIFETIME)
        if lifetime is not None:
            sa.peer.auth_lifetime(sa, lifetime.data)
        offer = handshake.offer
        if offer is not None:
            _first_child(sa, handshake, offer, error, payloads)
        unique.settle(sa.peer)
        sa.peer.maintain()

    def failed(self, sa: IkeSa, reason: Reason, message: str) -> None:
        """The attempt is over; the peer object tries again."""


def _refused(sa: IkeSa, identity: IdentityConfig, error: NotifyPayload | None) -> None:
    """No AUTH payload: the peer does not take us."""
    where = f"{sa.remote.address} port {sa.remote.port}"
    if error is None:
        sa.close(Reason.INVALID_MESSAGE, f"IKE_AUTH answer of {where} has no AUTH", notify=True)
        return
    if error.notify == NotifyType.AUTHENTICATION_FAILED:
        text = (
            f"{where} answers AUTHENTICATION_FAILED to {sa.local_id}:"
            " it does not know this identity or has another secret for it"
        )
        sa.host.emit(
            AuthFailed(
                peer=sa.peer.config.name,
                remote=sa.remote,
                remote_id=str(identity.remote_id or ""),
                ours=True,
                message=text,
            )
        )
        sa.peer.other_secret(identity)
        sa.close(Reason.AUTH_FAILED, text, notify=False)
        return
    sa.close(Reason.PEER_ERROR, f"{where} answers {name_of(error)} to IKE_AUTH", notify=False)


def disowned(sa: IkeSa) -> None:
    """The initiator could not verify our AUTH and says so in an exchange of its own, which is the
    end of the IKE SA (RFC 7296 2.21.2)."""
    text = f"{sa.remote.address} port {sa.remote.port} does not accept that we are {sa.local_id}"
    sa.host.emit(
        AuthFailed(
            peer=sa.peer.config.name,
            remote=sa.remote,
            remote_id=str(sa.remote_id),
            ours=True,
            message=text,
        )
    )
    sa.close(Reason.AUTH_FAILED, text, notify=False, linger=True)


def _verify_responder(
    sa: IkeSa,
    handshake: Handshake,
    identity: IdentityConfig,
    theirs: IdPayload,
    proof: AuthPayload,
) -> str | None:
    """Why the peer is not who it should be, or None."""
    if identity.remote_id is not None and theirs.identity != identity.remote_id:
        return f"the peer is {theirs.identity}, {identity.remote_id} is expected"
    if proof.method != AuthMethod.SHARED_KEY:
        return f"the peer uses {AuthMethod(proof.method).name}, SHARED_KEY is expected"
    for secret in (identity.psk, identity.psk_previous):
        if secret is not None:
            expected = _proof(sa, handshake, theirs, secret, initiator=False)
            if hmac.compare_digest(expected.data, proof.data):
                return None
    return f"the secret of {theirs.identity} is another one"


def _proof(
    sa: IkeSa, handshake: Handshake, whose: IdPayload, secret: Secret, *, initiator: bool
) -> AuthPayload:
    """The AUTH payload of one side (RFC 7296 2.15)."""
    suite, keys = sa.crypto
    prf = suite.prf
    mac = prf.mac(keys.sk_p(initiator=initiator), whose.encode())
    if initiator:
        octets = b"".join((handshake.raw_i, handshake.nr, mac))
    else:
        octets = b"".join((handshake.raw_r, handshake.ni, mac))
    return AuthPayload(AuthMethod.SHARED_KEY, psk_auth(prf, secret.reveal(), octets))


def _first_child(
    sa: IkeSa,
    handshake: Handshake,
    offer: Offer,
    error: NotifyPayload | None,
    payloads: Sequence[Payload],
) -> None:
    """The child of IKE_AUTH. Its failure leaves the IKE SA in place (RFC 7296 1.2, 2.21.2)."""
    if find(payloads, SaPayload) is None:
        if error is None:
            raise InvalidSyntax("neither a child nor the reason why there is none")
        if error.notify == NotifyType.SINGLE_PAIR_REQUIRED:
            again = create_child.CreateChild(offer.config, handshake.packet)
            again.single = True
            sa.enqueue(again)
            return
        create_child.refused(sa, offer.config, offer, error)
        return
    try:
        agreed = offer.accept(sa, payloads, (handshake.ni, handshake.nr))
    except IkeError as exc:
        create_child.unusable(sa, offer, exc)
        return
    children.announce(sa, children.install(sa, agreed, outbound=True))


def establish(
    sa: IkeSa, identity: IdentityConfig, remote_id: Identity, responder: Responder | None
) -> None:
    """Both sides are authenticated."""
    host = sa.host
    sa.responder = responder
    sa.identity = identity
    sa.remote_id = remote_id
    sa.hard_at = NEVER
    sa.become(State.ESTABLISHED)
    sa.established_at = sa.heard_at = host.now
    successor.start_lifetime(sa)
    sa.leave_half_open()
    suite, _ = sa.crypto
    host.emit(
        IkeSaUp(
            peer=sa.peer.config.name,
            local=sa.local,
            remote=sa.remote,
            initiator=sa.initiator,
            spi_i=sa.spi_i,
            spi_r=sa.spi_r,
            suite=suite.name,
            local_id=str(sa.local_id),
            remote_id=str(remote_id),
            nat_local=sa.nat_local,
            nat_remote=sa.nat_remote,
            responder=responder,
        )
    )
    unique.established(sa)
    sa.handshake = None


class _Claim(NamedTuple):
    """Who the initiator may be, and how we would answer."""

    peer: Peer
    identity: IdentityConfig
    local_id: Identity


def respond(sa: IkeSa, payloads: Sequence[Payload]) -> list[Payload]:
    """The initiator authenticates itself. Raises an IkeError to refuse with."""
    handshake = sa.handshake
    assert handshake is not None
    theirs = find_id(payloads, PayloadType.IDi)
    if theirs is None:
        raise InvalidSyntax("IDi is missing")
    wanted = find_id(payloads, PayloadType.IDr)
    claim = _claim(sa, theirs.identity, None if wanted is None else wanted.identity)
    secret = _verified(sa, handshake, theirs, find(payloads, AuthPayload), claim)
    if secret is None or claim is None:
        _fail(sa, theirs.identity, known=claim is not None)
        raise AuthenticationFailed("identity or secret")
    sa.peer.hand_over(sa, claim.peer)
    sa.local_id = claim.local_id
    initial_contact = notification(payloads, NotifyType.INITIAL_CONTACT) is not None
    establish(sa, claim.identity, theirs.identity, kin.heard(sa, handshake, payloads))
    if initial_contact:
        unique.initial_contact(sa)
    own = IdPayload(PayloadType.IDr, claim.local_id)
    answer: list[Payload] = [own, _proof(sa, handshake, own, secret, initiator=False)]
    if find(payloads, SaPayload) is not None:
        answer += _answer_child(sa, handshake, payloads)
    answer += kin.told(claim.peer.config, handshake)
    unique.settle(sa.peer)
    sa.peer.maintain()
    return answer


def _answer_child(sa: IkeSa, handshake: Handshake, payloads: Sequence[Payload]) -> list[Payload]:
    """The child of IKE_AUTH, or the reason why there is none: the IKE SA is up in any case."""
    nonces = handshake.ni, handshake.nr
    try:
        agreed, answer, _ = negotiate.answer(sa, payloads, sa.peer.allowed(sa), nonces=nonces)
    except IkeError as exc:
        sa.host.counters[f"refused_{exc.notify.name.lower()}"] += 1
        return [as_notify(exc)]
    children.announce(sa, children.answer_with(sa, agreed))
    return answer


def _claim(sa: IkeSa, theirs: Identity, wanted: Identity | None) -> _Claim | None:
    """The identity configuration that fits best: one that names the initiator before one that
    takes everybody; then the order of configuration."""
    suite, _ = sa.crypto
    peers = sa.host.peers
    local, remote = sa.local.address, sa.remote.address
    for peer, identity in peers.claims(theirs):
        if peer is not sa.peer and not (
            choose.permits(peer.config.ike_proposals, suite.transforms)
            and peer in peers.matching(local, remote)
        ):
            continue
        local_id = _local_id(sa, identity, wanted)
        if local_id is not None:
            return _Claim(peer, identity, local_id)
    return None


def _local_id(sa: IkeSa, identity: IdentityConfig, wanted: Identity | None) -> Identity | None:
    """Who we are to an initiator that asks for ``wanted``; None: somebody else is asked for."""
    if identity.local_id is not None:
        return identity.local_id if wanted in (None, identity.local_id) else None
    address = Identity.address(sa.local.address)
    if wanted is None or wanted == address:
        return address
    # Behind a NAT we may be known by an address that we do not see.
    return wanted if sa.nat_local and wanted.type in _ADDRESSES else None


def _verified(
    sa: IkeSa,
    handshake: Handshake,
    theirs: IdPayload,
    proof: AuthPayload | None,
    claim: _Claim | None,
) -> Secret | None:
    """The secret that the initiator has, or None. Always the same amount of work."""
    current = claim.identity.psk if claim is not None else None
    previous = claim.identity.psk_previous if claim is not None else None
    data = proof.data if proof is not None else b""
    found: Secret | None = None
    for secret in (previous, current):
        expected = _proof(sa, handshake, theirs, secret or _NOBODY, initiator=True)
        if hmac.compare_digest(expected.data, data) and secret is not None:
            found = secret
    if proof is None or proof.method != AuthMethod.SHARED_KEY:
        return None
    return found


def _fail(sa: IkeSa, theirs: Identity, *, known: bool) -> None:
    """The initiator learns nothing but that it failed; our own side learns what it claimed."""
    host = sa.host
    host.counters["authentication_failed"] += 1
    if host.may_tell():
        why = "the secret is another one" if known else "no identity is configured for it"
        host.emit(
            AuthFailed(
                peer=sa.peer.config.name,
                remote=sa.remote,
                remote_id=str(theirs),
                ours=False,
                message=f"{theirs} at {sa.remote.address}: {why}, or it cannot use a shared key",
            )
        )
    sa.linger()
