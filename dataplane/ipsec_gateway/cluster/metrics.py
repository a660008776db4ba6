"""Metrics of a gateway among others, collected at the moment of a scrape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ipsec_gateway.cluster.coordinator import Cluster


class ClusterMetrics(Collector):
    """Of one ``Cluster``."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster: Final = cluster

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks for."""
        cluster, view = self._cluster, self._cluster.view()
        gateway = (cluster.options.node,)
        owned = GaugeMetricFamily(
            "ipsec_peer_owned",
            "1 for each peer that this gateway owns.",
            labels=("namespace", "peer", "gateway"),
        )
        for peer in sorted(cluster.held):
            owned.add_metric((*peer.split("/", 1), *gateway), 1)
        yield owned
        takeovers = CounterMetricFamily(
            "ipsec_takeovers", "Peers taken over from another gateway.", labels=("gateway",)
        )
        takeovers.add_metric(gateway, cluster.takeovers)
        yield takeovers
        for name, text, value in (
            ("ipsec_gateways_live", "Gateways that live, this one among them.", len(view["live"])),
            ("ipsec_api_up", "1 while the API server answers.", int(view["api"])),
            ("ipsec_gateway_draining", "1 while peers are handed over.", int(view["draining"])),
        ):
            gauge = GaugeMetricFamily(name, text, labels=("gateway",))
            gauge.add_metric(gateway, value)
            yield gauge
        lines = CounterMetricFamily(
            "ipsec_mesh_lines",
            "Lines from other gateways, by outcome: ok, stale, or why they were dropped.",
            labels=("gateway", "outcome"),
        )
        for outcome, count in sorted(view["meshLines"].items()):
            lines.add_metric((*gateway, outcome), count)
        yield lines
