"""A watch in which nothing happens: the server has nothing to say, and not always bookmarks."""

import asyncio
import logging

import pytest

from ipsec_gateway.cluster.api import Access, Api
from ipsec_gateway.cluster.reflector import Reflector
from ipsec_lab.apistub import SECRETS, KubeApi


def test_a_watch_in_which_nothing_happens_is_opened_anew_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[str] = []
    contacts: list[int] = []

    async def run() -> None:
        server = KubeApi()
        await server.open()
        api = Api(Access(server.url, None, dict))
        reflector = Reflector(
            api,
            SECRETS,
            what="Secrets",
            on_list=lambda _: None,
            on_object=lambda name, _: seen.append(name),
            on_contact=lambda: contacts.append(reflector.watches),
            silence=0.05,
            # What has to wait for another attempt never gets it.
            rng=lambda: 1e9,
        )
        task = asyncio.create_task(reflector.run())
        try:
            async with asyncio.timeout(20):
                while reflector.watches < 4:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.01)
                await server.put(f"{SECRETS}/one", {"metadata": {"name": "one"}})
                while not seen:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.01)
            assert reflector.lists == 1
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await api.close()
            await server.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert seen == ["one"]
    # Each new stream is a sign of life.
    assert set(contacts) >= {1, 2, 3}
    assert not caplog.records
