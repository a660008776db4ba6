"""A gateway between a LAN and a WAN whose kernel encrypts, with SAs that were set by hand.

    lan 10.1.0.2 ---- 10.1.0.1 gw 192.0.2.1 ==== 192.0.2.2 wan 10.2.0.9, 10.3.0.9 (clear text)
        fd00:1::2              |  2001:db8::1         fd00:2::9

``wan`` is the peer and has the remote addresses itself. It decrypts, and would take clear text too:
what the tests look at is what it sees. Needs a kernel with ESP and XFRM.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from ipsec_gateway.intent import Intent
from ipsec_gateway.ipsec.base import PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.nat import Translation, wire_selectors
from ipsec_gateway.steering import Steering, local_addresses
from ipsec_lab.netns import LabError, Namespace
from ipsec_lab.steering_rig import gateway_between

T = TypeVar("T")

_KEY: Final = "0x" + "5a" * 20
_PROBE: Final = "xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 1 mode tunnel"
_ENDS: Final = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}


@dataclass
class SpdRig:
    """The three namespaces and the gateway's steering."""

    lan: Namespace
    gw: Namespace
    wan: Namespace
    steering: Steering

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in ``gw``."""
        return self.gw.call(lambda: asyncio.run(work()))

    def apply(
        self,
        intent: Intent,
        measured: dict[int, tuple[Any, ...]] | None = None,
        *,
        settle: bool = True,
    ) -> None:
        """The steering for an intent."""

        async def work() -> None:
            await self.steering.guard(intent, live=frozenset(), mtu=1390, measured=measured)
            await self.steering.route(intent, await local_addresses(None))
            await self.steering.prune()
            if settle:
                await self.steering.settle(intent)

        self.run(work)

    def counter(self, name: str) -> int:
        """Packets of a named counter of the table."""
        return self.run(self.steering.counters)[name].packets

    def secure(
        self,
        local: str,
        remote: str,
        *,
        spi: int = 0x1001,
        version: int = 4,
        marked: bool = True,
    ) -> None:
        """SAs and policies between these networks, at both ends; ``version`` is the outer one.
        ``marked``: those of the gateway have the mark that ours gives to its SAs."""
        a, b = _ENDS[version]
        ours = " output-mark 0x40 mask 0x40" if marked else ""
        for ns, mark in ((self.gw, ours), (self.wan, "")):
            for src, dst, number in ((a, b, spi), (b, a, spi + 1)):
                own = mark if src == a else ""
                ns.run(
                    *f"ip xfrm state add src {src} dst {dst} proto esp spi {number}".split(),
                    *f"reqid {spi} mode tunnel".split(),
                    *f"aead rfc4106(gcm(aes)) {_KEY} 128{own}".split(),
                )
        self.policies(local, remote, reqid=spi, version=version)

    def policies(self, local: str, remote: str, *, reqid: int, version: int = 4) -> None:
        """The policies alone."""
        a, b = _ENDS[version]
        for ns, ours, theirs, src, dst in (
            (self.gw, local, remote, a, b),
            (self.wan, remote, local, b, a),
        ):
            end = f"proto esp reqid {reqid} mode tunnel"
            ns.ip(
                f"xfrm policy add src {ours} dst {theirs} dir out tmpl src {src} dst {dst} {end}",
                f"xfrm policy add src {theirs} dst {ours} dir in tmpl {end}",
                f"xfrm policy add src {theirs} dst {ours} dir fwd tmpl {end}",
            )

    def flush(self) -> None:
        """No policy and no SA any more at the gateway: the kernel on its own sends clear text."""
        self.gw.ip("xfrm policy flush", "xfrm state flush")


def intent_of(*policies: PolicySpec) -> Intent:
    """The intent of these outbound policies, all to the peer of the rig."""
    return Intent(
        policies=policies,
        pairs=tuple((p.id.source.networks[0], p.id.destination.networks[0]) for p in policies),
        ends={
            n: _ENDS[ipaddress.ip_network(n).version][1]
            for p in policies
            for n in p.id.destination.networks
        },
    )


def intent_mapped(*translations: Translation) -> Intent:
    """The intent of translated pairs, to the peer of the rig."""
    ids = [PolicyId(PolicyDirection.OUT, *wire_selectors(each)) for each in translations]
    return Intent(
        policies=tuple(
            PolicySpec(id=each, action=PolicyAction.ENCRYPT, priority=n, reqid=7)
            for n, each in enumerate(dict.fromkeys(ids), start=1)
        ),
        translations=translations,
        translated=frozenset(ids),
        ends={t.wire_remote: _ENDS[t.wire_remote.version][1] for t in translations},
    )


def lacking() -> str | None:
    """What this kernel lacks for the rig, or None."""
    ns = Namespace("probe")
    try:
        ns.ip(f"{_PROBE} aead rfc4106(gcm(aes)) {_KEY} 128")
    except LabError as exc:
        return f"no ESP in this kernel: {exc}"
    finally:
        ns.delete()
    return None


@contextlib.contextmanager
def spd_rig() -> Iterator[SpdRig]:
    """Everything of the picture above, and nothing left of it afterwards."""
    with gateway_between() as (lan, gw, wan):
        yield SpdRig(lan, gw, wan, Steering(None))
