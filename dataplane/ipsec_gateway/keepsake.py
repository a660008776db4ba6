"""The documents that are in force, for the next life of the gateway.

A document that has become bad keeps its last good version in force (``lastgood``), and a restart in
between must not take that tunnel down: the next life begins with what this one knew. Where it is
written, Secrets may be (``resumefile``).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from ipsec_api.documents import Document, Documents, InvalidObject, parse_object
from ipsec_api.kinds import API_VERSION
from ipsec_api.snapshot import Secret

_FORMAT: Final = "kube-ipsec documents 1"


def dump(files: Mapping[str, Iterable[Document]]) -> bytes:
    """Documents by the name of their file. Holds the data of Secrets."""
    found = {name: [_plain(item) for item in items] for name, items in files.items()}
    return json.dumps([_FORMAT, found], separators=(",", ":")).encode()


def load(data: bytes) -> dict[str, Documents]:
    """The reverse. What this version does not accept, or cannot read, is left out."""
    try:
        form, files = json.loads(data)
        if form != _FORMAT:
            return {}
        return {str(name): Documents(tuple(_objects(items))) for name, items in files.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _objects(items: Iterable[Mapping[str, Any]]) -> Iterable[Document]:
    for item in items:
        try:
            yield parse_object(item)
        except InvalidObject:
            continue  # it would be bad in its file, too


def _plain(item: Document) -> dict[str, Any]:
    meta = asdict(item.metadata)
    meta["creationTimestamp"] = meta.pop("creation_timestamp")
    plain: dict[str, Any] = {"kind": type(item).__name__, "metadata": meta}
    if isinstance(item, Secret):
        data = {key: base64.b64encode(value).decode() for key, value in item.data.items()}
        return {"apiVersion": "v1", **plain, "data": data}
    spec = item.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return {"apiVersion": API_VERSION, **plain, "spec": spec}
