"""From a packet to its outbound SA: the SPD of RFC 4301 4.4.1, with a cache by flow.

The first policy in priority order that matches decides. An ``encrypt`` policy leads by its reqid to
the newest SA whose negotiated selectors contain the packet: in a rekey the new SA takes over with
the first packet after it was added, and while selectors were narrowed, older SAs still serve what
they alone contain.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from ipsec_gateway.ipsec.base import PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.ipsec.drops import Drop
from ipsec_gateway.ipsec.packet import Flow, covers
from ipsec_gateway.ipsec.sa import FLOW_CACHE, OutboundSa


class OutboundDatabase:
    """SPD and SAD of the outbound direction."""

    __slots__ = ("_candidates", "_edges", "_flows", "_ordered", "_policies", "_sas")

    def __init__(self) -> None:
        self._policies: Final[dict[PolicyId, PolicySpec]] = {}
        #: By priority; None after a change, until the next packet.
        self._ordered: list[PolicySpec] | None = None
        # Destinations are cut into intervals at the ends of all selectors; all packets to one
        # interval have the same few policies to look at, found when the first of them comes.
        self._edges: Final[dict[int, list[bytes]]] = {4: [], 16: []}
        self._candidates: Final[dict[tuple[int, int], list[PolicySpec]]] = {}
        self._sas: Final[dict[int, list[OutboundSa]]] = {}
        self._flows: Final[dict[Flow, OutboundSa | Drop]] = {}

    def put(self, put: Iterable[PolicySpec], delete: Iterable[PolicyId]) -> None:
        """Apply a difference; policies of other directions are not for us."""
        kept = set()
        for policy in put:
            kept.add(policy.id)
            if policy.id.direction is PolicyDirection.OUT:
                self._policies[policy.id] = policy
        for policy_id in delete:
            if policy_id not in kept:
                self._policies.pop(policy_id, None)
        self._ordered = None
        self._flows.clear()

    def add(self, sa: OutboundSa) -> None:
        """The newest SA of its reqid."""
        self._sas.setdefault(sa.reqid, []).insert(0, sa)
        self._flows.clear()

    def remove(self, sa: OutboundSa) -> None:
        """Forget an SA; no error if it is gone already."""
        of_reqid = self._sas.get(sa.reqid, [])
        if sa in of_reqid:
            of_reqid.remove(sa)
        if not of_reqid:
            self._sas.pop(sa.reqid, None)
        self._flows.clear()

    def find(self, flow: Flow) -> OutboundSa | Drop:
        """The SA for a packet, or why there is none."""
        found = self._flows.get(flow)
        if found is None:
            found = self._search(flow)
            if len(self._flows) >= FLOW_CACHE:
                self._flows.clear()
            self._flows[flow] = found
        return found

    def policy(self, flow: Flow) -> PolicySpec | None:
        """The first policy that matches."""
        src, dst, protocol, one, two = flow
        for policy in self._at(dst):
            if covers(policy.id.source, src, protocol, one) and covers(
                policy.id.destination, dst, protocol, two
            ):
                return policy
        return None

    def _at(self, address: bytes) -> list[PolicySpec]:
        """The policies whose destination contains ``address``, in order."""
        if self._ordered is None:
            self._ordered = self._index()
        size = len(address)
        key = size, bisect_right(self._edges[size], address)
        found = self._candidates.get(key)
        if found is None:
            found = self._candidates[key] = [
                policy
                for policy in self._ordered
                if len(policy.id.destination.start) == size
                and policy.id.destination.start <= address <= policy.id.destination.end
            ]
        return found

    def _index(self) -> list[PolicySpec]:
        self._candidates.clear()
        for size, edges in self._edges.items():
            cuts = set()
            for policy in self._policies.values():
                destination = policy.id.destination
                if len(destination.start) == size:
                    cuts.add(destination.start)
                    after = int.from_bytes(destination.end, "big") + 1
                    if after < 1 << 8 * size:
                        cuts.add(after.to_bytes(size, "big"))
            edges[:] = sorted(cuts)
        return sorted(self._policies.values(), key=lambda p: p.priority)

    def reqids(self) -> set[int]:
        """Those that policies lead to."""
        return {policy.reqid for policy in self._policies.values()}

    def _search(self, flow: Flow) -> OutboundSa | Drop:
        policy = self.policy(flow)
        if policy is None:
            return Drop.OUT_NO_POLICY
        if policy.action is PolicyAction.DISCARD:
            return Drop.OUT_DISCARDED
        if policy.action is PolicyAction.NONE:
            return Drop.OUT_NOT_FOR_US
        for sa in self._sas.get(policy.reqid, ()):
            if sa.carries(flow):
                return sa
        return Drop.OUT_NO_SA
