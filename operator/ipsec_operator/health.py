"""/healthz, /readyz and /metrics of the operator.

``/healthz`` fails when what the operator knows may be out of date although the API server answers
others: the kubelet then starts it anew. ``/readyz`` is good as soon as it is known who leads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from ipsec_operator.leader import Leadership
    from ipsec_operator.runtime import Operator


class _Figures(Collector):
    def __init__(self, operator: Operator, leadership: Leadership | None) -> None:
        self._operator = operator
        self._leadership = leadership

    def collect(self) -> Iterator[Metric]:
        operator = self._operator
        store, queue = operator.controller.store, operator.controller.queue
        leading = self._leadership is None or self._leadership.leading
        yield GaugeMetricFamily(
            "kube_ipsec_operator_leader", "1 on the replica that works", value=leading
        )
        kinds = GaugeMetricFamily(
            "kube_ipsec_operator_resources", "Resources in the cluster", labels=["kind"]
        )
        refused = GaugeMetricFamily(
            "kube_ipsec_operator_resources_refused",
            "Resources that are not accepted, or refer to something that is not there",
            labels=["kind"],
        )
        for kind in ("IPsecPeer", "IPsecPolicy", "ModeConfig"):
            kinds.add_metric([kind], sum(1 for k in store.resources if k.kind == kind))
            refused.add_metric([kind], sum(1 for k in store.rejections if k.kind == kind))
        yield kinds
        yield refused
        yield GaugeMetricFamily(
            "kube_ipsec_operator_tunnels", "Tunnel Secrets in the cluster", value=len(store.present)
        )
        yield GaugeMetricFamily(
            "kube_ipsec_operator_queue", "What waits to be looked at", value=len(queue)
        )
        yield GaugeMetricFamily(
            "kube_ipsec_operator_failing", "What waits for another attempt", value=queue.failing
        )
        calls = CounterMetricFamily(
            "kube_ipsec_operator_api_calls", "Calls to the API server", labels=["verb"]
        )
        for verb, count in sorted(operator.api.calls.items()):
            calls.add_metric([verb], count)
        yield calls
        yield CounterMetricFamily(
            "kube_ipsec_operator_events_suppressed",
            "Events that were not written since there were too many of one object",
            value=operator.controller.events.suppressed,
        )


def application(operator: Operator, leadership: Leadership | None) -> web.Application:
    """The three pages. Without ``leadership`` this replica is the only one."""
    registry = CollectorRegistry()
    registry.register(_Figures(operator, leadership))

    def leads() -> bool:
        return leadership is None or leadership.leading

    async def healthz(_: web.Request) -> web.Response:
        why = operator.stale() if leads() and operator.complete.is_set() else None
        return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200)

    async def readyz(_: web.Request) -> web.Response:
        if leadership is not None and leadership.holder is None:
            return web.Response(text="it is not known yet who leads\n", status=503)
        if leads() and not operator.complete.is_set():
            return web.Response(text="not everything has been listed yet\n", status=503)
        return web.Response(text="leading\n" if leads() else "waiting for the Lease\n")

    async def metrics(_: web.Request) -> web.Response:
        text = generate_latest(registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app
