"""Prometheus metrics, collected at the moment of a scrape (names: kubernetes-peers.md 1e).

Labels name resources, never SPIs: a rekey is no new time series, and counters go on over it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ipsec_gateway import xfrmstat
from ipsec_gateway.board import PeerState
from ipsec_gateway.intent import ChildOwner
from ipsec_gateway.patterns import Pattern
from ipsec_gateway.pump import Traffic
from ipsec_gateway.steering import Counted
from ipsec_ike import events
from ipsec_ike.config import template_of
from ipsec_ike.events import Event, Reason

#: Ends that nobody has to look into.
_ORDINARY: Final = frozenset(
    {
        Reason.PEER_DELETED,
        Reason.REPLACED,
        Reason.REKEYED,
        Reason.CONFIGURATION,
        Reason.TERMINATED,
        Reason.REAUTHENTICATION,
    }
)


@dataclass(slots=True)
class Scrape:
    """What the gateway knows at the moment of a scrape."""

    gateway: str
    peers: Mapping[str, PeerState] = field(default_factory=dict)
    configured: frozenset[str] = frozenset()
    children: Mapping[tuple[str, str], ChildOwner] = field(default_factory=dict)
    patterns: Mapping[tuple[str, str], Pattern] = field(default_factory=dict)
    traffic: Mapping[tuple[str, str], Traffic] = field(default_factory=dict)
    guard: Mapping[str, Counted] = field(default_factory=dict)
    ike_counters: Mapping[str, int] = field(default_factory=dict)
    socket_counters: Mapping[str, int] = field(default_factory=dict)
    dataplane_drops: Mapping[str, int] = field(default_factory=dict)
    #: Of ``xfrmstat``: the kernel's counters by its names.
    xfrm: Mapping[str, int] = field(default_factory=dict)


class Metrics(Collector):
    """Counts events between scrapes. ``scrape`` is set before ``render``."""

    def __init__(self, gateway: str) -> None:
        self.scrape = Scrape(gateway)
        self.registry: Final = CollectorRegistry()
        self.registry.register(self)
        self._rekeys: Final[Counter[tuple[str, str]]] = Counter()
        self._failures: Final[Counter[tuple[str, str]]] = Counter()
        self._restarts = 0
        self._reconciles: Final[Counter[str]] = Counter()
        self._reconcile_seconds = 0.0

    def event(self, event: Event) -> None:
        """Count an event of the engine."""
        match event:
            case events.IkeSaRekeyed():
                self._rekeys[event.peer, "ike"] += 1
            case events.ChildSaRekeyed():
                self._rekeys[event.peer, "child"] += 1
            case events.IkeSaDown() | events.ChildSaDown() if event.reason not in _ORDINARY:
                self._failures[event.peer, event.reason.value] += 1

    def restarted(self) -> None:
        """A packet process was replaced."""
        self._restarts += 1

    def reconciled(self, seconds: float, *, ok: bool) -> None:
        """One reconciliation is done."""
        self._reconciles["ok" if ok else "failed"] += 1
        self._reconcile_seconds += seconds

    def render(self) -> bytes:
        """The text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks for."""
        scrape = self.scrape
        yield from self._of_peers(scrape)
        yield from self._of_children(scrape)
        drops = CounterMetricFamily(
            "ipsec_unencrypted_drops",
            "Packets of protected selectors that were dropped because they were in clear text.",
            labels=("gateway", "direction"),
        )
        discards = CounterMetricFamily(
            "ipsec_policy_discards",
            "Packets that a discard policy dropped.",
            labels=("gateway", "direction"),
        )
        for name, counted in scrape.guard.items():
            kind, _, direction = name.partition("_")
            family = drops if kind == "unencrypted" else discards
            family.add_metric((scrape.gateway, direction), counted.packets)
        yield drops
        yield discards
        for name, text, counters in (
            ("ipsec_ike_drops", "IKE messages dropped by the engine.", scrape.ike_counters),
            ("ipsec_socket_errors", "What the IKE sockets could not use.", scrape.socket_counters),
            ("ipsec_dataplane_drops", "Packets dropped by the ESP.", scrape.dataplane_drops),
        ):
            family = CounterMetricFamily(name, text, labels=("gateway", "reason"))
            for reason, count in sorted(counters.items()):
                family.add_metric((scrape.gateway, reason), count)
            yield family
        for name, count in scrape.xfrm.items():
            family = CounterMetricFamily(
                xfrmstat.metric(name), xfrmstat.help_text(name), labels=("gateway",)
            )
            family.add_metric((scrape.gateway,), count)
            yield family
        family = CounterMetricFamily(
            "ipsec_reconcile", "Reconciliations.", labels=("gateway", "result")
        )
        for result, count in self._reconciles.items():
            family.add_metric((scrape.gateway, result), count)
        yield family
        family = CounterMetricFamily(
            "ipsec_reconcile_duration_seconds", "Time spent in them.", labels=("gateway",)
        )
        family.add_metric((scrape.gateway,), self._reconcile_seconds)
        yield family
        family = CounterMetricFamily(
            "ipsec_dataplane_restarts", "Packet processes that were replaced.", labels=("gateway",)
        )
        family.add_metric((scrape.gateway,), self._restarts)
        yield family

    def _of_peers(self, scrape: Scrape) -> Iterator[Metric]:
        labels = ("namespace", "peer", "gateway")
        up = GaugeMetricFamily("ipsec_peer_up", "1 while there is an IKE SA.", labels=labels)
        since = GaugeMetricFamily(
            "ipsec_ike_sa_established_timestamp_seconds",
            "When the IKE SA was established first; rekeying does not change it.",
            labels=labels,
        )
        for name in sorted(scrape.configured):
            state = scrape.peers.get(name)
            is_up = state is not None and state.up is not None
            up.add_metric((*_split(name), scrape.gateway), int(is_up))
            if is_up and state is not None and state.since:
                when = datetime.fromisoformat(state.since).timestamp()
                since.add_metric((*_split(name), scrape.gateway), when)
        yield up
        yield since
        rekeys = CounterMetricFamily(
            "ipsec_rekeys", "SAs replaced.", labels=(*labels, "kind", "result")
        )
        for (peer, kind), count in sorted(self._rekeys.items()):
            rekeys.add_metric((*_split(peer), scrape.gateway, kind, "ok"), count)
        yield rekeys
        failures = CounterMetricFamily(
            "ipsec_ike_failures",
            "Attempts and SAs that ended for a reason that somebody should look into.",
            labels=(*labels, "reason"),
        )
        for (peer, reason), count in sorted(self._failures.items()):
            failures.add_metric((*_split(peer), scrape.gateway, reason), count)
        yield failures

    def _of_children(self, scrape: Scrape) -> Iterator[Metric]:
        labels = ("namespace", "peer", "gateway", "policy")
        totals: dict[tuple[str, str], Traffic] = {}
        for (peer, child), traffic in scrape.traffic.items():
            owner = scrape.children.get((peer, child)) or scrape.patterns.get(
                (peer, template_of(child))
            )
            key = (peer, owner.ref.name if owner else child)
            totals[key] = totals.get(key, Traffic()).plus(traffic)
        for name, text, attribute in (
            ("ipsec_child_sa_rx_bytes", "Inner octets received.", "rx_bytes"),
            ("ipsec_child_sa_tx_bytes", "Inner octets sent.", "tx_bytes"),
            ("ipsec_child_sa_rx_packets", "Inner packets received.", "rx_packets"),
            ("ipsec_child_sa_tx_packets", "Inner packets sent.", "tx_packets"),
            ("ipsec_child_sa_replays", "Packets that came twice or too late.", "replayed"),
            (
                "ipsec_child_sa_integrity_failures",
                "Packets whose ICV was wrong.",
                "integrity_failures",
            ),
        ):
            family = CounterMetricFamily(name, text, labels=labels)
            for (peer, policy), traffic in sorted(totals.items()):
                value = getattr(traffic, attribute)
                family.add_metric((*_split(peer), scrape.gateway, policy), value)
            yield family


def _split(peer: str) -> tuple[str, str]:
    namespace, _, name = peer.partition("/")
    return namespace, name
