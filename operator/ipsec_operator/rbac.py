"""Every right that the operator needs, as data: the chart's roles are checked against this list.

``scope`` says where a right is needed: ``cluster`` for objects that have no namespace, ``watched``
in each namespace whose resources the operator looks at (a ClusterRole where it watches all of
them), ``own`` in the operator's own namespace alone, ``kube-system`` in that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ipsec_api.cluster import (
    GATEWAY_NAME,
    OPERATOR_LEASE,
    ROUTE_AGENT_NAME,
)
from ipsec_api.kinds import GROUP, KINDS

Scope = Literal["cluster", "watched", "own", "kube-system"]


@dataclass(frozen=True, slots=True)
class Right:
    """One rule. ``names`` narrows it to objects of these names; ``why`` is for auditors."""

    scope: Scope
    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    why: str
    names: tuple[str, ...] = ()


_READ: Final = ("get", "list", "watch")

OPERATOR: Final[tuple[Right, ...]] = (
    Right("watched", GROUP, tuple(k.plural for k in KINDS), ("list", "watch"), "the resources"),
    Right(
        "watched",
        GROUP,
        tuple(f"{k.plural}/status" for k in KINDS),
        ("patch",),
        "Accepted, ResolvedRefs, Ready (server-side apply)",
    ),
    Right("watched", "", ("secrets",), _READ, "pre-shared keys and certificates"),
    Right("watched", "", ("configmaps",), _READ, "trust bundles"),
    Right("watched", "", ("events",), ("create",), "what happened, for kubectl describe"),
    Right("cluster", "", ("nodes",), ("list", "watch"), "networks of pods, addresses of nodes"),
    Right("cluster", "networking.k8s.io", ("servicecidrs",), ("list",), "networks of Services"),
    Right("cluster", "crd.projectcalico.org", ("ippools",), ("list",), "networks of pods (Calico)"),
    Right(
        "kube-system",
        "",
        ("configmaps",),
        ("get",),
        "networks that kubeadm or Cilium was told",
        ("kubeadm-config", "cilium-config"),
    ),
    Right(
        "own",
        "",
        ("secrets",),
        ("get", "list", "watch", "create", "update", "delete"),
        "one Secret for each tunnel, and the mesh key",
    ),
    Right("own", "coordination.k8s.io", ("leases",), ("list", "watch"), "which gateways are alive"),
    Right("own", "coordination.k8s.io", ("leases",), ("create",), "the operator's own Lease"),
    Right(
        "own",
        "coordination.k8s.io",
        ("leases",),
        ("get", "patch"),
        "the operator's own Lease",
        (OPERATOR_LEASE,),
    ),
    Right("own", "apps", ("daemonsets",), ("list", "watch", "create"), "what it has made"),
    Right(
        "own",
        "apps",
        ("daemonsets",),
        ("patch", "delete"),
        "gateways and route agents (server-side apply)",
        (GATEWAY_NAME, ROUTE_AGENT_NAME),
    ),
)
