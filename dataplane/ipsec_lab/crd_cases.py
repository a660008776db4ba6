"""Resources with one thing changed at a time: what every rule of the CRDs refuses, and what not.

The same tables are put before our models (``tests/unit/api``) and before a real API server
(``tests/kube``), so that a manifest is judged alike with and without a cluster.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

#: A value that must show up nowhere.
SECRET = "correct-horse-battery-staple"

BASE: dict[str, dict[str, Any]] = {
    "IPsecPeer": {
        "address": "203.0.113.9",
        "authentication": {"method": "preSharedKey", "secretRef": {"name": "hq-psk"}},
        "remoteSubnets": ["10.20.0.0/16"],
        "localSubnets": ["10.1.0.0/24"],
    },
    "IPsecPolicy": {
        "peerRef": {"name": "hq"},
        "selectors": [{"src": "10.1.0.0/24", "dst": "10.30.0.0/16"}],
    },
    "ModeConfig": {"responder": True, "address": "192.168.77.9"},
}


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` over ``base``; None takes a field away. Objects are replaced, not merged."""
    result = {**copy.deepcopy(base), **changes}
    return {k: v for k, v in result.items() if v is not None}


def resource(kind: str, name: str = "hq", /, **changes: Any) -> dict[str, Any]:
    """An object as ``kubectl`` would take it; ``changes`` are of its spec."""
    if kind == "Secret":
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "stringData": changes or {"psk": SECRET},
        }
    return {
        "apiVersion": "kubeipsec.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": _merge(BASE[kind], changes),
    }


class Refused(NamedTuple):
    kind: str
    change: dict[str, Any]
    #: Of the error, and a part of its message.
    field: str
    message: str


PSK: dict[str, Any] = {"method": "preSharedKey", "secretRef": {"name": "hq-psk"}}
CERT: dict[str, Any] = {"method": "certificate", "certificateRef": {"name": "tls"}}
MAPPING = "spec.subnetMapping[0]"
V4, V6 = "10.1.0.0/24", "fd00:1::/64"


def peer(field: str, message: str, **change: Any) -> Refused:
    return Refused("IPsecPeer", change, f"spec.{field}" if field else "spec", message)


def policy(field: str, message: str, **change: Any) -> Refused:
    return Refused("IPsecPolicy", change, f"spec.{field}" if field else "spec", message)


def mode(field: str, message: str, **change: Any) -> Refused:
    return Refused("ModeConfig", change, f"spec.{field}" if field else "spec", message)


def auth(**change: Any) -> dict[str, Any]:
    return {"authentication": {**PSK, **change}}


def selector(**change: Any) -> dict[str, Any]:
    return {"selectors": [{"src": "10.1.0.0/24", "dst": "10.2.0.0/24", **change}]}


def routed(**interface: Any) -> dict[str, Any]:
    return {"mode": "routed", "interface": interface}


HOSTS = selector(src="192.0.2.1/32", dst="192.0.2.2/32")

REFUSED = [
    peer("address", "not an IP address, network or DNS name", address="10.0.0.1/8"),
    peer("address", "not an IP address, network or DNS name", address="300.1.1.1"),
    peer("address", "not an IP address, network or DNS name", address="vpn_example.com"),
    peer("address", "not an IP address, network or DNS name", address="::ffff:192.0.2.1"),
    peer("fallbackAddresses[0]", "not an IP address or DNS name", fallbackAddresses=["10.0.0.0/8"]),
    peer(
        "fallbackAddresses",
        "fallbackAddresses without a first address",
        address=None,
        passive=True,
        fallbackAddresses=["203.0.113.10"],
    ),
    peer(
        "fallbackAddresses",
        "a passive peer has no use for DNS names",
        passive=True,
        fallbackAddresses=["vpn.example.com"],
    ),
    peer("localAddress", "not an IP address:", localAddress="192.0.2.1/32"),
    peer("localAddress", "not an IP address:", localAddress="fe80::1%eth0"),
    peer("remoteSubnets[0]", "not a network", remoteSubnets=["10.20.0.1/16"]),
    peer("remoteSubnets[0]", "not a network", remoteSubnets=["10.20.0.0"]),
    peer("remoteSubnets[0]", "not a network", remoteSubnets=["10.20.0.0/255.255.0.0"]),
    peer("remoteSubnets[0]", "not a network", remoteSubnets=["10.20.0.0/016"]),
    peer("profile.lifetime", "not a duration from 1s to 168h", profile={"lifetime": "8 hours"}),
    peer("profile.lifetime", "not a duration from 1s to 168h", profile={"lifetime": ""}),
    peer("profile.lifetime", "not a duration from 1s to 168h", profile={"lifetime": "0s"}),
    peer("profile.lifetime", "not a duration from 1s to 168h", profile={"lifetime": "168h1s"}),
    peer(
        "profile.dpd.interval", "not a duration from 0s to 5m", profile={"dpd": {"interval": "6m"}}
    ),
    peer("failover.leaseDuration", "not a duration from 3s", failover={"leaseDuration": "2s"}),
    peer("probe.port", "set protocol: UDP, or remove port", probe={"port": 7}),
    peer(
        "profile.dpd.interval",
        "interval times maxFailures",
        profile={"dpd": {"interval": "2m", "maxFailures": 3}},
    ),
    peer("authentication", "exactly one of authentication and identities", authentication=None),
    peer(
        "authentication",
        "exactly one of authentication and identities",
        identities=[{"name": "a", **PSK}],
    ),
    peer("profileRef", "two profiles", profile={}, profileRef={"name": "p"}),
    peer("address", "nowhere to initiate to", address=None),
    peer("address", "no use for a DNS name", address="vpn.example.com", passive=True),
    peer("address", "a network is nowhere to initiate to", address="192.0.2.0/24"),
    peer("address", "a network is nowhere to initiate to", address="2001:db8::/64"),
    peer("exchangeMode", "exposes the identity", exchangeMode="aggressive"),
    peer("exchangeMode", "exposes the identity", exchangeMode="base"),
    peer(
        "exchangeMode",
        "IKEv1 has no EAP",
        exchangeMode="main",
        authentication={"method": "eap", "secretRef": {"name": "e"}},
    ),
    peer(
        "exchangeMode",
        "IKEv1 has no EAP",
        exchangeMode="main",
        authentication=None,
        identities=[
            {"name": "a", **PSK},
            {"name": "b", "method": "eapRadius", "certificateRef": {"name": "c"}},
        ],
    ),
    peer("profile", "not safe any more", profile={"encAlgorithms": ["aes256", "3des"]}),
    peer("profile", "not safe any more", profile={"hash": "sha1"}),
    peer("profile", "not safe any more", profile={"prf": "md5"}),
    peer("profile", "not safe any more", profile={"dhGroups": ["x25519", "modp1024"]}),
    peer("remoteSubnets", "a default route", remoteSubnets=["0.0.0.0/0"]),
    peer("remoteSubnets", "a default route", localSubnets=["0.0.0.0/0"]),
    peer("localSubnets", "IPv4 on one side only", remoteSubnets=[V4, V6]),
    peer("localSubnets", "IPv4 on one side only", localSubnets=[V4, V6]),
    peer("authentication.secretRef", "secretRef goes with", authentication={"method": "eap"}),
    peer(
        "authentication.secretRef",
        "secretRef goes with",
        authentication={**CERT, "secretRef": {"name": "s"}},
    ),
    peer(
        "authentication.certificateRef", "certificateRef goes", **auth(certificateRef={"name": "c"})
    ),
    peer(
        "authentication.certificateRef",
        "certificateRef goes",
        authentication={"method": "eapRadius"},
    ),
    peer("authentication.trustBundleRef", "remove it", **auth(trustBundleRef={"name": "ca"})),
    peer("authentication.matchBy", "no certificate to match by", **auth(matchBy="certificate")),
    peer("authentication.policyTemplateGroup", "go together", **auth(generatePolicy="port-strict")),
    peer("authentication.policyTemplateGroup", "go together", **auth(policyTemplateGroup="g")),
    peer("authentication.localID", "call ourselves", **auth(localID={"type": "ignore"})),
    peer("authentication.remoteID.value", "leave it out", **auth(remoteID={"type": "fqdn"})),
    peer(
        "authentication.remoteID.value",
        "leave it out",
        **auth(remoteID={"type": "fqdn", "value": ""}),
    ),
    peer("authentication.remoteID.value", "leave it out", **auth(remoteID={"value": "hq"})),
    peer(
        "authentication.remoteID.value",
        "of type address",
        **auth(remoteID={"type": "address", "value": "hq"}),
    ),
    peer(
        "authentication.remoteID.value",
        "of type email",
        **auth(remoteID={"type": "email", "value": "hq"}),
    ),
    peer(
        MAPPING.removeprefix("spec."),
        "exactly one of local and remote",
        subnetMapping=[{"local": V4, "remote": V4, "mapped": V4}],
    ),
    peer(
        "subnetMapping[0].mapped",
        "another size",
        subnetMapping=[{"local": V4, "mapped": "10.9.0.0/16"}],
    ),
    peer(
        "subnetMapping[0].mapped",
        "another size",
        subnetMapping=[{"remote": "10.0.0.0/24", "mapped": "fd00::/24"}],
    ),
    peer("nat.snatAddress", "snatAddress goes with", nat={"mode": "SNAT"}),
    peer("nat.snatAddress", "snatAddress goes with", nat={"snatAddress": "10.9.9.9"}),
    peer("routing.routingMark", "marks above 255", routing={"routingMark": 0x4000}),
    peer(
        "routing.routingMark",
        "marks above 255",
        routing={"connectionMark": 256},
        nat={"mode": "Masquerade"},
    ),
    peer("routing", "nat.mode SNAT", routing={"connectionMark": 1}),
    peer("requireIPsec[0].protocol", "cut the gateway off", requireIPsec=[{"protocol": "all"}]),
    peer("requireIPsec[0].port", "no ports", requireIPsec=[{"protocol": "gre", "port": 1}]),
    peer(
        "requireIPsec[0].endPort",
        "last port of a range",
        requireIPsec=[{"protocol": "udp", "endPort": 9}],
    ),
    policy("selectors[0].protocol", "not a protocol", **selector(protocol="quic")),
    policy("selectors[0].protocol", "not a protocol", **selector(protocol="256")),
    policy("selectors[0].src", "exactly one of src and srcFrom", **selector(srcFrom="PodCIDR")),
    policy(
        "selectors[0].src",
        "exactly one of src and srcFrom",
        selectors=[{"dst": "10.2.0.0/24"}],
    ),
    policy("selectors[0].dst", "the same family", **selector(dst=V6)),
    policy("selectors[0].protocol", "has no ports", **selector(dstPort=80)),
    policy("selectors[0].protocol", "has no ports", **selector(srcPort=80, protocol="icmp")),
    policy(
        "selectors[0].srcEndPort",
        "srcEndPort",
        **selector(protocol="tcp", srcPort=80, srcEndPort=79),
    ),
    policy("selectors[0].dstEndPort", "dstEndPort", **selector(protocol="tcp", dstEndPort=79)),
    policy(
        "proposal.authAlgorithms",
        "bring their own integrity",
        proposal={"encAlgorithms": ["aes256-gcm"], "authAlgorithms": ["sha256"]},
    ),
    policy("peerRef", "a policy has a peer", peerRef=None),
    policy("peerRef", "a policy has a peer", template=True),
    policy("selectors", "no traffic is named", selectors=None),
    policy("selectors", "no traffic is named", srcAddress=V4, dstAddress=V4),
    policy("selectors", "no traffic is named", selectors=None, srcAddress=V4),
    policy(
        "dstAddress",
        "give srcAddress and dstAddress the same",
        selectors=None,
        srcAddress=V4,
        dstAddress=V6,
    ),
    policy("tunnel", "transport mode", tunnel=False),
    policy("tunnel", "transport mode", tunnel=False, **selector(src="10.1.0.1/32")),
    policy("tunnel", "transport mode", tunnel=False, selectors=None, srcAddress=V4, dstAddress=V4),
    policy("selectors", "a default route", **selector(dst="0.0.0.0/0")),
    policy("selectors", "a default route", selectors=None, srcAddress="::/0", dstAddress=V6),
    policy("proposal", "nothing is encrypted", action="discard", proposal={}),
    policy("proposal", "nothing is encrypted", action="none", proposalRef={"name": "p"}),
    policy("proposalRef", "two proposals", proposal={}, proposalRef={"name": "p"}),
    policy("action", "a template is for", template=True, peerRef=None, action="discard"),
    policy("interface", "goes with mode: routed", interface={"name": "office0"}),
    policy("mode", "encrypted in tunnel mode or dropped", mode="routed", action="discard"),
    policy("mode", "encrypted in tunnel mode or dropped", mode="routed", level="use"),
    policy("mode", "encrypted in tunnel mode or dropped", mode="routed", tunnel=False, **HOSTS),
    policy(
        "mode",
        "encrypted in tunnel mode or dropped",
        mode="routed",
        template=True,
        peerRef=None,
    ),
    *(
        policy("interface.name", "not a name for an interface", **routed(name=name))
        for name in ("-office", "a/b", "lo", "default", "kipsec0")
    ),
    policy("interface.addresses[0]", "with its prefix length", **routed(addresses=["10.9.0.1"])),
    policy("interface.routes[0]", "not a network", **routed(routes=["10.9.0.1/24"])),
    policy("interface.mtu", "IPv6 needs", **routed(mtu=1279, routes=["::/0"])),
    policy("interface.mtu", "IPv6 needs", **routed(mtu=1279, addresses=["fd00::1/64"])),
    policy("dscp", "only tunnel mode", dscp="Clear", tunnel=False, **HOSTS),
    policy("dscp", "only tunnel mode", df="Clear", action="none"),
    policy("dscp", "only tunnel mode", ecn="Clear", action="discard"),
    mode(
        "addressPool.ranges[0]", "not a range", address=None, addressPool={"ranges": ["10.0.0.9"]}
    ),
    mode(
        "addressPool.ranges[0]",
        "not a range",
        address=None,
        addressPool={"ranges": ["10.0.0.9-10.0.0.8"]},
    ),
    mode(
        "addressPool.ranges[0]",
        "not a range",
        address=None,
        addressPool={"ranges": ["10.0.0.9-10.1.0.9"]},
    ),
    mode("addressPool.cidrs", "the pool is empty", address=None, addressPool={}),
    mode(
        "addressPool.cidrs", "more than 65536", address=None, addressPool={"cidrs": ["10.0.0.0/15"]}
    ),
    mode(
        "addressPool.cidrs", "more than 65536", address=None, addressPool={"cidrs": ["fd00::/111"]}
    ),
    mode("splitDNS[0]", "not a domain name", splitDNS=["corp_example"]),
    mode("addressPool", "a responder hands out", address=None),
    mode("addressPool", "a responder hands out", responder=False),
    mode("addressPool", "a responder hands out", addressPool={"cidrs": ["10.9.0.0/24"]}),
    mode("staticDNS", "two sources of DNS", systemDNS=True, staticDNS=["10.0.0.1"]),
    mode("srcAddressList", "are for an initiator", srcAddressList={"cidrs": [V4]}),
    mode("srcAddressList", "are for an initiator", connectionMark={"value": 1}),
    mode(
        "connectionMark",
        "two choices of traffic",
        responder=False,
        address=None,
        srcAddressList={"cidrs": [V4]},
        connectionMark={"value": 1},
    ),
    mode("useResponderDNS", "useResponderDNS is for an initiator", useResponderDNS="no"),
]

#: The other side of each rule: what is close to a refused case and good.
ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("IPsecPolicy", {"mode": "routed", **selector(src="0.0.0.0/0", dst="0.0.0.0/0")}),
    ("IPsecPolicy", {"mode": "routed", "level": "unique", "dscp": "CopyBoth", "df": "Clear"}),
    ("IPsecPolicy", routed(addresses=["10.9.0.1/30", "fd00::1/64"], routes=["::/0"], mtu=1280)),
    ("IPsecPolicy", routed(name="to-hq_0.1", addresses=["169.254.1.1/32"], mtu=576)),
    ("IPsecPeer", {"hwOffload": "Crypto"}),
    ("IPsecPeer", {}),
    ("IPsecPeer", {"address": "2001:db8::1", "localAddress": "2001:db8::2"}),
    ("IPsecPeer", {"address": "vpn.example.com"}),
    ("IPsecPeer", {"address": "4.vpn-1.example.3com."}),
    ("IPsecPeer", {"address": "hq"}),
    ("IPsecPeer", {"address": "192.0.2.1/32"}),
    ("IPsecPeer", {"address": "192.0.2.0/24", "passive": True}),
    ("IPsecPeer", {"address": None, "passive": True}),
    ("IPsecPeer", {"remoteSubnets": ["0.0.0.0/0"], "allowDefaultRoute": True}),
    ("IPsecPeer", {"remoteSubnets": ["10.20.0.0/16", V6], "localSubnets": [V4, "FD00:2::/64"]}),
    ("IPsecPeer", {"remoteSubnets": None, "localSubnets": None}),
    ("IPsecPeer", {"profile": {"lifetime": "168h", "dpd": {"interval": "0s"}}}),
    ("IPsecPeer", {"profile": {"lifetime": "1s", "dpd": {"interval": "5m", "maxFailures": 1}}}),
    ("IPsecPeer", {"profile": {"lifetime": "1h30m15s"}, "failover": {"leaseDuration": "60s"}}),
    ("IPsecPeer", {"profileRef": {"name": "p"}}),
    ("IPsecPeer", {"exchangeMode": "main"}),
    ("IPsecPeer", {"exchangeMode": "aggressive", "allowInsecure": True}),
    ("IPsecPeer", {"exchangeMode": "base", "allowInsecure": True}),
    (
        "IPsecPeer",
        {
            "allowInsecure": True,
            "profile": {
                "encAlgorithms": ["3des"],
                "hash": "md5",
                "prf": "sha1",
                "dhGroups": ["modp1024"],
            },
        },
    ),
    ("IPsecPeer", {"authentication": {"method": "eap", "secretRef": {"name": "e"}}}),
    (
        "IPsecPeer",
        {"authentication": {**CERT, "trustBundleRef": {"name": "c"}, "matchBy": "certificate"}},
    ),
    ("IPsecPeer", {"authentication": {"method": "eapRadius", "certificateRef": {"name": "c"}}}),
    (
        "IPsecPeer",
        {"authentication": None, "identities": [{"name": "a", **PSK}, {"name": "b", **PSK}]},
    ),
    ("IPsecPeer", auth(generatePolicy="port-override", policyTemplateGroup="g")),
    ("IPsecPeer", auth(localID={"type": "fqdn", "value": "me"}, remoteID={"type": "ignore"})),
    ("IPsecPeer", auth(remoteID={"type": "address", "value": "fd00::1"})),
    ("IPsecPeer", auth(remoteID={"type": "email", "value": "hq@example.com"})),
    ("IPsecPeer", {"subnetMapping": [{"local": V4, "mapped": "10.9.0.0/24"}]}),
    ("IPsecPeer", {"subnetMapping": [{"remote": V6, "mapped": "fd00:9::/64"}]}),
    ("IPsecPeer", {"nat": {"mode": "SNAT", "snatAddress": "10.9.9.9"}}),
    ("IPsecPeer", {"nat": {"mode": "Exempt"}}),
    ("IPsecPeer", {"routing": {"routingMark": 255, "metric": 7, "tableID": 4294967295}}),
    ("IPsecPeer", {"routing": {"connectionMark": 1}, "nat": {"mode": "Masquerade"}}),
    ("IPsecPeer", {"requireIPsec": [{"protocol": "udp", "port": 1701}, {"protocol": "gre"}]}),
    ("IPsecPeer", {"routing": {"routingMark": 0x4000, "allowMarkConflict": True}}),
    ("IPsecPeer", {"gatewaySelector": {"nodeSelector": {"a/b": "c"}, "group": "g"}}),
    ("IPsecPeer", {"probe": {"targets": ["10.20.0.1"], "sourceAddress": "10.1.0.1"}}),
    ("IPsecPeer", {"probe": {"protocol": "UDP"}}),
    ("IPsecPeer", {"probe": {"protocol": "UDP", "port": 7, "targets": ["10.20.0.1"]}}),
    ("IPsecPolicy", {}),
    ("IPsecPolicy", {"selectors": None, "srcAddress": V4, "dstAddress": "10.2.0.0/24"}),
    (
        "IPsecPolicy",
        {"template": True, "peerRef": None, **selector(src="0.0.0.0/0", dst="0.0.0.0/0")},
    ),
    ("IPsecPolicy", {"tunnel": False, **selector(src="10.1.0.1/32", dst="10.2.0.1/32")}),
    ("IPsecPolicy", {"tunnel": False, **selector(src="fd00::1/128", dst="fd00::2/128")}),
    ("IPsecPolicy", {"allowDefaultRoute": True, **selector(dst="0.0.0.0/0")}),
    ("IPsecPolicy", selector(protocol="tcp", srcPort=1, srcEndPort=1, dstPort=80, dstEndPort=90)),
    ("IPsecPolicy", selector(protocol="132", dstPort=80)),
    ("IPsecPolicy", selector(protocol="255")),
    ("IPsecPolicy", selector(protocol="icmp")),
    ("IPsecPolicy", {"selectors": [{"srcFrom": "PodCIDR", "dst": V6}]}),
    ("IPsecPolicy", {"proposal": {"encAlgorithms": ["aes256-gcm"], "authAlgorithms": []}}),
    (
        "IPsecPolicy",
        {"proposal": {"encAlgorithms": ["aes256-gcm", "aes256"], "authAlgorithms": ["sha512"]}},
    ),
    ("IPsecPolicy", {"action": "discard"}),
    ("IPsecPolicy", {"action": "none"}),
    ("IPsecPolicy", {"proposalRef": {"name": "p"}}),
    ("ModeConfig", {}),
    ("ModeConfig", {"address": None, "responder": False, "useResponderDNS": "yes"}),
    ("ModeConfig", {"address": None, "addressPool": {"cidrs": ["10.0.0.0/16", "fd00::/112"]}}),
    (
        "ModeConfig",
        {"address": None, "addressPool": {"ranges": ["10.0.0.9-10.0.255.9", "10.1.0.1-10.1.0.1"]}},
    ),
    ("ModeConfig", {"splitDNS": ["corp.example.com"], "staticDNS": ["10.0.0.1"]}),
    ("ModeConfig", {"systemDNS": True}),
    ("ModeConfig", {"address": None, "responder": False, "connectionMark": {"value": 1}}),
    (
        "ModeConfig",
        {
            "address": None,
            "responder": False,
            "srcAddressList": {
                "podSelector": {
                    "matchLabels": {"a": "b"},
                    "matchExpressions": [{"key": "c", "operator": "In", "values": ["d"]}],
                }
            },
        },
    ),
]
