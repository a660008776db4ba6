"""What the watches of our own (``watch``) tell the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from ipsec_api.cluster import TUNNEL_SECRET_TYPE
from ipsec_operator import tunnels
from ipsec_operator.api import Object
from ipsec_operator.controller import Controller
from ipsec_operator.graph import Key
from ipsec_operator.store import Store


class Data:
    """A watch of Secrets or ConfigMaps, told to the store."""

    def __init__(self, store: Store, kind: Literal["Secret", "ConfigMap"]) -> None:
        self._store = store
        self._kind = kind
        self._known: set[Key] = set()

    def replace(self, items: Sequence[Object]) -> None:
        gone = self._known - {Key.of(self._kind, item) for item in items}
        for key in gone:
            self._known.discard(key)
            self._store.drop_data(key)
        for item in items:
            self.put(item)

    def put(self, item: Object) -> None:
        self._known.add(Key.of(self._kind, item))
        # Items of a list do not say what they are.
        self._store.put_data(self._kind, item | {"kind": self._kind})

    def drop(self, item: Object) -> None:
        key = Key.of(self._kind, item)
        self._known.discard(key)
        self._store.drop_data(key)


class Tunnels:
    """The watch of the tunnel Secrets."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def replace(self, items: Sequence[Object]) -> None:
        names = {Key.of("Secret", item).name for item in items}
        for tunnel in list(self._store.present.values()):
            if tunnel.name not in names:
                self._store.drop_tunnel(tunnel.name)
        for item in items:
            self.put(item)

    def put(self, item: Object) -> None:
        # The type of a Secret cannot be changed; others may have our label and are not ours.
        if item.get("type") == TUNNEL_SECRET_TYPE:
            self._store.put_tunnel(tunnels.read(item))

    def drop(self, item: Object) -> None:
        self._store.drop_tunnel(Key.of("Secret", item).name)


class DaemonSets:
    """The watch of the DaemonSets. ``look``: called after every change."""

    def __init__(self, controller: Controller, look: Callable[[], None]) -> None:
        self._controller = controller
        self._look = look

    def replace(self, items: Sequence[Object]) -> None:
        self._controller.daemon_sets = {Key.of("DaemonSet", item).name: item for item in items}
        self._look()

    def put(self, item: Object) -> None:
        self._controller.daemon_sets[Key.of("DaemonSet", item).name] = item
        self._look()

    def drop(self, item: Object) -> None:
        self._controller.daemon_sets.pop(Key.of("DaemonSet", item).name, None)
        self._look()
