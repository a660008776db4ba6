"""The status of each object, as conditions with cause and remedy (kubernetes-peers.md 5d).

``Healthy`` is there only while the probe measures something: a condition that nobody measures
would be a lie. So is ``Forwarding``, while something on the node is seen that may drop what the
tunnel carries. ``Ready`` is the conjunction of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from ipsec_api.conditions import Condition, set_condition
from ipsec_api.modeconfig import ModeConfigStatus
from ipsec_api.peer_status import (
    ChildOffload,
    ChildSaCount,
    GeneratedChild,
    IPsecPeerStatus,
    LastProbe,
    NatDetected,
    TemplateUse,
)
from ipsec_api.policy import GeneratedPolicy, IPsecPolicyStatus
from ipsec_api.rules import SpecModel
from ipsec_api.snapshot import IPsecPeer, IPsecPolicy
from ipsec_api.tunnel import ObjectRef, TunnelConfig
from ipsec_api.verdicts import LONGEST_MESSAGE, NOT_IN_FORCE, Verdict, judged
from ipsec_gateway.board import Cause, PeerState, fold
from ipsec_gateway.dynamic import Generated
from ipsec_gateway.entries import entry_name
from ipsec_gateway.forward.findings import Blocked
from ipsec_gateway.intent import Intent
from ipsec_gateway.lastgood import InForce, Key
from ipsec_gateway.pathprobe.schedule import Health
from ipsec_gateway.verdicts import (
    all_true,
    established,
    forwarding,
    healthy,
    programmed_unused,
)
from ipsec_gateway.views import View, view_of
from ipsec_ike.events import Event
from ipsec_ike.identifiers import Direction

#: Entries of ``generated`` and ``hwOffload`` in a status, and selectors in each of them.
_MOST, _SHOWN = 64, 16
#: Entries of ``templates``.
_TEMPLATES = 100
#: Characters of a text that is made of names: a child's is its policy's and a number, and tables of
#: nftables may be called anything.
_LONGEST = 256


class StatusBoard:
    """All statuses. ``clock`` gives wall-clock time in RFC 3339."""

    def __init__(self, clock: Callable[[], str]) -> None:
        self._clock = clock
        self._view = View()
        self._peers: dict[str, PeerState] = {}
        self._conditions: dict[Key, tuple[Condition, ...]] = {}
        self._published: dict[Key, dict[str, Any]] = {}
        self._dirty: set[Key] = set()
        self._trouble: Cause | None = None
        self._mtus: Mapping[str, int] = {}
        self._translators = ""
        self._blocked: Mapping[str, Blocked] = {}
        self._offloads: Mapping[tuple[int, Direction], str] | None = None
        self._health: Mapping[str, Health] = {}
        #: What was told last, and of what.
        self._probes: dict[str, tuple[Health, LastProbe]] = {}
        #: What peers have from templates, by (peer, template).
        self._generated: dict[tuple[str, str], list[Generated]] = {}

    def remember(self, conditions: Mapping[Key, Iterable[Condition]]) -> None:
        """Conditions of an earlier run, so that their times go on."""
        self._conditions.update({key: tuple(each) for key, each in conditions.items()})

    def configured(self, in_force: InForce, intent: Intent) -> None:
        """There is a new desired state."""
        self._view = view = view_of(in_force, intent)
        for gone in self._peers.keys() - {t.key for t in in_force.tunnels}:
            del self._peers[gone]
        self._dirty |= view.keys | self._published.keys()

    def programmed(self, trouble: Cause | None) -> None:
        """Whether the data plane has taken what it was told, and if not why."""
        if trouble != self._trouble:
            self._trouble = trouble
            self._dirty |= self._view.keys

    def translated(self, translators: str) -> None:
        """Who else translates sources on this node."""
        if translators != self._translators:
            self._translators = translators
            self._dirty |= self._view.keys

    def forwarded(self, blocked: Mapping[str, Blocked]) -> bool:
        """Who else on this node may drop what tunnels carry, by peer. Returns whether it is new."""
        if blocked == self._blocked:
            return False
        for peer in blocked.keys() | self._blocked.keys():
            if blocked.get(peer) != self._blocked.get(peer):
                namespace, _, name = peer.partition("/")
                self._dirty.add(Key("IPsecPeer", namespace, name))
        self._blocked = blocked
        return True

    def offloaded(self, devices: Mapping[tuple[int, Direction], str] | None) -> None:
        """Network devices that compute SAs, by reqid; None where nobody asks for any."""
        if devices != self._offloads:
            self._offloads = devices
            self._dirty |= {key for key in self._view.keys if key.kind == "IPsecPeer"}

    def sized(self, mtus: Mapping[str, int]) -> None:
        """Octets of the largest inner packet by peer, for those with a CHILD_SA."""
        for peer in mtus.keys() | self._mtus.keys():
            if mtus.get(peer) != self._mtus.get(peer):
                namespace, _, name = peer.partition("/")
                self._dirty.add(Key("IPsecPeer", namespace, name))
        self._mtus = mtus

    def generated(self, children: Iterable[Generated]) -> None:
        """What peers have from templates now."""
        found: dict[tuple[str, str], list[Generated]] = {}
        for each in children:
            found.setdefault((each.peer, each.template), []).append(each)
        for key, uses in self._view.templates.items():
            if any(found.get(use) != self._generated.get(use) for use in uses):
                self._dirty.add(key)
        for use in found.keys() | self._generated.keys():
            if found.get(use) != self._generated.get(use):
                namespace, _, name = use[0].partition("/")
                self._dirty.add(Key("IPsecPeer", namespace, name))
        self._generated = found

    def probed(self, health: Mapping[str, Health]) -> None:
        """What the probes have found out, told when a verdict changes and once in a while.

        Figures within a factor of two of those in the status are no change: it is no meter.
        """
        probes: dict[str, tuple[Health, LastProbe]] = {}
        for peer, each in health.items():
            told = self._probes.get(peer)
            if told is not None and _alike(each, told[0]):
                probes[peer] = told
            elif each.rtt is not None:
                rtt = _rounded(each.rtt)
                probes[peer] = each, LastProbe(rtt=rtt, loss=each.loss, time=self._clock())
        self._health, self._probes = health, probes
        for peer in health:
            namespace, _, name = peer.partition("/")
            self._dirty.add(Key("IPsecPeer", namespace, name))

    def event(self, event: Event) -> None:
        """Something happened to a peer."""
        if not event.peer:
            return
        state = self._peers.setdefault(event.peer, PeerState())
        if fold(state, event, self._clock()):
            namespace, _, name = event.peer.partition("/")
            self._dirty.add(Key("IPsecPeer", namespace, name))
            self._dirty |= self._view.policies.get(event.peer, set())

    def changes(self) -> dict[Key, dict[str, Any] | None]:
        """Statuses that differ from what the last call gave; None for an object that is gone."""
        result: dict[Key, dict[str, Any] | None] = {}
        known = self._view.keys
        for key in sorted(self._dirty):
            if key not in known:
                self._conditions.pop(key, None)
                if self._published.pop(key, None) is not None:
                    result[key] = None
                continue
            status = self._status(key).model_dump(mode="json", by_alias=True, exclude_none=True)
            if status != self._published.get(key):
                self._published[key] = result[key] = status
        self._dirty.clear()
        return result

    def all(self) -> dict[Key, dict[str, Any]]:
        """Everything as last published."""
        return dict(self._published)

    def up(self) -> dict[str, PeerState]:
        """State by peer name, for metrics."""
        return self._peers

    def _status(self, key: Key) -> SpecModel:
        item = self._view.in_force.objects.get(key)
        known = self._view.generations.get(key, 0)
        generation = item.metadata.generation if item is not None else known
        match key.kind:
            case "IPsecPeer":
                return self._peer_status(key, item, generation)
            case "IPsecPolicy" if key in self._view.templates or (
                isinstance(item, IPsecPolicy) and item.spec.template
            ):
                return self._template_status(key, item, generation)
            case "IPsecPolicy":
                return self._policy_status(key, item, generation)
            case _:
                verdicts = self._judged(key)
                return ModeConfigStatus(
                    observed_generation=generation,
                    conditions=self._set(key, verdicts, generation),
                )

    def _peer_status(self, key: Key, item: object, generation: int) -> IPsecPeerStatus:
        name = f"{key.namespace}/{key.name}"
        state = self._peers.get(name, PeerState())
        tunnel = self._view.tunnels.get(key)
        expected = self._view.expected.get(name, [])
        verdicts = self._judged(key)
        if isinstance(item, IPsecPeer) and item.spec.disabled:
            verdicts.append(Verdict("Programmed", "False", "Disabled", "spec.disabled is true"))
        else:
            verdicts.append(self._programmed(key, in_force=tunnel is not None))
            verdicts.append(established(tunnel, state, expected))
            verdicts += forwarding(self._blocked.get(name))
            verdicts += healthy(self._health.get(name))
        up = state.up
        return IPsecPeerStatus(
            observed_generation=generation,
            conditions=self._set(key, verdicts, generation),
            local_address=str(up.local) if up else None,
            remote_address=str(state.remote) if state.remote else None,
            nat_detected=NatDetected(local=up.nat_local, remote=up.nat_remote) if up else None,
            ike_version="IKEv2" if up else None,
            cipher_suite=state.suite if up else None,
            established_at=state.since or None,
            last_probe=self._probes[name][1] if up and name in self._probes else None,
            effectiveMTU=self._mtu(name, tunnel) if up else None,
            nat_backend=self._translators[:_LONGEST] or None if tunnel else None,
            hw_offload=self._offload(name, state),
            templates=self._may_have(name, tunnel),
            generated=self._has(name, tunnel),
            childSAs=ChildSaCount(
                installed=state.installed, expected=len(expected) + state.generated
            ),
        )

    def _may_have(self, peer: str, tunnel: TunnelConfig | None) -> tuple[TemplateUse, ...] | None:
        """The templates of a peer, and how much it has of each."""
        found: dict[ObjectRef, int] = {}
        for template in tunnel.templates if tunnel is not None else ():
            made = self._generated.get((peer, entry_name(template)), ())
            found[template.source] = found.get(template.source, 0) + _pairs(made)
        uses = (
            TemplateUse(template=ref.name, generation=ref.generation, pairs=pairs)
            for ref, pairs in found.items()
        )
        return tuple(islice(uses, _TEMPLATES)) or None

    def _has(self, peer: str, tunnel: TunnelConfig | None) -> tuple[GeneratedChild, ...] | None:
        """What a peer has from templates."""
        made = [
            _child(template.source.name, each)
            for template in (tunnel.templates if tunnel is not None else ())
            for each in self._generated.get((peer, entry_name(template)), ())
        ]
        return tuple(made[:_MOST]) or None

    def _offload(self, peer: str, state: PeerState) -> tuple[ChildOffload, ...] | None:
        if self._offloads is None:
            return None
        live = (
            c
            for c in self._view.expected.get(peer, ())
            if (there := state.children.get(c)) and there.spis
        )
        shown = []
        for child in islice(live, _MOST):
            reqid = self._view.reqids.get((peer, child), 0)
            into, out = (self._offloads.get((reqid, d)) for d in (Direction.IN, Direction.OUT))
            each = ChildOffload(child=child[:_LONGEST], inbound=into, outbound=out)
            shown.append(each.model_copy(update={"mode": "Crypto"}) if into or out else each)
        return tuple(shown)

    def _mtu(self, name: str, tunnel: TunnelConfig | None) -> int | None:
        sizes = (self._mtus.get(name), tunnel.mtu if tunnel else None)
        return min((size for size in sizes if size is not None), default=None)

    def _template_status(self, key: Key, item: object, generation: int) -> IPsecPolicyStatus:
        verdicts = self._judged(key)
        uses = self._view.templates.get(key, set())
        made = [each for use in sorted(uses) for each in self._generated.get(use, ())]
        state = "Template" if uses else "Rejected"
        if isinstance(item, IPsecPolicy) and item.spec.disabled:
            state = "Disabled"
            verdicts.append(Verdict("Programmed", "False", "Disabled", "spec.disabled is true"))
        elif not uses and isinstance(item, IPsecPolicy) and all_true(verdicts):
            state = "Template"
            verdicts.append(programmed_unused(item))
        else:
            verdicts.append(self._programmed(key, in_force=bool(uses)))
        return IPsecPolicyStatus(
            observed_generation=generation,
            conditions=self._set(key, verdicts, generation),
            state=state,
            selectors_installed=_pairs(made),
            dynamic=bool(made),
            generated=tuple(map(_shown, made[:_MOST])),
        )

    def _policy_status(self, key: Key, item: object, generation: int) -> IPsecPolicyStatus:
        owned = self._view.children.get(key, [])
        verdicts = self._judged(key)
        carried = key in self._view.carried
        installed, cause = 0, None
        for peer, child, owner in owned:
            state = self._peers.get(peer, PeerState())
            live = state.children.get(child)
            if live is not None and live.spis:
                installed += owner.selectors
            else:
                cause = cause or (live.cause if live else None) or state.cause
        wanted = sum(owner.selectors for _, _, owner in owned)
        disabled = isinstance(item, IPsecPolicy) and item.spec.disabled
        action = item.spec.action if isinstance(item, IPsecPolicy) else "encrypt"
        if disabled:
            state_text = "Disabled"
            verdicts.append(Verdict("Programmed", "False", "Disabled", "spec.disabled is true"))
        elif not carried:
            state_text = "Rejected"
            verdicts.append(self._programmed(key, in_force=False))
        else:
            verdicts.append(self._programmed(key, in_force=True))
            if action == "encrypt":
                missing = cause or Cause("Waiting", "there is no SA yet")
                complete = installed == wanted
                state_text = "Established" if complete else "NoSa" if cause else "Waiting"
                verdicts.append(
                    Verdict("Established", "True", "Established")
                    if complete
                    else Verdict("Established", "False", missing.reason, missing.message)
                )
            else:
                state_text = "Discarding" if action == "discard" else "Passing"
        return IPsecPolicyStatus(
            observed_generation=generation,
            conditions=self._set(key, verdicts, generation),
            state=state_text,
            selectors_installed=installed,
            owner_peer=owned[0][0].partition("/")[2] if owned else None,
        )

    def _judged(self, key: Key) -> list[Verdict]:
        """Accepted and ResolvedRefs."""
        findings = self._view.findings.get(key, [])
        advice = self._view.advice.get(key, [])
        held = key in self._view.in_force.held
        return [judged(c, findings, advice, held=held) for c in ("Accepted", "ResolvedRefs")]

    def _programmed(self, key: Key, *, in_force: bool) -> Verdict:
        problems = self._view.problems.get(key, [])
        if not in_force:
            return NOT_IN_FORCE
        if self._trouble is not None:
            return Verdict("Programmed", "False", self._trouble.reason, self._trouble.message)
        if problems:
            message = "; ".join(p.message for p in problems)
            return Verdict("Programmed", "False", problems[0].reason, message)
        return Verdict("Programmed", "True", "Programmed")

    def _set(self, key: Key, verdicts: list[Verdict], generation: int) -> tuple[Condition, ...]:
        failed = next((v for v in verdicts if v.status == "False"), None)
        ready = (
            Verdict("Ready", "True", "Ready")
            if failed is None
            else Verdict("Ready", failed.status, failed.reason, failed.message)
        )
        now = self._clock()
        wanted = {v.type for v in verdicts} | {"Ready"}
        conditions = tuple(c for c in self._conditions.get(key, ()) if c.type in wanted)
        for verdict in (*verdicts, ready):
            condition = Condition.model_validate(
                {
                    "type": verdict.type,
                    "status": verdict.status,
                    "observedGeneration": generation,
                    "lastTransitionTime": now,
                    "reason": verdict.reason,
                    "message": verdict.message[:LONGEST_MESSAGE],
                }
            )
            conditions = set_condition(conditions, condition)
        self._conditions[key] = conditions
        return conditions


def _pairs(made: Iterable[Generated]) -> int:
    return sum(len(each.local) * len(each.remote) for each in made)


def _shown(each: Generated) -> GeneratedPolicy:
    return GeneratedPolicy(
        peer=each.peer.partition("/")[2],
        remoteID=each.remote_id[:512],
        remote_address=str(each.end),
        local=tuple(map(str, each.local[:_SHOWN])),
        remote=tuple(map(str, each.remote[:_SHOWN])),
    )


def _child(template: str, each: Generated) -> GeneratedChild:
    return GeneratedChild(
        template=template,
        remoteID=each.remote_id[:512],
        remote_address=str(each.end),
        local=tuple(map(str, each.local[:_SHOWN])),
        remote=tuple(map(str, each.remote[:_SHOWN])),
        pairs=_pairs([each]),
    )


def _alike(new: Health, old: Health) -> bool:
    if new.ok != old.ok or new.rtt is None or old.rtt is None or abs(new.loss - old.loss) >= 10:
        return False
    return old.rtt / 2 <= new.rtt <= old.rtt * 2


def _rounded(seconds: float) -> str:
    """Two digits, so that noise is no change."""
    milliseconds = float(f"{seconds * 1000:.2g}")
    return f"{milliseconds:g}ms"
