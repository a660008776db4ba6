"""A node that sends clear text as fast as it can while its gateway changes the table.

    node 10.1.0.1 ---- far          everything to 10.2.0.0/16 is protected, and there is no SA

What arrives at ``far`` has passed the guard.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ipsec_gateway.intent import Intent
from ipsec_gateway.steering import Steering
from ipsec_lab.netns import Namespace, end_process
from ipsec_lab.steering_rig import spec

_FLOOD = """
import contextlib, socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("10.1.0.1", 0))
while True:
    with contextlib.suppress(PermissionError):
        sender.sendto(b"clear text", ("10.2.0.1", 9))
"""
_COUNTED = """
table inet arrived {
  counter clear { }
  chain in { type filter hook prerouting priority 0; ip daddr 10.2.0.0/16 counter name "clear"; }
}
"""
#: The same to the flood; from one to the other only the extent of an element differs.
_REMOTES = ("10.2.0.0/24", "10.2.0.0/23", "10.2.0.0/25")


@dataclass(frozen=True)
class Flooded:
    """``dropped`` is the guard's counter after each change, ``arrived`` what passed in all."""

    arrived: int
    dropped: tuple[int, ...]
    #: What the table has in the end.
    sets: tuple[str, ...]


def flooded(changes: int) -> Flooded:
    """Rules, elements and gateways come and go ``changes`` times. Raises LabError and ToolError."""
    node, far = Namespace("node"), Namespace("far")
    try:
        node.ip(
            f"link add out type veth peer name eth0 netns {far.name}",
            "link set lo up",
            "link set out up",
            "addr add 10.1.0.1/32 dev lo",
            "route add 10.2.0.0/16 dev out",
            "neigh add 10.2.0.1 lladdr 02:00:00:00:00:01 dev out",
        )
        far.ip("link set eth0 address 02:00:00:00:00:01 up")
        far.nft(_COUNTED)
        dropped = tuple(_changed(node, changes))
        (arrived,) = (
            each["counter"]["packets"] for each in far.nft_list("counters") if "counter" in each
        )
        names = (each["set"]["name"] for each in node.nft_list("sets", "inet") if "set" in each)
        return Flooded(arrived, dropped, tuple(names))
    finally:
        node.delete()
        far.delete()


def _changed(node: Namespace, changes: int) -> Iterator[int]:
    steering = Steering(None)

    async def guard(remote: str, mtu: int) -> None:
        intent = Intent(policies=(spec("10.1.0.0/16", remote),))
        await steering.guard(intent, live=frozenset(), mtu=mtu)

    def put(remote: str, mtu: int) -> None:
        node.call(lambda: asyncio.run(guard(remote, mtu)))

    def dropped() -> int:
        return node.call(lambda: asyncio.run(steering.counters()))["unencrypted_out"].packets

    put(_REMOTES[0], 1400)
    with _sending(node):
        while not dropped():
            time.sleep(0.05)
        for number in range(changes):
            if number % 10 == 0:
                steering = Steering(None)  # killed, and the next one finds what there is
            remote, mtu = _REMOTES[number % len(_REMOTES)], 1400 - number // 2
            put(remote, mtu)
            yield dropped()


@contextlib.contextmanager
def _sending(node: Namespace) -> Iterator[None]:
    """Somebody listens to changes of tables meanwhile: the kernel tells him of each rule after it
    is in force and before new elements are, which makes that moment longer."""
    listener = node.popen(["nft", "monitor"], stdout=subprocess.DEVNULL)
    sender = node.popen([sys.executable, "-c", _FLOOD])
    try:
        yield
    finally:
        end_process(sender)
        end_process(listener)
