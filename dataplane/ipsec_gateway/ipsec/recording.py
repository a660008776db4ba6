"""A data plane that carries nothing: it keeps SAs and policies in dicts and logs every call.

For tests and for ``--dry-run``: after any sequence of calls ``sas`` and ``policies`` are what a
real data plane would hold, and ``log`` is how they came about.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ipsec_gateway.ipsec.base import (
    DataplaneError,
    DataplaneEvent,
    IkeFromDataplane,
    Inherited,
    PolicyId,
    PolicySpec,
    SaCounters,
    moved,
)
from ipsec_ike.actions import SaSpec, UpdateSa
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Endpoint, InheritedSa

#: The argument of a recorded call.
Argument = (
    SaSpec
    | UpdateSa
    | SaId
    | PolicySpec
    | PolicyId
    | bool
    | tuple[bytes, Endpoint, Endpoint]
    | None
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One call as it was made, refused ones included.

    ``name`` is the method; ``put_policies`` is written as one ``put_policy`` or ``delete_policy``
    per policy, in the order in which they take effect.
    """

    name: str
    argument: Argument = None


@dataclass(slots=True)
class RecordingBackend:
    """IpsecBackend over two dicts.

    ``refuse`` holds SPIs whose ``add_sa`` raises DataplaneError; ``refuse_start``, if not empty, is
    the message with which ``start`` fails.
    """

    name: str = "recording"
    device: str | None = None
    persistent: bool = False
    sas: dict[SaId, SaSpec] = field(default_factory=dict)
    policies: dict[PolicyId, PolicySpec] = field(default_factory=dict)
    log: list[Operation] = field(default_factory=list)
    totals: dict[SaId, SaCounters] = field(default_factory=dict)
    refuse: set[int] = field(default_factory=set)
    refuse_start: str = ""
    running: bool = False
    _events: asyncio.Queue[DataplaneEvent | IkeFromDataplane | None] = field(
        default_factory=asyncio.Queue
    )

    async def start(self) -> None:
        """Begin; raises DataplaneError with ``refuse_start`` if that is set."""
        self.log.append(Operation("start"))
        if self.refuse_start:
            raise DataplaneError(self.refuse_start)
        self.running = True

    async def inherit(self) -> Inherited:
        """What is in the dicts already: another one's, if it was made with them."""
        self.log.append(Operation("inherit"))
        return Inherited(
            {
                sa: InheritedSa(spec.reqid, spec.source, spec.destination, spec.encap)
                for sa, spec in self.sas.items()
            },
            {policy_id: replace(spec, name="") for policy_id, spec in self.policies.items()},
        )

    async def close(self, *, remove: bool) -> None:
        """End; ends ``events`` too. ``remove`` empties both dicts."""
        self.log.append(Operation("close", remove))
        self.running = False
        if remove:
            self.sas.clear()
            self.policies.clear()
        self._events.put_nowait(None)

    async def add_sa(self, spec: SaSpec) -> None:
        """Keep ``spec``. Raises DataplaneError for a duplicate and for an SPI in ``refuse``."""
        self.log.append(Operation("add_sa", spec))
        if spec.id.spi in self.refuse:
            raise DataplaneError(f"SA {spec.id.spi:08x} of {spec.peer or 'no peer'}: refused")
        if spec.id in self.sas:
            raise DataplaneError(f"SA {spec.id.spi:08x} of {spec.peer or 'no peer'}: exists")
        self.sas[spec.id] = spec

    async def update_sa(self, update: UpdateSa) -> None:
        """Move an SA; it keeps its id. Raises DataplaneError if there is none."""
        self.log.append(Operation("update_sa", update))
        spec = self.sas.get(update.id)
        if spec is None:
            raise DataplaneError(f"SA {update.id.spi:08x}: no such SA to update")
        self.sas[update.id] = moved(spec, update)

    async def delete_sa(self, sa: SaId) -> None:
        """Forget an SA; no error if it is gone already."""
        self.log.append(Operation("delete_sa", sa))
        self.sas.pop(sa, None)
        self.totals.pop(sa, None)

    async def put_policies(self, put: Sequence[PolicySpec], delete: Sequence[PolicyId]) -> None:
        """Apply the puts, then the deletes; a policy that is in both stays."""
        kept = {policy.id for policy in put}
        for policy in put:
            self.log.append(Operation("put_policy", policy))
            self.policies[policy.id] = policy
        for policy_id in delete:
            self.log.append(Operation("delete_policy", policy_id))
            if policy_id not in kept:
                self.policies.pop(policy_id, None)

    async def counters(self) -> Mapping[SaId, SaCounters]:
        """What ``totals`` says, zeros for the rest."""
        return {sa: self.totals.get(sa, SaCounters()) for sa in self.sas}

    def deliver_esp(self, data: bytes, local: Endpoint, remote: Endpoint) -> None:
        """Written down and dropped."""
        self.log.append(Operation("deliver_esp", (data, local, remote)))

    async def events(self) -> AsyncIterator[DataplaneEvent | IkeFromDataplane]:
        """What ``report`` was given, until ``close``."""
        while (event := await self._events.get()) is not None:
            yield event

    def report(self, event: DataplaneEvent | IkeFromDataplane) -> None:
        """Let ``events`` yield ``event``, as a real data plane would on its own."""
        self._events.put_nowait(event)

    def outbound(self, reqid: int) -> SaSpec | None:
        """The SA that a packet of ``reqid`` would use: the newest outbound one."""
        found = [
            s for s in self.sas.values() if s.reqid == reqid and s.id.direction is Direction.OUT
        ]
        return found[-1] if found else None
