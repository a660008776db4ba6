"""The Lease of this gateway, renewed every 2 s, and those of the others, followed.

Only this gateway writes its Lease, with server-side apply, so that there is nothing to conflict
with: a Lease that somebody changed or deleted is as it should be 2 s later. What it says besides
being alive (addresses, group, labels of the node, draining) is in annotations. It belongs to the
Node and goes with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from ipsec_api.cluster import (
    ADDRESSES_ANNOTATION,
    COMPONENT_LABEL,
    DRAINING_ANNOTATION,
    GATEWAY_LEASE_DURATION,
    GATEWAY_LEASE_LABEL,
    GATEWAY_LEASE_RENEWAL,
    GATEWAY_LEASE_SELECTOR,
    GATEWAY_MANAGER,
    GROUP_ANNOTATION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    gateway_lease_name,
    gateway_node,
)
from ipsec_api.kinds import GROUP
from ipsec_api.ownership import DEFAULT_GROUP
from ipsec_gateway.cluster.api import Api, ApiError
from ipsec_gateway.cluster.backoff import Backoff
from ipsec_gateway.cluster.membership import LeaseFacts
from ipsec_gateway.cluster.reflector import Objects, Reflector

log = logging.getLogger("ipsec_gateway")

#: Labels of the node, as JSON: peers choose their gateways by them.
LABELS_ANNOTATION: Final = f"{GROUP}/node-labels"
#: Seconds without an event on the Leases after which their watch counts as dead: all renew them.
_SILENCE: Final = 15.0
#: Seconds between looks at the labels of our node.
NODE: Final = 60.0


@dataclass(slots=True)
class Mine:
    """What our Lease says."""

    node: str
    addresses: tuple[str, ...] = ()
    group: str = DEFAULT_GROUP
    labels: Mapping[str, str] = field(default_factory=dict)
    draining: bool = False
    uid: str = ""


def lease_of(mine: Mine, namespace: str, now: datetime) -> dict[str, Any]:
    """Our Lease."""
    annotations = {
        ADDRESSES_ANNOTATION: ",".join(mine.addresses),
        GROUP_ANNOTATION: mine.group,
        LABELS_ANNOTATION: json.dumps(dict(mine.labels), sort_keys=True),
        DRAINING_ANNOTATION: "true" if mine.draining else "false",
    }
    metadata: dict[str, Any] = {
        "name": gateway_lease_name(mine.node),
        "namespace": namespace,
        "labels": {
            GATEWAY_LEASE_LABEL: "true",
            MANAGED_BY_LABEL: MANAGED_BY,
            COMPONENT_LABEL: "gateway",
        },
        "annotations": annotations,
    }
    if mine.uid:
        owner = {"apiVersion": "v1", "kind": "Node", "name": mine.node, "uid": mine.uid}
        metadata["ownerReferences"] = [owner]
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": {
            "holderIdentity": mine.node,
            "leaseDurationSeconds": GATEWAY_LEASE_DURATION,
            "renewTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        },
    }


def facts_of(lease: Mapping[str, Any]) -> tuple[str, LeaseFacts] | None:
    """The node and the facts of a Lease; None if it is none of a gateway."""
    try:
        metadata, spec = lease["metadata"], lease.get("spec") or {}
        node = gateway_node(str(metadata["name"]))
        annotations = metadata.get("annotations") or {}
        labels = json.loads(annotations.get(LABELS_ANNOTATION) or "{}")
        if node is None or spec.get("holderIdentity") not in (node, None, ""):
            return None
        return node, LeaseFacts(
            renewed=str(spec.get("renewTime", "")),
            addresses=tuple(a for a in annotations.get(ADDRESSES_ANNOTATION, "").split(",") if a),
            group=annotations.get(GROUP_ANNOTATION) or DEFAULT_GROUP,
            labels={str(k): str(v) for k, v in labels.items()},
            draining=annotations.get(DRAINING_ANNOTATION) == "true",
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


class Leases:
    """Renews ours and follows all. ``on_list`` and ``on_lease`` get what others say."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        mine: Mine,
        *,
        on_list: Callable[[Mapping[str, LeaseFacts]], None],
        on_lease: Callable[[str, LeaseFacts | None], None],
        on_contact: Callable[[], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.mine: Final = mine
        self._api: Final = api
        self._namespace: Final = namespace
        self._path: Final = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._on_list: Final = on_list
        self._on_lease: Final = on_lease
        self._on_contact: Final = on_contact
        self._clock: Final = clock
        self._rng: Final = rng
        self._again: Final = asyncio.Event()
        self.reflector: Final = Reflector(
            api,
            self._path,
            what="Leases of gateways",
            selector=GATEWAY_LEASE_SELECTOR,
            on_list=self._list,
            on_object=self._object,
            on_contact=on_contact,
            silence=_SILENCE,
            rng=rng,
        )

    def hurry(self) -> None:
        """Renew now: something that the Lease says has changed."""
        self._again.set()

    async def renew(self) -> None:
        """Every 2 s, for ever. While the API server is away it is tried as often: others must see
        us soon after it is back, and it is one small request."""
        backoff, told = Backoff(self._rng, longest=5.0), False
        while True:
            self._again.clear()
            wait = GATEWAY_LEASE_RENEWAL - 0.2 + 0.2 * self._rng()
            try:
                await self.write()
                backoff.reset()
                if told:
                    log.info("the Lease of this gateway is renewed again")
                told = False
            except ApiError as exc:
                wait = backoff.wait(exc.retry_after)
                if not told:
                    log.warning("the Lease of this gateway is not renewed: %s", exc)
                told = True
            try:
                await asyncio.wait_for(self._again.wait(), wait)
            except TimeoutError:
                continue

    async def write(self) -> None:
        """Once. Raises ApiError."""
        body = lease_of(self.mine, self._namespace, self._clock())
        path = f"{self._path}/{gateway_lease_name(self.mine.node)}"
        await self._api.apply(path, body, manager=GATEWAY_MANAGER)
        self._on_contact()

    async def follow_node(self, on_change: Callable[[], None]) -> None:
        """Keep the labels of our node up to date, for ever."""
        told = False
        while True:
            try:
                node = await self._api.get(f"/api/v1/nodes/{self.mine.node}")
                metadata = node.get("metadata") or {}
                labels = {str(k): str(v) for k, v in (metadata.get("labels") or {}).items()}
                uid = str(metadata.get("uid", ""))
                if (labels, uid) != (dict(self.mine.labels), self.mine.uid):
                    self.mine.labels, self.mine.uid = labels, uid
                    on_change()
                    self.hurry()
                wait = NODE
            except ApiError as exc:
                wait = NODE / 6
                if not told and exc.status:
                    told = True
                    log.warning("labels of Node %s are not known: %s", self.mine.node, exc)
            await asyncio.sleep(wait * (0.8 + 0.4 * self._rng()))

    def _list(self, found: Objects) -> None:
        facts = (facts_of(lease) for lease in found.values())
        self._on_list(dict(each for each in facts if each is not None))

    def _object(self, name: str, lease: Mapping[str, Any] | None) -> None:
        node = gateway_node(name)
        if lease is None:
            if node is not None:
                self._on_lease(node, None)
            return
        facts = facts_of(lease)
        if facts is not None:
            self._on_lease(*facts)
