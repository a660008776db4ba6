"""What is in place: the policies in the data plane and the guard around them, at any moment.

Reconciling takes its time, and meanwhile peers get children from templates. So nothing here trusts
an intent that was made a moment ago: what peers have is looked up again, without waiting, right
before each change. And such a child waits for its policies and the guard around them before its
first SA is added (``prepare``), so that the answer to its first packet finds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from ipsec_gateway import plan
from ipsec_gateway.classify import Address, Network
from ipsec_gateway.dynamic import extended, generated, kept
from ipsec_gateway.handover import Handover
from ipsec_gateway.intent import Intent
from ipsec_gateway.ipsec.base import (
    DataplaneError,
    IpsecBackend,
    Level,
    PolicyDirection,
    PolicyId,
    PolicySpec,
)
from ipsec_gateway.patterns import is_generated
from ipsec_gateway.pump import Pump
from ipsec_gateway.steering import Steering
from ipsec_gateway.tools import ToolError
from ipsec_ike.actions import SaSpec


class InPlace:
    """One round of reconciling is ``begin``, ``guard``, ``route``, ``put``, ``drop``, ``end``."""

    def __init__(self, pump: Pump, steering: Steering | None, handover: Handover) -> None:
        self._pump: Final = pump
        self._steering: Final = steering
        self._handover: Final = handover
        self.policies: dict[PolicyId, PolicySpec] = {}
        #: Whether some policy passes clear text while it has no SA.
        self.has_use = False
        self._static = Intent()
        #: Policies that are about to go: they are guarded until what they protect is gone.
        self._retained: tuple[PolicySpec, ...] = ()
        self._mtu: int | None = None
        self._addresses: tuple[Address, ...] = ()
        self._measured: Mapping[int, tuple[Network, ...]] = {}
        self._guarding: Final = asyncio.Lock()

    def wanted(self) -> Intent:
        """What is configured, and what peers have from templates now."""
        static = self._static
        if not static.patterns:
            return static
        if self._handover.first:
            # Who has what will be known when the engine has gone on from its records.
            return kept(static, self.policies.values())
        return extended(static, generated(self._pump.engine.snapshot()))

    def begin(self, static: Intent) -> Intent:
        """There may be a new configuration. Gives ``wanted``."""
        self._static = static
        wanted = self.wanted()
        stays = {spec.id for spec in wanted.policies}
        self._retained = tuple(
            spec
            for spec in self.policies.values()
            if spec.id.direction is PolicyDirection.OUT and spec.id not in stays
        )
        return wanted

    async def guard(self, mtu: int | None, measured: Mapping[int, tuple[Network, ...]]) -> None:
        """Put the nftables table in place; ``mtu`` and ``measured`` as ``Steering.guard`` takes
        them. Raises ToolError."""
        self._mtu, self._measured = mtu, measured
        await self._renew()

    async def _renew(self) -> None:
        if self._steering is None:
            return
        async with self._guarding:
            wanted = self.wanted()
            await self._steering.guard(
                wanted,
                live=self._live(wanted),
                mtu=self._mtu,
                retained=self._retained,
                measured=self._measured,
            )

    def _live(self, wanted: Intent) -> frozenset[int]:
        """Reqids with an SA; only ``level: use`` asks."""
        self.has_use = any(spec.level is Level.USE for spec in wanted.policies)
        if not self.has_use:
            return frozenset()
        return frozenset(c.reqid for sa in self._pump.engine.snapshot() for c in sa.children)

    async def route(self, addresses: tuple[Address, ...]) -> None:
        """Put routes and rules in place, as ``Steering.route`` does. Raises ToolError."""
        self._addresses = addresses
        await self._reroute()

    async def _reroute(self) -> None:
        if self._steering is not None:
            async with self._guarding:
                await self._steering.route(self.wanted(), self._addresses)

    async def put(self, backend: IpsecBackend) -> None:
        """Bring new and changed policies to the data plane. Raises DataplaneError."""
        changes = plan.policies(self.wanted().policies, self.policies)
        if changes.put:
            await backend.put_policies(changes.put, ())
            self.policies.update({spec.id: spec for spec in changes.put})

    async def drop(self, backend: IpsecBackend) -> None:
        """Take policies away that nobody wants any more. Raises DataplaneError."""
        delete = plan.policies(self.wanted().policies, self.policies).delete
        if not delete:
            return
        # Forgotten first: a child that comes back meanwhile puts its own anew.
        gone = {key: self.policies.pop(key) for key in delete}
        try:
            await backend.put_policies((), delete)
        except DataplaneError:
            self.policies = {**gone, **self.policies}
            raise

    async def end(self) -> None:
        """What was about to go is gone. Raises ToolError."""
        if self._retained:
            self._retained = ()
            await self._renew()

    async def prepare(self, spec: SaSpec) -> None:
        """The first SA of a child is about to come: if the child is generated, its policies and the
        guard go before, and its routes where there is a device. Raises DataplaneError."""
        backend = self._pump.backend
        if backend is None or not is_generated(spec.reqid):
            return
        new = [
            each
            for each in self.wanted().policies
            if is_generated(each.reqid) and self.policies.get(each.id) != each
        ]
        if not new:
            return
        try:
            await self._renew()
            if self._steering is not None and self._steering.device is not None:
                # What the kernel encrypts goes its usual way.
                await self._reroute()
        except ToolError as exc:
            raise DataplaneError(f"the guard for {spec.peer}/{spec.child}: {exc}") from exc
        await backend.put_policies(new, ())
        self.policies.update({each.id: each for each in new})
