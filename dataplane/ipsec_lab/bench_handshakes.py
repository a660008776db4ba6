"""Handshakes: how many a second, what they cost the responder, what an idle SA weighs, how long one
takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median

from ipsec_lab.bench_pair import CHARON, OURS, Settings, pair, turns
from ipsec_lab.bench_report import Row

_SUITE = "PSK, x25519, AES-128-GCM, PRF SHA-256"


@dataclass(frozen=True, slots=True)
class Burst:
    """``rate``: IKE SAs per second. CPU in milliseconds per handshake, user and system, without
    the processes that drive a daemon. ``weight``: resident kB per IKE SA, both daemons' mean."""

    rate: float
    initiator: float
    responder: float
    weight: float


def burst(settings: Settings, child: bool, side: str) -> Burst:
    """Set up ``settings.count`` IKE SAs on top of ``settings.warm``, and keep all of them."""
    count, parallel = settings.count, settings.parallel
    with pair(side, settings, child=child) as (_, daemons):
        daemons.initiate(settings.warm, parallel=parallel)
        before = {name: daemons.usage(name) for name in ("a", "b")}
        seconds = daemons.initiate(count, parallel=parallel)
        used = {name: daemons.usage(name) - before[name] for name in ("a", "b")}
    return Burst(
        rate=count / seconds,
        initiator=used["a"].cpu * 1000 / count,
        responder=used["b"].cpu * 1000 / count,
        weight=(used["a"].rss + used["b"].rss) / 2000 / count,
    )


def handshakes(settings: Settings) -> list[Row]:
    """Rates, CPU and memory, childless and with a child."""
    rows = []
    first, last = settings.warm + 1, settings.warm + settings.count
    note = (
        f"{_SUITE}; both daemons share this machine, {settings.parallel} initiations at a time; "
        f"IKE SAs {first} to {last} of one pair of daemons, all kept"
    )
    installed = (
        "; charon gives each child's SAs and policies to kernel-libipsec, we hand the SAs to our "
        "packet processes, which make the ciphers when the first packet comes; our policies and "
        "routes follow from the configuration, before the first handshake, and are not part of "
        "this"
    )
    for child, what in ((False, "childless"), (True, "with child")):
        results = turns(settings, partial(burst, settings, child))
        ours, theirs = results[OURS], results[CHARON]
        rows += [
            Row(
                what=f"handshakes, {what}",
                unit="per s",
                ours=tuple(b.rate for b in ours),
                theirs=tuple(b.rate for b in theirs),
                at_least=2,
                note=note + installed if child else note,
            ),
            Row(
                what=f"responder CPU, {what}",
                unit="ms per handshake",
                ours=tuple(b.responder for b in ours),
                theirs=tuple(b.responder for b in theirs),
                at_most=0.5,
            ),
            Row(
                what=f"initiator CPU, {what}",
                unit="ms per handshake",
                ours=tuple(b.initiator for b in ours),
                theirs=tuple(b.initiator for b in theirs),
            ),
        ]
    # Of the last case: with a child.
    rows.append(
        Row(
            what="memory per IKE SA with one child",
            unit="kB",
            ours=tuple(b.weight for b in ours),
            theirs=tuple(b.weight for b in theirs),
            at_most=0.5,
            note=f"growth of VmRSS from {settings.warm} to {last} IKE SAs without traffic, mean of "
            "both daemons with their packet processes",
        )
    )
    return rows


def tunnel(settings: Settings) -> list[Row]:
    """One tunnel at a time, from the order to the installed child."""

    def measure(side: str) -> float:
        with pair(side, settings) as (_, daemons):
            daemons.one_tunnel(3)
            return median(daemons.one_tunnel(settings.tunnels)) * 1000

    results = turns(settings, measure)
    return [
        Row(
            what="one tunnel, initiate to child installed",
            unit="ms",
            ours=tuple(results[OURS]),
            theirs=tuple(results[CHARON]),
            at_most=1,
            note=f"{_SUITE}; each sample is the median of {settings.tunnels}, one after the other, "
            "with the tunnel deleted at both ends in between; installed means for charon that "
            "`initiate` has returned, for us that both SAs were handed to the packet processes, "
            "which know them before they see any later packet",
        )
    ]
