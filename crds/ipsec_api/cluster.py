"""Names that the operator, the gateways and the route agents agree on inside a cluster.

The operator renders one Secret per accepted IPsecPeer into its own namespace; gateways watch those
by label, and nothing else that is secret. Every gateway announces itself by a Lease and by a stream
on the mesh port. Nobody reads another's objects under another name than these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from ipsec_api.kinds import GROUP
from ipsec_api.tunnel import TunnelConfig

#: Where the operator, the gateways and the rendered Secrets live, unless ``POD_NAMESPACE`` says so.
DEFAULT_NAMESPACE: Final = "kube-ipsec"

MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "kube-ipsec"
NAME_LABEL: Final = "app.kubernetes.io/name"
COMPONENT_LABEL: Final = "app.kubernetes.io/component"

# -- the rendered Secret of one tunnel

TUNNEL_SECRET_TYPE: Final = f"{GROUP}/tunnel"
TUNNEL_LABEL: Final = f"{GROUP}/tunnel"
#: What gateways list and watch by.
TUNNEL_SELECTOR: Final = f"{TUNNEL_LABEL}=true"
#: The key in ``data`` that holds ``TunnelConfig.to_json()``.
TUNNEL_KEY: Final = "tunnel.json"
#: ``namespace/name`` of the IPsecPeer.
SOURCE_ANNOTATION: Final = f"{GROUP}/source"
#: ``metadata.uid`` and ``metadata.generation`` of the IPsecPeer that was compiled.
UID_ANNOTATION: Final = f"{GROUP}/uid"
GENERATION_ANNOTATION: Final = f"{GROUP}/generation"
#: ``digest()`` of the JSON: two Secrets with the same one say the same.
DIGEST_ANNOTATION: Final = f"{GROUP}/digest"

# -- gateways

#: Nodes with this label carry gateways, unless the chart's values select others.
GATEWAY_NODE_LABEL: Final = f"{GROUP}/gateway"
GATEWAY_LEASE_LABEL: Final = f"{GROUP}/gateway"
GATEWAY_LEASE_SELECTOR: Final = f"{GATEWAY_LEASE_LABEL}=true"
_GATEWAY_LEASE_PREFIX: Final = "kube-ipsec-gateway-"
#: Seconds.
GATEWAY_LEASE_DURATION: Final = 6
GATEWAY_LEASE_RENEWAL: Final = 2
#: Addresses of the node, with commas between them, the preferred one first.
ADDRESSES_ANNOTATION: Final = f"{GROUP}/addresses"
#: ``"true"`` while the gateway hands its peers over.
DRAINING_ANNOTATION: Final = f"{GROUP}/draining"
#: The group of gateways it belongs to; absent or empty is the default group.
GROUP_ANNOTATION: Final = f"{GROUP}/group"

# -- the mesh: gateways and route agents hear from each other without the API server

#: TCP, on the node's address.
MESH_PORT: Final = 4499
#: The key of HMAC-SHA256: 32 random octets, mounted as a file into gateways and route agents.
MESH_SECRET: Final = "kube-ipsec-mesh"  # noqa: S105 - the name of a Secret
MESH_KEY: Final = "key"
MESH_KEY_LENGTH: Final = 32
MESH_KEY_PATH: Final = "/etc/kube-ipsec/mesh/key"

# -- probes

#: UDP, on every address of a gateway's node: what its responder answers, out of SAs alone.
PROBE_PORT: Final = 4498

# -- the operator

OPERATOR_LEASE: Final = "kube-ipsec-operator"
#: Seconds: how long a lease holds, when its holder gives up, how often it is renewed.
OPERATOR_LEASE_DURATION: Final = 10
OPERATOR_RENEW_DEADLINE: Final = 7
OPERATOR_RETRY_PERIOD: Final = 2

# -- field managers: who owns which fields of an object (server-side apply)

OPERATOR_MANAGER: Final = "kube-ipsec-operator"
GATEWAY_MANAGER: Final = "kube-ipsec-gateway"

# -- DaemonSets that the operator creates

GATEWAY_NAME: Final = "kube-ipsec-gateway"
ROUTE_AGENT_NAME: Final = "kube-ipsec-route-agent"
#: Service accounts, made by the chart.
GATEWAY_SERVICE_ACCOUNT: Final = "kube-ipsec-gateway"
ROUTE_AGENT_SERVICE_ACCOUNT: Final = "kube-ipsec-route-agent"

# -- environment of the pods (downward API)

POD_NAMESPACE_ENV: Final = "POD_NAMESPACE"
NODE_NAME_ENV: Final = "NODE_NAME"
NODE_IP_ENV: Final = "NODE_IP"


def tunnel_secret_name(namespace: str, name: str) -> str:
    """The Secret that the tunnel of the IPsecPeer ``namespace/name`` is rendered into."""
    return f"tunnel-{hashlib.blake2b(f'{namespace}/{name}'.encode(), digest_size=10).hexdigest()}"


def gateway_lease_name(node: str) -> str:
    """The Lease of the gateway on ``node``."""
    return f"{_GATEWAY_LEASE_PREFIX}{node}"


def gateway_node(lease: str) -> str | None:
    """The node of a gateway's Lease; None where the name is not one of a gateway's Lease."""
    node = lease.removeprefix(_GATEWAY_LEASE_PREFIX)
    return node if node and node != lease else None


def digest(text: str | bytes) -> str:
    """40 hexadecimal digits that stand for a rendered configuration (BLAKE2b)."""
    octets = text.encode() if isinstance(text, str) else text
    return hashlib.blake2b(octets, digest_size=20).hexdigest()


def tunnel_annotations(config: TunnelConfig, rendered: str) -> Mapping[str, str]:
    """The annotations of the Secret that holds ``rendered``, which is ``config.to_json()``."""
    return {
        SOURCE_ANNOTATION: config.key,
        UID_ANNOTATION: config.source.uid,
        GENERATION_ANNOTATION: str(config.source.generation),
        DIGEST_ANNOTATION: digest(rendered),
    }
