"""Which nodes have a gateway: the Leases of gateways in our own namespace, listed now and then.

Not watched: every gateway renews its Lease every two seconds, and each renewal would be sent to
every node. What a renewal says comes by the mesh; a list from the API server's cache tells who
there is. It is asked for at once where a peer has nobody who carries it. While the API server is
away, who was known stays known.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from ipsec_api.cluster import ADDRESSES_ANNOTATION, GATEWAY_LEASE_SELECTOR, gateway_node
from ipsec_gateway.classify import Address
from ipsec_gateway.cluster.api import Api, ApiError

log = logging.getLogger("ipsec_gateway")

#: Seconds between two lists: as a rule, and at least.
PERIOD: Final = 10.0
_LEAST: Final = 1.0

Gateways = Mapping[str, tuple[Address, ...]]


def parse(document: Mapping[str, Any]) -> dict[str, tuple[Address, ...]]:
    """Node addresses of gateways by name of the node, of a LeaseList; others' Leases are not seen.

    An address that is none is left out.
    """
    found: dict[str, tuple[Address, ...]] = {}
    for item in document.get("items") or ():
        metadata = item.get("metadata") or {}
        node = gateway_node(str(metadata.get("name", "")))
        if node is None:
            continue
        text = str((metadata.get("annotations") or {}).get(ADDRESSES_ANNOTATION, ""))
        found[node] = parse_addresses(text)
    return found


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Addresses with commas between them, what is none left out."""
    addresses: list[Address] = []
    for part in text.split(","):
        try:
            addresses.append(ipaddress.ip_address(part.strip()))
        except ValueError:
            continue
    return tuple(addresses)


class Leases:
    """Lists them for ever. ``on_gateways`` gets every list that was understood."""

    def __init__(self, api: Api, namespace: str, on_gateways: Callable[[Gateways], None]) -> None:
        self._api: Final = api
        self._path: Final = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._on_gateways: Final = on_gateways
        self._hurry = asyncio.Event()
        #: Why the last list failed; empty if it did not.
        self.trouble = ""

    def hurry(self) -> None:
        """Do not wait for the next turn."""
        self._hurry.set()

    async def run(self) -> None:
        """Until cancelled."""
        query = {"labelSelector": GATEWAY_LEASE_SELECTOR, "resourceVersion": "0"}
        while True:
            try:
                gateways = parse(await self._api.get(self._path, query))
            except ApiError as exc:
                self._failed(str(exc))
            else:
                self._failed("")
                self._on_gateways(gateways)
            await asyncio.sleep(_LEAST)
            with contextlib.suppress(TimeoutError):
                jitter = random.uniform(0.8, 1.2)  # noqa: S311 - spreads nodes, no secret
                await asyncio.wait_for(self._hurry.wait(), PERIOD * jitter)
            self._hurry.clear()

    def _failed(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            if trouble:
                log.warning("gateways cannot be listed, those known stay known: %s", trouble)
            else:
                log.info("gateways are listed again")
