"""The status of a template: what the statuses of the peers that use it say. Pure.

A template may be in the tunnels of many peers, and those with many gateways. No gateway knows what
the others' peers have from it, so that each says of its own peers what they have, and what that
makes for the template is the operator's word: ``Programmed``, the state, and who has what.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from ipsec_api.snapshot import IPsecPolicy
from ipsec_api.templates import unused
from ipsec_api.verdicts import NOT_IN_FORCE, Verdict
from ipsec_operator.status import conditions
from ipsec_operator.store import Resource

#: Entries of ``generated`` in a status.
_MOST: Final = 64


def is_template(resource: Resource) -> bool:
    """Whether it is a template that follows the schema."""
    document = resource.document
    return isinstance(document, IPsecPolicy) and document.spec.template


def programmed(resource: Resource, users: Sequence[Resource], *, accepted: bool) -> Verdict:
    """Whether the gateways have this generation of it for all peers that have it: ``users``. An
    earlier generation of such a peer may be in force, with it."""
    if resource.disabled:
        return Verdict("Programmed", "False", "Disabled", "spec.disabled is true")
    if not accepted or not isinstance(resource.document, IPsecPolicy):
        return NOT_IN_FORCE
    if not users:
        return Verdict("Programmed", "False", "Unused", unused(resource.document.spec.group))
    for peer in users:
        generation = resource.ref.generation
        if int(_use(peer, resource).get("generation") or 0) < generation:
            text = f"no gateway has generation {generation} of it for peer {peer.key.name} yet"
            return Verdict("Programmed", "False", "Pending", text)
        found = conditions(peer.status).get("Programmed", {})
        if found.get("status") != "True":
            reason, message = str(found.get("reason") or "Pending"), found.get("message") or ""
            return Verdict("Programmed", "False", reason, f"peer {peer.key.name}: {message}")
    return Verdict("Programmed", "True", "Programmed")


def facts(resource: Resource, users: Iterable[Resource], *, accepted: bool) -> dict[str, Any]:
    """The other fields of its status."""
    state = "Disabled" if resource.disabled else "Template" if accepted else "Rejected"
    name, pairs, made = resource.key.name, 0, []
    for peer in users if state == "Template" else ():
        pairs += int(_use(peer, resource).get("pairs") or 0)
        for each in _of(peer, "generated", name):
            said = {k: v for k, v in each.items() if k not in ("template", "pairs")}
            made.append({"peer": peer.key.name, **said})
    return {
        "state": state,
        "selectorsInstalled": pairs,
        "dynamic": pairs > 0,
        "generated": made[:_MOST],
    }


def _use(peer: Resource, template: Resource) -> Mapping[str, Any]:
    return next(_of(peer, "templates", template.key.name), {})


def _of(peer: Resource, field: str, template: str) -> Iterator[Mapping[str, Any]]:
    """What a list in the status of a peer says of a template."""
    listed = peer.status.get(field)
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, Mapping) and each.get("template") == template:
            yield each
