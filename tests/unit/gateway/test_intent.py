"""From accepted tunnels to the engine's peers, policies, routes and problems."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from cryptography import x509

from ipsec_api.tunnel import IdentityType, TunnelProposal
from ipsec_gateway import algorithms
from ipsec_gateway.algorithms import UnknownAlgorithm, esp_proposals, ike_proposals
from ipsec_gateway.facts import Facts
from ipsec_gateway.identities import BadIdentity, identity
from ipsec_gateway.intent import Intent, intent
from ipsec_gateway.ipsec.abilities import USERSPACE, Abilities
from ipsec_gateway.ipsec.base import PolicyAction, PolicyDirection
from ipsec_gateway.lastgood import LastGood
from ipsec_gateway.marks import REQID_BASE, allocate_reqids, reqid_of
from ipsec_ike.config import Mode, Path, Start
from ipsec_ike.identity import Identity
from ipsec_ike.numbers import Encr, Group, Integ, Protocol, TransformType
from ipsec_ike.proposal import Transform

FACTS = Facts(
    addresses=(ip_address("192.0.2.1"),),
    resolved={"203.0.113.9": ("203.0.113.9",), "hq.example": ("203.0.113.9", "2001:db8::9")},
    sources={"203.0.113.9": "192.0.2.1"},
)


def of(make, *documents, facts: Facts = FACTS) -> Intent:
    found = LastGood().take(make.files(a=[make.secret(), *documents]))
    assert not found.rejections
    assert not found.errors
    return intent(found.tunnels, facts)


def test_the_minimal_peer(make) -> None:
    found = of(make, make.peer())
    (peer,) = found.peers
    assert peer.name == "default/hq"
    assert peer.paths == (Path("192.0.2.1", "203.0.113.9"),)
    assert peer.remote_networks == (ip_network("203.0.113.9/32"),)
    (credentials,) = peer.identities
    assert credentials.local_id is None
    assert credentials.remote_id is None
    assert credentials.psk is not None
    assert credentials.psk.reveal() == b"correct horse battery staple"
    assert "correct" not in repr(found)
    (child,) = peer.children
    assert child.start is Start.NOW
    assert [str(t) for t in child.remote_ts] == ["10.2.0.0/16"]
    directions = [p.id.direction for p in found.policies]
    assert directions == [PolicyDirection.OUT, PolicyDirection.IN, PolicyDirection.FORWARD]
    assert {p.reqid for p in found.policies} == {child.reqid}
    assert found.policies[1].id.source == found.policies[0].id.destination
    assert found.pairs == ((ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")),)
    assert not found.problems
    (owner,) = found.children.values()
    assert (owner.ref.kind, owner.selectors) == ("IPsecPeer", 1)


def test_policies_of_all_tunnels_are_in_one_order(make) -> None:
    found = of(
        make,
        make.peer(),
        make.policy(
            "except", action="none", priority=5, srcAddress="10.1.0.0/16", dstAddress="10.2.5.0/24"
        ),
        make.policy(
            "never",
            action="discard",
            priority=6,
            srcAddress="10.1.0.0/16",
            dstAddress="10.2.6.0/24",
        ),
    )
    out = [p for p in found.policies if p.id.direction is PolicyDirection.OUT]
    assert [p.action for p in out] == [
        PolicyAction.NONE,
        PolicyAction.DISCARD,
        PolicyAction.ENCRYPT,
    ]
    assert [p.priority for p in out] == [1, 2, 3]
    assert [p.reqid for p in out][:2] == [0, 0]
    assert len(found.peers[0].children) == 1
    assert len(found.pairs) == 1, "only what is encrypted is routed into the device"


def test_per_pair_is_a_child_for_each(make) -> None:
    pairs = [{"src": "10.1.0.0/16", "dst": f"10.{n}.0.0/16"} for n in (7, 8)]
    policy = make.policy("p", selectorMode="PerPair", selectors=pairs)
    found = of(make, make.peer(remoteSubnets=None, localSubnets=None), policy)
    children = found.peers[0].children
    assert [len(c.remote_ts) for c in children] == [1, 1]
    assert len({c.reqid for c in children}) == 2


def test_one_child_for_all_selectors(make) -> None:
    found = of(make, make.peer(remoteSubnets=["10.7.0.0/16", "10.8.0.0/16"]))
    (child,) = found.peers[0].children
    assert len(child.remote_ts) == 2
    assert len(child.local_ts) == 1
    assert len(found.policies) == 6


def test_a_passive_peer_never_starts(make) -> None:
    (peer,) = of(make, make.peer(passive=True)).peers
    assert not peer.initiate
    assert peer.children[0].start is Start.NEVER


@pytest.mark.parametrize(
    ("asked", "likes", "forced"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_esp_goes_in_udp_where_the_data_plane_likes_it_so(
    make, asked: bool | None, likes: bool, forced: bool
) -> None:
    facts = replace(FACTS, encapsulate=likes)
    profile = {} if asked is None else {"forceEncapsulation": asked}
    (peer,) = of(make, make.peer(profile=profile), facts=facts).peers
    assert peer.force_encapsulation is forced


def test_names_that_cannot_be_resolved_and_addresses_without_a_route(make) -> None:
    found = of(make, make.peer(address="nowhere.example"))
    (problem,) = found.problems
    assert problem.reason == "AddressUnresolved"
    assert "nowhere.example" in problem.message
    assert found.peers[0].paths == ()
    found = of(make, make.peer(address="hq.example"))
    assert found.peers[0].paths == (Path("192.0.2.1", "203.0.113.9"),)
    assert [p.reason for p in found.problems] == ["NoRoute"]
    assert "2001:db8::9" in found.problems[0].message
    assert ip_network("2001:db8::9/128") in found.peers[0].remote_networks


def test_mtu_and_mss_of_a_peer(make) -> None:
    found = of(
        make, make.peer(mtu=1300, tcpMSS=1200, remoteSubnets=["10.2.0.0/17", "10.2.128.0/17"])
    )
    assert found.mtus == {ip_network("10.2.0.0/17"): 1300, ip_network("10.2.128.0/17"): 1300}
    assert found.clamps == {1200: (ip_network("10.2.0.0/16"),)}, "sets refuse overlaps"
    found = of(make, make.peer(mtu=1300))
    assert found.clamps == {1260: (ip_network("10.2.0.0/16"),)}, "TCP keeps to the MTU"


def test_the_same_again_is_the_same(make) -> None:
    assert of(make, make.peer()) == of(make, make.peer())


# Reqids


def test_reqids_do_not_depend_on_order_or_neighbours() -> None:
    keys = [f"default/peer-{n}/p" for n in range(500)]
    all_of_them = allocate_reqids(keys)
    assert all_of_them == allocate_reqids(reversed(keys))
    assert allocate_reqids(keys[3:5]) == {k: all_of_them[k] for k in keys[3:5]}
    assert len(set(all_of_them.values())) == 500
    assert all(REQID_BASE <= r < 2 * REQID_BASE for r in all_of_them.values())


def test_a_collision_moves_only_the_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from ipsec_gateway import marks

    monkeypatch.setattr(marks, "reqid_of", lambda key, attempt=0: 7 if attempt == 0 else 8)
    assert allocate_reqids(["b", "a"]) == {"a": 7, "b": 8}
    assert reqid_of("a") != reqid_of("a", 1)


# Algorithms


def test_combined_mode_ciphers_are_a_proposal_of_their_own() -> None:
    listed = TunnelProposal(
        encryption=("aes256", "aes256-gcm"), integrity=("sha256",), groups=("x25519",)
    )
    plain, combined = ike_proposals((listed,))
    assert [t.id for t in plain.of_type(TransformType.ENCR)] == [Encr.AES_CBC]
    assert plain.of_type(TransformType.INTEG)
    assert [t.id for t in combined.of_type(TransformType.ENCR)] == [Encr.AES_GCM_16]
    assert not combined.of_type(TransformType.INTEG)
    assert [p.number for p in (plain, combined)] == [1, 2]
    assert all(p.of_type(TransformType.PRF) for p in (plain, combined))


def test_esp_proposals_have_esn_and_pfs() -> None:
    listed = TunnelProposal(
        encryption=("aes128-gcm",), groups=("x25519", "none"), esn=(True, False)
    )
    (proposal,) = esp_proposals((listed,))
    assert [t.id for t in proposal.of_type(TransformType.ESN)] == [1, 0]
    assert [t.id for t in proposal.of_type(TransformType.KE)] == [Group.CURVE25519, Group.NONE]
    assert not proposal.of_type(TransformType.PRF)


@pytest.mark.parametrize("name", ["twofish", "rot13"])
def test_unknown_algorithms_say_so(name: str) -> None:
    with pytest.raises(UnknownAlgorithm, match=name):
        esp_proposals((TunnelProposal(encryption=(name,)),))


def test_every_name_of_the_contract_has_a_transform() -> None:
    for cipher in algorithms.names.EncryptionAlgorithm:
        if cipher != "twofish":  # no number in IKEv2
            esp_proposals((TunnelProposal(encryption=(cipher,)),))
    for mac in algorithms.names.HashAlgorithm:
        ike_proposals((TunnelProposal(encryption=("aes128",), integrity=(mac,)),))
    for group in algorithms.names.DhGroup:
        ike_proposals((TunnelProposal(encryption=("aes128",), groups=(group,)),))


# Identities


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("fqdn", "gw.example", Identity.fqdn("gw.example")),
        ("email", "a@b.example", Identity.email("a@b.example")),
        ("address", "2001:db8::1", Identity.address("2001:db8::1")),
        ("keyID", "0x00ff", Identity.key_id(b"\x00\xff")),
        ("keyID", "plain", Identity.key_id(b"plain")),
        ("auto", "", None),
        ("ignore", "", None),
    ],
)
def test_identities(kind: str, value: str, expected: Identity | None) -> None:
    assert identity(IdentityType(kind), value) == expected


def test_a_distinguished_name_is_der() -> None:
    found = identity(IdentityType.DN, "CN=gw,O=Example,C=DE")
    assert found is not None
    assert found.data[0] == 0x30
    name = x509.Name.from_rfc4514_string("CN=gw,O=Example,C=DE")
    assert found.data == name.public_bytes()


@pytest.mark.parametrize(
    ("kind", "value"), [("address", "10.1"), ("dn", "nonsense"), ("keyID", "0xg")]
)
def test_bad_identities_name_themselves(kind: str, value: str) -> None:
    with pytest.raises(BadIdentity, match=value):
        identity(IdentityType(kind), value)


HOSTS = {"srcAddress": "192.0.2.1/32", "dstAddress": "203.0.113.9/32"}
CAN = Abilities(
    dataplane="xfrm",
    encryption=frozenset({Transform(TransformType.ENCR, Encr.AES_GCM_16, 256)}),
    esp_integrity=frozenset({Integ.HMAC_SHA2_256_128}),
    ah_integrity=frozenset({Integ.HMAC_SHA2_384_192}),
    transport=True,
    esn=False,
)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"ipsecProtocols": ["ah"], **HOSTS}, "spec.ipsecProtocols: the userspace data plane"),
        ({"tunnel": False, **HOSTS}, "spec.tunnel: the userspace data plane"),
    ],
)
def test_what_the_data_plane_cannot_do_is_told_and_stays_blocked(
    make, spec: dict[str, object], words: str
) -> None:
    found = of(
        make, make.peer(), make.policy("hosts", **spec), facts=replace(FACTS, abilities=USERSPACE)
    )
    (problem,) = found.problems
    assert (problem.ref.name, problem.reason) == ("hosts", "UnsupportedByDataplane")
    assert problem.message.startswith(words)
    assert ", or use a gateway whose kernel has it" in problem.message
    # No child can be negotiated; the traffic is not sent in clear for all that.
    assert [c.name for p in found.peers for c in p.children] == ["hq"]
    assert [p.action for p in found.policies if p.name == "default/hosts"] == [
        PolicyAction.ENCRYPT
    ] * 3


def test_only_what_the_data_plane_can_do_is_offered(make) -> None:
    found = of(make, make.peer(), facts=replace(FACTS, abilities=CAN))
    (proposal,) = found.peers[0].children[0].proposals
    shown = [str(t) for t in proposal.transforms if t.type != TransformType.KE]
    assert shown == ["AES_GCM_16_256", "NO_ESN"]


def test_nothing_left_to_offer(make) -> None:
    proposal = {"encAlgorithms": ["aes128-gcm"]}
    policy = make.policy("hosts", proposal=proposal, **HOSTS)
    found = of(make, make.peer(), policy, facts=replace(FACTS, abilities=CAN))
    (problem,) = found.problems
    assert problem.message == (
        "spec.proposal: the xfrm data plane of this gateway has none of AES_GCM_16_128: name "
        "algorithms that it has (its log lists them)"
    )


def test_ah_and_transport_where_the_data_plane_has_them(make) -> None:
    policy = make.policy("hosts", ipsecProtocols=["ah"], tunnel=False, **HOSTS)
    found = of(make, make.peer(), policy, facts=replace(FACTS, abilities=CAN))
    assert not found.problems
    (child,) = [c for c in found.peers[0].children if c.name == "hosts"]
    assert child.mode is Mode.TRANSPORT
    (proposal,) = child.proposals
    assert proposal.protocol == Protocol.AH
    assert [str(t) for t in proposal.transforms if t.type == TransformType.INTEG] == [
        "HMAC_SHA2_384_192"
    ]
    specs = [p for p in found.policies if p.name == "default/hosts"]
    assert {(p.protocols, p.mode, p.remote) for p in specs} == {
        ((Protocol.AH,), Mode.TRANSPORT, "")
    }


def test_outbound_tunnel_policies_know_where_to(make) -> None:
    ends = [(p.local, p.remote) for p in of(make, make.peer()).policies]
    assert ends == [("192.0.2.1", "203.0.113.9"), ("", ""), ("", "")]
