"""Tunnel Secrets are followed: good ones, bad ones, and an API server that comes and goes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from ipsec_api.cluster import SOURCE_ANNOTATION, TUNNEL_KEY, tunnel_secret_name
from ipsec_api.tunnel import TunnelConfig
from ipsec_gateway.cluster.api import Access, Api
from ipsec_gateway.cluster.backoff import FIRST, LONGEST, Backoff
from ipsec_gateway.cluster.source import BadSecret, TunnelSource, tunnel_of
from ipsec_gateway.lastgood import InForce
from ipsec_lab.apistub import SECRETS, KubeApi

Make = Callable[..., TunnelConfig]
MakeSecret = Callable[[TunnelConfig], dict[str, Any]]


def where(name: str) -> str:
    return f"{SECRETS}/{tunnel_secret_name('default', name)}"


@asynccontextmanager
async def following(
    server: KubeApi, **options: Any
) -> AsyncIterator[tuple[TunnelSource, Callable[..., Coroutine[Any, Any, InForce]]]]:
    """A source, and a function that waits until what is in force is as wanted."""
    api = Api(Access(server.url, None, dict))
    source = TunnelSource(api, "kube-ipsec", settle=0.01, rng=lambda: 0.01, **options)
    source.released.set()
    async with aclosing(source.snapshots()) as snapshots:
        queue: asyncio.Queue[InForce] = asyncio.Queue()

        async def pump() -> None:
            async for each in snapshots:
                queue.put_nowait(each)

        task = asyncio.create_task(pump())

        async def until(check: Callable[[InForce], bool]) -> InForce:
            async with asyncio.timeout(20):
                while not check(latest := await queue.get()):
                    pass
            return latest

        try:
            yield source, until
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await api.close()


def names(*wanted: str) -> Callable[[InForce], bool]:
    return lambda f: {t.source.name for t in f.tunnels} == set(wanted)


def run(story: Callable[[KubeApi], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        server = KubeApi()
        await server.open()
        try:
            await story(server)
        finally:
            await server.close()

    asyncio.run(whole())


def test_secrets_come_change_and_go(tunnel: Make, secret: MakeSecret) -> None:
    async def story(server: KubeApi) -> None:
        await server.put(where("a"), secret(tunnel("a")))
        await server.put(f"{SECRETS}/other", {"type": "Opaque", "data": {}})
        async with following(server) as (_, until):
            await until(names("a"))
            await server.put(where("b"), secret(tunnel("b")))
            await until(names("a", "b"))
            await server.put(where("b"), secret(tunnel("b", port=4711)))
            found = await until(lambda f: any(t.port == 4711 for t in f.tunnels))
            assert not found.errors
            await server.delete(where("a"))
            await until(names("b"))
            assert server.calls == {"list secrets": 1, "watch secrets": 1}

    run(story)


def test_a_bad_secret_stops_no_other_and_keeps_its_last_version(
    tunnel: Make, secret: MakeSecret
) -> None:
    async def story(server: KubeApi) -> None:
        await server.put(where("a"), secret(tunnel("a")))
        await server.put(where("bad"), {**secret(tunnel("bad")), "data": {}})
        async with following(server) as (_, until):
            found = await until(names("a"))
            (error,) = found.errors
            assert where("bad").rsplit("/", 1)[1] in str(error)
            assert "ignored" in str(error)
            broken = secret(tunnel("a"))
            broken["data"] = {TUNNEL_KEY: base64.b64encode(b"{}").decode()}
            await server.put(where("a"), broken)
            found = await until(lambda f: len(f.errors) == 2)
            assert found.tunnels == (tunnel("a"),)
            assert "last good version" in " ".join(map(str, found.errors))
            await server.put(where("a"), secret(tunnel("a", port=1)))
            await server.put(where("bad"), secret(tunnel("bad")))
            found = await until(names("a", "bad"))
            assert not found.errors

    run(story)


def test_streams_that_break_are_resumed_without_a_list(tunnel: Make, secret: MakeSecret) -> None:
    async def story(server: KubeApi) -> None:
        async with following(server) as (_, until):
            await until(names())
            for name in "abc":
                server.break_streams()
                await server.put(where(name), secret(tunnel(name)))
            await until(names("a", "b", "c"))
            assert server.calls["list secrets"] == 1
            assert server.calls["watch secrets"] > 1

    run(story)


def test_an_outage_takes_nothing_and_afterwards_it_goes_on(
    tunnel: Make, secret: MakeSecret
) -> None:
    async def story(server: KubeApi) -> None:
        await server.put(where("a"), secret(tunnel("a")))
        async with following(server) as (source, until):
            await until(names("a"))
            await server.close()
            await server.put(where("b"), secret(tunnel("b")))
            await asyncio.sleep(1.0)
            assert source.tunnels == (tunnel("a"),)
            await server.reopen()
            await until(names("a", "b"))
            assert server.calls["list secrets"] == 1

    run(story)


def test_a_version_that_is_too_old_means_a_new_list(tunnel: Make, secret: MakeSecret) -> None:
    async def story(server: KubeApi) -> None:
        await server.put(where("a"), secret(tunnel("a")))
        async with following(server) as (_, until):
            await until(names("a"))
            await server.close()
            await server.delete(where("a"))
            await server.put(where("b"), secret(tunnel("b")))
            server.compact()
            await server.reopen()
            await until(names("b"))
            assert server.calls["list secrets"] == 2

    run(story)


def test_what_an_earlier_life_knew_holds_until_the_first_list(
    tunnel: Make, secret: MakeSecret
) -> None:
    async def story(server: KubeApi) -> None:
        await server.close()
        texts: list[set[str]] = []
        known = {tunnel_secret_name("default", n): tunnel(n).to_json().encode() for n in "ab"}
        known["tunnel-of-another-release"] = b"{}"
        async with following(server, known=known, on_tunnels=lambda t: texts.append(set(t))) as (
            _,
            until,
        ):
            await until(names("a", "b"))
            await server.put(where("b"), secret(tunnel("b")))
            await server.reopen()
            await until(names("b"))
            assert texts[-1] == {tunnel_secret_name("default", "b")}

    run(story)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"type": "Opaque"}, "type"),
        ({"data": None}, "base64"),
        ({"data": {TUNNEL_KEY: "%%%"}}, "base64"),
        ({"data": {TUNNEL_KEY: base64.b64encode(b"{}").decode()}}, "digest"),
        (
            {"data": {TUNNEL_KEY: base64.b64encode(b"{}").decode()}, "metadata": {}},
            "this release",
        ),
        ({"metadata": {"annotations": {SOURCE_ANNOTATION: "x/y"}}}, "another peer"),
    ],
)
def test_what_is_no_tunnel_is_told_without_its_contents(
    change: dict[str, Any], why: str, tunnel: Make, secret: MakeSecret
) -> None:
    with pytest.raises(BadSecret, match=why) as told:
        tunnel_of({**secret(tunnel()), **change})
    assert "secret of the tunnel" not in str(told.value)


def test_waits_grow_and_have_jitter() -> None:
    low, high = Backoff(lambda: 0.0), Backoff(lambda: 1.0)
    lows, highs = [low.wait() for _ in range(10)], [high.wait() for _ in range(10)]
    assert highs[0] == FIRST
    assert highs[-1] == LONGEST
    assert all(a == b / 2 for a, b in zip(lows, highs, strict=True))
    assert high.wait(99.0) == 99.0
    high.reset()
    assert high.wait() == FIRST
