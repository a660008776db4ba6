"""/healthz, /readyz, /metrics and /status, read only."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Pages:
    """Where the contents come from. ``ready`` gives what is missing, or an empty text."""

    ready: Callable[[], str]
    metrics: Callable[[], Awaitable[bytes]]
    status: Callable[[], Awaitable[dict[str, Any]]]


class HttpServer:
    """One small server. ``open`` raises OSError if the address cannot be bound."""

    def __init__(self, pages: Pages) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/status", self._status),
            ]
        )
        self._pages = pages
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=0.5
        )

    async def open(self, host: str, port: int) -> None:
        """Begin to serve."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()

    async def close(self) -> None:
        """Stop serving."""
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        # That this line runs is the proof: a broken gateway ends itself.
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        missing = self._pages.ready()
        return web.Response(text=f"{missing or 'ok'}\n", status=503 if missing else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        text = await self._pages.metrics()
        return web.Response(
            body=text,
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _status(self, _: web.Request) -> web.Response:
        document = await self._pages.status()
        return web.Response(
            text=json.dumps(document, indent=1) + "\n", content_type="application/json"
        )
