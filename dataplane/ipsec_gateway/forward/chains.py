"""Chains on the forward hook, and what becomes of a flow in one of them.

A rule is a row of conditions and a verdict. Of conditions only those are known that can tell our
traffic from other traffic: interfaces, networks, whether IPsec protects it. Everything else (marks,
connection states, limits) fits perhaps. So a verdict is reached in one of two ways:

- all rules up to it fit or do not: it is sure;
- on the way there was an accept that fits perhaps: the flow may pass all the same.

A drop that fits perhaps is passed over: chains are full of drops for packets that are not ours.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal

from ipsec_gateway.classify import Network

#: Jumps within jumps that the kernel allows (NFT_JUMP_STACK_SIZE).
_DEEPEST: Final = 16

Side = Literal["in", "out"]


class Fit(Enum):
    """Whether a rule is about a flow."""

    NO = 0
    PERHAPS = 1
    YES = 2


class Verdict(Enum):
    """What a rule does. ``OTHER`` hides it: a map of verdicts, a program that is asked."""

    ACCEPT = "accept"
    DROP = "drop"
    JUMP = "jump"
    GOTO = "goto"
    RETURN = "return"
    OTHER = "other"
    NONE = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """Packets of one direction of a tunnel, as the forward hook sees them.

    A network that is None and an interface that is empty are not known. ``ipsec`` is the side of
    the node on which the kernel's SPD protects them, empty where a device does.
    """

    version: int
    side: Side
    source: Network | None = None
    destination: Network | None = None
    iif: str = ""
    oif: str = ""
    ipsec: bool = False


@dataclass(frozen=True, slots=True)
class Interface:
    """``name`` may end in ``*``."""

    side: Side
    name: str
    negated: bool = False

    def fits(self, flow: Flow) -> Fit:
        found = flow.iif if self.side == "in" else flow.oif
        if not found:
            return Fit.PERHAPS
        same = found.startswith(self.name[:-1]) if self.name.endswith("*") else found == self.name
        return Fit.YES if same is not self.negated else Fit.NO


@dataclass(frozen=True, slots=True)
class Address:
    """The source or the destination is in one of these networks."""

    source: bool
    networks: tuple[Network, ...]
    negated: bool = False

    def fits(self, flow: Flow) -> Fit:
        found = flow.source if self.source else flow.destination
        if self.networks and all(n.version != flow.version for n in self.networks):
            return Fit.NO
        if found is None:
            return Fit.PERHAPS
        same = [n for n in self.networks if n.version == found.version]
        if any(found.subnet_of(n) for n in same):  # type: ignore[arg-type]  # of one version
            return Fit.NO if self.negated else Fit.YES
        if any(found.overlaps(n) for n in same):
            return Fit.PERHAPS
        return Fit.YES if self.negated else Fit.NO


@dataclass(frozen=True, slots=True)
class Protected:
    """It came out of an SA (in), or will go into one (out)."""

    side: Side
    negated: bool = False

    def fits(self, flow: Flow) -> Fit:
        if flow.side != self.side:
            # From one tunnel into another is possible, too.
            return Fit.PERHAPS
        return Fit.YES if flow.ipsec is not self.negated else Fit.NO


@dataclass(frozen=True, slots=True)
class Version:
    """The version of IP."""

    version: int

    def fits(self, flow: Flow) -> Fit:
        return Fit.YES if flow.version == self.version else Fit.NO


@dataclass(frozen=True, slots=True)
class Unknown:
    """A condition that says nothing about our traffic."""

    def fits(self, _: Flow) -> Fit:
        return Fit.PERHAPS


Condition = Interface | Address | Protected | Version | Unknown


@dataclass(frozen=True, slots=True)
class Rule:
    """``target`` is the chain of a jump. ``name`` is what deletes it (nft: its handle), ``words``
    are its text (iptables), ``comment`` is whoever wrote it."""

    conditions: tuple[Condition, ...] = ()
    verdict: Verdict = Verdict.NONE
    target: str = ""
    name: str = ""
    words: tuple[str, ...] = ()
    comment: str = ""

    def fits(self, flow: Flow) -> Fit:
        """The least of its conditions."""
        found = Fit.YES
        for each in self.conditions:
            fit = each.fits(flow)
            if fit is Fit.NO:
                return fit
            if fit is Fit.PERHAPS:
                found = fit
        return found

    @property
    def always(self) -> bool:
        """Whether it fits everything."""
        return not self.conditions


Rules = tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Base:
    """A chain on the forward hook. ``tool`` is what keeps it: ``iptables-nft``,
    ``iptables-legacy`` or ``nft``. ``others`` are the chains of its table."""

    tool: str
    family: str
    table: str
    name: str
    drops: bool
    rules: Rules = ()
    others: Mapping[str, Rules] = field(default_factory=dict)

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions of IP that come through it."""
        return {"ip": (4,), "ip6": (6,)}.get(self.family, (4, 6))

    @property
    def suspect(self) -> bool:
        """Whether it may drop what nothing accepts: by its policy, or by its last rule."""
        if self.drops:
            return True
        last = next((r for r in reversed(self.rules) if r.verdict is not Verdict.NONE), None)
        ends = (Verdict.DROP, Verdict.JUMP, Verdict.GOTO)
        return last is not None and last.always and last.verdict in ends


@dataclass(frozen=True, slots=True)
class Outcome:
    """``sure``: nothing on the way might have accepted the flow. ``at`` is the number of the rule
    of the base chain, from zero, that decided; the length of the chain for its policy."""

    passes: bool
    sure: bool
    at: int


def outcome(base: Base, flow: Flow) -> Outcome:
    """What becomes of a flow in a chain."""
    sure = True
    for at, rule in enumerate(base.rules):
        fits = rule.fits(flow)
        if fits is Fit.NO:
            continue
        verdict, certain = _step(rule, fits, base.others, flow, 0)
        sure = sure and certain
        if verdict is Verdict.RETURN:
            break
        if verdict is not Verdict.NONE:
            return Outcome(verdict is Verdict.ACCEPT, sure, at)
    return Outcome(not base.drops, sure, len(base.rules))


def _walk(rules: Iterable[Rule], others: Mapping[str, Rules], flow: Flow, depth: int) -> _Found:
    sure = True
    for rule in rules:
        fits = rule.fits(flow)
        if fits is Fit.NO:
            continue
        verdict, certain = _step(rule, fits, others, flow, depth)
        sure = sure and certain
        if verdict is Verdict.RETURN:
            break
        if verdict is not Verdict.NONE:
            return verdict, sure
    return Verdict.NONE, sure


#: ACCEPT, DROP, RETURN or, to go on, NONE; and whether nothing might have accepted the flow.
_Found = tuple[Verdict, bool]


def _step(rule: Rule, fits: Fit, others: Mapping[str, Rules], flow: Flow, depth: int) -> _Found:
    verdict = rule.verdict
    if verdict is Verdict.NONE:
        return Verdict.NONE, True
    if verdict is Verdict.OTHER or depth > _DEEPEST:
        return Verdict.NONE, False
    if verdict in (Verdict.JUMP, Verdict.GOTO):
        inner = others.get(rule.target)
        if inner is None:
            return Verdict.NONE, False
        found, sure = _walk(inner, others, flow, depth + 1)
        if fits is Fit.PERHAPS:
            # What it drops it drops perhaps, and what it accepts, too.
            return Verdict.NONE, sure and found is not Verdict.ACCEPT
        if found is Verdict.NONE and verdict is Verdict.GOTO:
            found = Verdict.RETURN
        return found, sure
    if fits is Fit.YES:
        return verdict, True
    return Verdict.NONE, verdict is Verdict.DROP
