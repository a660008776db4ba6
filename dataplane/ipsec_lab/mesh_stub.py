"""A gateway's mesh stream without a gateway: ``python -m ipsec_lab.mesh_stub NAME PORT KEYFILE``.

Each row of JSON on its standard input replaces what it says: ``{"owned": {"ns/peer": ["CIDR"]},
"draining": false, "gives_up": [], "use": []}``; ``null`` for owned leaves it unsaid. It prints a
row when it serves, and one for every change that is on its way. It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from ipsec_gateway.cluster import meshline


class Stub:
    """One gateway's stream."""

    def __init__(self, name: str, key: bytes) -> None:
        self._name = name
        self._key = key
        self._incarnation = os.urandom(8).hex()
        self._seq = 0
        self._said: dict[str, Any] = {"owned": {}}
        self._taken: dict[str, float] = {}
        self._changed = asyncio.Event()

    def say(self, document: dict[str, Any]) -> None:
        """From now on."""
        now = asyncio.get_running_loop().time()
        owned = document.get("owned") or {}
        self._taken = {peer: self._taken.get(peer, now) for peer in owned}
        self._said = document
        self._changed.set()
        self._changed = asyncio.Event()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """``GET /mesh``."""
        nonce = meshline.request_nonce(self._key, request.headers)
        if nonce is None:
            return web.Response(status=403)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        digest = None
        while True:
            changed = self._changed
            line = self._line(digest)
            digest = line.digest
            try:
                await response.write(meshline.encode(line, self._key, nonce))
            except ConnectionError:
                # Whoever listened has gone.
                return response
            try:
                await asyncio.wait_for(changed.wait(), 1.0)
            except TimeoutError:
                continue

    def _line(self, digest: str | None) -> meshline.Line:
        self._seq += 1
        said, now = self._said, asyncio.get_running_loop().time()
        owned = said.get("owned")
        plain = None if owned is None else {p: tuple(subnets) for p, subnets in owned.items()}
        new = "-" if plain is None else meshline.digest_of(plain)
        return meshline.Line(
            gateway=self._name,
            incarnation=self._incarnation,
            seq=self._seq,
            draining=bool(said.get("draining")),
            gives_up=frozenset(said.get("gives_up", ())),
            digest=new,
            owned=None if new == digest else plain,
            ages={peer: now - since for peer, since in self._taken.items()},
            use=frozenset(said.get("use", ())),
        )


async def main(name: str, port: int, key: bytes) -> None:
    """Serve until standard input ends."""
    stub = Stub(name, key)
    app = web.Application()
    app.add_routes([web.get(meshline.PATH, stub.stream)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    for host in ("0.0.0.0", "::"):  # noqa: S104 - in a namespace of its own
        await web.TCPSite(runner, host, port).start()
    print("up", flush=True)
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while row := await reader.readline():
        stub.say(json.loads(row))
        print("said", flush=True)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).read_bytes()))
