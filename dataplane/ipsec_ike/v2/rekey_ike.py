"""Rekeying of an IKE SA and its collisions (RFC 7296 1.3.2, 2.8, 2.8.2, 2.18, 2.25.2).

    CREATE_CHILD_SA { SA, Ni, KEi }  -->        <--  { SA, Nr, KEr }
    then INFORMATIONAL { D } through the old IKE SA

The children, and requests that were not sent yet, move to the successor on both sides with the
answer. If both sides ask at once, both answer, and each new IKE SA stays `pending` until it is
known which exchange had the lowest of the four nonces: that one was in vain, and its initiator
deletes its IKE SA; the other's initiator deletes the old one. A side whose request is refused, or
who sees the old IKE SA deleted while it waits, takes the peer's successor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ipsec_ike.crypto.groups import KeyExchange, generate
from ipsec_ike.errors import (
    IkeError,
    InvalidKePayload,
    InvalidSyntax,
    NoProposalChosen,
    TemporaryFailure,
)
from ipsec_ike.events import ProposalMismatch, Reason, Warned
from ipsec_ike.numbers import ExchangeType, NotifyType, Protocol
from ipsec_ike.proposal import Proposal
from ipsec_ike.sa import choose
from ipsec_ike.sa.lifetimes import share
from ipsec_ike.sa.suite import ike_suite
from ipsec_ike.v2 import successor
from ipsec_ike.v2.deletes import DeleteChild, DeleteUnused
from ipsec_ike.v2.exchange import Exchange, error_in, name_of, need
from ipsec_ike.v2.keymat import rekeyed_keys
from ipsec_ike.v2.negotiate import NONCE_OCTETS, Nonces
from ipsec_ike.v2.rekey_child import RETRY_SOON
from ipsec_ike.v2.states import State
from ipsec_ike.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa


class IkeRival:
    """The successor that the peer created while our own request was under way."""

    __slots__ = ("nonce", "sa")

    def __init__(self, sa: IkeSa, nonces: Nonces) -> None:
        self.sa = sa
        self.nonce = min(nonces)

    @property
    def alive(self) -> bool:
        """Whether the peer has not deleted it meanwhile."""
        return self.sa.state is not State.DELETING


class RekeyIke(Exchange):
    """Replace the IKE SA through which the request goes."""

    __slots__ = ("group", "ke", "nonce", "proposals", "rival", "spi", "tried")

    type = ExchangeType.CREATE_CHILD_SA
    moves = False

    def __init__(self) -> None:
        self.spi = b""
        self.nonce = b""
        self.proposals: tuple[Proposal, ...] = ()
        self.ke: KeyExchange | None = None
        self.group = 0
        self.tried: tuple[int, ...] = ()
        self.rival: IkeRival | None = None

    def request(self, sa: IkeSa) -> list[Payload] | None:
        if not sa.up:
            return None
        sa.become(State.REKEYING)
        host, config = sa.host, sa.peer.config
        group = self.group or choose.groups(config.ike_proposals)[0]
        self.spi = host.new_ike_spi()
        self.nonce = host.rng(NONCE_OCTETS)
        self.ke = generate(group, host.rng)
        self.proposals = choose.with_spi(config.ike_proposals, self.spi)
        return [
            SaPayload(self.proposals),
            NoncePayload(self.nonce),
            KePayload(group, self.ke.public),
        ]

    def finish(self, sa: IkeSa, payloads: Sequence[Payload]) -> None:
        rival = self.rival if self.rival is not None and self.rival.alive else None
        error = error_in(payloads)
        if error is not None:
            if rival is not None:
                successor.adopt(sa, rival.sa)
            else:
                self._refused(sa, error)
            return
        try:
            new, nonces = self._successor(sa, payloads)
        except IkeError as exc:
            # The peer has an IKE SA now that we cannot have: only a new start helps.
            sa.close(Reason.INVALID_MESSAGE, f"rekeying: {exc}", notify=True)
            return
        if rival is None:
            successor.adopt(sa, new)
            sa.retire()
        elif min(nonces) < rival.nonce:
            successor.adopt(sa, rival.sa)
            new.retire()
        else:
            successor.adopt(sa, new)
            sa.retire()
            successor.expect_delete(rival.sa)

    def failed(self, sa: IkeSa, reason: Reason, message: str) -> None:
        """The IKE SA ends; a successor that the peer has made is no use without its children."""
        if self.rival is not None:
            self.rival.sa.retire()

    def _successor(self, sa: IkeSa, payloads: Sequence[Payload]) -> tuple[IkeSa, Nonces]:
        chosen = choose.confirm(self.proposals, need(payloads, SaPayload).proposals)
        if chosen is None:
            raise NoProposalChosen("the peer chose a proposal that was not offered")
        theirs, nr = need(payloads, KePayload), need(payloads, NoncePayload).data
        suite = ike_suite(chosen)
        assert self.ke is not None
        if theirs.group != suite.group or theirs.group != self.ke.group:
            raise InvalidSyntax(f"KE payload of group {theirs.group}")
        nonces = self.nonce, nr
        spis = self.spi, _spi(chosen)
        keys = rekeyed_keys(suite, sa.crypto, self.ke.shared(theirs.data), nonces, spis)
        return successor.create(sa, suite, keys, spis, initiator=True), nonces

    def _refused(self, sa: IkeSa, error: NotifyPayload) -> None:
        host, config = sa.host, sa.peer.config
        if sa.state is not State.REKEYING:
            return
        sa.become(State.ESTABLISHED)
        if error.notify == NotifyType.INVALID_KE_PAYLOAD:
            group = int.from_bytes(error.data)
            if group in choose.groups(config.ike_proposals) and group not in self.tried:
                self.group, self.tried = group, (*self.tried, group)
                sa.enqueue(self, first=True)
                return
        soon = error.notify == NotifyType.TEMPORARY_FAILURE
        wait = RETRY_SOON if soon else 2 * config.retry_interval
        sa.soft_at = host.now + wait * (1 + share(host.rng))
        if not soon:
            text = f"the IKE SA cannot be rekeyed yet: the peer answers {name_of(error)}"
            host.emit(Warned(peer=config.name, message=text))
        if error.notify == NotifyType.NO_ADDITIONAL_SAS:
            # A minimal implementation, which cannot rekey: begin anew, make-before-break.
            sa.peer.reauthenticate(sa)


def respond(sa: IkeSa, payloads: Sequence[Payload]) -> list[Payload]:
    """The peer rekeys this IKE SA. Raises an IkeError to refuse with."""
    current = sa.current
    if current is not None and current.type == ExchangeType.CREATE_CHILD_SA:
        if not isinstance(current, RekeyIke):
            raise TemporaryFailure("a child is being created or rekeyed")
        if current.rival is not None:
            raise TemporaryFailure("the IKE SA is being rekeyed")
    elif isinstance(current, (DeleteChild, DeleteUnused)):
        raise TemporaryFailure("a child is being deleted")
    new, parts, nonces = _answer(sa, payloads)
    if isinstance(current, RekeyIke):
        new.pending = True
        current.rival = IkeRival(new, nonces)
    else:
        successor.adopt(sa, new)
    return parts


def _answer(sa: IkeSa, payloads: Sequence[Payload]) -> tuple[IkeSa, list[Payload], Nonces]:
    host, config = sa.host, sa.peer.config
    offered = need(payloads, SaPayload).proposals
    ke, ni = need(payloads, KePayload), need(payloads, NoncePayload).data
    chosen = choose.choose(config.ike_proposals, offered, ke=ke.group)
    if chosen is None:
        host.emit(ike_mismatch(config.name, config.ike_proposals, offered))
        raise NoProposalChosen("no common proposal to rekey the IKE SA with")
    suite = ike_suite(chosen)
    if ke.group != suite.group:
        raise InvalidKePayload("another group", data=suite.group.to_bytes(2))
    spis = _spi(chosen), host.new_ike_spi()
    ours = generate(suite.group, host.rng)
    nonces = ni, host.rng(NONCE_OCTETS)
    keys = rekeyed_keys(suite, sa.crypto, ours.shared(ke.data), nonces, spis)
    new = successor.create(sa, suite, keys, spis, initiator=False)
    mine = Proposal(Protocol.IKE, chosen.transforms, spis[1], chosen.number)
    parts: list[Payload] = [
        SaPayload((mine,)),
        NoncePayload(nonces[1]),
        KePayload(ours.group, ours.public),
    ]
    return new, parts, nonces


def deleted_by_peer(sa: IkeSa) -> None:
    """The peer deletes this IKE SA (RFC 7296 1.4.1, 2.25.2)."""
    current = sa.current
    if isinstance(current, RekeyIke) and current.rival is not None and current.rival.alive:
        successor.adopt(sa, current.rival.sa)
    if sa.up:
        sa.deleted("the peer deleted the IKE SA")
    else:
        sa.linger()


def ike_mismatch(
    peer: str, ours: Sequence[Proposal], theirs: Sequence[Proposal]
) -> ProposalMismatch:
    """The event of IKE proposals that have nothing in common."""
    return ProposalMismatch(
        peer=peer,
        stage="IKE",
        ours=tuple(map(str, ours)),
        theirs=tuple(map(str, theirs)),
        differences=choose.differences(ours, theirs) if theirs else (),
    )


def _spi(chosen: Proposal) -> bytes:
    if len(chosen.spi) != 8 or not any(chosen.spi):
        raise InvalidSyntax(f"IKE SPI of {len(chosen.spi)} octets or zero in a proposal")
    return chosen.spi
