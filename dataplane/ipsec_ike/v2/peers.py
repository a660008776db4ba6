"""The peers of an engine, found by name, by address and by reqid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import ip_network
from typing import TYPE_CHECKING

from ipsec_ike.config import ChildConfig, IdentityConfig
from ipsec_ike.identity import Identity
from ipsec_ike.sa.nat import packed

if TYPE_CHECKING:
    from ipsec_ike.v2.peer import Peer


class Peers:
    """``index`` must be called after ``by_name`` or a configuration in it has changed."""

    __slots__ = ("_by_identity", "_by_network", "_lengths", "by_name", "by_reqid")

    def __init__(self) -> None:
        self.by_name: dict[str, Peer] = {}
        self.by_reqid: dict[int, tuple[Peer, ChildConfig]] = {}
        #: By the identity that must come, None: any.
        self._by_identity: dict[Identity | None, list[tuple[Peer, IdentityConfig]]] = {}
        #: (octets of an address, prefix length, prefix as a number) -> peers in order.
        self._by_network: dict[tuple[int, int, int], list[Peer]] = {}
        self._lengths: dict[int, list[int]] = {4: [], 16: []}

    def index(self) -> None:
        """Build the tables anew."""
        self._by_network.clear()
        self._by_identity.clear()
        self.by_reqid = {}
        lengths: dict[int, set[int]] = {4: set(), 16: set()}
        for peer in self.by_name.values():
            config = peer.config
            networks = {*config.remote_networks}
            networks.update(_host(path.remote) for path in config.paths)
            for network in networks:
                octets, length = network.max_prefixlen // 8, network.prefixlen
                prefix = int(network.network_address) >> (8 * octets - length)
                lengths[octets].add(length)
                self._by_network.setdefault((octets, length, prefix), []).append(peer)
            for identity in config.identities:
                if identity.psk is not None:
                    entry = peer, identity
                    self._by_identity.setdefault(identity.remote_id, []).append(entry)
            for child in config.children:
                self.by_reqid[child.reqid] = peer, child
        self._lengths = {octets: sorted(found, reverse=True) for octets, found in lengths.items()}

    def matching(self, local: str, remote: str) -> Sequence[Peer]:
        """The peers that may come from ``remote`` to our address ``local``: those with the longest
        prefix, of which there can be several that differ in identities."""
        address = packed(remote)
        octets = len(address)
        number = int.from_bytes(address)
        for length in self._lengths[octets]:
            peers = self._by_network.get((octets, length, number >> (8 * octets - length)))
            if peers is None:
                continue
            found = [p for p in peers if p.config.local_address in (None, local)]
            if found:
                return found
        return ()

    def claims(self, remote_id: Identity) -> Iterator[tuple[Peer, IdentityConfig]]:
        """Whose identity this may be: those who are named so before those who take anybody."""
        yield from self._by_identity.get(remote_id, ())
        yield from self._by_identity.get(None, ())


# The shell resolves names again and again to the same addresses.
_host = lru_cache(maxsize=4096)(ip_network)
