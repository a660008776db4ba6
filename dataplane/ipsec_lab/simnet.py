"""A simulated network of two gateways, by seed: `python -m ipsec_lab.simnet --seed N --trace`.

Two engines with model data planes run over a network that loses, repeats, delays and translates
(``simnet_network``) in virtual time. For a while random commands (``simnet_commands``) are given to
both ends, and promises are checked with everything that happens (``simnet_world``,
``simnet_dataplane``). Then the network heals, time passes, and both ends must have come to one
state (``simnet_check``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from ipsec_lab import simnet_check, simnet_commands
from ipsec_lab.simnet_dataplane import Broken
from ipsec_lab.simnet_network import Weather
from ipsec_lab.simnet_profile import LEFT, RIGHT, draw
from ipsec_lab.simnet_world import Node, Trace, World

#: Virtual seconds until both ends must agree after the network has healed, and how much longer the
#: simulation waits for a moment in which nothing is under way.
SETTLE: Final = 120.0
PATIENCE: Final = 60.0


def simulate(seed: int, trace: Trace | None = None, kind: type[World] = World) -> World:
    """The whole life of one seed. Raises Broken with the first thing that is wrong; any other
    exception comes out of an engine and is a bug, too."""
    world = kind(draw(seed), trace)
    _trouble(world)
    _heal(world)
    world.run_until(world.now + SETTLE)
    _rest(world)
    _judge(world)
    return world


def _trouble(world: World) -> None:
    profile, rng = world.profile, world.rng
    for node in world.nodes.values():
        world.at(rng.uniform(0.0, 2.0), _Start(node))
    for _ in range(profile.commands):
        world.at(rng.uniform(3.0, profile.active), lambda: _command(world))
    when = 1.0
    while when < profile.active:
        world.at(when, world.ping_all)
        when += rng.uniform(0.2, 4.0)
    world.run_until(profile.active)


class _Start:
    """The first configuration of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __call__(self) -> None:
        self._node.configure(self._node.config)


def _command(world: World) -> None:
    node = world.rng.choice(tuple(world.nodes.values()))
    commands = simnet_commands.GENTLE
    if world.nat is not None:
        commands += simnet_commands.NATTED
    if world.profile.rough:
        commands += simnet_commands.ROUGH
    command = world.rng.choice(commands)
    world.say(node.name, f"! {command.__name__}")
    world.stats[command.__name__] += 1
    said = command(world, node)
    world.say(node.name, f"! {command.__name__} {said} done")
    node.drain()


def _heal(world: World) -> None:
    world.say("world", "heals")
    world.parted = False
    world.weather = Weather(delay=0.01)
    world.release()
    for node in world.nodes.values():
        node.configure(world.profile.peer(node.name))
        if world.profile.initiates(node.name):
            node.engine.initiate(node.config.name, node.now)
            node.drain()


def _rest(world: World) -> None:
    """Wait for a moment in which nothing is under way; ask for children on traffic."""
    end = world.now + PATIENCE
    while world.now < end:
        if world.profile.on_traffic:
            world.ping_all()
        world.run_until(world.now + 0.7)
        if not _unsettled(world):
            return
    raise Broken("never at rest: " + "; ".join(_unsettled(world)))


def _unsettled(world: World) -> list[str]:
    waiting = [line for n in world.nodes.values() for line in simnet_check.unsettled(n.engine)]
    if world.in_flight:
        waiting.append(f"{world.in_flight} IKE messages in flight")
    return waiting


def _judge(world: World) -> None:
    left, right = world.nodes[LEFT], world.nodes[RIGHT]
    findings = [
        *simnet_check.same_ike_sas(left.engine, right.engine),
        *simnet_check.twins(left.dataplane, right.dataplane),
    ]
    for node in (left, right):
        names = [child.name for child in node.config.children]
        findings += simnet_check.owned(node.engine, node.dataplane)
        findings += simnet_check.complete(node.engine, names)
    if findings:
        raise Broken("; ".join(findings))
    before = world.stats["ESP"]
    world.ping_all()
    world.run_until(world.now + 1.0)
    sent = sum(len(node.config.children) for node in (left, right))
    if world.stats["ESP"] - before < sent:
        raise Broken(f"of {sent} last packets {world.stats['ESP'] - before} arrived")


def main(
    arguments: Sequence[str] | None = None,
    *,
    kind: type[World] = World,
    module: str = "ipsec_lab.simnet",
    description: str | None = __doc__,
) -> int:
    """The command line of ``module``, whose worlds are of ``kind``: exit code 1 if a seed fails."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--seed", type=int, default=0, help="the (first) seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds from there")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    options = parser.parse_args(arguments)
    failed = 0
    for seed in range(options.seed, options.seed + options.count):
        if options.trace:
            print(draw(seed))
        try:
            simulate(seed, print if options.trace else None, kind)
        except Exception as error:  # whatever it is, it is this seed's finding
            failed += 1
            print(f"seed {seed}: {type(error).__name__}: {error}")
            if options.trace:
                raise
    print(f"{options.count - failed} of {options.count} seeds hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
