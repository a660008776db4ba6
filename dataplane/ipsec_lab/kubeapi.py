"""An API server in memory, for tests of what talks to one: kmock with the state of a real one.

kmock does discovery, errors and HTTP. What it does not have is here: resourceVersions and watches
that go on from one, generation, uid, label and field selectors, pages, server-side apply with one
set of fields per manager, a status that is a subresource, conflicts. It is no judge of schemas, CEL
and RBAC: those need a real control plane (``tests/kube``). ``calls`` has every request, for tests
that compare them with the rights that a chart grants.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import kmock
from aiohttp import web

Object = dict[str, Any]
ResourceKey = tuple[str, str]

#: group, plural, kind, namespaced.
RESOURCES: Final = (
    ("kubeipsec.dev", "ipsecpeers", "IPsecPeer", True),
    ("kubeipsec.dev", "ipsecpolicies", "IPsecPolicy", True),
    ("kubeipsec.dev", "modeconfigs", "ModeConfig", True),
    ("", "secrets", "Secret", True),
    ("", "configmaps", "ConfigMap", True),
    ("", "events", "Event", True),
    ("", "nodes", "Node", False),
    ("", "namespaces", "Namespace", False),
    ("apiextensions.k8s.io", "customresourcedefinitions", "CustomResourceDefinition", False),
    ("apps", "daemonsets", "DaemonSet", True),
    ("coordination.k8s.io", "leases", "Lease", True),
    ("networking.k8s.io", "servicecidrs", "ServiceCIDR", False),
)
_VERSIONS: Final = {"kubeipsec.dev": "v1alpha1"}


@dataclass(frozen=True, slots=True)
class Call:
    """One request: the verb as RBAC has it, and what it was about."""

    verb: str
    group: str
    plural: str
    namespace: str | None
    name: str | None = None
    part: str = ""
    manager: str = ""

    @property
    def writes(self) -> bool:
        """Whether it changes anything."""
        return self.verb not in ("get", "list", "watch")


@dataclass(slots=True)
class _Held:
    item: Object
    #: What each manager has applied, by (manager, subresource).
    applied: dict[tuple[str, str], Object] = field(default_factory=dict)


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class ApiServer(kmock.KubernetesEmulator):
    """State and watches; enter it with ``serving``."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.calls: list[Call] = []
        #: Says which status a call fails with, or None; called with each.
        self.refuse: Callable[[Call], int | None] = lambda _: None
        self._held: dict[tuple[ResourceKey, str | None, str], _Held] = {}
        self._version = 1000
        self._history: list[tuple[int, str, ResourceKey, Object]] = []
        self._forgotten = 0
        self._news = asyncio.Condition()
        self._cut = 0
        self._stopped = False
        self._pending: set[asyncio.Task[None]] = set()
        for group, plural, kind, namespaced in RESOURCES:
            version = _VERSIONS.get(group, "v1")
            self.resources[kmock.resource(group, version, plural)] = kmock.ResourceInfo(
                kind=kind,
                singular=kind.lower(),
                namespaced=namespaced,
                verbs={"get", "list", "watch", "create", "update", "patch", "delete"},
                subresources={"status"},
            )

    # -- for tests

    def add(self, item: Object) -> Object:
        """Create an object, or give it another spec or data, as ``kubectl apply`` would."""
        group = item["apiVersion"].rpartition("/")[0]
        plural = next(p for g, p, kind, _ in RESOURCES if (g, kind) == (group, item["kind"]))
        metadata = item["metadata"]
        key = ((group, plural), metadata.get("namespace"), metadata["name"])
        held = self._held.get(key)
        if held is None:
            return self._create(key, item)
        fresh = copy.deepcopy(held.item)
        for part in item.keys() - {"metadata", "status"}:
            fresh[part] = copy.deepcopy(item[part])
        for part in ("labels", "annotations"):
            if part in metadata:
                fresh["metadata"][part] = copy.deepcopy(metadata[part])
        return self._store(key, held, fresh)

    def all(self, plural: str) -> list[Object]:
        """Objects of a kind, as they are."""
        return [h.item for (res, _, _), h in self._held.items() if res[1] == plural]

    def one(self, plural: str, namespace: str | None, name: str) -> Object:
        """One object. Raises KeyError."""
        for (res, ns, n), held in self._held.items():
            if (res[1], ns, n) == (plural, namespace, name):
                return held.item
        raise KeyError(name)

    def set_status(self, plural: str, namespace: str, name: str, status: Object) -> None:
        """Merge into the status, as a gateway's server-side apply would."""
        group = next(g for g, p, _, _ in RESOURCES if p == plural)
        key = ((group, plural), namespace, name)
        held = self._held[key]
        fresh = copy.deepcopy(held.item)
        fresh["status"] = _merged(fresh.get("status") or {}, status)
        self._store(key, held, fresh)

    def remove(self, plural: str, namespace: str | None, name: str) -> None:
        """Delete an object."""
        for key in list(self._held):
            if (key[0][1], key[1], key[2]) == (plural, namespace, name):
                self._delete(key)

    def forget(self) -> None:
        """Watches from versions up to now are too old (410)."""
        self._forgotten = self._version
        self._history.clear()

    def cut(self) -> None:
        """End all watches that are open."""
        self._cut += 1
        self._wake()

    def writes(self) -> list[Call]:
        """Calls that change something, but for Leases."""
        return [c for c in self.calls if c.writes and c.plural != "leases"]

    # -- requests

    async def _handle(self, request: kmock.Request) -> web.StreamResponse:
        resource = request.resource
        known = {(g, p) for g, p, _, _ in RESOURCES}
        if resource is None or (resource.group, resource.plural) not in known:
            return await super()._handle(request)
        call = _call(request)
        self.calls.append(call)
        try:
            status = self.refuse(call)
            if status is not None:
                raise _Refused(status, "Refused")
            key = ((call.group, call.plural), call.namespace, call.name or "")
            match call.verb:
                case "watch":
                    return await self._watch(request, call)
                case "list":
                    found = self._list(request, call)
                case "get":
                    found = self._get(key).item
                case "create":
                    name = request.data["metadata"]["name"]
                    found = self._create((key[0], key[1], name), request.data)
                case "delete":
                    found = self._delete(key)
                case "update":
                    found = self._update(key, request.data)
                case _:
                    found = self._patch(key, request, call)
        except _Refused as exc:
            error = {"kind": "Status", "code": exc.status, "reason": exc.reason}
            return web.json_response(error, status=exc.status)
        return web.json_response(found)

    def _get(self, key: tuple[ResourceKey, str | None, str]) -> _Held:
        held = self._held.get(key)
        if held is None:
            raise _Refused(404, "NotFound")
        return held

    def _create(self, key: tuple[ResourceKey, str | None, str], item: Mapping[str, Any]) -> Object:
        if key in self._held:
            raise _Refused(409, "AlreadyExists")
        fresh = copy.deepcopy(dict(item))
        kind, version = next(
            (k, _VERSIONS.get(g, "v1")) for g, p, k, _ in RESOURCES if (g, p) == key[0]
        )
        fresh |= {"kind": kind, "apiVersion": f"{key[0][0]}/{version}".lstrip("/")}
        if key[0][0] == "kubeipsec.dev":
            fresh.pop("status", None)
        metadata = fresh["metadata"] = dict(fresh.get("metadata") or {}) | {"name": key[2]}
        if key[1] is not None:
            metadata["namespace"] = key[1]
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        metadata["generation"] = 1
        self._held[key] = _Held(fresh)
        return self._announce("ADDED", key, fresh)

    def _store(
        self, key: tuple[ResourceKey, str | None, str], held: _Held, fresh: Object
    ) -> Object:
        if fresh == held.item:
            return fresh
        metadata = fresh["metadata"]
        if _content(fresh) != _content(held.item):
            metadata["generation"] = metadata.get("generation", 0) + 1
        held.item = fresh
        return self._announce("MODIFIED", key, fresh)

    def _update(self, key: tuple[ResourceKey, str | None, str], item: Object) -> Object:
        held = self._get(key)
        fresh = copy.deepcopy(item)
        own = ("uid", "creationTimestamp", "generation", "resourceVersion")
        fresh["metadata"] |= {name: held.item["metadata"][name] for name in own}
        return self._store(key, held, fresh)

    def _delete(self, key: tuple[ResourceKey, str | None, str]) -> Object:
        item = copy.deepcopy(self._get(key).item)
        del self._held[key]
        return self._announce("DELETED", key, item)

    def _patch(
        self, key: tuple[ResourceKey, str | None, str], request: kmock.Request, call: Call
    ) -> Object:
        body = request.data if isinstance(request.data, dict) else json.loads(request.body)
        applies = "apply-patch" in request.headers.get("Content-Type", "")
        held = self._held.get(key)
        if held is None:
            if not applies or call.part:
                raise _Refused(404, "NotFound")
            self._create(key, body)
            held = self._held[key]
            held.applied[call.manager, ""] = body
            return held.item
        wanted = (body.get("metadata") or {}).get("resourceVersion")
        if wanted is not None and wanted != held.item["metadata"]["resourceVersion"]:
            raise _Refused(409, "Conflict")
        fresh = copy.deepcopy(held.item)
        change = _part(body, call)
        if applies:
            owner = call.manager, call.part
            before = _part(held.applied.get(owner, {}), call)
            others = [_part(b, call) for o, b in held.applied.items() if o != owner]
            _strip(fresh, before, change, others)
            held.applied[owner] = body
        return self._store(key, held, _merged(fresh, change))

    def _list(self, request: kmock.Request, call: Call) -> Object:
        found = [
            held.item
            for key, held in sorted(
                self._held.items(), key=lambda pair: (pair[0][1] or "", pair[0][2])
            )
            if key[0] == (call.group, call.plural) and _matches(request, call, held.item)
        ]
        limit = int(request.params.get("limit") or 0) or len(found) or 1
        start = int(request.params.get("continue") or 0)
        metadata = {"resourceVersion": str(self._version)}
        if start + limit < len(found):
            metadata["continue"] = str(start + limit)
        # As a real one: the items do not say what they are.
        items = [
            {k: v for k, v in item.items() if k not in ("kind", "apiVersion")}
            for item in found[start : start + limit]
        ]
        return {"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}

    async def _watch(self, request: kmock.Request, call: Call) -> web.StreamResponse:
        since = int(request.params.get("resourceVersion") or self._version)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        assert request._raw_request is not None
        await response.prepare(request._raw_request)
        if since < self._forgotten:
            await _send(response, "ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
            return response
        cut = self._cut
        while cut == self._cut and not self._stopped:
            for version, kind, resource, item in self._since(since):
                since = version
                if resource == (call.group, call.plural) and _matches(request, call, item):
                    await _send(response, kind, item)
            async with self._news:
                if not self._since(since) and cut == self._cut:
                    await self._news.wait()
        return response

    def _since(self, version: int) -> list[tuple[int, str, ResourceKey, Object]]:
        # Versions have no gaps.
        return self._history[max(0, version - self._version + len(self._history)) :]

    def _announce(
        self, kind: str, key: tuple[ResourceKey, str | None, str], item: Object
    ) -> Object:
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        self._history.append((self._version, kind, key[0], copy.deepcopy(item)))
        self._wake()
        return item

    def _wake(self) -> None:
        async def wake() -> None:
            async with self._news:
                self._news.notify_all()

        task = asyncio.ensure_future(wake())
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[ApiServer, str]]:
    """An API server and its URL."""
    handler = ApiServer()
    async with handler, kmock.Server(handler) as server:
        try:
            yield handler, str(server.url).rstrip("/")
        finally:
            handler._stopped = True
            handler.cut()
            await asyncio.sleep(0)


def _call(request: kmock.Request) -> Call:
    resource = request.resource
    assert resource is not None
    verbs = {"GET": "get" if request.name else "list", "POST": "create", "PUT": "update"}
    verb = verbs.get(request.method.value, request.method.value.lower())
    if request.params.get("watch") in ("true", "1"):
        verb = "watch"
    return Call(
        verb=verb,
        group=str(resource.group or ""),
        plural=str(resource.plural),
        namespace=request.namespace,
        name=request.name,
        part=request.subresource or "",
        manager=request.params.get("fieldManager", ""),
    )


async def _send(response: web.StreamResponse, kind: str, item: Object) -> None:
    await response.write(json.dumps({"type": kind, "object": item}).encode() + b"\n")


def _content(item: Object) -> Object:
    return {k: v for k, v in item.items() if k not in ("metadata", "status")}


def _part(body: Object, call: Call) -> Object:
    """What a request to this path may change."""
    if call.part == "status":
        return {"status": body["status"]} if "status" in body else {}
    kept = {k: v for k, v in body.items() if k not in ("apiVersion", "kind", "metadata")}
    if call.group == "kubeipsec.dev":
        kept.pop("status", None)
    metadata = body.get("metadata") or {}
    kept["metadata"] = {k: v for k, v in metadata.items() if k in ("labels", "annotations")}
    return kept


def _matches(request: kmock.Request, call: Call, item: Object) -> bool:
    metadata = item["metadata"]
    if call.namespace is not None and metadata.get("namespace") != call.namespace:
        return False
    labels = metadata.get("labels") or {}
    for term in filter(None, request.params.get("labelSelector", "").split(",")):
        name, _, value = term.partition("=")
        if labels.get(name) != value:
            return False
    for term in filter(None, request.params.get("fieldSelector", "").split(",")):
        found = re.fullmatch(r"([\w.]+)(!=|==|=)(.*)", term)
        assert found is not None, term
        there: Any = item
        for step in found[1].split("."):
            there = (there or {}).get(step)
        if ((there or "") == found[3]) == (found[2] == "!="):
            return False
    return True


def _merged(old: Any, new: Any) -> Any:
    """``new`` over ``old``; lists of conditions by their type, null removes."""
    if isinstance(old, dict) and isinstance(new, dict):
        result = dict(old)
        for name, value in new.items():
            if value is None:
                result.pop(name, None)
            elif name == "conditions":
                kept = {c["type"]: c for c in old.get(name) or []}
                kept |= {c["type"]: {**kept.get(c["type"], {}), **c} for c in value}
                result[name] = list(kept.values())
            else:
                result[name] = _merged(old.get(name), value)
        return result
    return copy.deepcopy(new)


def _strip(item: Any, before: Any, now: Any, others: list[Any]) -> None:
    """Remove what a manager had applied, does not any more, and nobody else has."""
    if not isinstance(item, dict) or not isinstance(before, dict):
        return
    for name, value in before.items():
        theirs = [o[name] for o in others if isinstance(o, dict) and name in o]
        if isinstance(now, dict) and name in now:
            _strip(item.get(name), value, now[name], theirs)
        elif not theirs:
            item.pop(name, None)
