"""What is judged again after a change, what stays in force, and what is said about it."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from ipsec_api.cluster import tunnel_secret_name
from ipsec_api.compile import compile as compile_snapshot
from ipsec_api.documents import parse_object, snapshot_of
from ipsec_operator import tunnels
from ipsec_operator.graph import Key
from ipsec_operator.store import older

Make = Callable[..., Any]


def reasons(store: Any, item: Key) -> list[str]:
    return [r.reason for r in store.rejections.get(item, ())]


def test_an_accepted_peer_becomes_a_tunnel(bench: Any, make: Make) -> None:
    peer = make("peer", 1)
    bench.put(make("secret", 1), peer)
    bench.judge()
    unit = make("key", peer)
    assert unit in bench.asked("tunnel")
    assert unit in bench.asked("status")
    config = bench.store.wanted[unit].config()
    assert config.addresses == ("198.51.0.1",)
    assert {s.src for p in config.policies for s in p.selectors} == {
        "10.244.0.0/16",
        "10.96.0.0/12",
    }


def test_nothing_is_asked_for_without_a_change(bench: Any, make: Make) -> None:
    items = [make("secret", 1), make("peer", 1), make("secret", 2), make("peer", 2)]
    bench.put(*items)
    bench.converge()
    bench.marks.clear()
    bench.put(*items)
    bench.converge()
    assert bench.asked("tunnel") == set()
    assert bench.asked("judge") == set()


def test_one_changed_secret_touches_one_tunnel(bench: Any, make: Make) -> None:
    for number in range(50):
        bench.put(make("secret", number), make("peer", number))
    bench.converge()
    bench.marks.clear()
    bench.put(make("secret", 7, "another key"))
    bench.judge()
    assert bench.asked("tunnel") == {make("key", make("peer", 7))}
    assert bench.asked("status") <= {make("key", make("peer", 7))}


def test_a_rotated_key_is_rendered_with_the_previous_one(bench: Any, make: Make) -> None:
    peer = make("peer", 1)
    bench.put(make("secret", 1, "old"), peer)
    bench.converge()
    bench.put(make("secret", 1, "new", **{"psk-previous": "old"}))
    bench.converge()
    (identity,) = bench.store.present[make("key", peer)].config().identities
    assert identity.psk.get_secret_value() == b"new"
    assert identity.psk_previous.get_secret_value() == b"old"


def test_a_secret_that_goes_takes_no_tunnel_along(bench: Any, make: Make) -> None:
    peer, secret = make("peer", 1), make("secret", 1)
    bench.put(secret, peer)
    bench.converge()
    before = bench.store.present[make("key", peer)]
    bench.drop(secret)
    bench.converge()
    unit = make("key", peer)
    assert bench.store.wanted[unit].digest == before.digest
    assert reasons(bench.store, unit) == ["SecretNotFound"]
    assert unit in bench.store.held


def test_a_new_operator_keeps_it_too(bench: Any, make: Make) -> None:
    peer, secret = make("peer", 1), make("secret", 1)
    bench.put(secret, peer)
    bench.converge()
    rendered = bench.store.present[make("key", peer)]
    other = type(bench)()
    other.store.put_tunnel(rendered)
    other.put(peer)
    other.judge()
    assert other.store.wanted[make("key", peer)].digest == rendered.digest


def test_a_policy_that_becomes_wrong_stays_as_it_was(bench: Any, make: Make) -> None:
    peer = make("peer", 1)
    policy = make("policy", "more", "peer-1", "10.244.0.0/16", "192.168.7.0/24")
    bench.put(make("secret", 1), peer, policy)
    bench.converge()
    bench.change(policy, proposal={"encAlgorithms": ["des"], "authAlgorithms": ["md5"]})
    bench.converge()
    config = bench.store.present[make("key", peer)].config()
    assert {p.source.name for p in config.policies} == {"peer-1", "more"}
    assert make("key", policy) in bench.store.held


def test_what_another_resource_has_taken_does_not_stay(bench: Any, make: Make) -> None:
    one, two = make("peer", 1), make("peer", 2)
    bench.put(make("secret", 1), make("secret", 2), one, two)
    bench.converge()
    # The first loses its Secret and stays; then the second takes its network.
    bench.drop(make("secret", 1))
    bench.converge()
    assert make("key", one) in bench.store.wanted
    subnets = one["spec"]["remoteSubnets"]
    bench.change(one, remoteSubnets=["172.30.0.0/16"])
    bench.converge()
    assert make("key", one) in bench.store.wanted
    bench.change(two, remoteSubnets=subnets)
    bench.converge()
    assert make("key", one) not in bench.store.wanted
    assert reasons(bench.store, make("key", two)) == []


@pytest.mark.parametrize("how", ["deleted", "disabled"])
def test_what_is_not_wanted_goes_whatever_is_missing(bench: Any, make: Make, how: str) -> None:
    peer, secret = make("peer", 1), make("secret", 1)
    bench.put(secret, peer)
    bench.converge()
    bench.drop(secret)
    bench.converge()
    if how == "deleted":
        bench.drop(peer)
    else:
        bench.change(peer, disabled=True)
    bench.judge()
    assert make("key", peer) not in bench.store.wanted
    assert make("key", peer) in bench.asked("tunnel")


def test_a_tunnel_without_a_peer_is_an_orphan(bench: Any, make: Make) -> None:
    peer = make("peer", 1)
    bench.put(make("secret", 1), peer)
    bench.converge()
    orphan = bench.store.present[make("key", peer)]
    other = type(bench)()
    other.store.put_tunnel(orphan)
    other.judge()
    assert other.store.wanted == {}
    assert other.asked("tunnel") == {make("key", peer)}


def test_a_secret_that_nobody_can_read_is_left_alone_while_the_peer_is_wrong(
    bench: Any, make: Make
) -> None:
    peer = make("peer", 1)
    raw = {
        "metadata": {
            "name": tunnel_secret_name("default", "peer-1"),
            "annotations": {"kubeipsec.dev/source": "default/peer-1"},
        },
        "data": {"tunnel.json": "e30="},
    }
    bench.store.put_tunnel(tunnels.read(raw))
    bench.put(peer)
    bench.judge()
    unit = make("key", peer)
    assert bench.store.wanted[unit].digest == bench.store.present[unit].digest


def test_a_remote_network_of_the_cluster_is_refused_with_a_way_out(bench: Any, make: Make) -> None:
    inside = make("peer", 1, remoteSubnets=["10.244.3.0/24"])
    around = make("peer", 2, remoteSubnets=["10.240.0.0/13"])
    bench.put(make("secret", 1), make("secret", 2), inside, around)
    bench.judge()
    for peer in (inside, around):
        (found,) = bench.store.rejections[make("key", peer)]
        assert (found.reason, found.field) == ("Overlap", "spec.remoteSubnets")
    assert "write 10.240.0.0/14, 10.245.0.0/16, 10.246.0.0/15 instead" in found.message
    assert bench.store.wanted == {}


def test_a_default_route_and_what_is_translated_are_not_the_clusters(
    bench: Any, make: Make
) -> None:
    everything = make("peer", 1, remoteSubnets=["0.0.0.0/0"], allowDefaultRoute=True)
    mapping = [{"remote": "10.244.0.0/16", "mapped": "100.64.0.0/16"}]
    translated = make(
        "peer",
        2,
        remoteSubnets=["10.244.0.0/16"],
        subnetMapping=mapping,
        localSubnets=["10.96.0.0/12"],
    )
    bench.put(make("secret", 1), make("secret", 2), everything)
    bench.judge()
    assert bench.store.rejections == {}
    bench.drop(everything)
    bench.put(translated)
    bench.judge()
    assert reasons(bench.store, make("key", translated)) == []


def test_new_networks_of_the_cluster_reach_those_alone_that_name_none(
    bench: Any, make: Make
) -> None:
    follows = make("peer", 1)
    fixed = make("peer", 2, localSubnets=["192.0.2.0/24"])
    bench.put(make("secret", 1), make("secret", 2), follows, fixed)
    bench.converge()
    bench.marks.clear()
    networks = bench.store.networks
    bench.store.set_networks(type(networks)(pods=("10.200.0.0/16",)))
    bench.judge()
    assert bench.asked("tunnel") == {make("key", follows)}


def test_an_object_that_breaks_the_schema_stops_no_other(bench: Any, make: Make) -> None:
    bad = make("peer", 1, remoteSubnets=["10.1.2.3/8"])
    good = make("peer", 2)
    bench.put(make("secret", 1), make("secret", 2), bad, good)
    bench.judge()
    assert reasons(bench.store, make("key", bad)) == ["Invalid"]
    assert set(bench.store.wanted) == {make("key", good)}


def test_data_is_kept_of_secrets_that_are_referred_to_alone(bench: Any, make: Make) -> None:
    bench.put(make("secret", 1))
    bench.store.cool()
    bench.store.cool()
    peer = make("peer", 1)
    bench.put(peer)
    bench.judge()
    assert bench.asked("fetch") == {Key("Secret", "default", "psk-1")}
    # Nothing is said before it is known: the Secret is there.
    assert bench.store.judged == set()
    bench.put(make("secret", 1))
    bench.judge()
    assert make("key", peer) in bench.store.wanted
    bench.drop(peer)
    bench.put(make("peer", 1))
    bench.judge()
    assert bench.asked("fetch") == {Key("Secret", "default", "psk-1")}


def test_a_secret_just_before_its_peer_is_not_fetched(bench: Any, make: Make) -> None:
    bench.put(make("secret", 1))
    bench.store.cool()
    bench.put(make("peer", 1))
    bench.judge()
    assert bench.asked("fetch") == set()


def test_what_is_older_than_what_is_known_is_not_taken(bench: Any, make: Make) -> None:
    peer = make("peer", 1)
    bench.put(make("secret", 1), peer)
    stale = peer | {"metadata": peer["metadata"] | {"resourceVersion": "1", "generation": 9}}
    bench.store.put_resource(stale)
    assert bench.store.resources[make("key", peer)].ref.generation == 1
    assert older("9", "10")
    assert not older("10", "9")
    assert not older("...", "10")


@pytest.mark.parametrize("seed", range(16))
def test_units_are_judged_as_the_whole_is(bench: Any, make: Make, seed: int) -> None:
    rng = random.Random(seed)
    items: dict[Key, Any] = {}

    def some_net(base: str) -> str:
        return f"{base}.{rng.randrange(15)}.0/24" if rng.random() < 0.97 else f"{base}.0.0/16"

    for number in range(8):
        peer = make("peer", number, remoteSubnets=[some_net("172.20")])
        peer["metadata"]["creationTimestamp"] = f"2026-01-{rng.randrange(1, 28):02}T00:00:00Z"
        if rng.random() < 0.3:
            peer["spec"]["address"] = "198.51.100.1"
        if rng.random() < 0.2:
            peer["spec"]["disabled"] = True
        if rng.random() < 0.3:
            peer["spec"]["routing"] = {"routingMark": rng.choice([1, 2])}
        if rng.random() < 0.3:
            group = {"policyTemplateGroup": rng.choice(["a", "b", "c"])}
            peer["spec"]["authentication"] |= {"generatePolicy": "port-strict"} | group
        items[make("key", peer)] = peer
        if rng.random() < 0.8:
            secret = make("secret", number)
            items[make("key", secret)] = secret
    for number in range(20):
        policy = make(
            "policy",
            f"policy-{number}",
            f"peer-{rng.randrange(9)}",
            "10.244.0.0/16",
            some_net("172.21"),
            priority=rng.choice([1000, 1000, 2000]),
        )
        policy["metadata"]["creationTimestamp"] = f"2026-01-{rng.randrange(1, 28):02}T00:00:00Z"
        if rng.random() < 0.3:
            name = rng.choice(["kx-a", "kx-b"])
            policy["spec"] |= {"mode": "routed", "interface": {"name": name}}
        items[make("key", policy)] = policy
    for number in range(3):
        spec = {"template": True, "group": rng.choice(["a", "b"])}
        spec |= {"srcAddress": "10.244.0.0/16", "dstAddress": "0.0.0.0/0"}
        template = make(
            "crd", "IPsecPolicy", f"template-{number}", spec | {"allowDefaultRoute": True}
        )
        items[make("key", template)] = template
    for step in rng.sample(sorted(items), len(items)):
        bench.put(items[step])
        if rng.random() < 0.4:
            bench.judge()
    for step in rng.sample(sorted(items), 6):
        bench.drop(items.pop(step))
        if rng.random() < 0.4:
            bench.judge()
    bench.judge()
    store = bench.store
    snapshot = snapshot_of(parse_object(item) for item in items.values())
    whole = compile_snapshot(snapshot, discovered_subnets=store.networks.local)
    assert {u: t.digest for u, t in store.wanted.items()} == {
        (rendered := tunnels.render(t)).unit: rendered.digest for t in whole.tunnels
    }
    assert {str(r) for each in store.rejections.values() for r in each} == set(
        map(str, whole.rejections)
    )
    assert {str(a) for each in store.advice.values() for a in each} == set(map(str, whole.advice))
    assert store.judged == {k for k in items if k.kind != "Secret"}


def test_a_name_of_an_interface_is_one_policys_across_peers(bench: Any, make: Make) -> None:
    policies = []
    for number in (1, 2):
        policy = make("policy", f"routed-{number}", f"peer-{number}", "0.0.0.0/0", "0.0.0.0/0")
        policy["spec"] |= {"mode": "routed", "interface": {"name": "kx-a"}}
        policy["spec"] |= {"allowDefaultRoute": True}
        policies.append(policy)
        bench.put(make("secret", number), make("peer", number), policy)
        bench.judge()
    assert reasons(bench.store, make("key", policies[0])) == []
    assert reasons(bench.store, make("key", policies[1])) == ["Overlap"]
    bench.drop(policies[0])
    bench.judge()
    assert reasons(bench.store, make("key", policies[1])) == []


def test_a_version_that_was_seen_is_not_looked_at_again(bench: Any, make: Make) -> None:
    """Each of our own writes comes back by a watch."""
    item = make("peer", 1)
    item["metadata"] |= {"resourceVersion": "5"}
    bench.store.put_resource(item)
    bench.marks.clear()
    bench.store.put_resource(item | {"spec": "of no interest"})
    assert not bench.marks
    changed = item | {"metadata": item["metadata"] | {"resourceVersion": "6"}}
    bench.store.put_resource(changed)
    assert bench.marks
