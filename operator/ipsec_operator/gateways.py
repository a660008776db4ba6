"""Which gateways are alive, as far as the operator has to know: whether there is any. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ipsec_api.cluster import gateway_node

#: Seconds without a renewal after which a gateway is not counted. Failover does not wait for it:
#: gateways watch each other.
SILENCE: Final = 30.0


class Gateways:
    """Their Leases, as a watch tells of them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[str, float]] = {}

    def replace(self, items: Sequence[Mapping[str, Any]]) -> None:
        """These are all Leases."""
        names = {_name(item) for item in items}
        for gone in self._seen.keys() - names:
            del self._seen[gone]
        for item in items:
            self.put(item)

    def put(self, item: Mapping[str, Any]) -> None:
        """A Lease is new or renewed."""
        name, renewed = _name(item), str((item.get("spec") or {}).get("renewTime") or "")
        if gateway_node(name) is None:
            return
        # When it was renewed is what we see, and not what the other clock says.
        if self._seen.get(name, ("", 0.0))[0] != renewed:
            self._seen[name] = (renewed, self._clock())

    def drop(self, item: Mapping[str, Any]) -> None:
        """A Lease is gone."""
        self._seen.pop(_name(item), None)

    def alive(self, heard: float) -> int:
        """How many are alive. ``heard`` is when the watch last had a sign of the API server:
        silence of the API server says nothing about gateways."""
        return sum(1 for _, at in self._seen.values() if heard - at < SILENCE)


def _name(item: Mapping[str, Any]) -> str:
    return str((item.get("metadata") or {}).get("name", ""))
