"""Which nodes have a gateway: the Leases of gateways in our own namespace, listed now and then.

Not watched: every gateway renews its Lease every two seconds, and each renewal would be sent to
every node. What a renewal says comes by the mesh; a list from the API server's cache tells who
there is. It is asked for at once where a peer has nobody who carries it. While the API server is
away, who was known stays known.

Plain HTTP and no client library: this runs on all nodes, and asks for one thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from ipsec_api.cluster import ADDRESSES_ANNOTATION, GATEWAY_LEASE_SELECTOR, gateway_node
from ipsec_gateway.intent import Address

log = logging.getLogger("ipsec_gateway")

#: Seconds between two lists: as a rule, and at least.
PERIOD: Final = 10.0
_LEAST: Final = 1.0
#: Seconds for one answer.
_PATIENCE: Final = 10.0
#: Where a pod finds its credentials.
ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

Gateways = Mapping[str, tuple[Address, ...]]


class NoCluster(Exception):
    """There is no way to the API server. The message says what is missing."""


@dataclass(frozen=True, slots=True)
class Api:
    """How to reach the API server: ``base`` such as https://10.96.0.1:443."""

    base: str
    token: Path | None = None
    authority: Path | None = None

    @classmethod
    def of_pod(cls, environment: Mapping[str, str], account: Path = ACCOUNT) -> Api:
        """That of the pod we run in. Raises NoCluster."""
        host = environment.get("KUBERNETES_SERVICE_HOST", "")
        port = environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (account / "token").exists():
            raise NoCluster(
                "this is no pod with a service account (KUBERNETES_SERVICE_HOST,"
                f" {account}/token): run it in the cluster, or name gateways with --gateway"
            )
        host = f"[{host}]" if ":" in host else host
        return cls(f"https://{host}:{port}", account / "token", account / "ca.crt")


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
        self._url: Final = f"{api.base}/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._on_gateways: Final = on_gateways
        self._hurry = asyncio.Event()
        #: Why the last list failed; empty if it did not.
        self.trouble = ""

    def hurry(self) -> None:
        """Do not wait for the next turn."""
        self._hurry.set()

    async def run(self) -> None:
        """Until cancelled."""
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            while True:
                try:
                    gateways = await self._list(session)
                except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
                    self._failed(str(exc) or type(exc).__name__)
                else:
                    self._failed("")
                    self._on_gateways(gateways)
                await asyncio.sleep(_LEAST)
                with contextlib.suppress(TimeoutError):
                    jitter = random.uniform(0.8, 1.2)  # noqa: S311 - spreads nodes, no secret
                    await asyncio.wait_for(self._hurry.wait(), PERIOD * jitter)
                self._hurry.clear()

    async def _list(self, session: aiohttp.ClientSession) -> Gateways:
        headers = {}
        if self._api.token is not None:
            # Read every time: the kubelet replaces it within the hour.
            headers["Authorization"] = f"Bearer {self._api.token.read_text().strip()}"
        context: ssl.SSLContext | bool = True
        if self._api.authority is not None:
            context = ssl.create_default_context(cafile=str(self._api.authority))
        query = {"labelSelector": GATEWAY_LEASE_SELECTOR, "resourceVersion": "0"}
        async with session.get(self._url, params=query, headers=headers, ssl=context) as answer:
            if answer.status != 200:
                raise OSError(f"HTTP status {answer.status} for list leases")
            document = await answer.json()
        if not isinstance(document, dict):
            raise ValueError("the API server's answer is no list")
        return parse(document)

    def _failed(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            if trouble:
                log.warning("gateways cannot be listed, those known stay known: %s", trouble)
            else:
                log.info("gateways are listed again")
