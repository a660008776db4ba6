"""Tunnels, Secrets and a stand-in for the API server."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretBytes

from ipsec_api.cluster import TUNNEL_KEY, TUNNEL_LABEL, TUNNEL_SECRET_TYPE, tunnel_annotations
from ipsec_api.tunnel import (
    ObjectRef,
    TunnelConfig,
    TunnelIdentity,
    TunnelPolicy,
    TunnelProposal,
    TunnelSelector,
)


@pytest.fixture
def tunnel() -> Callable[..., TunnelConfig]:
    """A tunnel of the peer ``default/NAME``; fields by name."""

    def make(name: str = "hq", **change: Any) -> TunnelConfig:
        ref = ObjectRef(kind="IPsecPeer", namespace="default", name=name, uid="u1", generation=3)
        return TunnelConfig(
            source=ref,
            **{
                "addresses": ("203.0.113.9",),
                "ike_proposals": (
                    TunnelProposal(encryption=("aes128-gcm",), prf=("sha256",), groups=("x25519",)),
                ),
                "identities": (
                    TunnelIdentity(name="default", psk=SecretBytes(b"secret of the tunnel")),
                ),
                "policies": (
                    TunnelPolicy(
                        source=ref,
                        priority=1,
                        selectors=(TunnelSelector(src="10.1.0.0/16", dst="10.2.0.0/16"),),
                        proposals=(TunnelProposal(encryption=("aes128-gcm",)),),
                    ),
                ),
                **change,
            },
        )

    return make


@pytest.fixture
def secret() -> Callable[[TunnelConfig], dict[str, Any]]:
    """The Secret that the operator renders."""

    def make(tunnel: TunnelConfig) -> dict[str, Any]:
        text = tunnel.to_json()
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": TUNNEL_SECRET_TYPE,
            "metadata": {
                "labels": {TUNNEL_LABEL: "true"},
                "annotations": dict(tunnel_annotations(tunnel, text)),
            },
            "data": {TUNNEL_KEY: base64.b64encode(text.encode()).decode()},
        }

    return make


@pytest.fixture
def unused_port() -> int:
    """A TCP port that nobody uses at the addresses of these tests."""
    with socket.socket() as probe:
        probe.bind(("127.0.11.1", 0))
        return int(probe.getsockname()[1])
