"""When which probe is sent, and what follows from what comes back. Pure: time is an argument.

Each peer has rounds, ``interval`` seconds apart with 10 % of jitter. In a round one target is
asked; after a loss the next round asks the next one. A round without an answer in time is lost, and
so is one in which the peer has no SA because nobody answers IKE there. ``threshold`` lost rounds
in a row are a failure; one answer ends it.

What a probe is (a ping, a datagram to a UDP port) is no concern of this module.

Targets that nobody named (``asked`` False) are guesses: until the first answer nothing counts, and
rounds get rarer, down to one a minute. Once some have answered, only they are asked.

Now and then a round is a large one: a packet of the tunnel's MTU that must not be fragmented. If
three of these are lost in a row while small ones come through, the path swallows large packets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from ipsec_gateway.pathprobe.targets import Way

#: Octets of an ordinary probe, with its IP header.
SMALL: Final = 84
#: Seconds between large probes, and how many of them in a row make a black hole.
LARGE_EVERY: Final = 60.0
LARGE_LOST: Final = 3
#: Seconds between rounds of guesses that nobody answers, at most.
RARE: Final = 60.0
#: Rounds that the loss is computed over.
WINDOW: Final = 50


@dataclass(frozen=True, slots=True)
class Subject:
    """One peer to be probed."""

    peer: str
    targets: tuple[Way, ...]
    asked: bool = True
    interval: float = 2.0
    threshold: int = 5
    #: Whether there is an SA; if not, whether that is for want of any answer.
    up: bool = True
    silent: bool = False
    #: Octets of the largest inner packet, where it is known.
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class Shot:
    """A probe to be sent: ``size`` octets with the IP header; ``port`` 0 is a ping. Comes back by
    its ``token``."""

    token: int
    source: str
    target: str
    port: int = 0
    size: int = SMALL
    large: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of one peer. ``ok`` None: nothing has been measured that counts."""

    ok: bool | None
    reason: str = ""
    message: str = ""
    #: Seconds of the newest answer, None before there is one; loss in percent of the last rounds.
    rtt: float | None = None
    loss: int = 0
    sent: int = 0
    lost: int = 0


@dataclass(slots=True)
class _Peer:
    subject: Subject
    due: float
    pause: float
    turn: int = 0
    large_due: float = 0.0
    pending: Shot | None = None
    sent_at: float = 0.0
    lost_in_row: int = 0
    large_lost: int = 0
    sent: int = 0
    lost: int = 0
    rtt: float | None = None
    answered: set[str] = field(default_factory=set)
    window: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))


class Scheduler:
    """All peers. ``rng`` gives numbers from 0 to 1."""

    def __init__(self, rng: Callable[[], float]) -> None:
        self._rng: Final = rng
        self._peers: dict[str, _Peer] = {}
        self._tokens: dict[int, str] = {}
        self._token = int(rng() * 2**31)

    def configure(self, subjects: Iterable[Subject], now: float) -> None:
        """Probe exactly these; what is known of those that stay is kept."""
        wanted = {subject.peer: subject for subject in subjects}
        for gone in self._peers.keys() - wanted.keys():
            pending = self._peers.pop(gone).pending
            if pending is not None:
                self._tokens.pop(pending.token, None)
        for name, subject in wanted.items():
            peer = self._peers.get(name)
            if peer is None:
                # Spread over the first interval.
                due = now + self._rng() * subject.interval
                self._peers[name] = _Peer(subject, due, subject.interval)
                continue
            if _same(peer.subject, subject):
                if subject.up and not peer.subject.up:
                    peer.due = min(peer.due, now + 0.1)
                peer.subject = subject
            else:
                peer.subject, peer.pause, peer.turn = subject, subject.interval, 0
                peer.answered &= {way.target for way in subject.targets}
                peer.lost_in_row = peer.large_lost = 0

    def shots(self, now: float) -> list[Shot]:
        """What is to be sent now; rounds whose time is over are closed first."""
        found: list[Shot] = []
        for name, peer in self._peers.items():
            if peer.pending is not None and now >= peer.sent_at + _patience(peer.subject):
                self._lost(peer)
            if now < peer.due:
                continue
            if peer.pending is not None:
                self._lost(peer)
            shot = self._shot(peer, now)
            if shot is None:
                self._blind(peer)
            else:
                self._tokens[shot.token] = name
                peer.pending, peer.sent_at = shot, now
                found.append(shot)
            pause = peer.pause if self._guessing(peer) else peer.subject.interval
            peer.due = now + pause * (0.95 + 0.1 * self._rng())
        return found

    def pending(self, token: int) -> Shot | None:
        """The probe with this token, if its answer is still waited for."""
        name = self._tokens.get(token)
        peer = self._peers.get(name) if name is not None else None
        if peer is None or peer.pending is None or peer.pending.token != token:
            return None
        return peer.pending

    def answer(self, token: int, now: float) -> bool:
        """A probe came back. False for one that nobody waits for."""
        name = self._tokens.pop(token, None)
        peer = self._peers.get(name) if name is not None else None
        if peer is None or peer.pending is None or peer.pending.token != token:
            return False
        shot, peer.pending = peer.pending, None
        if shot.large:
            peer.large_lost = 0
            peer.large_due = now + LARGE_EVERY
        peer.rtt = now - peer.sent_at
        peer.answered.add(shot.target)
        peer.lost_in_row = 0
        peer.pause = peer.subject.interval
        peer.sent += 1
        peer.window.append(True)
        return True

    def refused(self, token: int) -> None:
        """The kernel did not send it: too large for the route, which is then no black hole, or no
        route at all, which is a loss."""
        name = self._tokens.get(token)
        peer = self._peers.get(name) if name is not None else None
        if peer is None or peer.pending is None or peer.pending.token != token:
            return
        if peer.pending.large:
            del self._tokens[token]
            peer.pending, peer.large_lost = None, 0
            peer.large_due = peer.sent_at + LARGE_EVERY
        else:
            self._lost(peer)

    def timer(self) -> float | None:
        """When ``shots`` wants to be called next."""
        times = [
            min(p.due, p.sent_at + _patience(p.subject)) if p.pending is not None else p.due
            for p in self._peers.values()
        ]
        return min(times, default=None)

    def health(self) -> dict[str, Health]:
        """Of all peers."""
        return {name: _health(peer) for name, peer in self._peers.items()}

    def _shot(self, peer: _Peer, now: float) -> Shot | None:
        subject = peer.subject
        if not subject.up or not subject.targets:
            return None
        ways = [w for w in subject.targets if subject.asked or w.target in peer.answered]
        ways = ways or list(subject.targets)
        source, target, port = ways[peer.turn % len(ways)]
        self._token = (self._token + 1) % 2**32
        mtu = subject.mtu
        if (
            mtu is not None
            and mtu > SMALL
            and target in peer.answered
            and peer.lost_in_row == 0
            and now >= peer.large_due
        ):
            # After a loss the next rounds but one try again.
            peer.large_due = now + 1.5 * subject.interval
            return Shot(self._token, source, target, port, mtu, large=True)
        return Shot(self._token, source, target, port)

    def _lost(self, peer: _Peer) -> None:
        shot = peer.pending
        assert shot is not None
        self._tokens.pop(shot.token, None)
        peer.pending = None
        if shot.large:
            peer.large_lost += 1
            return
        peer.turn += 1
        if self._guessing(peer):
            peer.pause = min(RARE, peer.pause * 2)
            return
        self._count(peer)

    def _blind(self, peer: _Peer) -> None:
        """A round in which there was nothing to send through."""
        if peer.subject.silent:
            self._count(peer)

    def _count(self, peer: _Peer) -> None:
        peer.sent += 1
        peer.lost += 1
        peer.lost_in_row += 1
        peer.window.append(False)

    @staticmethod
    def _guessing(peer: _Peer) -> bool:
        return peer.subject.up and not peer.subject.asked and not peer.answered


def _same(one: Subject, two: Subject) -> bool:
    return replace(one, up=two.up, silent=two.silent, mtu=two.mtu) == two


def _patience(subject: Subject) -> float:
    """Seconds for which an answer is waited for."""
    return max(1.0, min(subject.interval * 0.9, 3.0))


def _health(peer: _Peer) -> Health:
    lost = sum(1 for ok in peer.window if not ok)
    plain = Health(
        None,
        rtt=peer.rtt,
        loss=round(100 * lost / len(peer.window)) if peer.window else 0,
        sent=peer.sent,
        lost=peer.lost,
    )
    subject = peer.subject
    if peer.lost_in_row >= subject.threshold:
        asked = ", ".join(dict.fromkeys(way.target for way in subject.targets)) or "the peer"
        ports = sorted({way.port for way in subject.targets if way.port})
        what = f"echo UDP to port {', '.join(map(str, ports))}" if ports else "answer pings"
        why = (
            f"no answer from {asked} through the tunnel to {subject.threshold} probes in a row, or"
            f" more: check the way behind the peer, and that they {what}"
            if subject.up
            else "there is no SA, and the peer does not answer IKE"
        )
        return replace(plain, ok=False, reason="ProbeLoss", message=why)
    if peer.large_lost >= LARGE_LOST:
        why = (
            f"packets of {subject.mtu} octets do not come through, small ones do: a router on the"
            " way drops large packets in silence; set mtu to less in this peer"
        )
        return replace(plain, ok=False, reason="MTUBlackhole", message=why)
    if not peer.window or not any(peer.window):
        return plain
    return replace(plain, ok=True, reason="Healthy")
