"""The status of a template: what the statuses of the peers that use it say. Pure.

A template may be in the tunnels of many peers, and those with many gateways. No gateway knows what
the others' peers have from it, so that each says of its own peers what they have, and what that
makes for the template is the operator's word: ``Programmed``, the state, and who has what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ipsec_api.snapshot import IPsecPolicy
from ipsec_api.templates import unused
from ipsec_api.verdicts import Verdict
from ipsec_operator.status import conditions
from ipsec_operator.store import Resource

#: Entries of ``generated`` in a status.
_MOST: Final = 64
_NOT_IN_FORCE: Final = "not in force: see Accepted and ResolvedRefs"


def is_template(resource: Resource) -> bool:
    """Whether it is a template that follows the schema."""
    document = resource.document
    return isinstance(document, IPsecPolicy) and document.spec.template


def programmed(resource: Resource, users: Sequence[Resource], *, accepted: bool) -> Verdict:
    """Whether it is in force for all peers that use it; ``users`` are those that are accepted."""
    if resource.disabled:
        return Verdict("Programmed", "False", "Disabled", "spec.disabled is true")
    if not accepted or not isinstance(resource.document, IPsecPolicy):
        return Verdict("Programmed", "False", "NotAccepted", _NOT_IN_FORCE)
    if not users:
        return Verdict("Programmed", "False", "Unused", unused(resource.document.spec.group))
    for peer in users:
        found = conditions(peer.status).get("Programmed", {})
        if int(found.get("observedGeneration") or 0) < peer.ref.generation:
            text = f"no gateway has said anything about peer {peer.key.name} yet"
            return Verdict("Programmed", "False", "Pending", text)
        if found.get("status") != "True":
            reason, message = str(found.get("reason") or "Pending"), found.get("message") or ""
            return Verdict("Programmed", "False", reason, f"peer {peer.key.name}: {message}")
    return Verdict("Programmed", "True", "Programmed")


def facts(resource: Resource, users: Iterable[Resource], *, accepted: bool) -> dict[str, Any]:
    """The other fields of its status."""
    state = "Disabled" if resource.disabled else "Template" if accepted else "Rejected"
    name, pairs, made = resource.key.name, 0, []
    for peer in users if state == "Template" else ():
        for each in _generated(peer.status):
            if each.get("template") == name:
                pairs += int(each.get("pairs") or 0)
                said = {k: v for k, v in each.items() if k not in ("template", "pairs")}
                made.append({"peer": peer.key.name, **said})
    return {
        "state": state,
        "selectorsInstalled": pairs,
        "dynamic": bool(made),
        "generated": made[:_MOST],
    }


def _generated(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = status.get("generated")
    return (
        [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []
    )
