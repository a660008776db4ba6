"""Events for ``kubectl describe``: stable reasons, never the same twice in a row, never a flood.

========================  ========  =============================================================
reason                    type      when
========================  ========  =============================================================
Rendered                  Normal    a peer's tunnel went to the gateways for the first time
HotChange                 Normal    a change of the tunnel takes effect in place
Rekey                     Normal    a change of the tunnel replaces CHILD_SAs
Reestablish               Normal    a change of the tunnel replaces the IKE SA
Removed                   Normal    the tunnel was taken away from the gateways
Accepted                  Normal    a resource that was refused is in force
ReferencesResolved        Normal    what was missing is there
Ready, NotReady           N, W      the conjunction of all conditions has changed
reasons of conditions     Warning   Accepted or ResolvedRefs is False: Overlap, SecretNotFound, ...
========================  ========  =============================================================
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from ipsec_api.cluster import OPERATOR_MANAGER
from ipsec_api.kinds import API_VERSION
from ipsec_api.tunnel import ObjectRef
from ipsec_operator.api import EVENTS, Api, ApiError, Object
from ipsec_operator.graph import Key

log = logging.getLogger("ipsec_operator")

#: Events that one object may have at once, and seconds until it may have one more.
BURST: Final = 10
REFILL: Final = 30.0
#: Seconds in which the same warning is not told again.
REPEAT: Final = 600.0
#: Events that may wait, and how many are written in a second at most: thousands of resources that
#: are applied at once have other things to be written first.
WAITING: Final = 500
RATE: Final = 20.0
#: The API server's limit for the text.
_LONGEST: Final = 1024


@dataclass(slots=True)
class _Budget:
    tokens: float
    at: float


class Events:
    """Writes events. ``clock`` counts seconds, ``now`` is the time in RFC 3339."""

    def __init__(
        self, api: Api, clock: Callable[[], float], now: Callable[[], str], host: str
    ) -> None:
        self._api = api
        self._clock = clock
        self._now = now
        self._host = host
        self._budgets: dict[Key, _Budget] = {}
        self._told: dict[tuple[Key, str, str], float] = {}
        self._waiting: asyncio.Queue[Object] = asyncio.Queue(WAITING)
        #: Events that were not written since there were too many.
        self.suppressed = 0

    async def run(self) -> None:
        """Write what is told, until cancelled."""
        while True:
            body = await self._waiting.get()
            try:
                await self._api.create(EVENTS, body["metadata"]["namespace"], body)
            except ApiError as exc:
                log.info("event %s is lost: %s", body["reason"], exc)
            await asyncio.sleep(1 / RATE)

    def tell(
        self, ref: ObjectRef, kind: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """Have it written, unless it was told just now or there are too many."""
        key = Key(ref.kind, ref.namespace, ref.name)
        if self._waiting.full():
            self.suppressed += 1
            return
        if not self._may(key, kind, reason, message):
            return
        now = self._now()
        text = message if len(message) <= _LONGEST else f"{message[: _LONGEST - 3]}..."
        mark = hashlib.blake2b(f"{key}{reason}{text}{now}".encode(), digest_size=8).hexdigest()
        body: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{ref.name[:230]}.{mark}", "namespace": ref.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": ref.kind,
                "namespace": ref.namespace,
                "name": ref.name,
                "uid": ref.uid,
            },
            "type": kind,
            "reason": reason,
            "message": text,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": OPERATOR_MANAGER},
            "reportingComponent": OPERATOR_MANAGER,
            "reportingInstance": self._host,
        }
        self._waiting.put_nowait(body)

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._budgets.pop(key, None)
        for told in [t for t in self._told if t[0] == key]:
            del self._told[told]

    def _may(self, key: Key, kind: str, reason: str, message: str) -> bool:
        now = self._clock()
        said = (key, reason, hashlib.blake2b(message.encode(), digest_size=8).hexdigest())
        if kind == "Warning" and now - self._told.get(said, -REPEAT) < REPEAT:
            return False
        budget = self._budgets.setdefault(key, _Budget(BURST, now))
        budget.tokens = min(BURST, budget.tokens + (now - budget.at) / REFILL)
        budget.at = now
        if budget.tokens < 1:
            self.suppressed += 1
            return False
        budget.tokens -= 1
        if kind == "Warning":
            if len(self._told) > BURST * len(self._budgets):
                self._told = {k: at for k, at in self._told.items() if now - at < REPEAT}
            self._told[said] = now
        return True
