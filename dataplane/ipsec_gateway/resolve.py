"""Facts about this node that an intent needs: names resolved, and the way to each address.

A name that resolved once and does not now keeps its addresses: a DNS server that is down takes no
tunnel with it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from ipsec_api.tunnel import TunnelConfig
from ipsec_gateway.classify import Address
from ipsec_gateway.facts import Facts
from ipsec_gateway.marks import DEFAULT, Numbers
from ipsec_gateway.outermarks import outer_marks
from ipsec_gateway.udp import bypass

#: Seconds after which a name is resolved again, and after which one that failed is.
REFRESH: Final = 60.0
RETRY: Final = 5.0
#: Seconds that facts wait for names; a slow DNS server must not hold up other tunnels.
GRACE: Final = 1.0

Lookup = Callable[[str], tuple[str, ...]]


class Resolver:
    """Keeps the facts. ``on_change`` is called when a name that took its time has new addresses.

    ``lookup`` (which may block, and raises OSError) and ``source_of`` are replaced in tests.
    """

    def __init__(
        self,
        on_change: Callable[[], None],
        *,
        lookup: Lookup | None = None,
        source_of: Callable[[str, int], str | None] | None = None,
        numbers: Numbers = DEFAULT,
    ) -> None:
        self._on_change: Final = on_change
        self._lookup: Final = lookup or _getaddrinfo
        self._source_of: Final = source_of or source_address
        self._numbers: Final = numbers
        self._resolved: dict[str, tuple[str, ...]] = {}
        self._due: dict[str, float] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._doubted: set[str] = set()

    async def facts(
        self,
        tunnels: Iterable[TunnelConfig],
        addresses: tuple[Address, ...],
        now: float,
        live: Mapping[str, str] | None = None,
    ) -> Facts:
        """Facts for these tunnels, as they are known after a short wait. ``live`` has the address
        at which each peer is now."""
        tunnels = tuple(tunnels)
        names = {n for t in tunnels for n in (*t.addresses, *t.remote_networks)}
        texts = {n: str(a) for n in names if (a := _address(n)) is not None}
        wanted = {n for n in names if n not in texts and not _is_network(n)}
        for gone in self._due.keys() - wanted:
            del self._due[gone]
            self._resolved.pop(gone, None)
        for name in self._doubted & self._due.keys():
            # Not more often than a name that does not resolve.
            if self._due[name] > now + RETRY:
                self._due[name] = max(now, self._due[name] - REFRESH + RETRY)
        self._doubted.clear()
        for name in wanted:
            if self._due.get(name, now) <= now and name not in self._running:
                self._due[name] = now + RETRY
                self._running[name] = asyncio.create_task(self._resolve(name))
        fresh = [task for n, task in self._running.items() if n not in self._resolved]
        if fresh:
            await asyncio.wait(fresh, timeout=GRACE)
        resolved = {n: self._resolved[n] for n in wanted if n in self._resolved}
        resolved.update({n: (text,) for n, text in texts.items()})
        remotes = {a for n in names for a in resolved.get(n, ())}
        marks = outer_marks(tunnels, resolved, live or {}, self._numbers)
        sources = {
            a: s
            for a in remotes
            if (s := self._source_of(a, marks.of(a) or self._numbers.bypass)) is not None
        }
        return Facts(
            addresses=addresses,
            resolved=resolved,
            sources=sources,
            live=live or {},
            numbers=self._numbers,
        )

    @property
    def busy(self) -> bool:
        """Whether a look-up is under way."""
        return bool(self._running)

    def doubt(self, names: Iterable[str]) -> None:
        """Who answers to these names no longer does: they may have other addresses now."""
        self._doubted.update(names)

    def hurry(self) -> None:
        """Look every name up again at the next opportunity."""
        self._due.clear()

    async def close(self) -> None:
        """Give up on look-ups that are under way."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _resolve(self, name: str) -> None:
        try:
            found = await asyncio.to_thread(self._lookup, name)
        except (OSError, UnicodeError):
            # The status says so, and it is tried again soon.
            found = ()
        finally:
            self._running.pop(name, None)
        if name not in self._due or not found:
            return
        self._due[name] += REFRESH - RETRY
        if set(found) != set(self._resolved.get(name, ())):
            self._resolved[name] = found
            self._on_change()


def source_address(destination: str, mark: int = DEFAULT.bypass) -> str | None:
    """The address that the routing table would send from with this mark, or None without a route.

    Connecting a UDP socket sends nothing.
    """
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            bypass(probe, mark)
            probe.connect((destination, 500))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _getaddrinfo(name: str) -> tuple[str, ...]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    return tuple(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True
