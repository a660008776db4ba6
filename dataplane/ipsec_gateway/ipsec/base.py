"""What a data plane can do. One interface, three implementations: xfrm, userspace, recording.

Identifiers (what finds a thing) are apart from data (what it is). SAs come and go under a stable
reqid; policies are a pure function of the configuration and the live SAs and are put and deleted as
differences, so nothing here counts references.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol as Interface

from ipsec_ike.actions import SaSpec, UpdateSa
from ipsec_ike.config import Mode
from ipsec_ike.identifiers import SaId
from ipsec_ike.inputs import Acquire, Endpoint, Expire, InheritedSa, SaFailed, UnknownSpi
from ipsec_ike.inputs import Mapping as NatMapping
from ipsec_ike.numbers import Protocol
from ipsec_ike.selectors import TrafficSelector


class DataplaneError(Exception):
    """The data plane refused. The message names the object, what it lacks and, if any, errno."""


class PolicyAction(Enum):
    """What happens to a packet that matches (RFC 4301 4.4.1)."""

    ENCRYPT = "encrypt"
    DISCARD = "discard"
    NONE = "none"


class Level(Enum):
    """What happens to a packet that must be encrypted while there is no SA."""

    REQUIRE = "require"
    UNIQUE = "unique"
    USE = "use"


class PolicyDirection(Enum):
    """``FORWARD`` is inbound traffic that is not for the gateway itself."""

    OUT = "out"
    IN = "in"
    FORWARD = "fwd"


@dataclass(frozen=True, slots=True)
class PolicyId:
    """What finds a policy: direction and selector pair, as the packet carries them.

    With an ``interface`` (the ``if_id`` of an xfrm interface) it is for what is routed there, and
    for nothing else.
    """

    direction: PolicyDirection
    source: TrafficSelector
    destination: TrafficSelector
    interface: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """One entry of the SPD. Lower ``priority`` is looked at first (list order of the resources).

    ``reqid`` is 0 unless ``action`` is ENCRYPT. ``name`` is ``namespace/name`` of the resource it
    comes from, for comments and errors. ``protocols`` (numbers.Protocol) are what must protect the
    packet, the inner one first. ``local`` and ``remote`` are the tunnel's ends as far as they are
    known without an SA, for direction OUT in tunnel mode only; the live SAs know better.
    """

    id: PolicyId
    action: PolicyAction
    priority: int
    level: Level = Level.REQUIRE
    reqid: int = 0
    mode: Mode = Mode.TUNNEL
    protocols: tuple[int, ...] = (Protocol.ESP,)
    local: str = ""
    remote: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class SaCounters:
    """Totals of one SA since it was added. Octets count inner packets (before ESP)."""

    bytes: int = 0
    packets: int = 0
    replayed: int = 0
    integrity_failures: int = 0
    #: Seconds since the last packet, or None if there was none.
    idle: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerRestarted:
    """A packet process ended and was replaced; ``detail`` says why. Counters have a gap."""

    detail: str


#: What a data plane reports on its own.
DataplaneEvent = Acquire | Expire | NatMapping | SaFailed | UnknownSpi | WorkerRestarted


@dataclass(frozen=True, slots=True)
class IkeFromDataplane:
    """An IKE message that came in on a socket that the data plane reads (RFC 3948 2.2)."""

    data: bytes
    local: Endpoint
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Inherited:
    """What an earlier life of the gateway left in the kernel: ours by reqid range and mark.

    A policy may lack its ``name``.
    """

    sas: Mapping[SaId, InheritedSa] = field(default_factory=dict)
    policies: Mapping[PolicyId, PolicySpec] = field(default_factory=dict)


def moved(spec: SaSpec, update: UpdateSa) -> SaSpec:
    """``spec`` at the addresses of ``update``; its id, by which it is found, stays."""
    return replace(spec, source=update.source, destination=update.destination, encap=update.encap)


class IpsecBackend(Interface):
    """All methods but ``events`` finish before the engine's next action is performed."""

    #: Of /metrics and logs: "userspace", "xfrm", "recording".
    name: str

    #: The device that packets to be protected are routed into; None if the kernel's SPD does it.
    device: str | None

    #: Whether SAs and policies outlive the process.
    persistent: bool

    async def start(self) -> None:
        """Acquire kernel resources. Raises DataplaneError with what is missing."""

    async def inherit(self) -> Inherited:
        """What an earlier life left, called once after ``start``; it changes nothing.

        From then on all of it counts as if it had been added here: it can be updated, deleted and
        counted, and ``close`` removes it if told to.
        """

    async def close(self, *, remove: bool) -> None:
        """Release processes and sockets; ``remove`` also removes every SA, policy and device."""

    async def add_sa(self, spec: SaSpec) -> None: ...

    async def update_sa(self, update: UpdateSa) -> None: ...

    async def delete_sa(self, sa: SaId) -> None: ...

    async def put_policies(self, put: Sequence[PolicySpec], delete: Sequence[PolicyId]) -> None:
        """Apply a difference; the puts take effect before the deletes."""

    async def counters(self) -> Mapping[SaId, SaCounters]: ...

    def deliver_esp(self, data: bytes, local: Endpoint, remote: Endpoint) -> None:
        """ESP in UDP that arrived on an IKE socket (receive offload may merge the two)."""

    def events(self) -> AsyncIterator[DataplaneEvent | IkeFromDataplane]: ...
