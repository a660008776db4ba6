"""IKE SAs that are written down and taken back, state by state. What happens on a bad network, at
random moments, is in tests/exchange/test_restarts.py."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ipsec_ike import plain
from ipsec_ike.actions import AddSa, DeleteSa, SendDatagram, UpdateSa
from ipsec_ike.config import ChildConfig, IdentityConfig, PeerConfig, Responder
from ipsec_ike.crypto import groups
from ipsec_ike.engine import Engine, Resumed
from ipsec_ike.errors import LocalMisuse
from ipsec_ike.events import ChildSaDown, ChildSaResumed, ChildSaUp, IkeSaDown, IkeSaResumed
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Endpoint, InheritedSa, Mapping
from ipsec_ike.secret import Secret
from ipsec_ike.v2 import deletes, records
from ipsec_ike.v2.auth import AuthExchange
from ipsec_ike.v2.exchange import Exchange
from ipsec_ike.v2.init import InitExchange
from ipsec_ike.v2.records import IKE_FIXED, Record
from ipsec_ike.wire.message import decode_header

PSK = b"a secret that both know"
#: Where the number of sealed messages is in IKE_FIXED.
SEALED = 4


class Lives:
    """A pair of which both sides keep records. ``resume`` gives one of them its next life."""

    def __init__(self, pair: Any, kit: Any) -> None:
        self.pair = pair
        self.kit = kit
        self.files: dict[str, dict[str, Any]] = {"left": {}, "right": {}}
        self.generations = {"left": 1, "right": 1}
        for side in (pair.left, pair.right):
            side.engine.keep_records()

    def keep(self) -> None:
        """Write the records of both, as the shell does before it performs any action."""
        for name, file in self.files.items():
            for record in self.pair.side(name).engine.records():
                if record.data is None:
                    file.pop(record.key)
                else:
                    file[record.key] = json.loads(json.dumps(record.data))

    def installed(self, name: str) -> dict[SaId, InheritedSa]:
        specs = [add.spec for add in self.pair.side(name).sad.values()]
        return {s.id: InheritedSa(s.reqid, s.source, s.destination, s.encap) for s in specs}

    def resume(
        self,
        name: str = "left",
        *,
        configs: list[PeerConfig] | None = None,
        installed: dict[SaId, InheritedSa] | None = None,
    ) -> Resumed:
        """End without a word and go on."""
        self.keep()
        side = self.pair.side(name)
        side.collect()
        side.outbox.clear()
        self.generations[name] += 1
        engine = Engine(rng=random.Random(f"{name} {self.generations[name]}").randbytes)
        engine.keep_records()
        resumed = engine.resume(
            self.files[name],
            [self.kit.peer(name)] if configs is None else configs,
            self.installed(name) if installed is None else installed,
            self.generations[name],
            self.pair.now,
        )
        side.engine = engine
        side.log.clear()
        return resumed

    def touch(self, name: str) -> None:
        """Records need not follow what an answer changed before the next request; let them."""
        host = self.pair.side(name).engine.host
        for sa in host.sas.values():
            host.touch(sa)

    def state(self, name: str) -> Any:
        """All that there is to know of the IKE SAs, but for IVs and what was set anew."""
        host = self.pair.side(name).engine.host
        found = [records.ike_sa(host, sa) for sa in host.sas.values()]
        for each in found:
            fixed = bytes.fromhex(each["fixed"])
            each["fixed"] = [v for n, v in enumerate(IKE_FIXED.unpack_from(fixed)) if n != SEALED]
            each["fixed"][:2] = [spi.hex() for spi in each["fixed"][:2]]
            each["keys"] = fixed[IKE_FIXED.size :].hex()
        return json.loads(json.dumps(sorted(found, key=lambda each: each["fixed"])))


@pytest.fixture
def lives(pair, kit) -> Lives:
    return Lives(pair, kit)


def test_what_the_peer_has_told_of_itself_is_still_known(lives: Lives, kit) -> None:
    told = Responder(4499, ("10.2.0.1", "fd02::1"))
    lives.pair.up(right=kit.peer("right", responder=told))
    before = lives.state("left")
    lives.resume()
    assert lives.state("left") == before
    lives.pair.run()
    (resumed,) = lives.pair.left.events(IkeSaResumed)
    assert resumed.responder == told
    lives.resume("right", configs=[kit.peer("right", responder=Responder(0, ("10.2.0.9",)))])
    lives.pair.run()
    assert not lives.pair.left.events(IkeSaDown)
    assert not lives.pair.right.events(IkeSaDown)


def test_an_ike_sa_goes_on(lives: Lives, kit) -> None:
    pair = lives.pair.up()
    before = lives.state("left")
    sad = dict(pair.left.sad)
    resumed = lives.resume()
    assert lives.state("left") == before
    assert (resumed.ike_sas, resumed.children, resumed.missing, resumed.unreadable) == (1, 1, 0, 0)
    assert resumed.sas == set(lives.installed("left"))
    pair.run()
    assert [type(e) for e in pair.left.events()] == [IkeSaResumed, ChildSaResumed]
    pair.pass_time(60)
    assert pair.left.sad == sad, "nothing in the data plane was touched"
    spi = next(iter(pair.left.spis(Direction.IN)))
    pair.left.engine.rekey_child(spi, pair.now)
    pair.run()
    pair.left.engine.rekey_ike("right", pair.now)
    pair.run()
    pair.right.engine.rekey_ike("left", pair.now)
    pair.pass_time(10)
    pair.assert_mirrored()
    assert not pair.left.events(ChildSaDown)
    assert len(pair.left.sad) == 2


def _rekey_child(lives: Lives) -> None:
    spi = next(iter(lives.pair.left.spis(Direction.IN)))
    lives.pair.left.engine.rekey_child(spi, lives.pair.now)


def _rekey_ike(lives: Lives) -> None:
    lives.pair.left.engine.rekey_ike("right", lives.pair.now)


def _rekey_both(lives: Lives) -> None:
    _rekey_ike(lives)
    lives.pair.right.engine.rekey_ike("left", lives.pair.now)


def _rekey_child_both(lives: Lives) -> None:
    _rekey_child(lives)
    spi = next(iter(lives.pair.right.spis(Direction.IN)))
    lives.pair.right.engine.rekey_child(spi, lives.pair.now)


def _new_child(lives: Lives) -> None:
    kit = lives.kit
    for name in ("right", "left"):
        config = kit.peer(name, children=(kit.child(name), kit.child(name, 1)))
        lives.pair.side(name).engine.configure([config], lives.pair.now)


def _rekeyed_by_the_other(lives: Lives) -> None:
    spi = next(iter(lives.pair.right.spis(Direction.IN)))
    lives.pair.right.engine.rekey_child(spi, lives.pair.now)


def _nothing(lives: Lives) -> None:
    lives.pair.pass_time(9)
    lives.pair.now += 1


@pytest.mark.parametrize(
    "begin",
    [
        _rekey_child,
        _rekey_ike,
        _rekey_both,
        _rekey_child_both,
        _new_child,
        _rekeyed_by_the_other,
        _nothing,
    ],
)
@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("who", ["left", "right"])
@pytest.mark.parametrize("fragments", [False, True], ids=["whole", "fragments"])
def test_after_every_step_of_an_exchange(
    lives: Lives, kit, begin: Callable[[Lives], None], steps: int, who: str, fragments: bool
) -> None:
    """One side dies after some messages; what was under way comes to its end."""
    size = 300 if fragments else 1280
    pair = lives.pair.up(
        kit.peer("left", fragment_size=size), kit.peer("right", fragment_size=size)
    )
    begin(lives)
    for _ in range(steps):
        pair.step()
        lives.keep()
    config = pair.side(who).engine.host.peers.by_name[kit.peer(who).name].config
    before = lives.state(who)
    lives.touch(who)
    resumed = lives.resume(who, configs=[config])
    assert resumed.unreadable == 0
    assert resumed.missing == 0
    assert lives.state(who) == before
    pair.pass_time(100)
    pair.assert_mirrored()
    count = 2 if begin is _new_child else 1
    for side in (pair.left, pair.right):
        assert [sa.state for sa in side.engine.snapshot()] == ["established"]
        assert len(side.spis(Direction.IN)) == count
        assert len(side.spis(Direction.OUT)) == count
        assert not side.events(IkeSaDown)


def test_the_request_under_way_is_sent_again_as_it_was(lives: Lives) -> None:
    pair = lives.pair.up()
    _rekey_child(lives)
    pair.left.collect()
    (sent,) = pair.left.outbox
    lives.resume()
    pair.now += 3
    pair.left.engine.on_timer(pair.now)
    pair.left.collect()
    assert [message.data for message in pair.left.outbox] == [sent.data]


def test_the_last_answer_is_repeated_as_it_was(lives: Lives) -> None:
    pair = lives.pair.up()
    _rekey_ike(lives)
    pair.left.collect()
    request = pair.left.outbox[0]
    pair.deliver(request)
    pair.right.collect()
    (answer,) = pair.right.outbox
    lives.resume("right")
    pair.deliver(request)
    pair.right.collect()
    assert pair.right.outbox[0].data == answer.data


def test_ivs_of_another_life_are_others(lives: Lives) -> None:
    """Even if the same records are used again and again, by the same generation too."""
    pair = lives.pair.up()
    lives.keep()
    seen: set[bytes] = set()
    for generation, seed in ((2, 1), (3, 1), (3, 2), (2**24 - 1, 1)):
        engine = Engine(rng=random.Random(seed).randbytes)
        installed = lives.installed("left")
        engine.resume(
            lives.files["left"], [lives.kit.peer("left")], installed, generation, pair.now
        )
        for number in range(3):
            engine.rekey_child(next(iter(pair.left.spis(Direction.IN))), pair.now)
            engine.on_timer(pair.now + 10 * number)
        sent = [a.data for a in engine.take_actions() if isinstance(a, SendDatagram)]
        assert sent
        assert decode_header(sent[0]).message_id == 2
        ivs = {data[32:40] for data in sent}
        assert not ivs & seen
        assert int.from_bytes(min(ivs)) >> 40 == generation
        seen |= ivs
    with pytest.raises(LocalMisuse, match="generation"):
        Engine(rng=random.randbytes).resume({}, [], {}, 2**24, 0.0)


def test_secrets_do_not_show(lives: Lives) -> None:
    pair = lives.pair.up()
    found = pair.left.engine.records()
    assert {record.key.split()[0] for record in found} == {"peer", "sa"}
    text = repr(found)
    sa = next(record.data for record in found if record.key.startswith("sa "))
    assert sa is not None
    keys = sa["fixed"][2 * IKE_FIXED.size :]
    assert len(keys) > 64
    assert keys not in text
    assert keys[:16] not in text
    everything = json.dumps([record.data for record in found])
    assert PSK.hex() not in everything, "the shared key itself is in no record"
    assert repr(Record("sa 01", None)) == "<record sa 01 gone>"


def test_what_is_gone_has_no_record(lives: Lives) -> None:
    pair = lives.pair.up()
    lives.keep()
    pair.left.engine.configure([], pair.now)
    pair.pass_time(30)
    lives.keep()
    assert lives.files["left"] == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda sa: sa.update(version=records.VERSION + 1),
        lambda sa: sa.pop("fixed"),
        lambda sa: sa.update(fixed=sa["fixed"][: 2 * IKE_FIXED.size]),
        lambda sa: sa.update(fixed=sa["fixed"][:20]),
        lambda sa: sa.update(suite="1/20/128"),
        lambda sa: sa.update(ends="192.0.2.1 500"),
        lambda sa: sa.update(ids="- -"),
        lambda sa: sa.update(state="asleep"),
        lambda sa: sa.update(peer="nobody"),
        lambda sa: sa.update(identity="nobody"),
        lambda sa: sa.update(current=["Liveness"]),
        lambda sa: sa.update(queue=[["Import", "os"]]),
        lambda sa: sa["children"][0].__setitem__(0, "nothing"),
        lambda sa: sa["children"][0].__setitem__(2, "00"),
        lambda sa: sa["children"][0].extend([[["0a"]], None, None]),
        lambda sa: sa.update(request=["00"]),
        lambda sa: sa.update(response=None),
    ],
)
def test_a_record_that_makes_no_sense(lives: Lives, damage: Callable[[Any], object]) -> None:
    """The tunnel is set up anew."""
    pair = lives.pair.up()
    lives.keep()
    (key,) = [key for key in lives.files["left"] if key.startswith("sa ")]
    damage(lives.files["left"][key])
    resumed = lives.resume()
    assert (resumed.ike_sas, resumed.unreadable, resumed.sas) == (0, 1, frozenset())
    pair.pass_time(20)
    assert len(pair.left.engine.snapshot()) == 1
    assert pair.left.events(ChildSaUp)


def test_a_peer_that_is_gone_gets_a_delete(lives: Lives) -> None:
    pair = lives.pair.up()
    lives.resume(configs=[])
    pair.run()
    assert pair.left.events(IkeSaDown)
    assert pair.right.events(IkeSaDown)
    pair.pass_time(20)
    assert not pair.left.sad
    assert not pair.right.sad


def test_a_changed_shared_key_makes_a_new_ike_sa_first(lives: Lives, kit) -> None:
    pair = lives.pair.up()
    identity = kit.peer("left").identities[0]
    new = replace(identity, psk=Secret(b"another one"))
    for name in ("right", "left"):
        other = replace(kit.peer(name).identities[0], psk=Secret(b"another one"))
        if name == "right":
            pair.right.engine.configure([kit.peer(name, identities=(other,))], pair.now)
            pair.right.collect()
            pair.right.outbox.clear()
    (old,) = {sa.spi_i for sa in pair.left.engine.snapshot()}
    lives.resume(configs=[kit.peer("left", identities=(new,))])
    states = {sa.state for sa in pair.left.engine.snapshot()}
    assert states == {"established", "connecting"}, "the old one stays meanwhile"
    pair.pass_time(20)
    (sa,) = pair.left.engine.snapshot()
    assert sa.spi_i != old


def test_the_same_shared_key_is_the_same(lives: Lives, kit) -> None:
    pair = lives.pair.up()
    lives.resume()
    config = pair.left.engine.host.peers.by_name["right"].config
    assert config.identities[0].psk is not None
    assert config.identities[0].psk.reveal() == PSK, "new IKE SAs can be made"


def test_a_changed_child_is_made_anew_before_the_old_one_goes(lives: Lives, kit) -> None:
    pair = lives.pair.up()
    lives.resume(configs=[kit.peer("left", children=(kit.child("left", reqid=77),))])
    pair.pass_time(20)
    specs = [add.spec for add in pair.left.sad.values()]
    assert {spec.reqid for spec in specs} == {77}
    kinds = [type(a) for a in pair.left.log if isinstance(a, AddSa | DeleteSa)]
    assert kinds.index(AddSa) < kinds.index(DeleteSa)


def test_a_child_without_its_sa_is_made_anew(lives: Lives) -> None:
    pair = lives.pair.up()
    keys = {add.spec.encryption_key.reveal() for add in pair.left.sad.values()}
    pair.left.sad.clear()
    resumed = lives.resume()
    assert resumed.missing == 1
    pair.pass_time(20)
    pair.assert_mirrored()
    assert len(pair.left.sad) == 2
    assert not keys & {add.spec.encryption_key.reveal() for add in pair.left.sad.values()}


def test_an_outbound_sa_that_waits_is_not_installed_twice(lives: Lives) -> None:
    """The record says that it waits, the data plane has it: it was installed since."""
    pair = lives.pair.up()
    _rekeyed_by_the_other(lives)
    pair.right.collect()
    pair.deliver(pair.right.outbox.pop())
    lives.keep()
    (waiting,) = [
        child
        for sa in pair.left.engine.host.sas.values()
        for child in sa.children
        if child.waiting is not None
    ]
    pair.left.collect()
    spec = waiting.waiting
    pair.left.sad[Direction.OUT, spec.id.spi] = AddSa(spec)
    lives.resume()
    pair.pass_time(60)
    assert [a for a in pair.left.log if isinstance(a, AddSa) and a.spec.id == spec.id] == []
    pair.assert_mirrored()


def test_a_move_that_did_not_reach_the_data_plane(lives: Lives, kit) -> None:
    pair = lives.pair.up(kit.peer("left", force_encapsulation=True), kit.peer("right"))
    lives.keep()
    there = lives.installed("right")
    (spi,) = pair.right.spis(Direction.IN)
    moved = Endpoint("192.0.2.1", 6000)
    pair.right.engine.mapping(Mapping(spi, moved), pair.now)
    assert lives.resume("right", installed=there).missing == 0
    updates = [a for a in pair.right.engine.take_actions() if isinstance(a, UpdateSa)]
    assert {(u.source, u.destination) for u in updates} == {
        (moved, Endpoint("192.0.2.2", 4500)),
        (Endpoint("192.0.2.2", 4500), moved),
    }


def test_limits_that_passed_meanwhile(lives: Lives) -> None:
    pair = lives.pair.up()
    lives.keep()
    pair.now += 1790
    lives.resume()
    pair.pass_time(9)
    assert not pair.left.events(ChildSaDown), "the soft limit has passed: rekeyed at once"
    lives.keep()
    pair.now += 40_000
    lives.resume()
    pair.pass_time(20)
    assert pair.left.events(IkeSaDown)


def test_only_a_new_engine_resumes(lives: Lives, kit) -> None:
    pair = lives.pair.up()
    with pytest.raises(LocalMisuse, match="new engine"):
        pair.left.engine.resume({}, [kit.peer("left")], {}, 2, pair.now)


def test_every_exchange_can_be_written_down() -> None:
    """Who adds one is told here: without a record the IKE SA cannot go on."""

    def kinds(of: type[Exchange]) -> set[type[Exchange]]:
        return {of, *(each for sub in of.__subclasses__() for each in kinds(sub))}

    abstract = {Exchange, deletes.Informational}
    handshakes = {InitExchange, AuthExchange}
    known = {*records.BARE.values(), deletes.DeleteChild, deletes.DeleteUnused, deletes.InvalidSpi}
    known |= {records.CreateChild, records.RekeyChild, records.RekeyIke}
    engine = {kind for kind in kinds(Exchange) if kind.__module__.startswith("ipsec_ike.")}
    assert engine - abstract - handshakes == known


@pytest.mark.parametrize("group", sorted(groups._KINDS))
def test_a_key_exchange_can_be_made_again(group: int) -> None:
    one = groups.generate(group, random.Random(group).randbytes)
    seed = one.seed()

    def rng(octets: int) -> bytes:
        assert octets == len(seed)
        return seed

    assert groups.generate(group, rng).public == one.public


def test_plain_forms(kit) -> None:
    config = kit.peer("left", local_address="2001:db8::1")
    form = json.loads(json.dumps(plain.dump(config)))
    assert plain.load(PeerConfig, form) == config
    del form["name"]
    with pytest.raises(plain.NotPlain):
        plain.load(PeerConfig, form)
    for wrong in (
        {"name": 7},
        {"name": "x", "unknown": 1},
        [],
        None,
        {"name": "x", "psk": PSK.hex()},
    ):
        with pytest.raises(plain.NotPlain) as caught:
            plain.load(ChildConfig, wrong)
        assert PSK.hex() not in str(caught.value)
    with pytest.raises(plain.NotPlain):
        plain.dump(object())
    identity = IdentityConfig(name="x", psk=Secret(PSK))
    assert plain.load(IdentityConfig, plain.dump(identity)) == identity


def test_what_lingers_counts_in_the_next_life_too(lives: Lives) -> None:
    pair = lives.pair.up()
    pair.left.engine.rekey_ike("right", pair.now)
    pair.run()
    lives.resume("right")
    host = pair.right.engine.host
    (peer,) = host.peers.by_name.values()
    old, new = host.sas.values()
    assert peer.known(new.remote_id) == (new,)
    assert peer.leaving.of(new.remote_id) == (old,)
