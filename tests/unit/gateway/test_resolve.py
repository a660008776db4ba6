"""Names and ways: what is known stays known while DNS is away, and nobody waits for the slow."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ipsec_gateway import resolve
from ipsec_gateway.lastgood import LastGood
from ipsec_gateway.resolve import Resolver, source_address


@pytest.fixture
def tunnels(make):
    def made(*addresses: str):
        peers = [
            make.peer(f"p{n}", address, remoteSubnets=[f"10.{n + 10}.0.0/16"])
            for n, address in enumerate(addresses)
        ]
        found = LastGood().take(make.files(a=[make.secret(), *peers]))
        assert not found.rejections
        return found.tunnels

    return made


class Dns:
    """Answers from a table; None fails."""

    def __init__(self, **table: tuple[str, ...] | None) -> None:
        self.table = {name.replace("_", "."): each for name, each in table.items()}
        self.asked: list[str] = []

    def __call__(self, name: str) -> tuple[str, ...]:
        self.asked.append(name)
        found = self.table[name]
        if found is None:
            raise OSError("no")
        return found


def source_of(destination: str, mark: int) -> str | None:
    assert mark == 0x40
    return {"203.0.113.9": "192.0.2.1"}.get(destination)


def test_names_and_addresses(tunnels) -> None:
    async def work() -> None:
        dns = Dns(hq_example=("203.0.113.9",))
        resolver = Resolver(lambda: None, lookup=dns, source_of=source_of)
        facts = await resolver.facts(tunnels("hq.example", "203.0.113.7"), (), 0.0)
        assert facts.resolved["hq.example"] == ("203.0.113.9",)
        assert facts.resolved["203.0.113.7"] == ("203.0.113.7",)
        assert facts.sources == {"203.0.113.9": "192.0.2.1"}

    asyncio.run(work())


def test_a_name_is_asked_again_when_due_and_keeps_its_addresses(tunnels) -> None:
    async def work() -> None:
        changed = asyncio.Event()
        dns = Dns(hq_example=("203.0.113.9",))
        resolver = Resolver(changed.set, lookup=dns, source_of=lambda *_: None)
        wanted = tunnels("hq.example")
        await resolver.facts(wanted, (), 0.0)
        await resolver.facts(wanted, (), resolve.REFRESH - 1)
        assert len(dns.asked) == 1
        dns.table["hq.example"] = None
        facts = await resolver.facts(wanted, (), resolve.REFRESH + 1)
        await asyncio.sleep(0.05)
        assert len(dns.asked) == 2
        assert facts.resolved["hq.example"] == ("203.0.113.9",)
        dns.table["hq.example"] = ("203.0.113.10",)
        changed.clear()
        resolver.hurry()
        await resolver.facts(wanted, (), resolve.REFRESH + 2)
        await asyncio.wait_for(changed.wait(), 5)
        facts = await resolver.facts(wanted, (), resolve.REFRESH + 3)
        assert facts.resolved["hq.example"] == ("203.0.113.10",)

    asyncio.run(work())


def test_a_slow_name_holds_up_nobody(tunnels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "GRACE", 0.02)

    async def work() -> None:
        answer = threading.Event()
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def lookup(name: str) -> tuple[str, ...]:
            if name == "slow.example":
                answer.wait(10)
            return ("203.0.113.9",)

        resolver = Resolver(
            lambda: loop.call_soon(changed.set), lookup=lookup, source_of=lambda *_: None
        )
        facts = await resolver.facts(tunnels("slow.example", "fast.example"), (), 0.0)
        assert "slow.example" not in facts.resolved
        assert "fast.example" in facts.resolved
        changed.clear()
        answer.set()
        await asyncio.wait_for(changed.wait(), 5)
        facts = await resolver.facts(tunnels("slow.example"), (), 1.0)
        assert facts.resolved["slow.example"] == ("203.0.113.9",)
        await resolver.close()

    asyncio.run(work())


def test_the_routing_table_is_asked() -> None:
    assert source_address("127.0.0.9") == "127.0.0.1"
    assert source_address("::1") == "::1"


def test_a_name_whose_peer_is_silent_is_looked_up_soon(tunnels) -> None:
    async def work() -> None:
        dns = Dns(hq_example=("203.0.113.9",), other_example=("203.0.113.7",))
        changed = asyncio.Event()
        resolver = Resolver(changed.set, lookup=dns, source_of=lambda *_: None)
        wanted = tunnels("hq.example", "other.example")
        await resolver.facts(wanted, (), 0.0)
        dns.table["hq.example"] = ("203.0.113.10",)
        dns.asked.clear()
        changed.clear()
        for now in (1.0, 2.0):
            resolver.doubt(["hq.example", "unknown.example"])
            await resolver.facts(wanted, (), now)
            assert not resolver.busy, "it was looked up just now"
        await resolver.facts(wanted, (), 5.0)
        await asyncio.wait_for(changed.wait(), 20)
        await resolver.close()
        assert dns.asked == ["hq.example"], "and only this one"

    asyncio.run(work())
