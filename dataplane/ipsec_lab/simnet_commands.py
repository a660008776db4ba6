"""What is done to the gateways while the network is bad: one function for each command.

A command takes the world and the node it is given to, and returns what the trace says about it.
Those in ``ROUGH`` may end SAs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ipsec_ike.inputs import Endpoint, Expire, UnknownSpi
from ipsec_lab.simnet_profile import changed
from ipsec_lab.simnet_world import Node, World, text

Command = Callable[[World, Node], str]


def _spi(world: World, node: Node) -> int | None:
    inbound = sorted(node.dataplane.inbound)
    return world.rng.choice(inbound) if inbound else None


def rekey_child(world: World, node: Node) -> str:
    spi = _spi(world, node)
    if spi is None:
        return "(none)"
    node.engine.rekey_child(spi, node.now)
    return f"{spi:08x}"


def rekey_ike(world: World, node: Node) -> str:
    node.engine.rekey_ike(node.config.name, node.now)
    return ""


def rekey_both(world: World, node: Node) -> str:
    """Both ends at (nearly) the same time: the collisions of RFC 7296 2.8 and 2.25."""
    other = node.other
    first, second = world.rng.choice(
        (
            (rekey_ike, rekey_ike),
            (rekey_child, rekey_child),
            (rekey_ike, rekey_child),
            (rekey_child, rekey_ike),
        )
    )

    def later() -> None:
        world.say(other.name, f"! and {second.__name__} {second(world, other)}")
        other.drain()

    world.at(world.now + world.rng.choice((0.0, 0.001, 0.1)), later)
    return f"{first.__name__} {first(world, node)}"


def soft_expire(world: World, node: Node) -> str:
    spi = _spi(world, node)
    if spi is None:
        return "(none)"
    node.engine.expire(Expire(node.dataplane.inbound[spi].id, hard=False), node.now)
    return f"{spi:08x}"


def hard_expire(world: World, node: Node) -> str:
    spi = _spi(world, node)
    if spi is None:
        return "(none)"
    world.release()
    node.engine.expire(Expire(node.dataplane.inbound[spi].id, hard=True), node.now)
    return f"{spi:08x}"


def replay(world: World, node: Node) -> str:
    """An old packet arrives once more."""
    if not world.recent:
        return "(none)"
    packet = replace(world.rng.choice(world.recent), promised=False)
    world.deliver(packet)
    return text(packet)


def garble(world: World, node: Node) -> str:
    """An old IKE message arrives with a few octets changed."""
    old = [p for p in world.recent if p.data]
    if not old:
        return "(none)"
    packet = world.rng.choice(old)
    data = bytearray(packet.data)
    for _ in range(world.rng.randint(1, 3)):
        data[world.rng.randrange(len(data))] ^= 1 << world.rng.randrange(8)
    world.deliver(replace(packet, data=bytes(data)))
    return text(packet)


def reconfigure_same(world: World, node: Node) -> str:
    """The same configuration again changes nothing."""
    node.configure(node.config)
    return ""


def rebind(world: World, node: Node) -> str:
    assert world.nat is not None
    world.nat.rebind()
    return "NAT"


def terminate(world: World, node: Node) -> str:
    world.release()
    node.engine.terminate(node.config.name, node.now)
    return ""


def initiate(world: World, node: Node) -> str:
    node.engine.initiate(node.config.name, node.now)
    return ""


def reconfigure(world: World, node: Node) -> str:
    world.release()
    node.configure(changed(node.config, world.rng))
    return ""


def restart(world: World, node: Node) -> str:
    world.release()
    node.boot()
    node.configure(node.config)
    return ""


def part(world: World, node: Node) -> str:
    world.parted = True
    pause = world.rng.choice((2.0, 10.0, 60.0))

    def join() -> None:
        world.parted = False

    world.at(world.now + pause, join)
    return f"for {pause} s"


def jump(world: World, node: Node) -> str:
    """Its clock leaps forward, as after a suspended machine resumes."""
    world.release()
    leap = world.rng.choice((1.0, 20.0, 400.0, 5000.0))
    node.offset += leap
    return f"{leap} s"


def junk_spi(world: World, node: Node) -> str:
    source = Endpoint(node.other.address, 4500)
    spi = world.rng.randrange(256, 2**32)
    node.engine.unknown_spi(UnknownSpi(spi, source), node.now)
    return f"{spi:08x}"


#: Commands that must not interrupt anything.
GENTLE: Final[tuple[Command, ...]] = (
    rekey_child,
    rekey_child,
    rekey_ike,
    rekey_both,
    rekey_both,
    soft_expire,
    replay,
    garble,
    reconfigure_same,
)
#: For networks with a NAT.
NATTED: Final[tuple[Command, ...]] = (rebind, rebind)
#: Commands that end something, or cut the two ends off from each other.
ROUGH: Final[tuple[Command, ...]] = (
    terminate,
    initiate,
    hard_expire,
    reconfigure,
    restart,
    part,
    jump,
    junk_spi,
)
