"""Our gateway on the kernel's ESP, strongSwan's kernel back end at the other site."""

import re
import time

import pytest

from ipsec_lab import manifests
from ipsec_lab.interop import CHILD, CONNECTION, GCM, PEER, SUITES
from ipsec_lab.kernel_rig import KernelRig
from ipsec_lab.masquerades import NFT, ROUTER, keeps_sources
from ipsec_lab.traffic import ConstantPing, ping, ping_until

pytestmark = pytest.mark.strongswan

ROLES = pytest.mark.parametrize("role", ["initiator", "responder"])
OUTER = pytest.mark.parametrize("version", [4, 6], ids=["outer4", "outer6"])


def passive(role: str) -> dict[str, bool]:
    return {"passive": role == "responder"}


def one_policy(rig: KernelRig, *pairs: tuple[str, str], **spec) -> list[manifests.Document]:
    return [manifests.policy("lans", peer_name=PEER, selectors=pairs, **spec)]


def between_hosts(rig: KernelRig, ours: str, theirs: str) -> list[manifests.Document]:
    """Transport mode between the two gateways."""
    size = 128 if ":" in ours else 32
    pair = f"{ours}/{size}", f"{theirs}/{size}"
    return one_policy(rig, pair, tunnel=False, proposal=GCM.proposal)


def wait_replaced(rig: KernelRig, seen: set[int], what: str) -> None:
    """Until charon has a child whose SPI is not in ``seen``; it is added."""
    sas = rig.charon.wait_for(lambda sas: bool(fresh(sas) - seen), what, timeout=20)
    seen |= fresh(sas)


def fresh(sas) -> set[int]:
    return {c.spi_in for sa in sas for c in sa.children if c.state == "INSTALLED"}


def lans(rig: KernelRig, index: int = 0) -> tuple[str, str]:
    return rig.topology.a.lans[index], rig.topology.b.lans[index]


class TestShapes:
    """Protocols, modes and families, as initiator and as responder."""

    @ROLES
    @OUTER
    def test_esp_tunnel(self, rig: KernelRig, role: str, version: int) -> None:
        """Both families inside, in either outside: 4-in-4 and 6-in-4, 4-in-6 and 6-in-6."""
        before = rig.guard.counters()
        documents = rig.documents(version=version, **passive(role))
        rig.connect(role, documents, rig.connection(version=version))
        rig.exchange_traffic(lan=(0, 1))
        assert (rig.guard.counters() - before).esp > 30
        (sa,) = rig.charon.established(CONNECTION)
        assert sa.initiator == (role == "responder")
        assert {each.mode for each in rig.states()} == {"tunnel"}
        assert {each.source for each in rig.states()} == {
            site.wan_address(version) for site in (rig.topology.a, rig.topology.b)
        }

    @pytest.mark.parametrize(
        ("role", "version"), [("initiator", 4), ("responder", 4), ("initiator", 6)]
    )
    def test_esp_transport(self, rig: KernelRig, role: str, version: int) -> None:
        a, b = (site.wan_address(version) for site in (rig.topology.a, rig.topology.b))
        documents = rig.documents(policies=between_hosts(rig, a, b), version=version)
        if role == "responder":
            documents = rig.documents(policies=between_hosts(rig, a, b), passive=True)
        child = {"mode": "transport", "local_ts": (b,), "remote_ts": (a,)}
        rig.connect(role, documents, rig.connection(version=version, child=child))
        rig.exchange_outer(version=version)
        assert {each.mode for each in rig.states()} == {"transport"}

    @ROLES
    def test_esp_transport_behind_a_nat(self, rig: KernelRig, role: str) -> None:
        """RFC 7296 2.23.1: each end has the addresses that it sees, and we behind the NAT have our
        own."""
        a, b = (site.wan_address() for site in (rig.topology.a, rig.topology.b))
        rig.guard.masquerade("a" if role == "initiator" else "b")
        router = rig.topology.wan_neighbour("b" if role == "initiator" else "a")
        rig.guard.allow(router)
        before = rig.guard.counters()
        if role == "initiator":
            documents = rig.documents(policies=between_hosts(rig, a, b))
            child = {"mode": "transport", "local_ts": (b,), "remote_ts": (router,)}
            connection = rig.connection(remote_addrs=("%any",), child=child)
            pings = [(rig.topology.gw_a, b), (rig.topology.gw_b, router)]
        else:
            policies = between_hosts(rig, a, router)
            documents = rig.documents(policies=policies, address=router, passive=True)
            child = {"mode": "transport", "local_ts": (b,), "remote_ts": (a,)}
            connection = rig.connection(child=child)
            pings = [(rig.topology.gw_b, a), (rig.topology.gw_a, router)]
        rig.connect(role, documents, connection)
        for namespace, address in pings:
            ping_until(namespace, address, timeout=60)
            assert ping(namespace, address, count=3, wait=5).lost == ()
        difference = rig.guard.counters() - before
        assert difference.esp_udp > 10
        assert difference.esp == 0
        states = rig.states()
        assert {each.mode for each in states} == {"transport"}
        assert all("encap type espinudp" in each.text for each in states)

    @ROLES
    @pytest.mark.parametrize("integrity_only", [True], ids=["ah"])
    def test_ah_tunnel(self, rig: KernelRig, role: str, integrity_only: bool) -> None:
        before = rig.guard.counters()
        self._ah(rig, role, lans(rig), {})
        ping_until(rig.topology.lan_a, rig.topology.b.host(), timeout=60)
        ping_until(rig.topology.lan_b, rig.topology.a.host(), timeout=60)
        assert (rig.guard.counters() - before).ah >= 4
        assert {(each.protocol, each.mode) for each in rig.states()} == {("ah", "tunnel")}

    @ROLES
    @pytest.mark.parametrize("integrity_only", [True], ids=["ah"])
    def test_ah_transport(self, rig: KernelRig, role: str, integrity_only: bool) -> None:
        a, b = rig.topology.a.wan_address(), rig.topology.b.wan_address()
        self._ah(rig, role, (f"{a}/32", f"{b}/32"), {"mode": "transport"}, tunnel=False)
        rig.exchange_outer()
        assert {(each.protocol, each.mode) for each in rig.states()} == {("ah", "transport")}

    @staticmethod
    def _ah(rig: KernelRig, role: str, pair: tuple[str, str], child, **spec) -> None:
        proposal = {"encAlgorithms": ["aes128"], "authAlgorithms": ["sha256"], "pfsGroup": "x25519"}
        policies = one_policy(rig, pair, ipsecProtocols=["ah"], proposal=proposal, **spec)
        child = {"local_ts": (pair[1],), "remote_ts": (pair[0],)} | child
        connection = rig.connection(child=child | {"ah_proposals": ("sha256-x25519",)})
        rig.connect(role, rig.documents(policies=policies, **passive(role)), connection)

    @pytest.mark.parametrize("suite", SUITES[2:], ids=lambda suite: suite.name)
    def test_algorithms(self, rig: KernelRig, suite) -> None:
        """CBC with HMAC, and ChaCha20-Poly1305 (test_esp_tunnel has AES-GCM)."""
        rig.connect("initiator", rig.documents(suite=suite), rig.connection(suite=suite))
        rig.exchange_traffic()

    @ROLES
    def test_extended_sequence_numbers(self, rig: KernelRig, role: str) -> None:
        child = {"esp_proposals": ("aes128gcm16-x25519-esn",), "replay_window": 1024}
        rig.connect(role, rig.documents(**passive(role)), rig.connection(child=child))
        rig.exchange_traffic()
        assert all(re.search(r"flag [^(]*\besn\b", each.text) for each in rig.states()), (
            rig.states()
        )

    @ROLES
    def test_behind_a_nat(self, rig: KernelRig, role: str) -> None:
        """We are behind it as initiator, charon is as responder of ours: ESP goes in UDP."""
        rig.guard.masquerade("a" if role == "initiator" else "b")
        router = rig.topology.wan_neighbour("b" if role == "initiator" else "a")
        rig.guard.allow(router)
        before = rig.guard.counters()
        if role == "initiator":
            documents = rig.documents()
            connection = rig.connection(remote_addrs=("%any",))
        else:
            documents = rig.documents(address=router, passive=True)
            connection = rig.connection()
        rig.connect(role, documents, connection)
        rig.exchange_traffic()
        difference = rig.guard.counters() - before
        assert difference.esp_udp > 10
        assert difference.esp == 0
        assert all("encap type espinudp" in each.text for each in rig.states())

    @pytest.mark.parametrize(
        ("role", "ours", "theirs"),
        [
            ("initiator", ("10.1.0.0/16", "10.2.0.0/16"), ("10.2.0.0/24", "10.1.0.0/24")),
            ("responder", ("10.1.0.0/24", "10.2.0.0/24"), ("10.2.0.0/16", "10.1.0.0/16")),
        ],
        ids=["initiator", "responder"],
    )
    def test_narrowing(self, rig: KernelRig, role, ours, theirs) -> None:
        child = {"local_ts": (theirs[0],), "remote_ts": (theirs[1],)}
        documents = rig.documents(selectors=[ours], **passive(role))
        rig.connect(role, documents, rig.connection(child=child))
        installed = rig.charon.wait_installed(CHILD)
        assert (installed.local_ts, installed.remote_ts) == (("10.2.0.0/24",), ("10.1.0.0/24",))
        rig.exchange_traffic()


class TestLimits:
    """The kernel counts packets and octets, and the SAs are replaced before the end."""

    @pytest.mark.parametrize(
        "limit", [{"lifepackets": 300}, {"lifebytes": 60_000}], ids=["packets", "octets"]
    )
    def test_ours(self, rig: KernelRig, limit) -> None:
        rig.connect("initiator", rig.documents(proposal=limit), rig.connection())
        self._ping_until_replaced(rig)

    def test_charons(self, rig: KernelRig) -> None:
        child = {"rekey_packets": 100, "life_packets": 5000}
        rig.connect("responder", rig.documents(passive=True), rig.connection(child=child))
        self._ping_until_replaced(rig)

    @staticmethod
    def _ping_until_replaced(rig: KernelRig) -> None:
        top = rig.topology
        ping_until(top.lan_a, top.b.host(), timeout=60)
        seen = fresh(rig.charon.sas())
        with ConstantPing(top.lan_a, top.b.host(), interval=0.05, size=200) as constant:
            for _ in range(2):
                wait_replaced(rig, seen, "a new child, because of the limit")
            result = constant.stop()
        assert result.lost == ()


class TestFirstPacket:
    """ACQUIRE: the first packet starts the tunnel and waits for it."""

    def test_ours(self, rig: KernelRig) -> None:
        """charon has no connection yet, so our first attempts fail; then the packet finds one."""
        rig.start_theirs()
        rig.start_ours(rig.documents())
        rig.gateway.wait_condition(PEER, "Programmed")
        rig.gateway.wait_condition(PEER, "Established", "False")
        connection = rig.connection()
        rig.charon.load(connection)
        first = ping(rig.topology.lan_a, rig.topology.b.host(), count=1, wait=100)
        assert first.received == 1
        rig.wait_up(connection)

    def test_charons(self, rig: KernelRig) -> None:
        rig.start_ours(rig.documents(passive=True))
        rig.start_theirs(rig.connection(child={"start_action": "trap"}))
        ping_until(rig.topology.lan_b, rig.topology.a.host(), timeout=100)
        rig.exchange_traffic()


class TestUnderPing:
    """What happens to a constant ping while SAs and gateways change."""

    def test_rekeys(self, rig: KernelRig, record_property) -> None:
        """By us and by charon, the child and the IKE SA: not one ping is lost."""
        top = rig.topology
        rig.connect("initiator", rig.documents(), rig.connection())
        ping_until(top.lan_a, top.b.host(), timeout=60)
        ping_until(top.lan_b, top.a.host(), timeout=60)
        seen = fresh(rig.charon.sas())
        with ConstantPing(top.lan_a, top.b.host(), interval=0.05) as constant:
            for what in ({"child": CHILD}, {"ike": CONNECTION}, {"child": CHILD}):
                time.sleep(2)  # some pings before, between and after
                old = {sa.spi_i for sa in rig.charon.established(CONNECTION)}
                rig.charon.rekey(**what)
                if "child" in what:
                    wait_replaced(rig, seen, "a rekeyed child")
                else:
                    rig.charon.wait_for(
                        lambda sas, old=old: any(
                            sa.spi_i not in old and sa.state == "ESTABLISHED" for sa in sas
                        ),
                        "a rekeyed IKE_SA",
                    )
            time.sleep(2)
            result = constant.stop()
        record_property("measured", f"{len(result.lost)} of {result.sent} pings lost")
        assert result.lost == ()
        assert result.received > 10

    def test_our_rekeys(self, rig: KernelRig, record_property) -> None:
        top = rig.topology
        documents = rig.documents(proposal={"lifetime": "12s"}, profile={"lifetime": "25s"})
        rig.connect("initiator", documents, rig.connection())
        ping_until(top.lan_a, top.b.host(), timeout=60)
        seen = fresh(rig.charon.sas())
        with ConstantPing(top.lan_a, top.b.host(), interval=0.05) as constant:
            for _ in range(3):
                wait_replaced(rig, seen, "a child rekeyed by us")
            result = constant.stop()
        record_property("measured", f"{len(result.lost)} of {result.sent} pings lost")
        assert result.lost == ()


def test_masquerade_that_comes_later(rig: KernelRig) -> None:
    """Nobody translated before, so nothing was tracked: what is translated until that has changed
    is dropped, never sent in clear text, which the rig sees to."""
    rig.connect("initiator", rig.documents(), rig.connection())
    gateway, top = rig.topology.gw_a, rig.topology
    assert not keeps_sources(gateway)
    with ConstantPing(top.lan_a, top.b.host()):
        ROUTER.set_up(gateway, NFT)
        rig.gateway.wait(lambda: keeps_sources(gateway), "sources are kept")
        ping_until(top.lan_a, top.b.host(), timeout=60)
    assert ping(top.lan_a, top.b.host(), count=3, wait=10).received == 3
