"""Resources as users write them, with one thing changed at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from ipsec_api import compile as compiler
from ipsec_api.compile import CompileResult
from ipsec_api.documents import collect
from ipsec_api.tunnel import TunnelConfig
from ipsec_lab.crd_cases import SECRET, resource


@pytest.fixture
def secret_text() -> str:
    return SECRET


@pytest.fixture
def make() -> Callable[..., dict[str, Any]]:
    """make(kind, name, **changes of the spec) gives an object as ``kubectl`` would take it."""

    return resource


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
