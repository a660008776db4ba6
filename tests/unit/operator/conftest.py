"""Objects as the API server gives them, and a store that remembers what it asked for."""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from ipsec_operator import tunnels
from ipsec_operator.graph import Key
from ipsec_operator.networks import ClusterNetworks
from ipsec_operator.store import Store

Object = dict[str, Any]

#: The pre-shared key of all tests, which must never be seen anywhere.
PSK = "correct horse battery staple"
CLUSTER = ClusterNetworks(pods=("10.244.0.0/16",), services=("10.96.0.0/12",), origin="test")


def crd(kind: str, name: str, spec: Object, namespace: str = "default", **meta: Any) -> Object:
    """One of our kinds."""
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "generation": 1}
    return {
        "apiVersion": "kubeipsec.dev/v1alpha1",
        "kind": kind,
        "metadata": metadata | {"creationTimestamp": "2026-01-01T00:00:00Z"} | meta,
        "spec": spec,
    }


def a_peer(number: int, namespace: str = "default", **spec: Any) -> Object:
    """Of networks and an address of its own."""
    full = {
        "address": f"198.51.{number >> 8 & 255}.{number & 255}",
        "authentication": {"method": "preSharedKey", "secretRef": {"name": f"psk-{number}"}},
        "remoteSubnets": [f"172.{16 + (number >> 8)}.{number & 255}.0/24"],
    }
    return crd("IPsecPeer", f"peer-{number}", full | spec, namespace)


def a_policy(name: str, peer: str, src: str, dst: str, **spec: Any) -> Object:
    """One selector of a peer."""
    full = {"peerRef": {"name": peer}, "srcAddress": src, "dstAddress": dst}
    return crd("IPsecPolicy", name, full | spec)


def a_secret(number: int, psk: str = PSK, namespace: str = "default", **data: str) -> Object:
    """The Secret of a peer."""
    values = {"psk": psk} | data
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"psk-{number}", "namespace": namespace},
        "type": "Opaque",
        "data": {k: base64.b64encode(v.encode()).decode() for k, v in values.items()},
    }


@dataclass
class Bench:
    """A store, what it has asked for, and a cluster that does what it wants."""

    marks: list[tuple[str, Key]] = field(default_factory=list)
    store: Store = field(init=False)
    version: int = 0

    def __post_init__(self) -> None:
        self.store = Store(lambda work, key: self.marks.append((work, key)))
        self.store.set_networks(CLUSTER)

    def put(self, *items: Object) -> None:
        for item in items:
            self.version += 1
            metadata = item["metadata"] | {"resourceVersion": str(self.version)}
            item = item | {"metadata": metadata}
            if item["kind"] in ("Secret", "ConfigMap"):
                self.store.put_data(item["kind"], item)
            else:
                self.store.put_resource(item)

    def change(self, item: Object, **spec: Any) -> Object:
        """The object at its next generation."""
        item = item | {"spec": item["spec"] | spec}
        generation = item["metadata"]["generation"] + 1
        item["metadata"] = item["metadata"] | {"generation": generation}
        self.put(item)
        return item

    def drop(self, item: Object) -> None:
        key = Key(item["kind"], item["metadata"]["namespace"], item["metadata"]["name"])
        if item["kind"] == "Secret":
            self.store.drop_data(key)
        else:
            self.store.drop_resource(key)

    def judge(self) -> None:
        while not self.store.clean:
            self.store.judge_some(10)

    def converge(self) -> None:
        """Judge, and have the cluster hold what is wanted."""
        self.judge()
        for unit in self.store.present.keys() - self.store.wanted.keys():
            self.store.drop_tunnel(self.store.present[unit].name)
        for tunnel in list(self.store.wanted.values()):
            self.version += 1
            raw = tunnels.manifest(tunnel, "kube-ipsec", {})
            raw["metadata"]["resourceVersion"] = str(self.version)
            self.store.put_tunnel(tunnels.read(raw))
        self.judge()

    def asked(self, work: str) -> set[Key]:
        """What was asked for since the last call."""
        found = {key for kind, key in self.marks if kind == work}
        self.marks[:] = [m for m in self.marks if m[0] != work]
        return found


def key(item: Object) -> Key:
    return Key(item["kind"], item["metadata"]["namespace"], item["metadata"]["name"])


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def make() -> Callable[..., Any]:
    """The builders by name: tests have no package to import them from."""
    builders: dict[str, Callable[..., Any]] = {
        "peer": a_peer,
        "policy": a_policy,
        "secret": a_secret,
        "crd": crd,
        "key": key,
    }
    return lambda what, *args, **kwargs: builders[what](*args, **kwargs)
