"""TunnelConfigs and the Secrets that they are rendered into. Pure.

A Secret is found again by its name, which comes from the peer's, and judged by the digest of what
is in it. Nothing in here shows a key in a ``repr``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretBytes, ValidationError

from ipsec_api.cluster import (
    DIGEST_ANNOTATION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    SOURCE_ANNOTATION,
    TUNNEL_KEY,
    TUNNEL_LABEL,
    TUNNEL_SECRET_TYPE,
    digest,
    tunnel_annotations,
    tunnel_secret_name,
)
from ipsec_api.tunnel import TunnelConfig, TunnelSelector
from ipsec_operator.graph import Key

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel as text, which is small: there may be thousands. The keys are in it."""

    name: str
    unit: Key
    digest: str
    text: SecretBytes = field(repr=False)
    annotations: Mapping[str, str] = field(default_factory=dict)
    #: The resourceVersion of the Secret that it was read from.
    version: str = ""

    def config(self) -> TunnelConfig | None:
        """None where it cannot be read, such as after a downgrade."""
        try:
            return TunnelConfig.from_json(self.text.get_secret_value())
        except (ValidationError, ValueError):
            return None

    def selectors(self) -> frozenset[TunnelSelector]:
        """The traffic that gateways take by it; what is routed is not taken from anybody."""
        config = self.config()
        if config is None:
            return frozenset()
        return frozenset(s for p in config.policies if p.interface is None for s in p.selectors)


def render(config: TunnelConfig) -> Tunnel:
    """What goes into the Secret of a tunnel."""
    source, text = config.source, config.to_json()
    annotations = tunnel_annotations(config, text)
    return Tunnel(
        name=tunnel_secret_name(source.namespace, source.name),
        unit=Key(source.kind, source.namespace, source.name),
        digest=annotations[DIGEST_ANNOTATION],
        text=SecretBytes(text.encode()),
        annotations=annotations,
    )


def manifest(tunnel: Tunnel, namespace: str, labels: Mapping[str, str]) -> Manifest:
    """The Secret, all of it."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": TUNNEL_SECRET_TYPE,
        "metadata": {
            "name": tunnel.name,
            "namespace": namespace,
            "labels": {**labels, TUNNEL_LABEL: "true", MANAGED_BY_LABEL: MANAGED_BY},
            "annotations": dict(tunnel.annotations),
        },
        "data": {TUNNEL_KEY: base64.b64encode(tunnel.text.get_secret_value()).decode()},
    }


def read(raw: Mapping[str, Any]) -> Tunnel:
    """What a tunnel Secret in the cluster says.

    The digest is computed from the data, and is empty where the annotation does not agree: what
    somebody has changed by hand differs from what is wanted, and is written anew.
    """
    metadata = raw.get("metadata") or {}
    annotations = metadata.get("annotations") or {}
    try:
        text = base64.b64decode((raw.get("data") or {}).get(TUNNEL_KEY, ""), validate=True)
    except (ValueError, TypeError, binascii.Error):
        text = b""
    secret = str(metadata.get("name", ""))
    namespace, _, name = str(annotations.get(SOURCE_ANNOTATION, "")).partition("/")
    unit = Key("IPsecPeer", namespace, name)
    if secret != tunnel_secret_name(namespace, name):
        # A copy, or one whose annotation somebody has taken away: nobody's.
        unit = Key("Nobody", "", secret)
    found = digest(text)
    return Tunnel(
        name=secret,
        unit=unit,
        digest=found if annotations.get(DIGEST_ANNOTATION) == found else "",
        text=SecretBytes(text),
        version=str(metadata.get("resourceVersion", "")),
    )
