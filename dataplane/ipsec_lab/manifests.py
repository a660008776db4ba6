"""The resources of a site as documents, and a folder of them as ``kubectl apply`` would take it."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from ipsec_lab.topology import Site

#: A Kubernetes document; values are whatever YAML can hold.
Document = dict[str, Any]

API_VERSION: Final = "kubeipsec.dev/v1alpha1"


def secret(name: str, psk: bytes) -> Document:
    """A Secret with the key ``psk``."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "Opaque",
        "data": {"psk": base64.b64encode(psk).decode()},
    }


def peer(name: str, *, address: str | None, psk_from: str, **spec: Any) -> Document:
    """An IPsecPeer with the pre-shared key of Secret ``psk_from``; ``spec`` in camelCase."""
    body: Document = {"authentication": {"method": "preSharedKey", "secretRef": {"name": psk_from}}}
    if address is not None:
        body["address"] = address
    return {
        "apiVersion": API_VERSION,
        "kind": "IPsecPeer",
        "metadata": {"name": name},
        "spec": body | spec,
    }


def policy(
    name: str, *, peer_name: str, selectors: Sequence[tuple[str, str]], **spec: Any
) -> Document:
    """An IPsecPolicy; ``selectors`` are pairs of local and remote network."""
    body: Document = {
        "peerRef": {"name": peer_name},
        "selectors": [{"src": src, "dst": dst} for src, dst in selectors],
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "IPsecPolicy",
        "metadata": {"name": name},
        "spec": body | spec,
    }


def pairs(local: Site, remote: Site) -> list[tuple[str, str]]:
    """Every LAN of one site with every LAN of the other, one IP version at a time."""
    return [(a, b) for a in local.lans for b in remote.lans if (":" in a) == (":" in b)]


def file_name(document: Document) -> str:
    """Such as ``ipsecpeer-west.yaml``."""
    return f"{document['kind'].lower()}-{document['metadata']['name']}.yaml"


def write(directory: Path, *documents: Document) -> None:
    """Write each document into a file of its own, atomically; Secrets are for the owner only."""
    for document in documents:
        target = directory / file_name(document)
        fresh = directory / f".{target.name}.new"
        fresh.touch(mode=0o600)
        fresh.write_text(yaml.safe_dump(document, sort_keys=False))
        os.replace(fresh, target)


def remove(directory: Path, *documents: Document) -> None:
    """Remove the files of these documents."""
    for document in documents:
        (directory / file_name(document)).unlink(missing_ok=True)
