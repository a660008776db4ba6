"""Records of IKE SAs back to objects: the reading half of ``resume``.

Objects are built first, and entered into the host's tables only when they are whole; a record that
makes no sense costs its own IKE SA and no other.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ipsec_ike.actions import SaSpec
from ipsec_ike.config import ChildConfig, IdentityConfig, Mode, PeerConfig, Responder
from ipsec_ike.crypto.groups import KeyExchange, generate
from ipsec_ike.errors import LocalMisuse
from ipsec_ike.identity import Identity
from ipsec_ike.inputs import Endpoint
from ipsec_ike.numbers import Protocol
from ipsec_ike.plain import NotPlain, load
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.sa.child_sa import ChildSa, ChildState
from ipsec_ike.sa.suite import child_suite, ike_suite
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.v2 import deletes
from ipsec_ike.v2.create_child import CreateChild, Rival
from ipsec_ike.v2.exchange import Exchange
from ipsec_ike.v2.ike_sa import IkeSa
from ipsec_ike.v2.keymat import IkeKeys, ike_octets
from ipsec_ike.v2.negotiate import Offer
from ipsec_ike.v2.peer import Peer
from ipsec_ike.v2.records import BARE, CHILD_FIXED, IKE_FIXED, VERSION, check_value
from ipsec_ike.v2.rekey_child import RekeyChild
from ipsec_ike.v2.rekey_ike import IkeRival, RekeyIke
from ipsec_ike.v2.states import State

if TYPE_CHECKING:
    from ipsec_ike.v2.host import Host

#: States in which an IKE SA counts for its peer.
LIVE: Final = frozenset({State.ESTABLISHED, State.REKEYING})


class Loader:
    """Builds objects first, and enters into the host's tables only those that are whole."""

    def __init__(self, host: Host, configs: Sequence[PeerConfig], generation: int) -> None:
        self.host = host
        self._configs = {config.name: config for config in configs}
        self.unreadable = 0
        self._generation = generation
        self._sas: dict[str, tuple[IkeSa, Mapping[str, Any]]] = {}
        self._children: dict[int, tuple[ChildSa, Sequence[Any]]] = {}

    def guard(self, read: Callable[[Mapping[str, Any]], object], plain: Mapping[str, Any]) -> bool:
        """Whether ``read`` could make sense of it. Nothing in a record is worth to stop for."""
        try:
            if plain["version"] != VERSION:
                raise NotPlain("another version")
            read(plain)
        except (NotPlain, KeyError, ValueError, TypeError, IndexError, LocalMisuse, struct.error):
            self.unreadable += 1
            return False
        return True

    # -- configuration -------------------------------------------------------------------------

    def peer(self, plain: Mapping[str, Any]) -> None:
        """A peer as it was configured, its shared keys replaced by what they are compared with."""
        salt = bytes.fromhex(plain["salt"])
        config = dict(plain["config"])
        checks = []
        identities = []
        for each in config["identities"]:
            checks.append(each["check"])
            identities.append({k: v for k, v in each.items() if k != "check"})
        config["identities"] = identities
        loaded = load(PeerConfig, config)
        with_keys = tuple(
            replace(identity, psk=Remembered(salt, check) if check else None)
            for identity, check in zip(loaded.identities, checks, strict=True)
        )
        before = replace(loaded, identities=with_keys)
        today = self._configs.get(loaded.name)
        # If nothing has changed it is the one with the keys.
        chosen = today if today is not None and before == today else before
        self.host.peers.by_name[chosen.name] = Peer(self.host, chosen)

    # -- SAs -----------------------------------------------------------------------------------

    def sa(self, plain: Mapping[str, Any]) -> None:
        """One IKE SA, with children that do not know of each other yet."""
        host = self.host
        peer = host.peers.by_name[plain["peer"]]
        fixed = bytes.fromhex(plain["fixed"])
        spi_i, spi_r, request, expected, _, flags, *times = IKE_FIXED.unpack_from(fixed)
        (
            encap,
            nat_local,
            nat_remote,
            fragmentation,
            childless,
            pending,
            doomed_by_us,
            initiator,
        ) = (bool(flags >> bit & 1) for bit in range(8))
        here, port_here, there, port_there = plain["ends"].split()
        local, remote = Endpoint(here, int(port_here)), Endpoint(there, int(port_there))
        sa = IkeSa(host, peer, initiator=initiator, local=local, remote=remote)
        sa.spi_i, sa.spi_r = spi_i, spi_r
        sa.encap, sa.nat_local, sa.nat_remote = encap, nat_local, nat_remote
        sa.fragmentation, sa.childless = fragmentation, childless
        sa.pending, sa.doomed_by_us = pending, doomed_by_us
        sa.created_at, sa.established_at, sa.soft_at, sa.hard_at, sa.reauth_at, sa.doomed_at = times
        sa.identity = _identity(peer, plain["identity"])
        sa.state = State(plain["state"])
        sa.local_id, sa.remote_id = map(_named, plain["ids"].split())
        if (told := plain.get("responder")) is not None:
            port, *addresses = told.split()
            sa.responder = Responder(int(port), tuple(addresses))
        sa.suite = ike_suite(Proposal(Protocol.IKE, _transforms(plain["suite"])))
        sa.keys = IkeKeys(sa.suite, fixed[IKE_FIXED.size :])
        sa.sealed = (self._generation << 40) | int.from_bytes(host.rng(2)) << 24
        sa.window.next_request, sa.window.expected = request, expected
        sa.window.request = _octets(plain.get("request", ()))
        sa.window.response = _octets(plain.get("response", ()))
        if sa.remote_id is None or len(fixed) != IKE_FIXED.size + ike_octets(sa.suite):
            raise NotPlain("not an IKE SA")
        found = [(self.child(sa, each), each) for each in plain["children"]]
        sa.children = [child for child, _ in found]
        self._children.update((child.spi_in, (child, each)) for child, each in found)
        self._sas[sa.our_spi.hex()] = sa, plain

    def child(self, sa: IkeSa, plain: Sequence[Any]) -> ChildSa:
        """One child, without its successor."""
        config, suite, fixed, mode, state, *rest = plain
        ts, waiting, _ = rest or (None, None, None)
        protocol, spi_in, spi_out, flags, *times = CHILD_FIXED.unpack(bytes.fromhex(fixed))
        own = _child_config(sa.peer.config, config)
        child = ChildSa(
            sa,
            own,
            child_suite(Proposal(protocol, _transforms(suite))),
            (spi_in, spi_out),
            (own.local_ts, own.remote_ts) if ts is None else (_selectors(ts[0]), _selectors(ts[1])),
            Mode(mode),
            self.host.now,
        )
        child.state = ChildState(state)
        child.created_at, child.soft_at, child.hard_at, child.switch_at = times
        child.outbound, child.confirmed = bool(flags & 1), bool(flags & 2)
        child.waiting = None if waiting is None else load(SaSpec, waiting)
        return child

    # -- what points from one to the other -------------------------------------------------------

    def link(self) -> None:
        """Let SAs, children and requests know each other."""
        for spi, (sa, plain) in tuple(self._sas.items()):
            if not self.guard(lambda plain, sa=sa: self._link(sa, plain), plain):  # type: ignore[misc]  # mypy cannot see the default
                del self._sas[spi]
                for child in sa.children:
                    self._children.pop(child.spi_in, None)

    def _link(self, sa: IkeSa, plain: Mapping[str, Any]) -> None:
        if (before := plain.get("predecessor")) in self._sas:
            sa.predecessor = self._sas[before][0]
        for child in sa.children:
            child.successor = self._successor(sa, self._children[child.spi_in][1])
        if (current := plain.get("current")) is not None:
            sa.current = self._exchange(sa, current)
        sa.queue = [self._exchange(sa, each) for each in plain.get("queue", ())]
        if sa.window.busy is (sa.current is None):
            raise NotPlain("a request without an exchange, or the reverse")

    def _successor(self, sa: IkeSa, plain: Sequence[Any]) -> ChildSa | None:
        heir = plain[7] if len(plain) > 5 else None
        return None if heir is None else self._reference(sa, heir)

    def _reference(self, sa: IkeSa, plain: Any) -> ChildSa:
        if isinstance(plain, int):
            return self._children[plain][0]
        child = self.child(sa, plain)
        child.successor = self._successor(sa, plain)
        return child

    def _exchange(self, sa: IkeSa, plain: Any) -> Exchange:
        kind, *rest = plain
        match kind, rest:
            case "DeleteChild", (child,):
                return deletes.DeleteChild(self._reference(sa, child))
            case "DeleteUnused", (protocol, spi):
                return deletes.DeleteUnused(int(protocol), int(spi))
            case "InvalidSpi", (spi,):
                return deletes.InvalidSpi(int(spi))
            case "CreateChild", (config, packet, offer, group, tried, single, rival, unborn):
                local, remote = (
                    None if each is None else load(TrafficSelector, each) for each in packet
                )
                create = CreateChild(_child_config(sa.peer.config, config), (local, remote))
                create.offer, create.group = self._offer(sa, offer), group
                create.tried, create.single = tuple(tried), bool(single)
                create.rival, create.unborn = self._rival(sa, rival), tuple(unborn)
                return create
            case "RekeyChild", (old, offer, group, tried, rival, unborn):
                rekey = RekeyChild(self._reference(sa, old))
                rekey.offer, rekey.group, rekey.tried = self._offer(sa, offer), group, tuple(tried)
                rekey.rival, rekey.unborn = self._rival(sa, rival), tuple(unborn)
                return rekey
            case "RekeyIke", (spi, nonce, proposals, ke, group, tried, rival):
                return self._rekey_ike(sa, spi, nonce, proposals, ke, group, tried, rival)
        return BARE[kind]()

    def _rekey_ike(
        self,
        sa: IkeSa,
        spi: str,
        nonce: str,
        proposals: Any,
        ke: Any,
        group: int,
        tried: Any,
        rival: Any,
    ) -> RekeyIke:
        it = RekeyIke()
        it.spi, it.nonce = bytes.fromhex(spi), bytes.fromhex(nonce)
        it.proposals = tuple(load(Proposal, each) for each in proposals)
        it.ke, it.group, it.tried = _key_exchange(ke), group, tuple(tried)
        if rival is not None:
            found = self._sas.get(rival[0])
            if found is None:
                # The peer has deleted it meanwhile.
                gone = IkeSa(self.host, sa.peer, initiator=False, local=sa.local, remote=sa.remote)
                gone.state = State.DELETING
            nonces = bytes.fromhex(rival[1])
            it.rival = IkeRival(found[0] if found else gone, (nonces, nonces))
        return it

    def _rival(self, sa: IkeSa, plain: Any) -> Rival | None:
        if plain is None:
            return None
        nonce = bytes.fromhex(plain[1])
        rival = Rival(self._reference(sa, plain[0]), (nonce, nonce))
        rival.untold = bool(plain[2])
        return rival

    def _offer(self, sa: IkeSa, plain: Any) -> Offer | None:
        if plain is None:
            return None
        offer = Offer.__new__(Offer)
        offer.config = _child_config(sa.peer.config, plain["config"])
        offer.ke = _key_exchange(plain["ke"])
        offer.local_ts, offer.remote_ts = (_selectors(each) for each in plain["ts"])
        offer.nonce = bytes.fromhex(plain["nonce"])
        offer.proposals = tuple(load(Proposal, each) for each in plain["proposals"])
        offer.spi = int(plain["spi"])
        return offer

    # -- into the tables -------------------------------------------------------------------------

    def enter(self) -> list[IkeSa]:
        """Make all of them findable, the oldest first as they were made."""
        host = self.host
        sas = sorted((sa for sa, _ in self._sas.values()), key=lambda sa: sa.created_at)
        for sa in sas:
            sa.register()
            for child in sa.children:
                host.register_child(child)
            if sa.state in LIVE and sa.predecessor is None:
                sa.peer.add(sa)
                sa.peer.remember(sa)
                if sa.doomed_at != NEVER:
                    sa.peer.doomed.add(sa)
            elif sa.state not in LIVE:
                sa.peer.forget(sa)
        return sas


class Remembered(Secret):
    """A shared key of which only a check value is left: it equals the key that gives the same."""

    __slots__ = ("_check", "_salt")

    def __init__(self, salt: bytes, check: str) -> None:
        super().__init__(b"")
        self._salt = salt
        self._check = check

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(
            check_value(self._salt, other), self._check
        )

    def __hash__(self) -> int:
        return hash(self._check)

    def __bool__(self) -> bool:
        return True


def _identity(peer: Peer, name: str) -> IdentityConfig:
    for identity in peer.config.identities:
        if identity.name == name:
            return identity
    raise NotPlain("an identity that is not configured")


def _child_config(peer: PeerConfig, plain: Any) -> ChildConfig:
    if not isinstance(plain, str):
        return load(ChildConfig, plain)
    for child in peer.children:
        if child.name == plain:
            return child
    raise NotPlain("a child that is not configured")


def _transforms(plain: str) -> tuple[Transform, ...]:
    return tuple(Transform(*map(int, each.split("/"))) for each in plain.split())


def _named(plain: str) -> Identity | None:
    if plain == "-":
        return None
    kind, _, data = plain.partition("/")
    return Identity(int(kind), bytes.fromhex(data))


def _selectors(plain: Any) -> tuple[TrafficSelector, ...]:
    return tuple(
        TrafficSelector(
            bytes.fromhex(start), bytes.fromhex(end), int(protocol), int(low), int(high)
        )
        for start, end, protocol, low, high in plain
    )


def _key_exchange(plain: Any) -> KeyExchange | None:
    if plain is None:
        return None
    seed = bytes.fromhex(plain[1])
    return generate(int(plain[0]), lambda _: seed)


def _octets(plain: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(data) for data in plain)
