"""The network of ``failover_rig`` with a real API server: what users apply becomes a tunnel.

Gateways run with the token of their service account and the mesh key that the operator has made.
Every node reaches the API server at the address that KUBECONFIG names, through a ``Forwarder`` in
its namespace, so that nothing is said differently from what a node would say. Node objects exist
for the names, have no kubelet, and go with the rig.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
import uuid
from pathlib import Path
from typing import Any, Final, Self

import yaml

from ipsec_api.cluster import MESH_KEY, MESH_SECRET, gateway_lease_name
from ipsec_lab.cluster import Cluster, until
from ipsec_lab.failover_rig import GATEWAYS, PODS, REMOTES, FailoverRig
from ipsec_lab.forwarder import Forwarder, server_of
from ipsec_lab.netns import LabError

#: What the operator tells gateways to be local: pods and Services.
LOCAL: Final = (PODS, "10.96.0.0/16")
PSK: Final = b"a secret that came by kubectl"
_ADDRESS: Final = {name: f"192.0.2.{n}" for n, name in enumerate((*GATEWAYS, "w"), 1)}


class ClusterRig(FailoverRig):
    """``namespace`` is where the operator runs. The operator has to be running."""

    def __init__(self, folder: Path, cluster: Cluster, namespace: str) -> None:
        super().__init__(folder)
        self.cluster: Final = cluster
        self.own: Final = namespace
        self._suffix: Final = uuid.uuid4().hex[:6]
        self._forwarders: Final[dict[str, Forwarder]] = {}

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End everything, and take away what stands for nodes."""
        super().close()
        for forwarder in self._forwarders.values():
            forwarder.close()
        for name in GATEWAYS:
            self.cluster.delete("Node", "", self.node(name))
            self.cluster.delete("Lease", self.own, gateway_lease_name(self.node(name)))

    def node(self, name: str) -> str:
        """What g1 is called in the cluster."""
        return f"kube-ipsec-test-{self._suffix}-{name}"

    def name(self, node: object) -> str:
        """The other way round; an empty text where there is none."""
        return str(node or "").rpartition("-")[2]

    def _connect(self) -> None:
        host, port = server_of(self.cluster.kubeconfig)
        at = _address(host)
        if at is None:
            raise LabError(obstacle(self.cluster.kubeconfig))
        for name in GATEWAYS:
            metadata = {"name": self.node(name), "labels": {"kube-ipsec.test/rig": self._suffix}}
            self.cluster.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
            namespace = self.namespaces[name]
            if not at.is_loopback:
                namespace.ip(f"address add {at}/32 dev lo")
            listener = namespace.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((str(at), port))
            self._forwarders[name] = Forwarder(listener, (host, port))
        self.cluster.kubeconfig_of(self.own, "kube-ipsec-gateway", self.folder / "kubeconfig")
        secret: dict[str, Any] = until(
            lambda: self.cluster.get("Secret", self.own, MESH_SECRET), "the mesh key"
        )
        (self.folder / "key").write_bytes(base64.b64decode(secret["data"][MESH_KEY]))

    def outage(self, *names: str) -> None:
        """These nodes do not reach the API server."""
        for name in names:
            self._forwarders[name].cut()

    def back(self, *names: str) -> None:
        """They do again."""
        for name in names:
            self._forwarders[name].mend()

    def start(self, *options: str, spec: dict[str, Any] | None = None) -> None:
        """Remote sites, with ``spec``, and the route agent; gateways are started one by one."""
        for name, network in REMOTES.items():
            self.site(name, network, **(spec or {}))
        known = [f"--gateway={self.node(n)}={_ADDRESS[n]}" for n in GATEWAYS]
        self._launch(
            "w",
            [
                "route-agent",
                "--node-name=w",
                f"--node-ip={_ADDRESS['w']}",
                *known,
                f"--mesh-key={self.folder / 'key'}",
                f"--state={self.memory / 'w'}",
                "--listen=127.0.0.1:9502",
                *options,
            ],
        )

    def site(self, name: str, network: str, *, psk: bytes = PSK, **spec: Any) -> None:
        """A remote site, which answers to any of the gateways."""
        self._remote(name, network, LOCAL, psk, **spec)

    def gateway(self, name: str, *, hours: int = 0) -> None:
        """Start one, with a clock that is some hours wrong."""
        self._gateway(name, self.node(name), self.own, hours)

    def status(self, name: str, namespace: str = "default") -> dict[str, Any]:
        """Of an IPsecPeer."""
        found = self.cluster.get("IPsecPeer", namespace, name)
        return dict((found or {}).get("status") or {})

    def owner(self, key: str) -> str:
        """Which of g1, g2, g3 holds NAMESPACE/PEER, if exactly one does."""
        holding = [n for n in self.alive() if key in self.view(n).get("held", ())]
        return holding[0] if len(holding) == 1 else ""


def obstacle(kubeconfig: Path) -> str:
    """Why nodes in namespaces could not reach the API server; empty if they can."""
    host, _ = server_of(kubeconfig)
    if _address(host) is not None:
        return ""
    return f"KUBECONFIG names its server {host}: nodes in namespaces need an IPv4 address"


def _address(host: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None


def five_lines(name: str, namespace: str, address: str, network: str) -> dict[str, Any]:
    """The shortest IPsecPeer there is; its key is in the Secret of the same name."""
    return yaml.safe_load(  # type: ignore[no-any-return]  # this document is a mapping
        f"""
apiVersion: kubeipsec.dev/v1alpha1
kind: IPsecPeer
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  address: {address}
  authentication: {{method: preSharedKey, secretRef: {{name: {name}}}}}
  remoteSubnets: [{network}]
"""
    )
