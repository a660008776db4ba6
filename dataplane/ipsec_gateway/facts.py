"""What the shell found out about a node, and what of an object cannot be honoured there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ipsec_api.tunnel import ObjectRef
from ipsec_gateway.classify import Address, Network
from ipsec_gateway.ipsec.abilities import Abilities
from ipsec_gateway.marks import DEFAULT, Numbers


@dataclass(frozen=True, slots=True)
class Facts:
    """What the shell found out about this node.

    ``resolved`` has the addresses of each DNS name and of each address itself; ``sources`` the
    address that the routing table would send from, by destination; ``encapsulate`` says that the
    data plane carries ESP faster in UDP.
    """

    addresses: tuple[Address, ...] = ()
    resolved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    #: Our addresses of global scope by interface, in the kernel's order.
    interfaces: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)
    #: Networks of Services, whose addresses exist only in connection tracking.
    services: tuple[Network, ...] = ()
    encapsulate: bool = False
    #: What the data plane can do; None: everything.
    abilities: Abilities | None = None
    #: Where each peer is that has an SA, by its key.
    live: Mapping[str, str] = field(default_factory=dict)
    numbers: Numbers = DEFAULT
    #: UDP port of our responder to probes, 0 if there is none.
    responder: int = 0
    #: Names of network interfaces that are not ours; asked for only where it matters.
    foreign: frozenset[str] = frozenset()
    #: What could not be set up of the interface of a routed policy, by namespace/name.
    broken: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """Part of an object that cannot be honoured here and now. ``reason`` is CamelCase."""

    ref: ObjectRef
    reason: str
    message: str
