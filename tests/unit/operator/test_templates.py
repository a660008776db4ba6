"""What a template's status says where its peers are with several gateways."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from ipsec_api.peer_status import IPsecPeerStatus
from ipsec_api.policy import IPsecPolicyStatus
from ipsec_operator import status, templates
from ipsec_operator.controller import Controller, Item
from ipsec_operator.settings import Settings

Make = Callable[..., Any]
NOW = "2026-01-01T00:00:00Z"


def of_gateway(
    gateway: str, *generated: Any, generation: int = 1, more: int = 0, **programmed: Any
) -> Any:
    """The status of a peer, in the words of the gateway that has it, with the template at this
    ``generation`` and ``more`` pairs than those that are listed."""
    condition = {"type": "Programmed", "status": "True", "reason": "Programmed"}
    condition |= {"observedGeneration": 1, "lastTransitionTime": NOW, "message": ""}
    pairs = more + sum(each["pairs"] for each in generated if each["template"] == "pool")
    said = {
        "activeGateway": gateway,
        "conditions": [condition | programmed],
        "templates": [
            {"template": "another", "generation": 9, "pairs": 9},
            {"template": "pool", "generation": generation, "pairs": pairs},
        ],
    }
    IPsecPeerStatus.model_validate(said)
    return said | ({"generated": list(generated)} if generated else {})


def child(remote: str, template: str = "pool", pairs: int = 1) -> dict[str, Any]:
    return {
        "template": template,
        "remoteID": f"id-{remote}",
        "remoteAddress": "198.51.100.7:4500",
        "local": ["10.1.0.0/16"],
        "remote": [remote],
        "pairs": pairs,
    }


class World:
    """A template and its peers in a store."""

    def __init__(self, bench: Any, make: Make) -> None:
        self.bench, self.make = bench, make
        selectors = [{"src": "10.1.0.0/16", "dst": "10.99.0.0/16"}]
        spec = {"template": True, "group": "warriors", "selectors": selectors}
        self.pool = make("crd", "IPsecPolicy", "pool", spec)
        self.key = make("key", self.pool)

    def peer(self, number: int, **spec: Any) -> Any:
        asks = {
            "method": "preSharedKey",
            "secretRef": {"name": f"psk-{number}"},
            "generatePolicy": "port-strict",
            "policyTemplateGroup": "warriors",
        }
        return self.make("peer", number, remoteSubnets=None, **{"authentication": asks, **spec})

    def put(self, *items: Any) -> None:
        self.bench.put(*items)
        self.bench.judge()

    def status(self, *, gateways: bool = True) -> Any:
        store = self.bench.store
        resource = store.resources[self.key]
        faults = store.rejections.get(self.key, ())
        users = store.users(self.key)
        programmed = templates.programmed(resource, users, accepted=not faults)
        found = status.verdicts(
            resource, faults, (), held=False, gateways=gateways, programmed=programmed
        )
        facts = templates.facts(resource, users, accepted=not faults)
        body = status.desired(resource, found, (), NOW, facts)
        return None if body is None else body["status"]

    def said(self, kind: str, **options: Any) -> tuple[str, str, str]:
        (found,) = [c for c in self.status(**options)["conditions"] if c["type"] == kind]
        return found["status"], found["reason"], found["message"]


@pytest.fixture
def world(bench: Any, make: Make) -> World:
    return World(bench, make)


def test_what_peers_of_several_gateways_have_is_one_list(world: World) -> None:
    world.put(world.pool, world.make("secret", 1), world.make("secret", 2))
    one, two = world.peer(1), world.peer(2)
    world.put(
        one | {"status": of_gateway("node-a", child("10.99.0.1/32"), child("10.99.0.2/32"))},
        two | {"status": of_gateway("node-b", child("10.99.0.3/32", pairs=3))},
    )
    found = world.status()
    IPsecPolicyStatus.model_validate(found)
    assert (found["state"], found["dynamic"], found["selectorsInstalled"]) == ("Template", True, 5)
    assert [(g["peer"], g["remote"]) for g in found["generated"]] == [
        ("peer-1", ["10.99.0.1/32"]),
        ("peer-1", ["10.99.0.2/32"]),
        ("peer-2", ["10.99.0.3/32"]),
    ]
    assert world.said("Programmed")[:2] == ("True", "Programmed")
    assert world.said("Ready")[:2] == ("True", "Ready")
    # Once it is there it is not written again.
    world.put(world.pool | {"status": found})
    assert world.status() is None


def test_another_template_and_another_group_have_nothing_of_it(world: World) -> None:
    world.put(world.pool, world.make("secret", 1), world.make("secret", 2))
    asks = world.peer(1)["spec"]["authentication"] | {"policyTemplateGroup": "others"}
    asks["secretRef"] = {"name": "psk-2"}
    world.put(
        world.peer(1) | {"status": of_gateway("node-a", child("10.99.0.1/32", "another"))},
        world.peer(2, authentication=asks)
        | {"status": of_gateway("node-b", child("10.99.0.3/32"))},
    )
    found = world.status()
    assert (found["dynamic"], found["selectorsInstalled"], found["generated"]) == (False, 0, [])
    assert [user.key.name for user in world.bench.store.users(world.key)] == ["peer-1"]


def test_one_gateway_that_has_trouble_is_named_by_its_peer(world: World) -> None:
    world.put(world.pool, world.make("secret", 1), world.make("secret", 2))
    bad = {"status": "False", "reason": "NoKernelEsp", "message": "the kernel has no ESP"}
    world.put(
        world.peer(1) | {"status": of_gateway("node-a")},
        world.peer(2) | {"status": of_gateway("node-b", **bad)},
    )
    for kind in ("Programmed", "Ready"):
        text = "peer peer-2: the kernel has no ESP"
        assert world.said(kind) == ("False", "NoKernelEsp", text)
    assert world.said("Ready", gateways=False)[1] == "NoGatewayNode"


def test_a_peer_of_which_no_gateway_speaks_yet_is_waited_for(world: World) -> None:
    world.put(world.pool, world.make("secret", 1))
    world.put(world.peer(1))
    assert world.said("Programmed")[:2] == ("False", "Pending")
    assert "peer-1" in world.said("Ready")[2]


def test_an_edited_template_is_pending_until_the_gateways_of_all_peers_have_it(
    world: World,
) -> None:
    """The peers' own generations are what they were."""
    world.put(world.pool, world.make("secret", 1), world.make("secret", 2))
    one, two = world.peer(1), world.peer(2)
    world.put(*(each | {"status": of_gateway("node-a")} for each in (one, two)))
    assert world.said("Programmed")[0] == "True"
    world.bench.change(world.pool, action="encrypt", level="use")
    world.bench.judge()
    for peer, lacks in ((one, "peer-1"), (two, "peer-2")):
        text = f"no gateway has generation 2 of it for peer {lacks} yet"
        for kind in ("Programmed", "Ready"):
            assert world.said(kind) == ("False", "Pending", text)
        world.put(peer | {"status": of_gateway("node-a", generation=2)})
    assert world.said("Ready")[0] == "True"


def test_a_peer_whose_last_good_version_stays_in_force_still_has_it(world: World) -> None:
    secret, peer = world.make("secret", 1), world.peer(1)
    has = {"status": of_gateway("node-a", child("10.99.0.1/32"))}
    world.put(world.pool, secret, peer | has)
    world.bench.converge()
    changed = peer | {"metadata": peer["metadata"] | {"generation": 2}}
    changed["spec"] = peer["spec"] | {"mtu": 1300}
    world.bench.drop(secret)
    world.put(changed | has)
    unit = world.make("key", peer)
    assert world.bench.store.rejections[unit]
    assert unit in world.bench.store.held
    # What the gateway says is about the peer's first generation.
    assert world.said("Programmed")[0] == "True"
    found = world.status()
    assert (found["selectorsInstalled"], len(found["generated"])) == (1, 1)


def test_a_peer_that_goes_without_is_no_user(world: World) -> None:
    weak = {"proposal": {"encAlgorithms": ["aes256"], "authAlgorithms": ["sha1"]}}
    world.put(world.pool | {"spec": world.pool["spec"] | weak}, world.make("secret", 1))
    world.put(world.make("secret", 2), world.peer(1), world.peer(2, allowInsecure=True))
    wanted = world.bench.store.wanted
    have = {unit.name for unit, tunnel in wanted.items() if tunnel.config().templates}
    assert have == {user.key.name for user in world.bench.store.users(world.key)} == {"peer-2"}
    world.put(world.peer(2, allowInsecure=True) | {"status": of_gateway("node-a")})
    assert world.said("Programmed")[0] == "True"


def test_totals_are_those_of_the_peers_however_much_is_listed(world: World) -> None:
    world.put(world.pool, world.make("secret", 1), world.make("secret", 2))
    listed = [child(f"10.99.0.{number}/32") for number in range(64)]
    world.put(
        world.peer(1) | {"status": of_gateway("node-a", *listed, more=36)},
        world.peer(2) | {"status": of_gateway("node-b", *listed)},
    )
    found = world.status()
    assert (found["selectorsInstalled"], len(found["generated"])) == (164, 64)


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        ({}, "Template", "Unused"),
        ({"disabled": True}, "Disabled", "Disabled"),
        ({"proposal": {"encAlgorithms": ["twofish"]}}, "Rejected", "NotAccepted"),
    ],
)
def test_why_a_template_is_not_in_force(world: World, change: Any, state: str, reason: str) -> None:
    world.put(world.pool | {"spec": world.pool["spec"] | change})
    assert world.status()["state"] == state
    assert world.said("Programmed")[:2] == ("False", reason)
    assert world.said("Ready")[0] == "False"


def test_a_refused_or_disabled_peer_uses_nothing(world: World) -> None:
    world.put(world.pool, world.peer(1), world.make("secret", 2), world.peer(2, disabled=True))
    assert world.bench.store.users(world.key) == ()
    assert world.said("Programmed")[1] == "Unused"
    world.put(world.make("secret", 1))
    assert [user.key.name for user in world.bench.store.users(world.key)] == ["peer-1"]


def test_what_a_gateway_says_of_a_peer_is_news_of_its_templates(world: World) -> None:
    world.put(world.pool, world.make("secret", 1), world.peer(1))
    world.bench.asked("status")
    world.put(world.peer(1) | {"status": of_gateway("node-a", child("10.99.0.1/32"))})
    assert world.key not in world.bench.asked("status")
    assert world.key in world.bench.asked("template")


def test_what_many_gateways_say_is_one_look_a_moment_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Item] = []

    async def body() -> None:
        looked = asyncio.Event()

        async def look(item: Item) -> None:
            looks.append(item)
            looked.set()

        api: Any = None
        for patience in (60.0, 0.0):
            monkeypatch.setattr("ipsec_operator.controller.GATHER", patience)
            controller = Controller(Settings(image="x"), api, api, lambda: NOW)
            work = asyncio.ensure_future(controller.queue.work(look))
            for _ in range(100):
                controller.store._mark("template", world.key)
            await controller.queue.idle()
            assert controller.queue.failing == 0
            if not patience:
                await looked.wait()
            work.cancel()
            assert looks == ([] if patience else [("status", world.key)])

    asyncio.run(body())
