"""Route-based mode: xfrm interfaces on a real kernel, alone and beside strongSwan."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from ipsec_lab import manifests
from ipsec_lab.interop import CHILD, GCM, PEER
from ipsec_lab.kernel_rig import KernelRig
from ipsec_lab.netns import Namespace
from ipsec_lab.traffic import ConstantPing, ping, ping_until

pytestmark = pytest.mark.strongswan

EVERYTHING = [("0.0.0.0/0", "0.0.0.0/0"), ("::/0", "::/0")]
NAME, THEIRS = "office0", "branch0"
IF_ID = 23


def office(**more: Any) -> manifests.Document:
    """Our policy for everything that is routed into its interface."""
    interface = {
        "name": NAME,
        "addresses": ["169.254.9.1/30", "fd00:9::1/64"],
        "routes": ["10.2.0.0/24", "fd00:2::/64"],
        **more.pop("interface", {}),
    }
    return manifests.policy(
        "office",
        peer_name=PEER,
        selectors=EVERYTHING,
        mode="routed",
        interface=interface,
        proposal=GCM.proposal,
        **more,
    )


@pytest.fixture
def routed(rig: KernelRig) -> Iterator[KernelRig]:
    """charon at site b has an xfrm interface of its own, made by hand, with the way back."""
    gw_b = rig.topology.gw_b
    gw_b.ip(
        f"link add {THEIRS} type xfrm if_id {IF_ID}",
        f"link set dev {THEIRS} mtu 1400 up",
        f"address add 169.254.9.2/30 dev {THEIRS}",
        f"route add 10.1.0.0/24 dev {THEIRS} metric 1",
        f"route add fd00:1::/64 dev {THEIRS} metric 1",
    )
    try:
        yield rig
    finally:
        rig.gateway.kill()
        gw_b.ip(f"link delete dev {THEIRS}")
        _clean(rig.topology.gw_a)


def _clean(namespace: Namespace) -> None:
    for line in namespace.run("ip", "-br", "link", "show", "type", "xfrm").splitlines():
        namespace.ip(f"link delete dev {line.split('@')[0].split()[0]}")
    for family in ("-4", "-6"):
        for table in ("main", "4502"):
            flush = ("route", "flush", "table", table, "proto", "81")
            namespace.run("ip", family, *flush, check=False)
        namespace.run("ip", family, "rule", "delete", "priority", "4502", check=False)


def connection(rig: KernelRig, **child: Any) -> Any:
    selectors = tuple(src for src, _ in EVERYTHING)
    child = {"local_ts": selectors, "remote_ts": selectors, "if_id": IF_ID} | child
    return rig.connection(child=child)


def links(namespace: Namespace) -> str:
    return namespace.run("ip", "-d", "link", "show", "type", "xfrm")


def routes(namespace: Namespace) -> str:
    return "".join(
        namespace.run("ip", family, "route", "show", "table", "all", "proto", "81", check=False)
        for family in ("-4", "-6")
    )


def test_everything_is_for_the_tunnel_and_only_routes_lead_there(
    routed: KernelRig, record_property: Any
) -> None:
    rig, top = routed, routed.topology
    # A masquerade for all that leaves the node, as CNIs and routers have it.
    top.gw_a.nft(
        "table ip foreign { chain post { type nat hook postrouting priority 100; masquerade; }; }"
    )
    rig.connect("initiator", rig.documents(policies=[office()]), connection(rig))
    rig.exchange_traffic(lan=(0, 1))
    shown = links(top.gw_a)
    assert f"{NAME}@" in shown or f"{NAME}:" in shown
    (number,) = re.findall(r"if_id (0x2[0-9a-f]{7})", shown)
    assert all(f"if_id {number}" in each.text for each in rig.states())
    policies = top.gw_a.run("ip", "xfrm", "policy")
    assert policies.count(f"if_id {number}") == 6
    # What comes out at the other side has its own source all the same.
    top.gw_b.nft(
        "table ip seen { chain f { type filter hook forward priority 0;"
        " ip saddr 10.1.0.2 counter; ip saddr 169.254.9.1 counter; }; }"
    )
    assert ping(top.lan_a, top.b.host(), count=3, wait=5).received == 3
    counted = top.gw_b.run("nft", "list", "table", "ip", "seen")
    top.gw_b.nft("delete table ip seen")
    assert re.search(r"saddr 10.1.0.2 counter packets 3 ", counted), counted
    assert re.search(r"saddr 169.254.9.1 counter packets 0 ", counted), counted
    # Anybody may route into it, a daemon for instance.
    top.gw_b.ip("address add 10.99.0.1/24 dev lo")
    top.gw_a.ip(f"route add 10.99.0.0/24 dev {NAME}")
    assert ping(top.lan_a, "10.99.0.1", count=3, wait=5).received == 3
    top.gw_b.ip("address delete 10.99.0.1/24 dev lo")
    # What is not routed there goes where it always went.
    assert "dev wan0" in top.gw_a.run("ip", "route", "get", "203.0.113.77")
    # The MTU is that of what fits into the SA.
    rig.gateway.wait(lambda: "mtu 1446 " in links(top.gw_a), "the MTU of AES-GCM over IPv4")


def test_a_node_that_forwards_nothing_is_opened_for_the_interface(routed: KernelRig) -> None:
    rig, top = routed, routed.topology
    top.gw_a.nft(
        "table inet node { chain f { type filter hook forward priority 0; policy drop; }; }"
    )
    show = ("nft", "list", "table", "inet", "node")
    before = top.gw_a.run(*show)
    try:
        theirs = connection(rig)
        rig.start_theirs(theirs)
        rig.start_ours(rig.documents(policies=[office()]), "--open-forward")
        rig.wait_up(theirs)
        rig.exchange_traffic(lan=(0, 1))
        assert f'oifname "{NAME}"' in top.gw_a.run(*show)
        assert rig.gateway.stop() == 0
        assert rig.gateway.cleanup() == 0
        assert top.gw_a.run(*show) == before
    finally:
        top.gw_a.nft("delete table inet node")


def test_a_restart_goes_on_and_deletion_leaves_nothing(
    routed: KernelRig, record_property: Any
) -> None:
    rig, top = routed, routed.topology
    documents = rig.documents(policies=[office()])
    rig.connect("initiator", documents, connection(rig))
    ping_until(top.lan_a, top.b.host(), timeout=60)
    rig.gateway.wait(lambda: "mtu 1446 " in links(top.gw_a), "the MTU of AES-GCM over IPv4")
    before = links(top.gw_a)
    with ConstantPing(top.lan_a, top.b.host(), interval=0.05) as constant:
        assert rig.gateway.stop() == 0
        assert links(top.gw_a) == before
        rig.gateway.start()
        rig.gateway.wait_condition(PEER)
        result = constant.stop()
    record_property("measured", f"{len(result.lost)} of {result.sent} pings lost")
    assert result.lost == ()
    assert links(top.gw_a) == before
    assert routes(top.gw_a).count(NAME) == 2
    # Its interface goes with the policy, and what was routed there does not go elsewhere before.
    lans = manifests.policy(
        "lans", peer_name=PEER, selectors=manifests.pairs(top.a, top.b), proposal=GCM.proposal
    )
    rig.gateway.remove(office())
    rig.gateway.apply(lans)
    rig.gateway.wait(lambda: not links(top.gw_a), "the interface is gone")
    assert routes(top.gw_a) == ""
    rig.gateway.remove(lans, *(d for d in documents if d["kind"] != "IPsecPolicy"))
    rig.gateway.wait(
        lambda: not top.gw_a.run("ip", "xfrm", "policy").count("if_id"), "no policy is left"
    )


def test_nothing_leaves_in_clear_without_an_sa(routed: KernelRig) -> None:
    """The fixture looks at every frame on the WAN; here nothing must arrive either."""
    rig, top = routed, routed.topology
    rig.start_theirs()
    rig.start_ours(rig.documents(policies=[office()]))
    rig.gateway.wait(lambda: NAME in routes(top.gw_a), "the routes")
    rig.gateway.wait_condition(PEER, "Established", "False")
    before = rig.guard.counters()
    for address in (top.b.host(0), top.b.host(1)):
        assert ping(top.lan_a, address, count=3, wait=2).received == 0
    # Nor when somebody takes the interface down or away: routes have twins that refuse.
    top.gw_a.ip(f"link set dev {NAME} down")
    assert ping(top.lan_a, top.b.host(), count=3, wait=2).received == 0
    top.gw_a.ip(f"link delete dev {NAME}")
    assert ping(top.lan_a, top.b.host(), count=3, wait=2).received == 0
    assert ping(top.gw_a, top.b.host(), count=1, wait=2).received == 0
    assert (rig.guard.counters() - before).clear == 0


def test_the_default_route_may_lead_into_the_tunnel(routed: KernelRig) -> None:
    rig, top = routed, routed.topology
    everything = office(interface={"routes": ["0.0.0.0/0"], "addresses": ["169.254.9.1/30"]})
    rig.connect("initiator", rig.documents(policies=[everything]), connection(rig))
    rig.exchange_traffic(lan=(0,))
    assert "dev wan0" in top.gw_a.run("ip", "route", "get", top.b.wan_address(), "mark", "0x40")
    assert f"dev {NAME}" in top.gw_a.run("ip", "route", "get", "203.0.113.77")
    assert "dev lan0" in top.gw_a.run("ip", "route", "get", top.a.host())
    # New keys come while the default route leads into the tunnel.
    old = {c.spi_in for sa in rig.charon.sas() for c in sa.children}
    rig.charon.rekey(child=CHILD)
    rig.charon.wait_for(
        lambda sas: bool({c.spi_in for sa in sas for c in sa.children} - old), "a rekeyed child"
    )
    assert ping(top.lan_a, top.b.host(), count=3, wait=5).received == 3


def test_an_interface_of_somebody_else_is_told_and_left_alone(routed: KernelRig) -> None:
    rig, top = routed, routed.topology
    top.gw_a.ip(f"link add {NAME} type dummy")
    rig.start_theirs(connection(rig))
    rig.start_ours(rig.documents(policies=[office()]))
    found = rig.gateway.wait_condition(
        "office", "Programmed", "False", kind="IPsecPolicy", reason="InterfaceExists"
    )
    assert NAME in found["message"]
    assert "dummy" in top.gw_a.run("ip", "-d", "link", "show", "dev", NAME)
    assert "if_id" not in top.gw_a.run("ip", "xfrm", "policy")
    top.gw_a.ip(f"link delete dev {NAME}")
    rig.gateway.wait_condition("office", kind="IPsecPolicy", timeout=30)
    ping_until(top.lan_a, top.b.host(), timeout=60)


def transport(rig: KernelRig, what: str, **selector: Any) -> tuple[Any, Any]:
    """(our documents, charon's connection): between the gateways themselves, ``what`` alone."""
    a, b = rig.topology.a.wan_address(), rig.topology.b.wan_address()
    policy = manifests.policy(
        "hosts",
        peer_name=PEER,
        selectors=[(f"{a}/32", f"{b}/32")],
        tunnel=False,
        proposal=GCM.proposal,
    )
    policy["spec"]["selectors"][0].update(selector)
    child = {"mode": "transport", "local_ts": (f"{b}{what}",), "remote_ts": (f"{a}{what}",)}
    return rig.documents(policies=[policy]), rig.connection(child=child)


def carried(rig: KernelRig, device: str) -> None:
    """Both ends of a tunnel over transport mode reach each other, and the LANs over it."""
    top = rig.topology
    for namespace, own, lan in ((top.gw_a, 1, "10.2.0.0/24"), (top.gw_b, 2, "10.1.0.0/24")):
        namespace.ip(
            f"address add 169.254.8.{own}/30 dev {device}",
            f"link set dev {device} mtu 1300 up",
            f"route add {lan} via 169.254.8.{3 - own} dev {device} metric 1",
        )
    ping_until(top.gw_a, "169.254.8.2", timeout=60)
    rig.exchange_traffic(lan=(0,))
    assert {each.mode for each in rig.states()} == {"transport"}


def test_gre_over_transport_mode(rig: KernelRig) -> None:
    top = rig.topology
    a, b = top.a.wan_address(), top.b.wan_address()
    rig.connect("initiator", *transport(rig, "[gre]", protocol="gre"))
    try:
        top.gw_a.ip(f"tunnel add gre9 mode gre local {a} remote {b} ttl 64")
        top.gw_b.ip(f"tunnel add gre9 mode gre local {b} remote {a} ttl 64")
        carried(rig, "gre9")
    finally:
        for namespace in (top.gw_a, top.gw_b):
            namespace.run("ip", "link", "delete", "gre9", check=False)


def test_l2tp_over_transport_mode(rig: KernelRig) -> None:
    top = rig.topology
    a, b = top.a.wan_address(), top.b.wan_address()
    udp = {"protocol": "udp", "srcPort": 1701, "dstPort": 1701}
    rig.connect("initiator", *transport(rig, "[udp/1701]", **udp))
    try:
        for namespace, here, there in ((top.gw_a, a, b), (top.gw_b, b, a)):
            namespace.ip(
                "l2tp add tunnel tunnel_id 9 peer_tunnel_id 9 encap udp"
                f" local {here} remote {there} udp_sport 1701 udp_dport 1701",
                "l2tp add session name l2tp9 tunnel_id 9 session_id 9 peer_session_id 9",
            )
        carried(rig, "l2tp9")
    finally:
        for namespace in (top.gw_a, top.gw_b):
            namespace.run(
                "ip", "l2tp", "del", "session", "tunnel_id", "9", "session_id", "9", check=False
            )
            namespace.run("ip", "l2tp", "del", "tunnel", "tunnel_id", "9", check=False)
