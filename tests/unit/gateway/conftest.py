"""Documents for the tests of the gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from ipsec_api.documents import Documents, parse
from ipsec_ike.events import IkeSaUp
from ipsec_ike.inputs import Endpoint

Document = dict[str, Any]


class Make:
    """Documents and events in a few words."""

    @staticmethod
    def ike_up(**change: Any) -> IkeSaUp:
        """The IKE SA of peer hq is there."""
        said: dict[str, Any] = {
            "peer": "default/hq",
            "local": Endpoint("192.0.2.1", 500),
            "remote": Endpoint("203.0.113.9", 500),
            "initiator": True,
            "spi_i": b"i" * 8,
            "spi_r": b"r" * 8,
            "suite": "AES",
            "local_id": "a",
            "remote_id": "b",
            "nat_local": False,
            "nat_remote": False,
        }
        return IkeSaUp(**said | change)

    @staticmethod
    def secret(name: str = "psk", psk: str = "correct horse battery staple") -> Document:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "stringData": {"psk": psk},
        }

    @staticmethod
    def peer(name: str = "hq", address: str = "203.0.113.9", **spec: Any) -> Document:
        defaults = {
            "address": address,
            "authentication": {"method": "preSharedKey", "secretRef": {"name": "psk"}},
            "localSubnets": ["10.1.0.0/16"],
            "remoteSubnets": ["10.2.0.0/16"],
        }
        merged = {k: v for k, v in {**defaults, **spec}.items() if v is not None}
        return {
            "apiVersion": "kubeipsec.dev/v1alpha1",
            "kind": "IPsecPeer",
            "metadata": {"name": name},
            "spec": merged,
        }

    @staticmethod
    def policy(name: str, peer: str | None = "hq", **spec: Any) -> Document:
        if peer is not None:
            spec["peerRef"] = {"name": peer}
        return {
            "apiVersion": "kubeipsec.dev/v1alpha1",
            "kind": "IPsecPolicy",
            "metadata": {"name": name},
            "spec": spec,
        }

    @staticmethod
    def files(**files: list[Document] | str) -> dict[str, Documents]:
        """Parsed files; a text is taken as it is."""
        return {
            f"{name}.yaml": parse(
                each if isinstance(each, str) else yaml.safe_dump_all(each), file=f"{name}.yaml"
            )
            for name, each in files.items()
        }


@pytest.fixture
def make() -> type[Make]:
    return Make


@pytest.fixture
def clock() -> Callable[[], str]:
    """Wall-clock time that moves by a second with every look."""
    ticks = iter(range(10_000))
    return lambda: f"2026-01-01T{(t := next(ticks)) // 3600:02}:{t // 60 % 60:02}:{t % 60:02}Z"
