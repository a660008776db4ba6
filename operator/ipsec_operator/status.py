"""The operator's part of each status: Accepted, ResolvedRefs, Ready. Pure.

``Programmed``, ``Established``, ``Forwarding`` and ``Healthy`` are the gateway's, under a field
manager of its own.
``Ready`` is the conjunction of all, and False as long as the gateway speaks of an older generation.
That makes ``kubectl wait --for=condition=Ready`` and kstatus (Argo CD, Flux) tell the truth.

===========  =======================================================================================
kind         what Ready needs, besides Accepted and ResolvedRefs
===========  =======================================================================================
IPsecPeer    Programmed, Established, and Forwarding and Healthy where the gateway says something
             about them, but for Forwarding: Unknown
IPsecPolicy  Programmed, and Established where the gateway says something about it
ModeConfig   nothing
===========  =======================================================================================

Of a template no gateway has the word: ``Programmed`` and the rest are ours too (``templates``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from ipsec_api.kinds import API_VERSION
from ipsec_api.rejection import Finding
from ipsec_api.verdicts import LONGEST_MESSAGE, Verdict, judged
from ipsec_operator.store import Resource

#: The conditions whose changes are worth an Event: those that the operator has of every object.
_TOLD: Final = ("Accepted", "ResolvedRefs", "Ready")

_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "IPsecPeer": ("Programmed", "Established"),
    "IPsecPolicy": ("Programmed",),
    "ModeConfig": (),
}
_COUNTED: Final = ("Programmed", "Established", "Forwarding", "Healthy")


def verdicts(
    resource: Resource,
    rejections: Sequence[Finding],
    advice: Sequence[Finding],
    *,
    held: bool,
    gateways: bool,
    programmed: Verdict | None = None,
) -> tuple[Verdict, ...]:
    """Accepted, ResolvedRefs and Ready. ``held``: an earlier version is in force; ``gateways``:
    some gateway is alive. ``programmed`` is one more where no gateway says it."""
    accepted = judged("Accepted", rejections, advice, held=held)
    resolved = judged("ResolvedRefs", rejections, advice, held=held)
    found = conditions(resource.status)
    if programmed is not None:
        said = {"status": programmed.status, "reason": programmed.reason}
        generation = resource.ref.generation
        found["Programmed"] = said | {
            "message": programmed.message,
            "observedGeneration": generation,
        }
    ready = _ready(resource, accepted, resolved, found, gateways=gateways)
    return accepted, resolved, *((programmed,) if programmed is not None else ()), ready


def _ready(
    resource: Resource,
    accepted: Verdict,
    resolved: Verdict,
    found: Mapping[str, Mapping[str, Any]],
    *,
    gateways: bool,
) -> Verdict:
    for verdict in (accepted, resolved):
        if verdict.status != "True":
            return Verdict("Ready", "False", verdict.reason, verdict.message)
    kind, generation = resource.key.kind, resource.ref.generation
    if resource.disabled:
        return Verdict("Ready", "False", "Disabled", "spec.disabled is true")
    if kind == "ModeConfig":
        return Verdict("Ready", "True", "Ready")
    if not gateways:
        text = "no gateway is alive: label a node with kubeipsec.dev/gateway=true, and see its pod"
        return Verdict("Ready", "False", "NoGatewayNode", text)
    for name in _COUNTED:
        condition = found.get(name)
        if name == "Forwarding" and condition and condition.get("status") == "Unknown":
            continue  # what may be is no fault
        if condition is None:
            if name not in _NEEDED[kind]:
                continue
            text = "no gateway has said anything about it yet"
            return Verdict("Ready", "False", "Pending", text)
        if int(condition.get("observedGeneration") or 0) < generation:
            text = f"the gateway has not seen generation {generation} yet"
            return Verdict("Ready", "False", "Pending", text)
        if condition.get("status") != "True":
            reason, message = condition.get("reason"), condition.get("message")
            return Verdict(
                "Ready", "False", str(reason or name), str(message or "")[:LONGEST_MESSAGE]
            )
    return Verdict("Ready", "True", "Ready")


def conditions(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Conditions of a status in the cluster, by type."""
    listed = status.get("conditions")
    if not isinstance(listed, list):
        return {}
    return {str(c.get("type")): c for c in listed if isinstance(c, Mapping)}


def desired(
    resource: Resource,
    found: Iterable[Verdict],
    discovered: Sequence[str],
    now: str,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """The document for server-side apply on ``/status``, or None where nothing would change.

    ``now`` is the time in RFC 3339; a condition keeps the time of its last change of ``status``.
    ``discovered`` are the local networks of a peer that names none; ``facts`` are other fields.
    """
    generation = resource.ref.generation
    before = conditions(resource.status)
    listed: list[dict[str, Any]] = []
    same = resource.status.get("observedGeneration", 0) == generation
    for verdict in found:
        old = before.get(verdict.type, {})
        kept = old.get("status") == verdict.status and bool(old.get("lastTransitionTime"))
        condition: dict[str, Any] = {
            "type": verdict.type,
            "status": verdict.status,
            "observedGeneration": generation,
            "lastTransitionTime": old["lastTransitionTime"] if kept else now,
            "reason": verdict.reason,
            "message": verdict.message,
        }
        same = same and dict(old) == condition
        listed.append(condition)
    status: dict[str, Any] = {"observedGeneration": generation, "conditions": listed}
    if resource.key.kind == "IPsecPeer":
        same = same and list(resource.status.get("discoveredSubnets") or ()) == list(discovered)
        if discovered:
            status["discoveredSubnets"] = list(discovered)
    for name, value in (facts or {}).items():
        same = same and resource.status.get(name) == value
        status[name] = value
    if same:
        return None
    return {
        "apiVersion": API_VERSION,
        "kind": resource.key.kind,
        "metadata": {"name": resource.key.name, "namespace": resource.key.namespace},
        "status": status,
    }


def news(
    before: Mapping[str, Mapping[str, Any]], found: Iterable[Verdict]
) -> list[tuple[Literal["Normal", "Warning"], str, str]]:
    """(type, reason, message) of the Events that a change of conditions is worth."""
    events: list[tuple[Literal["Normal", "Warning"], str, str]] = []
    refused = False
    for verdict in found:
        if verdict.type not in _TOLD:
            continue
        old = before.get(verdict.type, {})
        if verdict.type == "Ready":
            # What Accepted or ResolvedRefs has said already is not said twice.
            if old.get("status") == verdict.status or refused:
                continue
            if verdict.status == "True":
                events.append(("Normal", "Ready", "everything is in order"))
            elif old.get("status") == "True" and verdict.reason not in ("Pending", "Disabled"):
                text = f"{verdict.reason}: {verdict.message}"
                events.append(("Warning", "NotReady", text))
        elif verdict.status == "False":
            refused = True
            if (old.get("status"), old.get("reason")) != ("False", verdict.reason):
                events.append(("Warning", verdict.reason, verdict.message))
        elif old.get("status") == "False":
            reason = "Accepted" if verdict.type == "Accepted" else "ReferencesResolved"
            events.append(("Normal", reason, "what was wrong is right now"))
    return events
