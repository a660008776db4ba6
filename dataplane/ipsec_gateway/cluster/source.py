"""Tunnels from the cluster: the Secrets that the operator renders, followed by label.

A Secret that cannot be read keeps its last good version in force and is named in the log; the
others go on. While the API server is away everything stays as it was last seen.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final

from pydantic import ValidationError

from ipsec_api.cluster import (
    DIGEST_ANNOTATION,
    SOURCE_ANNOTATION,
    TUNNEL_KEY,
    TUNNEL_SECRET_TYPE,
    TUNNEL_SELECTOR,
    digest,
    tunnel_secret_name,
)
from ipsec_api.documents import DocumentError
from ipsec_api.tunnel import TunnelConfig
from ipsec_gateway.cluster.api import Api
from ipsec_gateway.cluster.reflector import Objects, Reflector
from ipsec_gateway.lastgood import InForce

#: Seconds for which changes are collected before they are passed on.
SETTLE: Final = 0.05


class BadSecret(ValueError):
    """A Secret is no rendered tunnel. The text has the cause and no contents."""


def tunnel_of(secret: Mapping[str, Any]) -> tuple[TunnelConfig, bytes]:
    """The tunnel of a Secret, and its JSON. Raises BadSecret."""
    if secret.get("type") != TUNNEL_SECRET_TYPE:
        raise BadSecret(f"is not of type {TUNNEL_SECRET_TYPE}")
    try:
        text = base64.b64decode(secret["data"][TUNNEL_KEY], validate=True)
    except (KeyError, TypeError, binascii.Error, ValueError) as exc:
        raise BadSecret(f"has no {TUNNEL_KEY} in base64") from exc
    annotations = secret.get("metadata", {}).get("annotations") or {}
    if annotations.get(DIGEST_ANNOTATION, digest(text)) != digest(text):
        raise BadSecret("is not what its digest says: it was changed by hand")
    try:
        tunnel = TunnelConfig.from_json(text)
    except ValidationError as exc:
        places = ", ".join(".".join(map(str, e["loc"])) for e in exc.errors()[:3])
        raise BadSecret(
            f"is no tunnel that this release understands ({places}): upgrade the operator and the"
            " gateways to the same release"
        ) from None
    if annotations.get(SOURCE_ANNOTATION, tunnel.key) != tunnel.key:
        raise BadSecret(f"is of another peer than its annotation {SOURCE_ANNOTATION} says")
    return tunnel, text


class TunnelSource:
    """``snapshots`` gives what is in force, first when ``released`` is set.

    ``known``: JSON of tunnels by the name of the Secret, of an earlier life; they are in force
    until the first list. ``held`` has the keys of the peers that are ours (None: all); the others
    are standbys. ``on_tunnels`` is called with all tunnels' JSON whenever they changed.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        *,
        known: Mapping[str, bytes] | None = None,
        held: Callable[[], frozenset[str] | None] = lambda: None,
        on_tunnels: Callable[[Mapping[str, bytes]], None] = lambda _: None,
        on_contact: Callable[[], None] = lambda: None,
        settle: float = SETTLE,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.reflector: Final = Reflector(
            api,
            f"/api/v1/namespaces/{namespace}/secrets",
            what="tunnel Secrets",
            selector=TUNNEL_SELECTOR,
            on_list=self._list,
            on_object=self._object,
            on_contact=on_contact,
            rng=rng,
        )
        self._namespace: Final = namespace
        self._settle: Final = settle
        self._held: Final = held
        self._on_tunnels: Final = on_tunnels
        self._texts: dict[str, bytes] = {}
        self._tunnels: dict[str, TunnelConfig] = {}
        self._faults: dict[str, str] = {}
        self._changed: Final = asyncio.Event()
        #: Set while snapshots may be passed on: who has not joined knows not yet what is its own.
        self.released: Final = asyncio.Event()
        for name, text in (known or {}).items():
            self._keep(name, text)

    @property
    def texts(self) -> Mapping[str, bytes]:
        """JSON of the tunnels by the name of the Secret."""
        return self._texts

    def refresh(self) -> None:
        """Nothing to do: a watch is never behind."""

    def poke(self) -> None:
        """What ``held`` gives has changed."""
        self._changed.set()

    @property
    def tunnels(self) -> tuple[TunnelConfig, ...]:
        """What is known now."""
        return tuple(self._tunnels.values())

    async def snapshots(self) -> AsyncGenerator[InForce, None]:
        """What is in force, again after each change; never ends."""
        follower = asyncio.create_task(self.reflector.run())
        try:
            await self.released.wait()
            while True:
                waiter = asyncio.create_task(self._changed.wait())
                await asyncio.wait({waiter, follower}, return_when=asyncio.FIRST_COMPLETED)
                waiter.cancel()
                if follower.done():
                    follower.result()
                await asyncio.sleep(self._settle)
                self._changed.clear()
                yield self._in_force()
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)

    def _in_force(self) -> InForce:
        errors = tuple(
            DocumentError(
                file=f"Secret {self._namespace}/{name}",
                document=0,
                kind="",
                namespace="",
                name="",
                field="",
                message=f"{fault}; "
                + ("its last good version stays in force" if name in self._tunnels else "ignored"),
            )
            for name, fault in sorted(self._faults.items())
        )
        held = self._held()
        if held is None:
            return InForce(tunnels=self.tunnels, errors=errors)
        return InForce(
            tunnels=tuple(t for t in self.tunnels if t.key in held),
            standby=tuple(t for t in self.tunnels if t.key not in held),
            errors=errors,
        )

    def _list(self, found: Objects) -> None:
        for gone in self._texts.keys() - found.keys():
            self._forget(gone)
        for gone in self._faults.keys() - found.keys():
            self._forget(gone)
        for name, secret in found.items():
            self._take(name, secret)
        self._done()

    def _object(self, name: str, secret: Mapping[str, Any] | None) -> None:
        if secret is None:
            self._forget(name)
        else:
            self._take(name, secret)
        self._done()

    def _done(self) -> None:
        self._on_tunnels(self._texts)
        self._changed.set()

    def _take(self, name: str, secret: Mapping[str, Any]) -> None:
        try:
            tunnel, text = tunnel_of(secret)
            if name != (right := tunnel_secret_name(tunnel.source.namespace, tunnel.source.name)):
                raise BadSecret(f"is of {tunnel.key}, whose Secret is {right}: delete it")
        except BadSecret as exc:
            self._faults[name] = str(exc)
            return
        self._faults.pop(name, None)
        if self._texts.get(name) != text:
            self._tunnels[name], self._texts[name] = tunnel, text

    def _keep(self, name: str, text: bytes) -> None:
        try:
            self._tunnels[name] = TunnelConfig.from_json(text)
        except ValidationError:
            # Of an earlier release; the first list brings what there is now.
            return
        self._texts[name] = text
        self._changed.set()

    def _forget(self, name: str) -> None:
        self._tunnels.pop(name, None)
        self._texts.pop(name, None)
        self._faults.pop(name, None)
