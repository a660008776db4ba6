"""Metrics of the route agent, collected at the moment of a scrape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(slots=True)
class Scrape:
    """What the agent knows at the moment of a scrape."""

    #: Peers by way: ``local``, ``direct``, ``vxlan``, ``none``.
    peers: Mapping[str, int] = field(default_factory=dict)
    #: Whether each gateway is heard.
    gateways: Mapping[str, bool] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)
    writes: int = 0
    moves: int = 0
    errors: int = 0


class Metrics(Collector):
    """``scrape`` is set before ``render``."""

    def __init__(self) -> None:
        self.scrape = Scrape()
        self._registry: Final = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        """The text of /metrics."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client."""
        it = self.scrape
        peers = GaugeMetricFamily(
            "ipsec_route_agent_peers", "Peers by the way that this node has to them", labels=["way"]
        )
        for way in ("local", "direct", "vxlan", "none"):
            peers.add_metric([way], it.peers.get(way, 0))
        yield peers
        heard = GaugeMetricFamily(
            "ipsec_route_agent_gateway_heard",
            "Whether the gateway's mesh stream spoke within 6 s",
            labels=["gateway"],
        )
        for name, live in sorted(it.gateways.items()):
            heard.add_metric([name], int(live))
        yield heard
        lines = CounterMetricFamily(
            "ipsec_route_agent_mesh_lines", "Lines of mesh streams by outcome", labels=["outcome"]
        )
        for outcome, count in sorted(it.lines.items()):
            lines.add_metric([outcome], count)
        yield lines
        yield CounterMetricFamily(
            "ipsec_route_agent_writes", "Commands that changed the kernel", value=it.writes
        )
        yield CounterMetricFamily(
            "ipsec_route_agent_moves", "Peers that moved to another gateway", value=it.moves
        )
        yield CounterMetricFamily(
            "ipsec_route_agent_errors", "Changes that the kernel refused", value=it.errors
        )
