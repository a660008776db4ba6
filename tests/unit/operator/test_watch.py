"""List and watch, where the server is silent, and where it is away."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from ipsec_operator.api import SECRETS, ApiError, Object
from ipsec_operator.watch import Watch


class Server:
    """Answers each watch with the next of ``answers``: a list of events, or what is raised after
    it was opened; then it waits for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.lists = 0
        self.versions: list[str] = []
        self.now = 0.0
        self.done = asyncio.Event()

    async def list(self, *_: Any, **__: Any) -> tuple[list[Object], str]:
        self.lists += 1
        return [], "7"

    async def watch(
        self, _: Any, __: Any, version: str, **___: Any
    ) -> AsyncGenerator[Object, None]:
        self.versions.append(version)
        self.now += 100
        yield {"type": "OPENED"}
        if not self.answers:
            self.done.set()
            await asyncio.Event().wait()
        match self.answers.pop(0):
            case list() as events:
                for event in events:
                    yield event
            case error:
                raise error


class Sink:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def replace(self, items: Any) -> None:
        self.seen.append(f"{len(items)} listed")

    def put(self, item: Object) -> None:
        self.seen.append(item["metadata"]["name"])

    def drop(self, item: Object) -> None:
        self.seen.append(f"{item['metadata']['name']} gone")


def follow(*answers: Any, check: Callable[[Server, Sink, Watch], None]) -> None:
    async def run() -> None:
        server, sink = Server(*answers), Sink()
        api: Any = server
        watch = Watch(api, SECRETS, "default", sink, lambda: server.now)
        task = asyncio.ensure_future(watch.run())
        try:
            await server.done.wait()
            check(server, sink, watch)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def event(kind: str, name: str, version: str) -> Object:
    return {"type": kind, "object": {"metadata": {"name": name, "resourceVersion": version}}}


def test_silence_is_no_fault(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing changes it is opened anew, from where it was, and that is a sign of life."""

    def check(server: Server, sink: Sink, watch: Watch) -> None:
        assert server.lists == 1
        assert server.versions == ["7", "7", "7", "8"]
        assert sink.seen == ["0 listed", "one"]
        assert watch.heard == server.now == 400

    monkeypatch.setattr("ipsec_operator.watch._FIRST", 1e9)
    with caplog.at_level(logging.INFO):
        follow(TimeoutError(), TimeoutError(), [event("ADDED", "one", "8")], check=check)
    assert not caplog.records


def test_a_server_that_is_away_is_asked_again_for_what_came_since(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(server: Server, sink: Sink, _: Watch) -> None:
        assert server.lists == 1
        assert server.versions == ["7", "9", "9"]
        assert sink.seen == ["0 listed", "one gone"]

    monkeypatch.setattr("ipsec_operator.watch._FIRST", 0.01)
    follow([event("DELETED", "one", "9")], ApiError(0, "refused"), check=check)
    assert "refused" in caplog.text
