"""Settings, DaemonSets, networks, conditions and changes: what goes in, what comes out."""

from collections.abc import Callable
from typing import Any

import pytest

from ipsec_api.conditions import Condition
from ipsec_api.tunnel import TunnelConfig
from ipsec_api.verdicts import Verdict
from ipsec_operator import daemonsets, discovery, status
from ipsec_operator.change import classify
from ipsec_operator.discovery import Node, Sources
from ipsec_operator.gateways import SILENCE, Gateways
from ipsec_operator.settings import ClusterSubnets, Settings, SettingsError, parse

Make = Callable[..., Any]


# -- settings


def test_settings_need_an_image_alone() -> None:
    settings = parse("image: registry.example/gateway:1")
    assert settings.namespace == "kube-ipsec"
    assert settings.gateway.node_selector == {"kubeipsec.dev/gateway": "true"}
    assert settings.watches("anything")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "image"),
        ("image: x\nnodeSelektor: {}", "nodeSelektor"),
        ("image: x\ngateway: {privileged: maybe}", "gateway.privileged"),
        ("image: x\nclusterSubnets: {pods: [10.1.2.3/8]}", "clusterSubnets.pods.0"),
        ("- image", "not a map"),
        ("image: [", "not YAML at line"),
    ],
)
def test_bad_settings_name_the_field(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse(text)


# -- DaemonSets


def a_daemon_set(**gateway: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = Settings.model_validate({"image": "registry.example/gateway:1", "gateway": gateway})
    manifest = daemonsets.gateway(settings, ("10.96.0.0/12",))
    return manifest, manifest["spec"]["template"]["spec"]


def test_two_gateways_are_never_on_one_node() -> None:
    manifest, pod = a_daemon_set()
    rolling = manifest["spec"]["updateStrategy"]["rollingUpdate"]
    assert rolling == {"maxUnavailable": 1, "maxSurge": 0}
    assert pod["hostNetwork"]
    assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1] == "--drain"
    assert "--service-cidr=10.96.0.0/12" in pod["containers"][0]["args"]


def test_without_privileges_two_capabilities_are_left() -> None:
    _, pod = a_daemon_set(privileged=False)
    rights = pod["containers"][0]["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert not rights["privileged"]
    assert {"name": "tun", "mountPath": "/dev/net/tun"} in pod["containers"][0]["volumeMounts"]
    _, pod = a_daemon_set(privileged=False, dataplane="xfrm")
    assert "tun" not in {v["name"] for v in pod["volumes"]}
    assert a_daemon_set()[1]["containers"][0]["securityContext"]["privileged"]


def test_route_agents_have_one_capability_and_the_mesh_key_alone() -> None:
    pod = daemonsets.route_agent(Settings(image="x"))["spec"]["template"]["spec"]
    rights = pod["containers"][0]["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert [v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v] == [
        "kube-ipsec-mesh"
    ]


def test_the_digest_follows_every_setting_and_nothing_else() -> None:
    one, two = a_daemon_set()[0], a_daemon_set()[0]
    assert one == two
    other = a_daemon_set(logLevel="debug")[0]
    digests = [m["metadata"]["annotations"]["kubeipsec.dev/digest"] for m in (one, other)]
    assert digests[0] != digests[1]


# -- networks

NODES = {
    "a": Node(("10.244.0.0/24", "fd00:1::/64"), ("192.0.2.1/32",)),
    "b": Node(("10.244.1.0/24",), ("192.0.2.2/32",)),
}


def test_networks_come_from_the_first_who_knows() -> None:
    nodes_only = discovery.decide(ClusterSubnets(), Sources(), NODES)
    assert nodes_only.pods == ("10.244.0.0/23", "fd00:1::/64")
    assert nodes_only.services == ()
    assert nodes_only.nodes == ("192.0.2.1/32", "192.0.2.2/32")
    sources = Sources(
        service_cidrs=("10.96.0.0/12",),
        kubeadm_pods=("10.244.0.0/16",),
        kubeadm_services=("10.97.0.0/16",),
    )
    found = discovery.decide(ClusterSubnets(), sources, NODES)
    assert found.pods == ("10.244.0.0/16",)
    assert found.local == ("10.244.0.0/16", "10.96.0.0/12")
    values = ClusterSubnets(pods=("10.0.0.0/9",))
    assert discovery.decide(values, sources, NODES).pods == ("10.0.0.0/9",)


def test_what_a_cluster_says_of_its_networks_is_read() -> None:
    node = discovery.node(
        {
            "spec": {"podCIDR": "10.244.3.0/24"},
            "status": {
                "addresses": [
                    {"type": "Hostname", "address": "node"},
                    {"type": "InternalIP", "address": "192.0.2.7"},
                ]
            },
        }
    )
    assert node == Node(("10.244.3.0/24",), ("192.0.2.7/32",))
    config = "networking:\n  podSubnet: 10.244.0.0/16,fd00::/56\n  serviceSubnet: 10.96.0.0/12\n"
    kubeadm = {"data": {"ClusterConfiguration": config}}
    assert discovery.kubeadm(kubeadm) == (("10.244.0.0/16", "fd00::/56"), ("10.96.0.0/12",))
    assert discovery.kubeadm({"data": {"ClusterConfiguration": "a: ["}}) == ((), ())
    assert discovery.service_cidrs([{"spec": {"cidrs": ["10.96.0.0/12"]}}]) == ("10.96.0.0/12",)
    pools = [{"spec": {"cidr": "10.1.0.0/16"}}, {"spec": {"cidr": "10.2.0.0/16", "disabled": True}}]
    assert discovery.calico(pools) == ("10.1.0.0/16",)
    data = {"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.3.0.0/16 10.4.0.0/16"}
    assert discovery.cilium({"data": data}) == ("10.3.0.0/16", "10.4.0.0/16")
    assert discovery.cilium({"data": data | {"ipam": "kubernetes"}}) == ()


# -- gateways


def test_a_gateway_lives_by_our_clock() -> None:
    now = 100.0
    gateways = Gateways(lambda: now)

    def lease(renewed: str) -> dict[str, Any]:
        return {"metadata": {"name": "kube-ipsec-gateway-a"}, "spec": {"renewTime": renewed}}

    # Whatever the other clock says.
    gateways.put(lease("1999-01-01T00:00:00Z"))
    assert gateways.alive(now) == 1
    now += SILENCE
    gateways.put(lease("1999-01-01T00:00:00Z"))
    assert gateways.alive(now) == 0
    # Silence of the API server says nothing about gateways.
    assert gateways.alive(now - 1) == 1
    gateways.put(lease("1999-01-01T00:00:02Z"))
    assert gateways.alive(now) == 1
    gateways.replace([])
    assert gateways.alive(now) == 0


# -- conditions


def test_conditions_are_those_of_the_schema_and_are_written_once(bench: Any, make: Make) -> None:
    peer = make("peer", 1)
    bench.put(peer)
    bench.judge()
    key = make("key", peer)
    resource = bench.store.resources[key]
    found = status.verdicts(resource, bench.store.rejections[key], (), held=False, gateways=True)
    body = status.desired(resource, found, ("10.244.0.0/16",), "2026-01-01T00:00:00Z")
    assert body is not None
    conditions = [Condition.model_validate(c) for c in body["status"]["conditions"]]
    assert [(c.type, c.status, c.reason) for c in conditions] == [
        ("Accepted", "True", "Accepted"),
        ("ResolvedRefs", "False", "SecretNotFound"),
        ("Ready", "False", "SecretNotFound"),
    ]
    assert "create it with the key psk" in conditions[1].message
    bench.put(peer | {"status": body["status"]})
    again = bench.store.resources[key]
    assert status.desired(again, found, ("10.244.0.0/16",), "2026-01-02T00:00:00Z") is None
    # Another cause is another text at the same time; another status has its own time.
    bench.put(make("secret", 1))
    bench.judge()
    found = status.verdicts(again, (), (), held=False, gateways=True)
    body = status.desired(again, found, ("10.244.0.0/16",), "2026-01-02T00:00:00Z")
    assert body is not None
    times = {c["type"]: c["lastTransitionTime"][:10] for c in body["status"]["conditions"]}
    assert times == {"Accepted": "2026-01-01", "ResolvedRefs": "2026-01-02", "Ready": "2026-01-01"}


@pytest.mark.parametrize(
    ("forwarding", "ready"), [("Unknown", ("True", "Ready")), ("False", ("False", "Why"))]
)
def test_what_a_firewall_may_drop_is_no_fault_and_what_it_drops_is(
    bench: Any, make: Make, forwarding: str, ready: tuple[str, str]
) -> None:
    said = {"Programmed": "True", "Established": "True", "Forwarding": forwarding}
    conditions = [
        {"type": kind, "status": each, "reason": "Why", "observedGeneration": 1}
        for kind, each in said.items()
    ]
    peer = make("peer", 1) | {"status": {"conditions": conditions}}
    bench.put(peer)
    resource = bench.store.resources[make("key", peer)]
    found = status.verdicts(resource, (), (), held=False, gateways=True)[2]
    assert (found.status, found.reason) == ready


def test_a_disabled_peer_is_not_ready_and_a_policy_needs_no_sa(bench: Any, make: Make) -> None:
    peer = make("peer", 1, disabled=True)
    policy = make("policy", "p", "peer-1", "10.244.0.0/16", "192.168.0.0/24", action="none")
    programmed = {
        "type": "Programmed",
        "status": "True",
        "reason": "Programmed",
        "observedGeneration": 1,
    }
    bench.put(peer, policy | {"status": {"conditions": [programmed]}})
    ready = {
        item["kind"]: status.verdicts(
            bench.store.resources[make("key", item)], (), (), held=False, gateways=True
        )[2]
        for item in (peer, policy)
    }
    assert ready["IPsecPeer"].reason == "Disabled"
    assert ready["IPsecPolicy"].status == "True"


def test_events_tell_of_what_the_operator_has_judged_alone() -> None:
    """What a gateway says, and with it what is made of that for a template, is no Event."""

    def of(status_: str, reason: str) -> list[Verdict]:
        kinds = ("Accepted", "Programmed", "ResolvedRefs")
        return [
            Verdict(k, "True", k) if k != "Programmed" else Verdict(k, status_, reason)
            for k in kinds
        ]

    pending, good = of("False", "Pending"), of("True", "Programmed")
    said = {v.type: {"status": v.status, "reason": v.reason} for v in pending}
    assert status.news({}, [*pending, Verdict("Ready", "False", "Pending")]) == []
    assert status.news(said, good) == []
    # Nor does it stand for what was said of Accepted already.
    before = {"Ready": {"status": "True"}}
    told = status.news(before, [*pending, Verdict("Ready", "False", "NoGatewayNode", "none")])
    assert told == [("Warning", "NotReady", "NoGatewayNode: none")]


# -- changes


def config_of(bench: Any, make: Make, **spec: Any) -> TunnelConfig:
    psk = spec.pop("psk", "a")
    data = {"psk-previous": spec.pop("previous")} if "previous" in spec else {}
    other = type(bench)()
    peer = make("peer", 1, **spec)
    other.put(make("secret", 1, psk, **data), peer)
    other.judge()
    found = other.store.wanted[make("key", peer)].config()
    assert isinstance(found, TunnelConfig)
    return found


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ({}, None),
        ({"mtu": 1300}, "Hot"),
        ({"profile": {"lifetime": "4h"}}, "Hot"),
        ({"previous": "before"}, "Hot"),
        ({"remoteSubnets": ["172.20.0.0/24"]}, "Rekey"),
        ({"address": "203.0.113.9"}, "Reestablish"),
        ({"psk": "b"}, "Reestablish"),
        ({"psk": "b", "mtu": 1300, "remoteSubnets": ["172.20.0.0/24"]}, "Reestablish"),
    ],
)
def test_changes_have_a_class(bench: Any, make: Make, spec: Any, kind: str | None) -> None:
    found = classify(config_of(bench, make), config_of(bench, make, **spec))
    assert (found.kind if found else None) == kind
