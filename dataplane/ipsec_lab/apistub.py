"""A stand-in for the API server, for tests: objects, lists, watches, server-side apply, outages.

``python -m ipsec_lab.apistub ADDRESS PORT`` serves it in a process of its own, which takes a row of
JSON each and answers with one: ``{"put": PATH, "body": {}}``, ``{"get": PATH}``, ``{"close": 1}``,
``{"reopen": 1}``.

It knows what gateways use and nothing else: no schema, no authentication, and of server-side apply
only that the last writer's fields replace those of the same manager at the top of ``status``,
``spec`` and ``metadata``. A real one is used by ``tests/kube``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiohttp import web

Object = dict[str, Any]


class KubeApi:
    """All state is open to the test. ``url`` is there after ``open``."""

    def __init__(self) -> None:
        #: By path of the object, such as /api/v1/namespaces/ns/secrets/name.
        self.objects: dict[str, Object] = {}
        #: Requests by verb and collection, such as "list secrets".
        self.calls: Counter[str] = Counter()
        #: (path, body) of each apply.
        self.applied: list[tuple[str, Object]] = []
        #: Status code and times that apply fails with.
        self.failing: list[int] = []
        self.url = ""
        self._version = 100
        self._oldest = 0
        self._history: list[tuple[int, str, str, Object]] = []
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._streams: set[asyncio.Task[Any]] = set()
        self._at: tuple[str, int] = ("127.0.0.1", 0)

    async def open(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Begin to serve."""
        self._at = (host, port)
        app = web.Application()
        app.router.add_get("/{path:.*}", self._get)
        app.router.add_patch("/{path:.*}", self._patch)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, reuse_address=True)
        await site.start()
        bound = self._runner.addresses[0]
        self._at = (host, bound[1])
        self.url = f"http://{host}:{bound[1]}"

    async def close(self) -> None:
        """An outage: streams break, connections are refused. ``open(*at)`` ends it."""
        for stream in tuple(self._streams):
            stream.cancel()
        if self._runner is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._runner.cleanup(), 2)
            self._runner = None

    async def reopen(self) -> None:
        """The same address again."""
        await self.open(*self._at)

    async def put(self, path: str, body: Mapping[str, Any]) -> None:
        """Create or replace an object."""
        await self._store(path, json.loads(json.dumps(body)))

    async def delete(self, path: str) -> None:
        """Delete an object."""
        gone = self.objects.pop(path)
        await self._announce("DELETED", path, gone)

    def compact(self) -> None:
        """Forget what happened so far: watches from before get 410."""
        self._oldest = self._version
        self._history.clear()

    def break_streams(self) -> None:
        """End all watches."""
        for stream in tuple(self._streams):
            stream.cancel()

    async def _store(self, path: str, body: Object) -> None:
        body.setdefault("metadata", {})["name"] = path.rsplit("/", 1)[1]
        kind = "MODIFIED" if path in self.objects else "ADDED"
        self.objects[path] = body
        await self._announce(kind, path, body)

    async def _announce(self, kind: str, path: str, body: Object) -> None:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self._history.append((self._version, kind, path, json.loads(json.dumps(body))))
        async with self._changed:
            self._changed.notify_all()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = f"/{request.match_info['path']}"
        what = path.rsplit("/", 1)[1]
        if path in self.objects:
            self.calls[f"get {path.rsplit('/', 2)[1]}"] += 1
            return web.json_response(self.objects[path])
        if path.count("/namespaces/") == 1 and path.rsplit("/", 3)[1] == "namespaces":
            if "watch" in request.query:
                self.calls[f"watch {what}"] += 1
                return await self._watch(request, path)
            self.calls[f"list {what}"] += 1
            items = [o for p, o in sorted(self.objects.items()) if _within(p, path, o, request)]
            return web.json_response(
                {"metadata": {"resourceVersion": str(self._version)}, "items": items}
            )
        return _failure(404, "not found")

    async def _watch(self, request: web.Request, path: str) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            if since < self._oldest:
                gone = {"code": 410, "message": "too old resource version"}
                await _send(response, [{"type": "ERROR", "object": gone}])
                return response
            await _send(response, [{"type": "BOOKMARK", "object": _bookmark(since)}])
            while True:
                events = []
                for version, kind, where, body in self._history:
                    if version > since and _within(where, path, body, request):
                        events.append({"type": kind, "object": body})
                since = self._version
                await _send(response, events)
                async with self._changed:
                    while self._version <= since:
                        await self._changed.wait()
        except (asyncio.CancelledError, ConnectionError):
            return response
        finally:
            self._streams.discard(task)

    async def _patch(self, request: web.Request) -> web.StreamResponse:
        path = f"/{request.match_info['path']}"
        body: Object = json.loads(await request.read())
        status = path.endswith("/status")
        path = path.removesuffix("/status")
        self.calls[f"patch {path.rsplit('/', 2)[1]}{'/status' if status else ''}"] += 1
        if self.failing:
            return _failure(self.failing.pop(0), "this fails")
        there = self.objects.get(path)
        if there is None and status:
            return _failure(404, "not found")
        self.applied.append((path, body))
        merged: Object = {**(there or {}), **body}
        merged["metadata"] = {**(there or {}).get("metadata", {}), **body.get("metadata", {})}
        await self._store(path, merged)
        return web.json_response(merged)


def _bookmark(version: int) -> Object:
    return {"metadata": {"resourceVersion": str(version)}}


async def _send(response: web.StreamResponse, events: Iterable[Object]) -> None:
    for event in events:
        await response.write(json.dumps(event).encode() + b"\n")


def _within(path: str, collection: str, body: Object, request: web.Request) -> bool:
    if path.rsplit("/", 1)[0] != collection:
        return False
    labels = body.get("metadata", {}).get("labels", {})
    selector = request.query.get("labelSelector", "")
    return all(
        labels.get(name) == value
        for name, _, value in (term.partition("=") for term in selector.split(",") if term)
    )


def _failure(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code)


#: Where a test keeps what.
SECRETS: Final = "/api/v1/namespaces/kube-ipsec/secrets"
LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-ipsec/leases"


async def main(host: str, port: int) -> None:
    """Serve, and do what comes in on standard input, until it ends."""
    server = KubeApi()
    await server.open(host, port)
    _say({"up": True})
    while row := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(row)
        answer: object = None
        if "put" in order:
            await server.put(order["put"], order["body"])
        elif "get" in order:
            answer = server.objects.get(order["get"])
        elif "close" in order:
            await server.close()
        elif "reopen" in order:
            await server.reopen()
        _say(answer)
    await server.close()


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
