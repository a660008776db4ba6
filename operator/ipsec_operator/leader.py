"""Of several replicas one works: whoever holds the Lease.

kopf's own peering freezes all replicas of equal priority, so it is off. A holder renews every 2
seconds; one that could not for 7 stops working; the others take the Lease 10 seconds after they
last saw it change. They measure that with their own clock from what they have seen themselves, and
never compare times of day, so that a wrong clock makes nobody a second leader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ipsec_api.cluster import (
    MANAGED_BY,
    MANAGED_BY_LABEL,
    OPERATOR_LEASE,
    OPERATOR_LEASE_DURATION,
    OPERATOR_RENEW_DEADLINE,
    OPERATOR_RETRY_PERIOD,
)
from ipsec_operator.api import LEASES, Api, ApiError, Conflict, NotFound, Object

log = logging.getLogger("ipsec_operator")


class LostLease(Exception):
    """The Lease could not be renewed, or somebody else has it: end the process."""


class Leadership:
    """One replica's part. ``clock`` counts seconds, ``now`` is the time in RFC 3339."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        identity: str,
        clock: Callable[[], float],
        now: Callable[[], str],
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._identity = identity
        self._clock = clock
        self._now = now
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0
        #: Who has the Lease, as far as we know; empty: nobody, None: not known yet.
        self.holder: str | None = None

    @property
    def leading(self) -> bool:
        """Whether that is us."""
        return self.holder == self._identity

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Wait for the Lease, run ``lead`` while it is ours. Returns when ``lead`` does.

        Raises LostLease. Cancelled, it stops ``lead`` and gives the Lease back.
        """
        while not await self._try():  # noqa: ASYNC110 - it is the API server that is asked
            await asyncio.sleep(OPERATOR_RETRY_PERIOD)
        log.info("leading as %s", self._identity)
        work = asyncio.ensure_future(lead())
        keep = asyncio.ensure_future(self._keep())
        try:
            await asyncio.wait({work, keep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, keep):
                task.cancel()
            await asyncio.gather(work, keep, return_exceptions=True)
            if self.leading:
                await self._release()
        for task in (keep, work):
            if not task.cancelled() and (error := task.exception()):
                raise error

    async def _keep(self) -> None:
        renewed = self._clock()
        while True:
            await asyncio.sleep(OPERATOR_RETRY_PERIOD)
            try:
                async with asyncio.timeout(OPERATOR_RENEW_DEADLINE):
                    if await self._try():
                        renewed = self._clock()
            except TimeoutError:
                log.warning("the Lease could not be renewed in time")
            if self.holder not in (None, "", self._identity):
                raise LostLease(f"{self.holder} has the Lease")
            if self._clock() - renewed > OPERATOR_RENEW_DEADLINE:
                self.holder = None
                raise LostLease(f"no renewal for {OPERATOR_RENEW_DEADLINE} s")

    async def _try(self) -> bool:
        """Take or renew the Lease if we may. Whether it is ours now."""
        try:
            return await self._take()
        except Conflict:
            return False
        except ApiError as exc:
            log.warning("Lease %s: %s", OPERATOR_LEASE, exc)
            return False

    async def _take(self) -> bool:
        try:
            lease = await self._api.get(LEASES, self._namespace, OPERATOR_LEASE)
        except NotFound:
            await self._api.create(LEASES, self._namespace, self._fresh())
            self.holder = self._identity
            return True
        spec = lease.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        state = (holder, str(spec.get("renewTime") or ""))
        if state != self._seen:
            self._seen, self._seen_at = state, self._clock()
        self.holder = holder
        silent = self._clock() - self._seen_at
        if holder not in ("", self._identity) and silent < OPERATOR_LEASE_DURATION:
            return False
        now = self._now()
        change: Object = {"holderIdentity": self._identity, "renewTime": now}
        if holder != self._identity:
            transitions = int(spec.get("leaseTransitions") or 0)
            change |= {
                "acquireTime": now,
                "leaseDurationSeconds": OPERATOR_LEASE_DURATION,
                "leaseTransitions": transitions + 1,
            }
        await self._write(lease, change)
        self.holder = self._identity
        return True

    async def _release(self) -> None:
        """So that the next one need not wait."""
        try:
            async with asyncio.timeout(OPERATOR_RETRY_PERIOD):
                lease = await self._api.get(LEASES, self._namespace, OPERATOR_LEASE)
                if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                    await self._write(lease, {"holderIdentity": "", "renewTime": self._now()})
        except (ApiError, TimeoutError) as exc:
            log.info("the Lease was not given back: %s", str(exc) or "no answer")
        self.holder = None

    async def _write(self, lease: Object, change: Object) -> None:
        """Raises Conflict if somebody else has changed it since it was read."""
        version = (lease.get("metadata") or {}).get("resourceVersion")
        body = {"metadata": {"resourceVersion": version}, "spec": change}
        await self._api.patch(LEASES, self._namespace, OPERATOR_LEASE, body)

    def _fresh(self) -> Object:
        now = self._now()
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": OPERATOR_LEASE,
                "namespace": self._namespace,
                "labels": {MANAGED_BY_LABEL: MANAGED_BY},
            },
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": OPERATOR_LEASE_DURATION,
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 0,
            },
        }
