"""kopf: the watches of our three kinds and of the nodes, and the settings that were measured.

Handlers of raw events alone: they put what they see into the store, which says what there is to do.
There is no change detection of kopf's, so that nothing is written into annotations, no finalizer
that a dead operator could leave behind, and no daemon per object.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import kopf

from ipsec_api.kinds import GROUP, KINDS, VERSION

#: Of what kopf would write, if it ever did.
PREFIX: Final = f"kopf.{GROUP}"


class _NoDiffs(kopf.AnnotationsDiffBaseStorage):
    """Nothing of an object is remembered in it, or compared with what it was.

    No handler of ours asks for that, and copying each object for it took a quarter of kopf's time.
    """

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None


Seen = Callable[[str, Mapping[str, Any]], None]
Login = Callable[..., kopf.ConnectionInfo | None]


def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """The pod's service account, or else the kubeconfig. Called again when a token has expired."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def settings() -> kopf.OperatorSettings:
    """As measured (docs/operator.md): slots for objects are given back at once, watches end."""
    chosen = kopf.OperatorSettings()
    chosen.peering.standalone = True
    chosen.scanning.disabled = True
    # Without an Event for each line of a log; ours are written with a limit.
    chosen.posting.enabled = False
    chosen.posting.level = logging.WARNING
    # A worker's slot is held for idle_timeout after its last event.
    chosen.queueing.worker_limit = 50
    chosen.queueing.idle_timeout = 0.05
    chosen.persistence.consistency_timeout = 0.5
    chosen.persistence.finalizer = f"{GROUP}/kopf"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=PREFIX)
    chosen.persistence.diffbase_storage = _NoDiffs(prefix=PREFIX)
    chosen.watching.server_timeout = 600
    chosen.watching.client_timeout = 660
    chosen.networking.request_timeout = 30
    chosen.process.ultimate_exiting_timeout = 20
    return chosen


def registry(put: Seen, drop: Seen, connect: Login = login) -> kopf.OperatorRegistry:
    """Handlers that call ``put(kind, object)`` and ``drop(kind, object)``."""
    handlers = kopf.OperatorRegistry()
    kopf.on.login(registry=handlers)(connect)

    def follow(kind: str) -> Callable[..., Any]:
        async def seen(event: Mapping[str, Any], **_: Any) -> None:
            item = event["object"]
            if event["type"] == "DELETED":
                drop(kind, item)
            else:
                put(kind, item)

        return seen

    for kind in KINDS:
        on = kopf.on.event(GROUP, VERSION, kind.plural, id=kind.plural, registry=handlers)
        on(follow(kind.name))
    kopf.on.event("", "v1", "nodes", id="nodes", registry=handlers)(follow("Node"))
    return handlers
