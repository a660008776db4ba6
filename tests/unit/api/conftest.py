"""Resources as users write them, with one thing changed at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from ipsec_api import compile as compiler
from ipsec_api.compile import CompileResult
from ipsec_api.documents import collect
from ipsec_api.tunnel import TunnelConfig

#: A value that must show up nowhere.
SECRET = "correct-horse-battery-staple"

BASE: dict[str, dict[str, Any]] = {
    "IPsecPeer": {
        "address": "203.0.113.9",
        "authentication": {"method": "preSharedKey", "secretRef": {"name": "hq-psk"}},
        "remoteSubnets": ["10.20.0.0/16"],
        "localSubnets": ["10.1.0.0/24"],
    },
    "IPsecPolicy": {
        "peerRef": {"name": "hq"},
        "selectors": [{"src": "10.1.0.0/24", "dst": "10.30.0.0/16"}],
    },
    "ModeConfig": {"responder": True, "address": "192.168.77.9"},
}


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` over ``base``; None takes a field away. Objects are replaced, not merged."""
    result = {**copy.deepcopy(base), **changes}
    return {k: v for k, v in result.items() if v is not None}


@pytest.fixture
def secret_text() -> str:
    return SECRET


@pytest.fixture
def make() -> Callable[..., dict[str, Any]]:
    """make(kind, name, **changes of the spec) gives an object as ``kubectl`` would take it."""

    def build(kind: str, name: str = "hq", /, **changes: Any) -> dict[str, Any]:
        if kind == "Secret":
            return {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name},
                "stringData": changes or {"psk": SECRET},
            }
        return {
            "apiVersion": "kubeipsec.dev/v1alpha1",
            "kind": kind,
            "metadata": {"name": name},
            "spec": _merge(BASE[kind], changes),
        }

    return build


@pytest.fixture
def compiled() -> Callable[..., CompileResult]:
    """compiled(*objects) compiles them, by way of YAML that must be without error."""

    def run(*objects: dict[str, Any], **options: Any) -> CompileResult:
        # Through JSON first, so that no two objects share a node (YAML would write an alias).
        text = yaml.safe_dump_all(json.loads(json.dumps(objects)))
        found = collect({"test.yaml": text})
        assert not found.errors, [str(e) for e in found.errors]
        return compiler.compile(found.snapshot, **options)

    return run


@pytest.fixture
def one(
    make: Callable[..., dict[str, Any]], compiled: Callable[..., CompileResult]
) -> Callable[..., TunnelConfig]:
    """The tunnel of one peer with changes, which must be accepted."""

    def run(**changes: Any) -> TunnelConfig:
        result = compiled(make("Secret", "hq-psk"), make("IPsecPeer", **changes))
        assert not result.rejections, [str(r) for r in result.rejections]
        (tunnel,) = result.tunnels
        return tunnel

    return run
