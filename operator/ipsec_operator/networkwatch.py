"""The networks of the cluster, found where it says them (``discovery``), for the store.

Nodes are told by who watches them; the rest is asked for now and then.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from ipsec_operator import discovery
from ipsec_operator.api import (
    CONFIG_MAPS,
    IP_POOLS,
    NODES,
    SERVICE_CIDRS,
    Api,
    ApiError,
    NotFound,
    Object,
    Resource,
)
from ipsec_operator.graph import Key
from ipsec_operator.settings import ClusterSubnets
from ipsec_operator.store import Store

log = logging.getLogger("ipsec_operator")

T = TypeVar("T")

_FORBIDDEN: Final = 403


class NetworkWatch:
    """``values``: what the administrator says, which counts first. ``changed`` is called when the
    store has other networks than before."""

    def __init__(
        self, api: Api, values: ClusterSubnets, store: Store, changed: Callable[[], None]
    ) -> None:
        self._api = api
        self._values = values
        self._store = store
        self._changed = changed
        self._nodes: dict[str, discovery.Node] = {}
        self._sources = discovery.Sources()

    async def discover(self) -> None:
        """Raises ApiError, and changes nothing, where the API server does not answer."""
        kubeadm = await self._config_map("kubeadm-config")
        cilium = await self._config_map("cilium-config")
        pods, services = discovery.kubeadm(kubeadm)
        sources = discovery.Sources(
            service_cidrs=discovery.service_cidrs(await self._optional(SERVICE_CIDRS)),
            kubeadm_pods=pods,
            kubeadm_services=services,
            calico=discovery.calico(await self._optional(IP_POOLS)),
            cilium=discovery.cilium(cilium),
        )
        nodes, _ = await self._api.list(NODES)
        self._nodes = {Key.of("Node", item).name: discovery.node(item) for item in nodes}
        self._sources = sources
        self._decide()

    def put_node(self, item: Mapping[str, Any]) -> None:
        """A node is new, or has changed."""
        name, found = Key.of("Node", item).name, discovery.node(item)
        if self._nodes.get(name) != found:
            self._nodes[name] = found
            self._decide()

    def drop_node(self, item: Mapping[str, Any]) -> None:
        """A node is gone."""
        if self._nodes.pop(Key.of("Node", item).name, None) is not None:
            self._decide()

    def _decide(self) -> None:
        store = self._store
        before = store.networks
        store.set_networks(discovery.decide(self._values, self._sources, self._nodes))
        if store.networks == before:
            return
        log.info(
            "networks of the cluster: pods %s, services %s (%s)",
            ", ".join(store.networks.pods) or "unknown",
            ", ".join(store.networks.services) or "unknown",
            store.networks.origin,
        )
        self._changed()

    async def _config_map(self, name: str) -> Object:
        return await _if_there(self._api.get(CONFIG_MAPS, "kube-system", name), {})

    async def _optional(self, resource: Resource) -> list[Object]:
        items, _ = await _if_there(self._api.list(resource), ([], ""))
        return items


async def _if_there(call: Awaitable[T], otherwise: T) -> T:
    """What a cluster may not have, or not let us read."""
    try:
        return await call
    except ApiError as exc:
        if isinstance(exc, NotFound) or exc.status == _FORBIDDEN:
            return otherwise
        raise
