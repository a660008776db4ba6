"""The whole operator against an API server in memory (``kubeapi``)."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import kopf
from kubernetes.aio.client import Configuration

from ipsec_api.tunnel import TunnelConfig
from ipsec_lab.kubeapi import ApiServer, serving
from ipsec_operator.api import Api
from ipsec_operator.runtime import Operator
from ipsec_operator.settings import Settings

NODE: Final[dict[str, Any]] = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node-1"},
    "spec": {"podCIDRs": ["10.244.0.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
}
#: Where the operator is.
OWN: Final = "kube-ipsec"


class Cluster:
    """An API server and what a test does with it."""

    def __init__(self, server: ApiServer, url: str) -> None:
        self.server = server
        self.url = url
        #: Seconds that the operator's clock is ahead.
        self.ahead = 0.0

    def clock(self) -> float:
        """The operator's: monotonic, and ahead."""
        return time.monotonic() + self.ahead

    def connection(self) -> Api:
        """A new one to the API server."""
        config = Configuration()
        config.host = self.url
        return Api(config)

    def operator(self, api: Api, **settings: Any) -> Operator:
        """One that does not run yet."""

        def connect(**_: Any) -> kopf.ConnectionInfo:
            return kopf.ConnectionInfo(server=self.url)

        chosen = Settings(image="registry.example/gateway:1", **settings)
        return Operator(chosen, api, "operator-0", self.clock, connect)

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[Operator]:
        """One that leads, and has listed everything."""
        # Connections of its own: kopf, when it stops, ends the server's tasks for the old ones.
        api = self.connection()
        operator = self.operator(api, **settings)
        task = asyncio.ensure_future(operator.run())
        try:
            complete = asyncio.ensure_future(operator.complete.wait())
            await asyncio.wait({task, complete}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            # kopf's watches go on from their own lists, a little later.
            await self.until(
                lambda: (
                    {"ipsecpeers", "ipsecpolicies", "modeconfigs", "nodes"}
                    <= {c.plural for c in self.server.calls if c.verb == "watch"}
                )
            )
            await operator.controller.queue.idle()
            yield operator
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await api.__aexit__()

    async def until(self, true: Callable[[], Any]) -> Any:
        """Wait for it; pytest's own time limit is the end."""
        while not (found := true()):  # noqa: ASYNC110 - what a test waits for has no event
            await asyncio.sleep(0.01)
        return found

    async def quiet(self, operator: Operator) -> None:
        """Until all events are handled and nothing is left to do."""
        for _ in range(3):
            await asyncio.sleep(0.15)
            await operator.controller.queue.idle()

    def tunnels(self) -> dict[str, TunnelConfig]:
        """What the tunnel Secrets say, by key."""
        secrets = [s for s in self.server.all("secrets") if s.get("type") == "kubeipsec.dev/tunnel"]
        configs = [
            TunnelConfig.from_json(base64.b64decode(s["data"]["tunnel.json"])) for s in secrets
        ]
        return {c.key: c for c in configs}

    def condition(self, plural: str, name: str, kind: str) -> Any:
        """A condition of an object, None where it has none."""
        try:
            status = self.server.one(plural, "default", name).get("status") or {}
        except KeyError:
            return None
        return next((c for c in status.get("conditions", ()) if c["type"] == kind), None)

    def reason(self, name: str, kind: str, plural: str = "ipsecpeers") -> Any:
        """Status and reason of a condition, None where there is none."""
        found = self.condition(plural, name, kind)
        return found and (found["status"], found["reason"])

    def heartbeat(self, node: str = "node-1", at: str = "2026-01-01T00:00:00.000000Z") -> None:
        """A gateway renews its Lease."""
        self.server.add(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {
                    "name": f"kube-ipsec-gateway-{node}",
                    "namespace": OWN,
                    "labels": {"kubeipsec.dev/gateway": "true"},
                },
                "spec": {"holderIdentity": node, "renewTime": at},
            }
        )


async def in_cluster(body: Callable[[Cluster], Coroutine[Any, Any, None]]) -> None:
    """Run the body of a test with a cluster of one node."""
    async with serving() as (server, url):
        server.add(NODE)
        await body(Cluster(server, url))
