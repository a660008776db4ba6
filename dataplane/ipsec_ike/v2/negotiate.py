"""The negotiation of one CHILD_SA, alike in IKE_AUTH and CREATE_CHILD_SA (RFC 7296 1.2, 1.3, 2.9).

    SA, [Ni, [KEi,]] TSi, TSr  -->  [N(USE_TRANSPORT_MODE)]
                               <--  SA, [Nr, [KEr,]] TSi, TSr

An Offer is our request's side. ``accept`` reads the answer to it, ``answer`` the peer's offer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ipsec_ike.config import ChildConfig, Mode, TemplateConfig
from ipsec_ike.crypto.groups import KeyExchange, generate
from ipsec_ike.errors import (
    IkeError,
    InvalidKePayload,
    InvalidSyntax,
    NoAdditionalSas,
    NoProposalChosen,
    TsUnacceptable,
)
from ipsec_ike.events import ProposalMismatch, SelectorsMismatch, SelectorsNarrowed
from ipsec_ike.numbers import NotifyType, PayloadType, TransformType
from ipsec_ike.proposal import Proposal
from ipsec_ike.sa import choose
from ipsec_ike.sa.child_sa import ChildState
from ipsec_ike.sa.narrowing import Match, Selectors, candidates, covers
from ipsec_ike.sa.suite import child_suite
from ipsec_ike.v2 import templates
from ipsec_ike.v2.children import Agreed
from ipsec_ike.v2.exchange import find, need, notification, selectors
from ipsec_ike.v2.keymat import child_keys
from ipsec_ike.v2.transport_nat import seen
from ipsec_ike.wire.payloads import (
    KePayload,
    NoncePayload,
    NotifyPayload,
    Payload,
    SaPayload,
    TsPayload,
)

if TYPE_CHECKING:
    from ipsec_ike.v2.ike_sa import IkeSa

NONCE_OCTETS: Final = 32
_TRANSPORT: Final = NotifyPayload(NotifyType.USE_TRANSPORT_MODE)
_ADDITIONAL: Final = NotifyPayload(NotifyType.ADDITIONAL_TS_POSSIBLE)

Nonces = tuple[bytes, bytes]


class Offer:
    """What we ask for. Without ``nonce`` it is part of IKE_AUTH, which lends its own nonces."""

    __slots__ = ("config", "ke", "local_ts", "nonce", "proposals", "remote_ts", "spi")

    def __init__(
        self,
        sa: IkeSa,
        config: ChildConfig,
        selected: tuple[Selectors, Selectors],
        *,
        group: int | None = None,
        in_auth: bool = False,
    ) -> None:
        """``group`` None: the one that the configuration prefers; 0: none."""
        host = sa.host
        self.config = config
        self.local_ts, self.remote_ts = selected
        self.spi = host.new_child_spi()
        proposals: Sequence[Proposal] = config.proposals
        self.ke: KeyExchange | None = None
        self.nonce = b""
        if in_auth:
            proposals = choose.without_ke(proposals)
        else:
            self.nonce = host.rng(NONCE_OCTETS)
            group = preferred_group(proposals) if group is None else group
            self.ke = generate(group, host.rng) if group else None
        self.proposals = choose.with_spi(proposals, self.spi.to_bytes(4))

    def payloads(self) -> list[Payload]:
        """In the order of RFC 7296 appendix C."""
        parts: list[Payload] = []
        if self.config.mode is Mode.TRANSPORT:
            parts.append(_TRANSPORT)
        parts.append(SaPayload(self.proposals))
        if self.nonce:
            parts.append(NoncePayload(self.nonce))
        if self.ke is not None:
            parts.append(KePayload(self.ke.group, self.ke.public))
        parts.append(TsPayload(PayloadType.TSi, self.local_ts))
        parts.append(TsPayload(PayloadType.TSr, self.remote_ts))
        return parts

    def accept(
        self, sa: IkeSa, payloads: Sequence[Payload], nonces: Nonces | None = None
    ) -> Agreed:
        """What the peer agreed to. ``nonces`` are those of IKE_SA_INIT if this is IKE_AUTH.

        Raises an IkeError if it is not something that we offered: the peer has an SA then that we
        do not have.
        """
        chosen = choose.confirm(self.proposals, need(payloads, SaPayload).proposals)
        if chosen is None:
            raise NoProposalChosen("the peer chose a proposal that was not offered")
        if nonces is None:
            nonces = self.nonce, need(payloads, NoncePayload).data
        local = selectors(payloads, PayloadType.TSi)
        remote = selectors(payloads, PayloadType.TSr)
        if not local or not remote:
            raise TsUnacceptable("the peer agreed to no selectors")
        if self.config.mode is Mode.TRANSPORT:
            local, remote = seen(sa, local, remote)
        if not (covers(self.local_ts, local) and covers(self.remote_ts, remote)):
            raise TsUnacceptable("the peer agreed to selectors that were not offered")
        transport = notification(payloads, NotifyType.USE_TRANSPORT_MODE) is not None
        if transport is not (self.config.mode is Mode.TRANSPORT):
            raise NoProposalChosen(f"the peer does not agree to {self.config.mode.value} mode")
        shared = self._shared(chosen, payloads)
        suite = child_suite(chosen)
        self._tell_narrowing(sa, local, remote)
        return Agreed(
            config=self.config,
            suite=suite,
            spi_in=self.spi,
            spi_out=_spi(chosen),
            local_ts=_same(local, self.config.local_ts),
            remote_ts=_same(remote, self.config.remote_ts),
            mode=self.config.mode,
            keys=child_keys(sa.crypto, suite, shared, nonces),
            initiator=True,
        )

    def _shared(self, chosen: Proposal, payloads: Sequence[Payload]) -> bytes:
        ke = chosen.one(TransformType.KE)
        if ke is None or not ke.id:
            return b""
        theirs = need(payloads, KePayload)
        if self.ke is None or theirs.group != ke.id or self.ke.group != ke.id:
            raise InvalidSyntax(f"KE payload of group {theirs.group}, chosen is {ke}")
        return self.ke.shared(theirs.data)

    def _tell_narrowing(self, sa: IkeSa, local: Selectors, remote: Selectors) -> None:
        config = self.config
        wanted = self.local_ts, self.remote_ts
        if covers(local, config.local_ts) and covers(remote, config.remote_ts):
            return
        if covers(local, wanted[0]) and covers(remote, wanted[1]):
            return
        sa.host.emit(
            SelectorsNarrowed(
                peer=sa.peer.config.name, child=config.name, wanted=wanted, agreed=(local, remote)
            )
        )


def answer(
    sa: IkeSa,
    payloads: Sequence[Payload],
    allowed: Sequence[ChildConfig],
    *,
    nonces: Nonces | None = None,
    rekey: bool = False,
) -> tuple[Agreed, list[Payload], Nonces]:
    """Agree to the peer's offer for one of ``allowed``, or for what a template gives; the last
    result are the nonces used.

    ``nonces`` are those of IKE_SA_INIT if this is IKE_AUTH. With ``rekey`` there may be as many
    children again, because the old ones go, and templates are not asked. Raises an IkeError to
    refuse with, after the event that explains it.
    """
    host = sa.host
    if len(sa.children) >= host.limits.children * (2 if rekey else 1):
        raise NoAdditionalSas(f"there are {len(sa.children)} children already")
    remote = selectors(payloads, PayloadType.TSi)
    local = selectors(payloads, PayloadType.TSr)
    transport = notification(payloads, NotifyType.USE_TRANSPORT_MODE) is not None
    matches: list[Match] = []
    told = False
    if transport and (sa.nat_local or sa.nat_remote):
        found, told = _matches(sa, allowed, *seen(sa, local, remote), rekey=rekey)
        matches = [match for match in found if match.child.mode is Mode.TRANSPORT]
    if not matches and not told:
        matches, told = _matches(sa, allowed, local, remote, rekey=rekey)
    if not matches:
        if not told:
            sa.host.emit(_selectors_mismatch(sa, allowed, local, remote))
        raise TsUnacceptable("no child has these selectors")
    in_auth = nonces is not None
    ke = None if in_auth else find(payloads, KePayload)
    offered = need(payloads, SaPayload).proposals
    match, chosen = _select(sa, matches, offered, ke, transport=transport, in_auth=in_auth)
    shared, public = _exchange(sa, chosen, ke)
    if nonces is None:
        nonces = need(payloads, NoncePayload).data, host.rng(NONCE_OCTETS)
    suite = child_suite(chosen)
    config = match.child
    agreed = Agreed(
        config=config,
        suite=suite,
        spi_in=host.new_child_spi(),
        spi_out=_spi(chosen),
        local_ts=match.local,
        remote_ts=match.remote,
        mode=config.mode,
        keys=child_keys(sa.crypto, suite, shared, nonces),
        initiator=False,
    )
    mine = Proposal(chosen.protocol, chosen.transforms, agreed.spi_in.to_bytes(4), chosen.number)
    parts: list[Payload] = [SaPayload((mine,))]
    if not in_auth:
        parts.append(NoncePayload(nonces[1]))
    if public is not None:
        parts.append(public)
    parts.append(TsPayload(PayloadType.TSi, match.remote))
    parts.append(TsPayload(PayloadType.TSr, match.local))
    if config.mode is Mode.TRANSPORT:
        parts.append(_TRANSPORT)
    if match.partial and len(matches) > 1:
        parts.append(_ADDITIONAL)
    return agreed, parts, nonces


def _matches(
    sa: IkeSa, allowed: Sequence[ChildConfig], local: Selectors, remote: Selectors, *, rekey: bool
) -> tuple[list[Match], bool]:
    """Children and templates for an offer, and whether an event says why there are none."""
    live = [child.config.name for child in sa.children if child.state is not ChildState.DELETED]
    matches = candidates(allowed, local, remote, live)
    return (matches, False) if rekey else templates.complete(sa, matches, local, remote)


def _select(
    sa: IkeSa,
    matches: Sequence[Match],
    offered: Sequence[Proposal],
    ke: KePayload | None,
    *,
    transport: bool,
    in_auth: bool,
) -> tuple[Match, Proposal]:
    """The first child, in the order of ``matches``, for which there is a common proposal.

    Who asks for transport mode can be given tunnel mode (RFC 7296 1.3.1), not the other way round.
    """
    refused: Match | None = None
    for match in matches:
        if match.child.mode is Mode.TRANSPORT and not transport:
            continue
        ours: Sequence[Proposal] = match.child.proposals
        if in_auth:
            ours, theirs = choose.without_ke(ours), choose.without_ke(offered)
        else:
            theirs = tuple(offered)
        chosen = choose.choose(ours, theirs, ke=None if ke is None else ke.group)
        if chosen is not None:
            return match, chosen
        refused = refused or match
    if refused is None:
        raise NoProposalChosen("the peer asks for tunnel mode where we have transport mode")
    config = refused.child
    ours = choose.without_ke(config.proposals) if in_auth else config.proposals
    sa.host.emit(
        ProposalMismatch(
            peer=sa.peer.config.name,
            stage=config.name,
            ours=tuple(map(str, ours)),
            theirs=tuple(map(str, offered)),
            differences=choose.differences(ours, offered),
        )
    )
    raise NoProposalChosen(f"no common proposal for child {config.name}")


def _exchange(
    sa: IkeSa, chosen: Proposal, theirs: KePayload | None
) -> tuple[bytes, KePayload | None]:
    """The responder's half of a Diffie-Hellman, if one was chosen."""
    ke = chosen.one(TransformType.KE)
    if ke is None or not ke.id:
        return b"", None
    if theirs is None or theirs.group != ke.id:
        raise InvalidKePayload(f"{ke} is wanted", data=ke.id.to_bytes(2))
    ours = generate(ke.id, sa.host.rng)
    return ours.shared(theirs.data), KePayload(ours.group, ours.public)


def _selectors_mismatch(
    sa: IkeSa, allowed: Sequence[ChildConfig], local: Selectors, remote: Selectors
) -> SelectorsMismatch:
    """With what all children and templates together would have allowed."""
    every: list[ChildConfig | TemplateConfig] = [*allowed, *templates.allowed(sa)]
    ours = (
        tuple(dict.fromkeys(ts for each in every for ts in each.local_ts)),
        tuple(dict.fromkeys(ts for each in every for ts in each.remote_ts)),
    )
    return SelectorsMismatch(
        peer=sa.peer.config.name,
        child=allowed[0].name if len(every) == len(allowed) == 1 else "",
        ours=ours,
        theirs=(local, remote),
    )


def preferred_group(proposals: Sequence[Proposal]) -> int:
    """The key exchange method that is offered first; 0 if that is none."""
    for proposal in proposals:
        ke = proposal.one(TransformType.KE)
        return 0 if ke is None else ke.id
    return 0


def _spi(chosen: Proposal) -> int:
    spi = int.from_bytes(chosen.spi)
    if len(chosen.spi) != 4 or not spi:
        raise InvalidSyntax(f"SPI of {len(chosen.spi)} octets or zero in a proposal")
    return spi


def _same(agreed: Selectors, configured: Selectors) -> Selectors:
    """One tuple for what is equal, so that many SAs share it."""
    return configured if agreed == configured else agreed


def as_notify(error: IkeError) -> NotifyPayload:
    """What goes on the wire for a refusal."""
    return NotifyPayload(error.notify, error.data)
