"""Tunnels with strongSwan: algorithms, roles, selectors, ways of setting up."""

import re

import pytest

from ipsec_lab import manifests
from ipsec_lab.interop import CHILD, CONNECTION, GCM, PEER, SUITES, InteropRig
from ipsec_lab.strongswan import CharonSettings, Child
from ipsec_lab.traffic import ping

ROLES = pytest.mark.parametrize("role", ["initiator", "responder"])


def passive(role: str) -> dict[str, bool]:
    return {"passive": role == "responder"}


@ROLES
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_algorithms(rig: InteropRig, role, suite):
    before = rig.guard.counters()
    connection = rig.connection(suite=suite)
    rig.connect(role, rig.documents(suite=suite, **passive(role)), connection)
    rig.exchange_traffic()
    assert (rig.guard.counters() - before).encrypted > 50
    (sa,) = rig.charon.established(CONNECTION)
    assert sa.initiator == (role == "responder")


@ROLES
def test_ipv6_outside(rig: InteropRig, role):
    connection = rig.connection(version=6)
    rig.connect(role, rig.documents(version=6, **passive(role)), connection)
    rig.exchange_traffic()
    (sa,) = rig.charon.established(CONNECTION)
    assert sa.remote_host == rig.topology.a.wan_address(6)


@ROLES
def test_wrong_group_first(rig: InteropRig, role):
    """The initiator guesses x25519, the responder wants ecp384 and says so."""
    both = {"dhGroups": ["x25519", "ecp384"]}
    if role == "initiator":
        documents = rig.documents(profile=both)
        connection = rig.connection(proposals=("aes128gcm16-prfsha256-ecp384",))
    else:
        documents = rig.documents(profile={"dhGroups": ["ecp384"]}, passive=True)
        connection = rig.connection(proposals=("aes128gcm16-prfsha256-x25519-ecp384",))
    rig.connect(role, documents, connection)
    rig.exchange_traffic(lan=(0,))
    (sa,) = rig.charon.established(CONNECTION)
    assert sa.suite.endswith("ECP_384")
    assert "INVAL_KE" in rig.charon.log()


def test_wrong_group_in_a_rekey_of_charon(rig: InteropRig):
    """PFS: charon proposes x25519 first, our policy allows only ecp384."""
    documents = rig.documents(proposal={"pfsGroup": "ecp384"})
    child = {"esp_proposals": ("aes128gcm16-x25519-ecp384",)}
    rig.connect("initiator", documents, rig.connection(child=child))
    old = rig.charon.wait_installed(CHILD)
    rig.charon.rekey(child=CHILD)
    rig.charon.wait_for(lambda sas: replaced(sas, old.spi_in), "child rekeyed")
    assert "INVAL_KE" in rig.charon.log()
    rig.gateway.wait(lambda: "child lans rekeyed" in rig.gateway.log(), "the rekey in the log")
    assert rig.charon.wait_installed(CHILD).suite.endswith("ECP_384")
    rig.exchange_traffic(lan=(0,))


def test_wrong_group_in_a_rekey_of_ours(rig: InteropRig):
    """PFS: we guess x25519, which was right for the IKE SA; charon wants ecp384 for the child."""
    documents = rig.documents(
        profile={"dhGroups": ["x25519", "ecp384"]},
        proposal={"pfsGroup": "auto", "lifetime": "5s"},
    )
    child = {"esp_proposals": ("aes128gcm16-ecp384",)}
    rig.connect("initiator", documents, rig.connection(child=child))
    old = rig.charon.wait_installed(CHILD)
    rig.charon.wait_for(lambda sas: replaced(sas, old.spi_in), "child rekeyed")
    assert "INVAL_KE" in rig.charon.log()
    rig.gateway.wait(lambda: "child lans rekeyed" in rig.gateway.log(), "the rekey in the log")
    assert rig.charon.wait_installed(CHILD).suite.endswith("ECP_384")
    rig.exchange_traffic(lan=(0,))


def replaced(sas, old_spi):
    installed = [c for sa in sas for c in sa.children if c.state == "INSTALLED"]
    return bool(installed) and all(c.spi_in != old_spi for c in installed)


@pytest.mark.parametrize(
    ("role", "ours", "theirs"),
    [
        # We ask for more than charon allows.
        ("initiator", ("10.1.0.0/16", "10.2.0.0/16"), ("10.2.0.0/24", "10.1.0.0/24")),
        # charon asks for more than we allow.
        ("responder", ("10.1.0.0/24", "10.2.0.0/24"), ("10.2.0.0/16", "10.1.0.0/16")),
    ],
)
def test_narrowing(rig: InteropRig, role, ours, theirs):
    documents = rig.documents(selectors=[ours], **passive(role))
    child = {"local_ts": (theirs[0],), "remote_ts": (theirs[1],)}
    rig.connect(role, documents, rig.connection(child=child))
    installed = rig.charon.wait_installed(CHILD)
    assert installed.local_ts == ("10.2.0.0/24",)
    assert installed.remote_ts == ("10.1.0.0/24",)
    rig.exchange_traffic(lan=(0,))


@ROLES
def test_three_children(rig: InteropRig, role):
    a, b = rig.topology.a, rig.topology.b
    policies = [
        manifests.policy(
            f"lan{index}",
            peer_name=PEER,
            selectors=[(a.lans[index], b.lans[index])],
            proposal=GCM.proposal,
        )
        for index in range(3)
    ]
    children = tuple(
        Child(name=f"lan{index}", local_ts=(b.lans[index],), remote_ts=(a.lans[index],))
        for index in range(3)
    )
    connection = rig.connection(children=children)
    documents = rig.documents(policies=policies, **passive(role))
    rig.start_theirs(connection)
    rig.start_ours(documents)
    if role == "responder":
        for child in children:
            rig.charon.initiate(child=child.name)
    rig.wait_up(connection)
    rig.exchange_traffic(lan=(0, 1, 2))
    (sa,) = rig.charon.established(CONNECTION)
    assert len(sa.children) == 3


@ROLES
def test_childless(rig: InteropRig, role):
    """RFC 6023: the IKE SA alone, then the child with a key exchange of its own."""
    if role == "initiator":
        rig.connect(
            role, rig.documents(profile={"childless": True}), rig.connection(childless="force")
        )
    else:
        connection = rig.connection(childless="force")
        rig.start_theirs(connection)
        rig.start_ours(rig.documents(passive=True))
        rig.charon.initiate(ike=CONNECTION)
        assert rig.charon.established(CONNECTION)[0].children == ()
        rig.charon.initiate(child=CHILD)
        rig.wait_up(connection)
    assert rig.charon.wait_installed(CHILD).suite.endswith("25519")
    rig.exchange_traffic(lan=(0,))


@pytest.fixture
def many_lans(topology):
    """Further networks with an address on site b's gateway (charon's data plane wants one)."""
    nets = [f"fd00:2:0:{n:x}::/64" for n in range(1, 41)]
    addresses = [f"{net.removesuffix('/64')}1/64 dev lan0" for net in nets]
    topology.gw_b.ip(*(f"address add {each} nodad" for each in addresses))
    yield nets
    topology.gw_b.ip(*(f"address del {each}" for each in addresses))


@ROLES
def test_fragmentation(rig: InteropRig, many_lans, role):
    """RFC 7383: so many selectors that IKE_AUTH does not fit into 1280 octets."""
    a, b = rig.topology.a, rig.topology.b
    pairs = [(a.lans[0], b.lans[0]), (a.lans[1], b.lans[1])]
    pairs += [(a.lans[1], net) for net in many_lans]
    documents = rig.documents(selectors=pairs, **passive(role))
    child = {"local_ts": (*b.lans[:2], *many_lans), "remote_ts": a.lans[:2]}
    rig.connect(role, documents, rig.connection(child=child))
    log = rig.charon.log()
    assert re.search(r"parsed IKE_AUTH \w+ 1 \[ EF\(2/", log)
    assert re.search(r"generating IKE_AUTH \w+ 1 \[ EF\(2/", log)
    assert len(rig.charon.wait_installed(CHILD).local_ts) == 42
    rig.exchange_traffic(lan=(0,))


def test_cookie_from_charon(rig: InteropRig):
    """charon under attack: strangers hold half-open SAs, so we get a COOKIE and return it."""
    connection = rig.connection()
    settings = CharonSettings(cookie_threshold=1)
    rig.start_theirs(connection, settings=settings)
    rig.half_open_at_charon(3)
    rig.start_ours(rig.documents())
    rig.wait_up(connection)
    assert "N(COOKIE)" in rig.charon.log()
    rig.exchange_traffic(lan=(0,))


def test_cookie_from_us(rig: InteropRig):
    """We are under attack from many addresses: charon gets a COOKIE and returns it."""
    connection = rig.connection()
    rig.start_theirs(connection)
    rig.start_ours(rig.documents(address="198.51.100.0/24", passive=True))
    # Of one address we take only a few without a COOKIE, so there are many.
    rig.half_open_at_ours(4, tuple(f"198.51.100.{n}" for n in range(10, 20)))
    rig.charon.initiate(child=CHILD)
    rig.wait_up(connection)
    assert "N(COOKIE)" in rig.charon.log()
    rig.exchange_traffic(lan=(0,))


@ROLES
def test_behind_a_nat(rig: InteropRig, role):
    """The router masquerades the initiator's site."""
    rig.guard.masquerade("a" if role == "initiator" else "b")
    a, b = rig.topology.a, rig.topology.b
    ids = {"local_id": b.wan_address(), "remote_id": a.wan_address()}
    if role == "initiator":
        documents = rig.documents()
        connection = rig.connection(remote_addrs=("%any",), **ids)
    else:
        authentication = {
            "method": "preSharedKey",
            "secretRef": {"name": "west-psk"},
            "remoteID": {"type": "address", "value": b.wan_address()},
        }
        router = rig.topology.wan_neighbour("a")
        documents = rig.documents(address=router, passive=True, authentication=authentication)
        connection = rig.connection(**ids)
    rig.connect(role, documents, connection)
    rig.exchange_traffic()
    status = rig.gateway.status("IPsecPeer", PEER)
    assert status["natDetected"]["local" if role == "initiator" else "remote"] is True


def test_without_a_tunnel_nothing_leaves(rig: InteropRig):
    """level: require. The guard counts clear text of every test; here it is tempted."""
    rig.start_ours(rig.documents(passive=True))
    for address in (rig.topology.b.host(0), rig.topology.b.host(1)):
        assert ping(rig.topology.lan_a, address, count=2, wait=0.2).received == 0
