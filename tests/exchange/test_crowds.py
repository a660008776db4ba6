"""One remote identity cannot fill our memory with IKE SAs, and takes none from another one."""

from __future__ import annotations

import pytest

from ipsec_ike.config import Limits
from ipsec_ike.events import ChildSaDown, IkeSaDown
from ipsec_ike.identity import Identity
from ipsec_ike.numbers import ExchangeType
from ipsec_lab.simnet_check import twins
from ipsec_lab.simnet_network import seeded
from ipsec_lab.simnet_pair import Pair
from ipsec_lab.simnet_peer import ScriptedPeer
from ipsec_lab.simnet_profile import LEFT, RIGHT, calm
from ipsec_lab.simnet_script import Script

CREATE = ExchangeType.CREATE_CHILD_SA
AUTH = ExchangeType.IKE_AUTH
INFO = ExchangeType.INFORMATIONAL

MOST = Limits().ike_sas_per_identity


def held(pair: Pair, name: str) -> int:
    """All IKE SAs that one end remembers."""
    return len(pair.nodes[name].engine.host.sas)


def over(pair: Pair, name: str) -> int:
    return pair.nodes[name].engine.counters["ike_sas_over_limit"]


@pytest.mark.parametrize("told", [True, False], ids=["with Delete", "without Delete"])
def test_rekeyed_without_pause(told: bool) -> None:
    """Old IKE SAs linger for repetitions of their Delete, or because no Delete has come."""
    pair = Pair(calm())
    pair.start()
    pair.flow()
    for _ in range(2 * MOST):
        pair.tell(LEFT, lambda engine, now: engine.rekey_ike("right", now))
        pair.passes(LEFT, CREATE)
        pair.passes(RIGHT, CREATE)
        if told:
            pair.flow()
        else:
            pair.drops(LEFT, INFO)
    assert held(pair, RIGHT) == MOST
    assert over(pair, RIGHT) == MOST + 1
    # The one that initiates deletes as it goes; what it has not been answered counts too.
    assert held(pair, LEFT) <= MOST
    pair.sleep(100.0)
    for name in (LEFT, RIGHT):
        assert held(pair, name) == 1
        assert pair.children(name) == [("net0", "installed")]
        assert pair.of(name, ChildSaDown) == pair.of(name, IkeSaDown) == []
    assert list(twins(pair.left.dataplane, pair.right.dataplane)) == []


def authenticate(talk: Script, number: int, identity: Identity) -> ScriptedPeer:
    """A new IKE SA with a child, and no word about older ones."""
    peer = ScriptedPeer(
        identity, talk.peer.psk, seeded(f"again {number}").randbytes, initiator=True
    )
    (answer,) = (data for data in talk.ask(peer.init()) if data[:8] == peer.spi_i)
    peer.take_init(answer)
    child = peer.child((0x2000 + number).to_bytes(4), "10.1.0.0/24", "10.2.0.0/24")
    request = peer.protected(AUTH, 1, peer.auth(*child))
    assert [data for data in talk.ask(request) if data[:8] == peer.spi_i]
    return peer


def test_authenticated_without_pause() -> None:
    """The newest stay: the older ones are doomed and go before their time, children and all."""
    talk = Script(initiator=True)
    talk.establish()
    peers = [authenticate(talk, number, talk.peer.identity) for number in range(2 * MOST)]
    host = talk.engine.engine.host
    assert set(host.sas) == {peer.spi_r for peer in peers[-MOST:]}
    assert over(talk.pair, RIGHT) == MOST + 1
    assert len(talk.engine.dataplane.inbound) == MOST
    talk.pair.sleep(100.0, deaf=True)
    assert held(talk.pair, RIGHT) <= 1


def test_others_are_not_affected() -> None:
    """Road warriors share a peer, not an identity."""
    talk = Script(initiator=True, identity={"remote_id": None})
    talk.establish()
    peers = [
        authenticate(talk, number, Identity.fqdn(f"warrior{number}.example"))
        for number in range(2 * MOST)
    ]
    for number in range(MOST):
        authenticate(talk, 100 + number, peers[0].identity)
    host = talk.engine.engine.host
    assert {peer.spi_r for peer in peers[1:]} <= set(host.sas)
    assert over(talk.pair, RIGHT) == 1


def test_what_is_over_is_not_remembered_twice() -> None:
    """An IKE SA that is gone leaves nothing in the tables of its peer."""
    pair = Pair(calm())
    pair.start()
    pair.flow()
    pair.tell(LEFT, lambda engine, now: engine.rekey_ike("right", now))
    pair.tell(RIGHT, lambda engine, now: engine.rekey_ike("left", now))
    pair.sleep(100.0)
    for node in (pair.left, pair.right):
        host = node.engine.host
        (peer,) = host.peers.by_name.values()
        (sa,) = host.sas.values()
        assert sa.remote_id is not None
        assert peer.known(sa.remote_id) == (sa,)
        assert peer.leaving.of(sa.remote_id) == ()
    pair.tell(LEFT, lambda engine, now: engine.terminate("right", now))
    pair.sleep(100.0)
    assert held(pair, LEFT) == held(pair, RIGHT) == 0
