"""Which networks are the cluster's: from what the API server knows. Pure.

For each list the first of these that says anything is taken:

1. ``clusterSubnets`` of the chart's values;
2. pods: Calico's IPPools, Cilium's and kubeadm's ConfigMap, ``podCIDRs`` of all nodes;
   services: ServiceCIDR objects, kubeadm's ConfigMap;
   nodes: the nodes' internal addresses.

``podCIDRs`` grow with the nodes, and every tunnel that names no ``localSubnets`` grows with them:
who has such a cluster writes the network into the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import yaml

from ipsec_operator.networks import ClusterNetworks, collapse
from ipsec_operator.settings import ClusterSubnets


@dataclass(frozen=True, slots=True)
class Node:
    """What a Node object says about networks."""

    pods: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sources:
    """Networks by where they were found; an empty tuple is "nothing there"."""

    service_cidrs: tuple[str, ...] = ()
    kubeadm_pods: tuple[str, ...] = ()
    kubeadm_services: tuple[str, ...] = ()
    calico: tuple[str, ...] = ()
    cilium: tuple[str, ...] = ()


def node(raw: Mapping[str, Any]) -> Node:
    """Of a Node object."""
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    pods = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    addresses = [
        str(each.get("address"))
        for each in status.get("addresses") or []
        if each.get("type") == "InternalIP"
    ]
    return Node(_networks(pods), _networks(addresses))


def service_cidrs(items: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Of ServiceCIDR objects."""
    found = [c for item in items for c in (item.get("spec") or {}).get("cidrs") or []]
    return _networks(found)


def kubeadm(raw: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(pods, services) of the ConfigMap kube-system/kubeadm-config."""
    text = (raw.get("data") or {}).get("ClusterConfiguration", "")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return (), ()
    networking = config.get("networking") if isinstance(config, dict) else None
    if not isinstance(networking, dict):
        return (), ()
    return _listed(networking.get("podSubnet")), _listed(networking.get("serviceSubnet"))


def calico(items: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Of IPPools that pods get addresses from."""
    specs = [item.get("spec") or {} for item in items]
    return _networks(str(spec.get("cidr")) for spec in specs if not spec.get("disabled"))


def cilium(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the ConfigMap kube-system/cilium-config, where Cilium hands out the addresses."""
    data = raw.get("data") or {}
    if not str(data.get("ipam", "")).startswith("cluster-pool"):
        return ()
    keys = ("cluster-pool-ipv4-cidr", "cluster-pool-ipv6-cidr")
    return tuple(n for key in keys for n in _listed(str(data.get(key, "")).replace(" ", ",")))


def decide(values: ClusterSubnets, sources: Sources, nodes: Mapping[str, Node]) -> ClusterNetworks:
    """The networks of the cluster."""
    pods, pods_from = _first(
        (values.pods, "values"),
        (sources.calico, "Calico's IPPools"),
        (sources.cilium, "cilium-config"),
        (sources.kubeadm_pods, "kubeadm-config"),
        (tuple(p for _, each in sorted(nodes.items()) for p in each.pods), "nodes' podCIDRs"),
    )
    services, services_from = _first(
        (values.services, "values"),
        (sources.service_cidrs, "ServiceCIDRs"),
        (sources.kubeadm_services, "kubeadm-config"),
    )
    addresses, _ = _first(
        (values.nodes, "values"),
        (tuple(a for _, each in sorted(nodes.items()) for a in each.addresses), "nodes"),
    )
    return ClusterNetworks(
        pods=collapse(pods),
        services=collapse(services),
        nodes=collapse(addresses),
        origin=f"pods: {pods_from}; services: {services_from}",
    )


def _first(*choices: tuple[tuple[str, ...], str]) -> tuple[tuple[str, ...], str]:
    return next((choice for choice in choices if choice[0]), ((), "nothing"))


def _listed(text: object) -> tuple[str, ...]:
    return _networks(part.strip() for part in str(text or "").split(",") if part.strip())


def _networks(texts: Iterable[object]) -> tuple[str, ...]:
    """In canonical form; what is no network is left out."""
    found: list[str] = []
    for text in texts:
        try:
            found.append(str(ip_network(str(text), strict=False)))
        except ValueError:
            continue
    return tuple(dict.fromkeys(found))
