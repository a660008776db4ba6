"""Probes the tunnels that are ours: the shell around ``schedule``.

``subjects`` is asked every other second, and when ``poke`` is called, whom to probe; ``on_health``
is told what is known whenever it is worth telling: when a verdict changes, and once a minute.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ipsec_api.tunnel import TunnelConfig
from ipsec_gateway.board import PeerState
from ipsec_gateway.pathprobe.datagrams import DatagramSockets
from ipsec_gateway.pathprobe.icmp import EchoSockets
from ipsec_gateway.pathprobe.schedule import Health, Scheduler, Subject
from ipsec_gateway.pathprobe.targets import Address, targets
from ipsec_ike.events import Reason

#: Seconds between looks at whom to probe; between reports of the same verdict.
LOOK: Final = 2.0
REPORT: Final = 60.0
#: Seconds of the shortest sleep: probes that are due within it go out together.
_GRAIN: Final = 0.02

_SILENT: Final = frozenset({Reason.TIMEOUT.value, Reason.PEER_DEAD.value})


def subjects(
    tunnels: Iterable[TunnelConfig],
    addresses: Iterable[Address],
    states: Mapping[str, PeerState],
    mtus: Mapping[str, int],
    *,
    unasked: bool,
) -> tuple[list[Subject], dict[str, str]]:
    """Whom to probe, and why those that were to be cannot be. ``unasked``: also peers that do not
    say whether they want it."""
    found: list[Subject] = []
    unable: dict[str, str] = {}
    own = tuple(addresses)
    for tunnel in tunnels:
        probe = tunnel.probe
        if not (unasked if probe is None else probe.enabled):
            continue
        state = states.get(tunnel.key, PeerState())
        ways, asked, why = targets(tunnel, own, state.responder)
        if not ways and probe is not None:
            unable[tunnel.key] = why
        found.append(
            Subject(
                peer=tunnel.key,
                targets=ways,
                asked=asked,
                interval=float(probe.interval if probe else 2),
                threshold=probe.failure_threshold if probe else 5,
                up=state.up is not None and state.installed > 0,
                silent=state.up is None
                and not tunnel.passive
                and state.cause is not None
                and state.cause.reason in _SILENT,
                mtu=mtus.get(tunnel.key),
            )
        )
    return found, unable


class Prober(Collector):
    """``run`` does not end. Also collects its metrics."""

    def __init__(
        self,
        gateway: str,
        ask: Callable[[], tuple[list[Subject], dict[str, str]]],
        on_health: Callable[[Mapping[str, Health]], None],
        loop: asyncio.AbstractEventLoop,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._gateway: Final = gateway
        self._ask: Final = ask
        self._on_health: Final = on_health
        self._loop: Final = loop
        self._scheduler: Final = Scheduler(rng)
        self._pings: Final = EchoSockets(int(rng() * 0xFFFF), self._answered, loop)
        self._datagrams: Final = DatagramSockets(self._scheduler.pending, self._answered, loop)
        self._unable: dict[str, str] = {}
        self._told: dict[str, tuple[bool | None, str]] = {}
        self._told_at = float("-inf")
        self._wake: Final = asyncio.Event()

    def poke(self) -> None:
        """Look again whom to probe."""
        self._wake.set()

    async def run(self) -> None:
        """For ever."""
        look = 0.0
        try:
            while True:
                now = self._loop.time()
                if now >= look or self._wake.is_set():
                    self._wake.clear()
                    found, self._unable = self._ask()
                    self._scheduler.configure(found, now)
                    look = now + LOOK
                for shot in self._scheduler.shots(now):
                    sockets = self._datagrams if shot.port else self._pings
                    if not sockets.send(shot):
                        self._scheduler.refused(shot.token)
                self._tell(now)
                timer = self._scheduler.timer()
                wait = max(_GRAIN, min(look, timer if timer is not None else look) - now)
                try:
                    await asyncio.wait_for(self._wake.wait(), wait)
                except TimeoutError:
                    continue
        finally:
            self._pings.close()
            self._datagrams.close()

    @property
    def health(self) -> dict[str, Health]:
        """Of all that are probed, or should be."""
        found = self._scheduler.health()
        for peer, why in self._unable.items():
            if found.get(peer, Health(None)).ok is None:
                found[peer] = Health(None, "NoProbe", why)
        return found

    def _answered(self, token: int) -> None:
        self._scheduler.answer(token, self._loop.time())

    def _tell(self, now: float) -> None:
        health = self.health
        verdicts = {peer: (each.ok, each.reason) for peer, each in health.items()}
        if verdicts != self._told or now >= self._told_at + REPORT:
            self._told, self._told_at = verdicts, now
            self._on_health(health)

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks for."""
        labels = ("namespace", "peer", "gateway")
        rtt = GaugeMetricFamily(
            "ipsec_probe_rtt_seconds", "Round trip time of the newest probe.", labels=labels
        )
        sent = CounterMetricFamily("ipsec_probe_sent", "Probes sent.", labels=labels)
        lost = CounterMetricFamily("ipsec_probe_lost", "Probes lost.", labels=labels)
        for peer, health in sorted(self._scheduler.health().items()):
            values = (*peer.split("/", 1), self._gateway)
            if health.rtt is not None:
                rtt.add_metric(values, health.rtt)
            sent.add_metric(values, health.sent)
            lost.add_metric(values, health.lost)
        yield rtt
        yield sent
        yield lost
