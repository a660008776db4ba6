"""The Kubernetes API as the operator uses it: plain JSON over the ``kubernetes`` client's HTTP.

Typed models of the client are not used: what is read is judged by our own models, and a field that
the client does not know would be lost. Every call has a time limit. The body of an answer to a
request about Secrets is in no error and no log.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote
from urllib.request import getproxies

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

log = logging.getLogger("ipsec_operator")

Object = dict[str, Any]

#: Seconds that one call may take.
TIMEOUT: Final = 30.0
#: Objects in one answer to a list.
PAGE: Final = 500
#: Seconds of silence after which a watch is opened anew. It need not be dead: where nothing
#: changes, bookmarks come only if etcd reports progress, which not every etcd is set up for.
SILENCE: Final = 90.0
#: Seconds after which the server ends a watch.
WATCH: Final = 600
_NOT_FOUND, _CONFLICT, _GONE = 404, 409, 410


class ApiError(Exception):
    """A call failed. ``status`` is that of HTTP; 0: there was no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NotFound(ApiError):
    """There is no such object, or no such kind."""


class Conflict(ApiError):
    """Somebody else was faster."""


class Gone(ApiError):
    """The watch is too old: list anew."""


class NoCluster(Exception):
    """Neither a service account nor a kubeconfig."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of objects: where it is in the API."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str = "", part: str = "") -> str:
        """The path of all objects, of those in a namespace, or of one."""
        parts = ["api", self.version] if not self.group else ["apis", self.group, self.version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        parts += [quote(p, safe="") for p in (name, part) if p]
        return "/" + "/".join(parts)

    def __str__(self) -> str:
        return self.plural


SECRETS: Final = Resource("", "v1", "secrets")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps")
EVENTS: Final = Resource("", "v1", "events")
NODES: Final = Resource("", "v1", "nodes", namespaced=False)
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases")
DAEMON_SETS: Final = Resource("apps", "v1", "daemonsets")
SERVICE_CIDRS: Final = Resource("networking.k8s.io", "v1", "servicecidrs", namespaced=False)
IP_POOLS: Final = Resource("crd.projectcalico.org", "v1", "ippools", namespaced=False)


async def configuration() -> Configuration:
    """That of the pod's service account, or else of the kubeconfig. Raises NoCluster."""
    config = Configuration()
    try:
        load_incluster_config(config)  # type: ignore[no-untyped-call]  # it has no types
    except ConfigException:
        try:
            await load_kube_config(  # type: ignore[no-untyped-call]  # it has no types
                client_configuration=config
            )
        except (ConfigException, OSError) as exc:
            raise NoCluster(f"no cluster: run it in a pod, or set KUBECONFIG ({exc})") from None
    return config


class Api:
    """Calls; ``async with`` closes the connections."""

    def __init__(self, config: Configuration) -> None:
        # Without a limit: each watch holds a connection, and there are a few for each namespace.
        config.connection_pool_maxsize = 0
        # Without a proxy there is nothing to look up in the environment, which takes the client two
        # trips through a thread for each call.
        config.client_session_kwargs = {"trust_env": bool(getproxies())}
        self._client = ApiClient(config)
        #: Calls by verb, for the metrics.
        self.calls: dict[str, int] = {}

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]  # it has no types

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """One object. Raises NotFound, ApiError."""
        return await self._call("get", "GET", resource.path(namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None = None, **selectors: str
    ) -> tuple[list[Object], str]:
        """All objects, page by page, and the version of the list. Raises ApiError.

        ``selectors``: labelSelector, fieldSelector.
        """
        items: list[Object] = []
        query = {**selectors, "limit": str(PAGE)}
        while True:
            found = await self._call("list", "GET", resource.path(namespace), query)
            metadata = found.get("metadata") or {}
            for item in found.get("items") or []:
                # Most of an object's memory, and nobody here reads it.
                (item.get("metadata") or {}).pop("managedFields", None)
                items.append(item)
            following = metadata.get("continue")
            if not following:
                return items, str(metadata.get("resourceVersion") or "")
            query["continue"] = following

    async def watch(
        self, resource: Resource, namespace: str | None, version: str, **selectors: str
    ) -> AsyncGenerator[Object, None]:
        """Events since ``version`` until the server ends the stream, after one of the type OPENED
        that says that the server has answered.

        Raises Gone, ApiError; TimeoutError where nothing came for SILENCE seconds.
        """
        query = {
            **selectors,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH),
        }
        limit = aiohttp.ClientTimeout(total=WATCH + SILENCE, sock_connect=TIMEOUT)
        self._count("watch")
        response = await self._send("GET", resource.path(namespace), query, timeout=limit)
        try:
            yield {"type": "OPENED"}
            async for line in _lines(response.response):
                event = json.loads(line)
                if event.get("type") == "ERROR":
                    status = event.get("object") or {}
                    code = int(status.get("code") or 0)
                    kind = Gone if code == _GONE else ApiError
                    raise kind(code, f"watch of {resource}: {status.get('reason', 'error')}")
                yield event
        finally:
            response.response.close()

    async def create(
        self, resource: Resource, namespace: str | None, body: Object, *, manager: str = ""
    ) -> Object:
        """A new object. Its fields are the manager's, but not by server-side apply: what ``apply``
        leaves out later stays, ``replace`` takes it away. Raises Conflict, ApiError."""
        query = {"fieldManager": manager} if manager else None
        return await self._call("create", "POST", resource.path(namespace), query, body)

    async def replace(self, resource: Resource, body: Object, *, manager: str) -> Object:
        """The whole object is this from now on, whoever had a part of it. Raises NotFound,
        ApiError."""
        metadata = body["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"])
        return await self._call("update", "PUT", path, {"fieldManager": manager}, body)

    async def apply(
        self, resource: Resource, body: Object, *, manager: str, part: str = ""
    ) -> Object:
        """Server-side apply: these fields are the manager's, and have these values."""
        metadata = body["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"], part)
        # What we write has no unknown fields. To look for them the server would read it twice.
        query = {"fieldManager": manager, "force": "true", "fieldValidation": "Ignore"}
        kind = "application/apply-patch+yaml"
        return await self._call("apply", "PATCH", path, query, body, kind)

    async def patch(
        self, resource: Resource, namespace: str | None, name: str, body: Object
    ) -> Object:
        """Merge patch. With metadata.resourceVersion in it: raises Conflict if that has passed."""
        path, kind = resource.path(namespace, name), "application/merge-patch+json"
        return await self._call("patch", "PATCH", path, body=body, kind=kind)

    async def delete(self, resource: Resource, namespace: str | None, name: str) -> None:
        """Delete an object, if it is there. Raises ApiError."""
        try:
            await self._call("delete", "DELETE", resource.path(namespace, name))
        except NotFound:
            return

    async def _call(
        self,
        verb: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        kind: str = "application/json",
    ) -> Object:
        self._count(verb)
        limit = aiohttp.ClientTimeout(total=TIMEOUT)
        response = await self._send(method, path, query, body, kind, limit)
        try:
            text = await response.read()
            found = json.loads(text) if text else {}
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            raise ApiError(0, f"{method} {path}: {type(exc).__name__}") from None
        return found if isinstance(found, dict) else {}

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        kind: str = "application/json",
        timeout: aiohttp.ClientTimeout | None = None,  # noqa: ASYNC109 - passed on to the client
    ) -> Any:
        try:
            request = await self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", "Content-Type": kind},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._client.call_api(*request, _request_timeout=timeout)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise ApiError(0, f"{method} {path}: {type(exc).__name__}: {exc}") from None
        except ApiException as exc:
            raise ApiError(exc.status or 0, f"{method} {path}: {exc.reason}") from None
        status = response.status
        if 200 <= status < 300:
            return response
        message = f"{method} {path}: {status} {await _reason(response)}"
        kinds = {_NOT_FOUND: NotFound, _CONFLICT: Conflict, _GONE: Gone}
        raise kinds.get(status, ApiError)(status, message)

    def _count(self, verb: str) -> None:
        self.calls[verb] = self.calls.get(verb, 0) + 1


async def _reason(response: Any) -> str:
    """The reason in the API server's words, without its message, which may quote the object."""
    try:
        status = json.loads(await response.read())
        return str(status.get("reason") or "")
    except (aiohttp.ClientError, TimeoutError, ValueError, AttributeError):
        return str(response.reason or "")


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of a stream, however long they are. Raises TimeoutError after SILENCE seconds."""
    rest = b""
    while True:
        try:
            async with asyncio.timeout(SILENCE):
                chunk = await response.content.readany()
        except aiohttp.ClientError as exc:
            raise ApiError(0, f"watch: {type(exc).__name__}") from None
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
