"""What an IKE SA needs to go on in another process, as plain data: the writing half of ``resume``.

There is one record for each IKE SA that is past its handshake, with its children and the request
under way, and one for the configuration that it was made under, without shared keys. A record says
everything that the peer may have seen the effects of: it has to be kept *before* the datagrams go
out that follow from it. What the engine has received but not acted upon need not be in it, because
the peer repeats that.

The records hold the keys of the IKE SA. Of the children they hold no keys, but for the outbound SA
that is not installed yet: what was in a data plane once must not be installed again, its sequence
numbers would start anew (RFC 4303 3.3.2, RFC 4106 2).
"""

from __future__ import annotations

import hmac
import struct
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ipsec_ike.config import ChildConfig, PeerConfig
from ipsec_ike.plain import dump
from ipsec_ike.sa.child_sa import ChildSa
from ipsec_ike.secret import Secret
from ipsec_ike.v2.create_child import CreateChild, Rival
from ipsec_ike.v2.deletes import (
    Confirm,
    DeleteChild,
    DeleteIke,
    DeleteUnused,
    Discard,
    InvalidSpi,
    Liveness,
    SoonDeleteIke,
)
from ipsec_ike.v2.rekey_child import RekeyChild
from ipsec_ike.v2.rekey_ike import RekeyIke
from ipsec_ike.v2.states import State

if TYPE_CHECKING:
    from ipsec_ike.crypto.groups import KeyExchange
    from ipsec_ike.identity import Identity
    from ipsec_ike.proposal import Transform
    from ipsec_ike.selectors import TrafficSelector
    from ipsec_ike.v2.exchange import Exchange
    from ipsec_ike.v2.host import Host
    from ipsec_ike.v2.ike_sa import IkeSa
    from ipsec_ike.v2.negotiate import Offer

#: Of the form of the records. A reader of another version takes none of them.
VERSION: Final = 3

#: Exchanges without anything of their own.
BARE: Final = {
    kind.__name__: kind for kind in (Liveness, Confirm, Discard, DeleteIke, SoonDeleteIke)
}

#: Of an IKE SA: both SPIs, next request, expected request, messages sealed, flags; the times of
#: creation, establishment, soft, hard, reauthentication and doom. The keys follow.
IKE_FIXED: Final = struct.Struct(">8s8sQQQB6d")
#: Of a child: protocol, both SPIs, flags; the times of creation, soft, hard and switch.
CHILD_FIXED: Final = struct.Struct(">BIIB4d")

_SALT: Final = 16


class Record:
    """``data`` is JSON-able and holds keys; None: what was kept under ``key`` is gone."""

    __slots__ = ("data", "key")

    def __init__(self, key: str, data: dict[str, Any] | None) -> None:
        self.key: Final = key
        self.data: Final = data

    def __repr__(self) -> str:
        return f"<record {self.key}{'' if self.data is not None else ' gone'}>"


class Recorder:
    """Finds out which records have to be written anew. One for an engine, if it is to be resumed.

    ``touched`` are the IKE SAs that may differ from their records, ``configured`` says that peers
    may. Those are written when they are configured, not when one of many sets up its IKE SA.
    """

    __slots__ = ("_configs", "_counts", "_written", "configured", "touched")

    def __init__(self) -> None:
        self.touched: dict[IkeSa, None] = {}
        self.configured = False
        #: The peer of each IKE SA that has a record, by our SPI, and how many each peer has.
        self._written: dict[bytes, str] = {}
        self._counts: Counter[str] = Counter()
        #: The configurations that have records.
        self._configs: dict[str, PeerConfig] = {}

    def take(self, host: Host) -> list[Record]:
        """The records that differ from those of the last call."""
        records: list[Record] = []
        if self.configured:
            self.configured = False
            self._peers(host, records)
        if not self.touched:
            return records
        touched, self.touched = self.touched, {}
        for sa in touched:
            spi = sa.our_spi
            if host.sas.get(spi) is not sa:
                if spi not in host.sas:
                    self._gone(host, spi, records)
            elif sa.state not in (State.CREATED, State.CONNECTING):
                self._owner(host, spi, sa.peer.config, records)
                records.append(Record(f"sa {spi.hex()}", ike_sa(host, sa)))
        return records

    def _peers(self, host: Host, records: list[Record]) -> None:
        current = host.peers.by_name
        for name in [n for n in self._configs if n not in current and not self._counts[n]]:
            self._forget(name, records)
        for peer in current.values():
            self._config(host, peer.config, records)

    def _config(self, host: Host, config: PeerConfig, records: list[Record]) -> None:
        if self._configs.get(config.name) is not config:
            self._configs[config.name] = config
            records.append(Record(f"peer {config.name}", _peer(host, config)))

    def _owner(self, host: Host, spi: bytes, config: PeerConfig, records: list[Record]) -> None:
        before = self._written.get(spi)
        if before != config.name:
            if before is not None:
                self._gone(host, spi, records)
            self._written[spi] = config.name
            self._counts[config.name] += 1
        if config.name not in host.peers.by_name or config.name not in self._configs:
            # It was configured, and has an IKE SA that is being deleted.
            self._config(host, config, records)

    def _gone(self, host: Host, spi: bytes, records: list[Record]) -> None:
        name = self._written.pop(spi, None)
        if name is None:
            return
        records.append(Record(f"sa {spi.hex()}", None))
        self._counts[name] -= 1
        if not self._counts[name]:
            del self._counts[name]
            if name not in host.peers.by_name:
                self._forget(name, records)

    def _forget(self, name: str, records: list[Record]) -> None:
        del self._configs[name]
        records.append(Record(f"peer {name}", None))


def check_value(salt: bytes, secret: Secret | None) -> str:
    """By which a later life sees whether a shared key is still the same."""
    return "" if secret is None else hmac.digest(salt, secret.reveal(), "sha256").hex()


def _peer(host: Host, config: PeerConfig) -> dict[str, Any]:
    salt = host.rng(_SALT)
    plain: dict[str, Any] = dump(config)
    for one, identity in zip(plain["identities"], config.identities, strict=True):
        one.pop("psk", None)
        one.pop("psk_previous", None)
        one["check"] = check_value(salt, identity.psk)
    return {"version": VERSION, "salt": salt.hex(), "config": plain}


def ike_sa(host: Host, sa: IkeSa) -> dict[str, Any]:
    """All of one IKE SA but its handshake.

    Every handshake writes one, and each value of JSON has its price: so all that is of a fixed size
    is octets in one value (``IKE_FIXED``), and what is not there is left out.
    """
    suite, keys = sa.crypto
    window, config = sa.window, sa.peer.config
    before = sa.predecessor
    local, remote = sa.local, sa.remote
    plain: dict[str, Any] = {
        "version": VERSION,
        "peer": config.name,
        "identity": None if sa.identity is None else sa.identity.name,
        "state": sa.state.value,
        "ends": f"{local.address} {local.port} {remote.address} {remote.port}",
        "ids": f"{_named(sa.local_id)} {_named(sa.remote_id)}",
        "suite": _transforms(suite.transforms),
        "fixed": (
            IKE_FIXED.pack(
                sa.spi_i,
                sa.spi_r,
                window.next_request,
                window.expected,
                sa.sealed,
                sa.encap
                | sa.nat_local << 1
                | sa.nat_remote << 2
                | sa.fragmentation << 3
                | sa.childless << 4
                | sa.pending << 5
                | sa.doomed_by_us << 6
                | sa.initiator << 7,
                sa.created_at,
                sa.established_at,
                sa.soft_at,
                sa.hard_at,
                sa.reauth_at,
                sa.doomed_at,
            )
            + keys.reveal()
        ).hex(),
        "children": [_child(host, child, config) for child in sa.children],
    }
    if sa.responder is not None:
        plain["responder"] = " ".join((str(sa.responder.port), *sa.responder.addresses))
    if window.request:
        plain["request"] = [data.hex() for data in window.request]
    if window.response:
        plain["response"] = [data.hex() for data in window.response]
    if before is not None and host.sas.get(before.our_spi) is before:
        plain["predecessor"] = before.our_spi.hex()
    if sa.current is not None:
        plain["current"] = exchange(host, sa.current, config)
    if sa.queue:
        plain["queue"] = [exchange(host, each, config) for each in sa.queue]
    return plain


@lru_cache(maxsize=1024)
def _transforms(transforms: tuple[Transform, ...]) -> str:
    return " ".join(f"{int(t.type)}/{int(t.id)}/{t.key_length}" for t in transforms)


def _named(identity: Identity | None) -> str:
    return "-" if identity is None else f"{int(identity.type)}/{identity.data.hex()}"


def _config(child: ChildConfig, config: PeerConfig) -> Any:
    """The name of a child that is configured as it is here, else all of it."""
    for each in config.children:
        if each is child or (each.name == child.name and each == child):
            return child.name
    return dump(child)


def _selectors(selectors: Iterable[TrafficSelector]) -> list[list[Any]]:
    return [
        [ts.start.hex(), ts.end.hex(), ts.protocol, ts.start_port, ts.end_port] for ts in selectors
    ]


def _child(host: Host, child: ChildSa, config: PeerConfig) -> list[Any]:
    own, suite, heir = child.config, child.suite, child.successor
    same = child.local_ts is own.local_ts and child.remote_ts is own.remote_ts
    plain = [
        _config(own, config),
        _transforms(suite.transforms),
        CHILD_FIXED.pack(
            suite.protocol,
            child.spi_in,
            child.spi_out,
            child.outbound | child.confirmed << 1,
            child.created_at,
            child.soft_at,
            child.hard_at,
            child.switch_at,
        ).hex(),
        child.mode.value,
        child.state.value,
    ]
    if not same or child.waiting is not None or heir is not None:
        plain += [
            None if same else [_selectors(child.local_ts), _selectors(child.remote_ts)],
            None if child.waiting is None else dump(child.waiting),
            None if heir is None else reference(host, heir, config),
        ]
    return plain


def reference(host: Host, child: ChildSa, config: PeerConfig) -> Any:
    """The inbound SPI of a child, or all of it if it is only remembered."""
    if host.children.get(child.spi_in) is child:
        return child.spi_in
    return _child(host, child, config)


# -- requests under way ------------------------------------------------------------------------


def exchange(host: Host, it: Exchange, config: PeerConfig) -> list[Any]:
    """The kind of an exchange and what it holds."""
    kind = type(it).__name__
    match it:
        case DeleteChild():
            return [kind, reference(host, it.child, config)]
        case DeleteUnused():
            return [kind, it.protocol, it.spi_in]
        case InvalidSpi():
            return [kind, it.spi]
        case CreateChild():
            return [
                kind,
                _config(it.config, config),
                [dump(selector) for selector in it.packet],
                _offer(it.offer, config),
                it.group,
                it.tried,
                it.single,
                _rival(host, it.rival, config),
                it.unborn,
            ]
        case RekeyChild():
            return [
                kind,
                reference(host, it.old, config),
                _offer(it.offer, config),
                it.group,
                it.tried,
                _rival(host, it.rival, config),
                it.unborn,
            ]
        case RekeyIke():
            rival = it.rival
            return [
                kind,
                it.spi.hex(),
                it.nonce.hex(),
                dump(it.proposals),
                _key_exchange(it.ke),
                it.group,
                it.tried,
                None if rival is None else [rival.sa.our_spi.hex(), rival.nonce.hex()],
            ]
    assert kind in BARE, f"no record of a {kind}"
    return [kind]


def _key_exchange(ke: KeyExchange | None) -> list[Any] | None:
    return None if ke is None else [int(ke.group), ke.seed().hex()]


def _offer(offer: Offer | None, config: PeerConfig) -> dict[str, Any] | None:
    if offer is None:
        return None
    return {
        "config": _config(offer.config, config),
        "ke": _key_exchange(offer.ke),
        "ts": [_selectors(offer.local_ts), _selectors(offer.remote_ts)],
        "nonce": offer.nonce.hex(),
        "proposals": dump(offer.proposals),
        "spi": offer.spi,
    }


def _rival(host: Host, rival: Rival | None, config: PeerConfig) -> list[Any] | None:
    if rival is None:
        return None
    return [reference(host, rival.child, config), rival.nonce.hex(), rival.untold]
