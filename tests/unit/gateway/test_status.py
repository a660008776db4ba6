"""Statuses: every False has a cause and a remedy, and nothing is written that did not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ipsec_gateway.board import Cause
from ipsec_gateway.facts import Facts
from ipsec_gateway.intent import intent
from ipsec_gateway.lastgood import Key, LastGood
from ipsec_gateway.status import StatusBoard
from ipsec_gateway.statusfiles import FileStatusSink, document
from ipsec_ike import events
from ipsec_ike.events import Reason
from ipsec_ike.inputs import Endpoint
from ipsec_ike.selectors import TrafficSelector

PEER = Key("IPsecPeer", "default", "hq")
POLICY = Key("IPsecPolicy", "default", "more")
NAME = "default/hq"
REMOTE = Endpoint("203.0.113.9", 500)
FACTS = Facts(resolved={"203.0.113.9": ("203.0.113.9",)}, sources={"203.0.113.9": "192.0.2.1"})
MORE = {"selectors": [{"src": "10.1.0.0/16", "dst": "10.9.0.0/16"}]}


class Rig:
    """A board on a folder of documents."""

    def __init__(self, clock, make) -> None:
        self.make = make
        self.memory = LastGood()
        self.board = StatusBoard(clock)

    def apply(self, *documents, facts: Facts = FACTS) -> None:
        found = self.memory.take(self.make.files(a=[self.make.secret(), *documents]))
        self.board.configured(found, intent(found.tunnels, facts))

    def status(self, key: Key = PEER):
        self.board.changes()
        return self.board.all()[key]

    def condition(self, kind: str, key: Key = PEER):
        (found,) = [c for c in self.status(key)["conditions"] if c["type"] == kind]
        return found

    def up(self) -> None:
        self.board.event(self.make.ike_up(nat_remote=True))

    def child(self, name: str, spi: int = 1) -> None:
        ts = (TrafficSelector.network("10.0.0.0/8"),)
        self.board.event(
            events.ChildSaUp(
                peer=NAME,
                child=name,
                reqid=1,
                spi_in=spi,
                spi_out=2,
                suite="AES",
                local_ts=ts,
                remote_ts=ts,
                encap=False,
            )
        )

    def down(self, reason: Reason, message: str, *, established: bool = False) -> None:
        self.board.event(
            events.IkeSaDown(
                peer=NAME, reason=reason, message=message, remote=REMOTE, established=established
            )
        )


@pytest.fixture
def rig(clock, make) -> Rig:
    return Rig(clock, make)


def test_from_connecting_to_ready(rig: Rig, make) -> None:
    rig.apply(make.peer())
    assert rig.condition("Accepted")["status"] == "True"
    assert rig.condition("Programmed")["status"] == "True"
    assert rig.condition("Established")["reason"] == "Connecting"
    assert "203.0.113.9" in rig.condition("Established")["message"]
    rig.up()
    assert rig.condition("Ready")["status"] == "False", "no child yet"
    rig.child("hq")
    status = rig.status()
    assert rig.condition("Ready")["status"] == "True"
    assert status["remoteAddress"] == "203.0.113.9:500"
    assert status["natDetected"] == {"local": False, "remote": True}
    assert status["childSAs"] == {"installed": 1, "expected": 1}
    assert not {c["type"] for c in status["conditions"]} & {"Healthy"}


def test_who_else_translates_is_told(rig: Rig, make) -> None:
    rig.apply(make.peer())
    assert "natBackend" not in rig.status()
    rig.board.translated("iptables-nft (flannel)")
    assert rig.status()["natBackend"] == "iptables-nft (flannel)"
    rig.apply()
    rig.apply(make.peer(disabled=True))
    assert "natBackend" not in rig.status()


def test_names_of_any_length_fit_into_a_status(rig: Rig, make) -> None:
    name = ".".join(["x" * 63] * 4)[:253]
    rig.apply(make.peer(remoteSubnets=None), make.policy(name, selectorMode="PerPair", **MORE))
    rig.up()
    rig.child(f"{name}.000")
    rig.board.offloaded({})
    rig.board.translated(f"nftables ({'t' * 255}, kindnet)")
    status = rig.status()
    assert status["hwOffload"] == [{"child": f"{name}.000"[:256], "mode": "None"}]
    assert status["natBackend"].startswith("nftables (ttt")


def test_a_cause_outlives_the_next_attempt(rig: Rig, make) -> None:
    rig.apply(make.peer(), make.policy("more", **MORE))
    rig.down(Reason.TIMEOUT, "no answer from 203.0.113.9:500")
    rig.board.event(events.IkeSaConnecting(peer=NAME, remote=REMOTE))
    condition = rig.condition("Established")
    assert (condition["reason"], condition["message"]) == (
        "Timeout",
        "no answer from 203.0.113.9:500",
    )
    rig.up()
    assert rig.condition("Established")["reason"] == "Connecting", "the old cause is history"
    assert rig.condition("Established", POLICY)["reason"] == "Waiting"
    rig.child("hq")
    rig.child("more")
    assert rig.condition("Established")["status"] == "True"


def test_a_proposal_mismatch_is_told_attribute_by_attribute(rig: Rig, make) -> None:
    rig.apply(make.peer())
    rig.board.event(
        events.ProposalMismatch(
            peer=NAME,
            stage="IKE",
            ours=("A",),
            theirs=("B",),
            differences=("ENCR: ours AES_GCM_16_256, theirs DES3",),
        )
    )
    rig.down(Reason.NO_PROPOSAL_CHOSEN, "203.0.113.9:500 refused")
    condition = rig.condition("Ready")
    assert condition["reason"] == "NoProposalChosen"
    assert "203.0.113.9:500" in condition["message"]
    assert "ENCR: ours AES_GCM_16_256, theirs DES3" in condition["message"]


def test_a_child_that_fails_shows_on_the_peer_and_on_its_policy(rig: Rig, make) -> None:
    rig.apply(make.peer(), make.policy("more", **MORE))
    rig.up()
    rig.child("hq")
    ts = (TrafficSelector.network("10.9.0.0/16"),)
    rig.board.event(
        events.SelectorsMismatch(peer=NAME, child="more", ours=(ts, ts), theirs=((), ()))
    )
    rig.board.event(
        events.ChildSaDown(
            peer=NAME,
            child="more",
            reqid=2,
            spi_in=0,
            reason=Reason.TS_UNACCEPTABLE,
            message="refused",
        )
    )
    for key in (PEER, POLICY):
        condition = rig.condition("Established", key)
        assert condition["reason"] == "TSUnacceptable"
        assert "10.9.0.0/16" in condition["message"]
    assert rig.status(POLICY)["state"] == "NoSa"
    assert rig.status(POLICY)["ownerPeer"] == "hq"
    rig.child("more", 9)
    assert rig.status(POLICY)["state"] == "Established"
    assert rig.status(POLICY)["selectorsInstalled"] == 1
    assert rig.condition("Ready")["status"] == "True"


def test_a_rekey_is_no_interruption(rig: Rig, make) -> None:
    rig.apply(make.peer())
    rig.up()
    rig.child("hq", 1)
    before = rig.status()
    rig.board.event(
        events.ChildSaRekeyed(
            peer=NAME, child="hq", reqid=1, old_spi_in=1, spi_in=5, spi_out=6, suite="AES"
        )
    )
    assert rig.status() == before
    rig.board.event(
        events.ChildSaDown(
            peer=NAME, child="hq", reqid=1, spi_in=5, reason=Reason.PEER_DELETED, message="gone"
        )
    )
    assert rig.condition("Established")["reason"] == "PeerDeleted"


def test_two_ike_sas_at_once_and_one_of_them_goes(rig: Rig, make) -> None:
    rig.apply(make.peer())
    rig.up()
    rig.up()
    rig.child("hq")
    rig.down(Reason.REPLACED, "redundant", established=True)
    assert rig.condition("Ready")["status"] == "True"
    rig.down(Reason.PEER_DEAD, "no sign of life", established=True)
    assert rig.condition("Ready")["reason"] == "PeerDead"
    assert "establishedAt" not in rig.status()


def test_a_passive_peer_waits_and_needs_only_what_the_peer_wants(rig: Rig, make) -> None:
    rig.apply(make.peer(passive=True), make.policy("more", **MORE))
    assert rig.condition("Established")["reason"] == "Waiting"
    rig.up()
    rig.child("hq")
    assert rig.condition("Ready")["status"] == "True"


def test_rejections_and_held_versions(rig: Rig, make) -> None:
    rig.apply(make.peer())
    rig.up()
    rig.child("hq")
    rig.apply(make.peer(exchangeMode="main"))
    condition = rig.condition("Accepted")
    assert (condition["status"], condition["reason"]) == ("False", "NotYetSupported")
    assert "spec.exchangeMode" in condition["message"]
    assert "last good version stays in force" in condition["message"]
    assert rig.condition("Established")["status"] == "True"
    assert rig.condition("Ready")["status"] == "False"


def test_a_document_that_was_never_good_has_a_status_too(rig: Rig, make) -> None:
    rig.apply(make.peer(address="not an address!"))
    assert rig.condition("Accepted")["reason"] == "Invalid"
    assert rig.condition("Programmed")["reason"] == "NotAccepted"


def test_missing_references(rig: Rig, make) -> None:
    rig.apply(make.peer(authentication={"method": "preSharedKey", "secretRef": {"name": "no"}}))
    assert rig.condition("ResolvedRefs")["reason"] == "SecretNotFound"
    assert rig.condition("Accepted")["status"] == "True"


def test_problems_and_trouble_are_not_programmed(rig: Rig, make) -> None:
    rig.apply(make.peer(), facts=Facts())
    assert rig.condition("Programmed")["reason"] == "AddressUnresolved"
    rig.apply(make.peer())
    rig.board.programmed(Cause("DataplaneError", "no TUN"))
    assert rig.condition("Programmed")["message"] == "no TUN"
    rig.board.programmed(None)
    assert rig.condition("Programmed")["status"] == "True"


def test_disabled_and_other_actions(rig: Rig, make) -> None:
    rig.apply(
        make.peer(),
        make.policy("more", disabled=True, **MORE),
        make.policy("drop", action="discard", srcAddress="10.1.0.0/16", dstAddress="10.8.0.0/16"),
        make.policy("pass", action="none", srcAddress="10.1.0.0/16", dstAddress="10.7.0.0/16"),
    )
    states = {k.name: v["state"] for k, v in rig.board.changes().items() if k.kind == "IPsecPolicy"}
    assert states == {"more": "Disabled", "drop": "Discarding", "pass": "Passing"}


def test_only_changes_are_given(rig: Rig, make) -> None:
    rig.apply(make.peer())
    assert set(rig.board.changes()) == {PEER}
    assert rig.board.changes() == {}
    rig.apply(make.peer())
    assert rig.board.changes() == {}
    rig.apply()
    assert rig.board.changes() == {PEER: None}


def test_transition_times_move_with_the_status_alone(rig: Rig, make) -> None:
    rig.apply(make.peer())
    first = rig.condition("Established")["lastTransitionTime"]
    rig.down(Reason.TIMEOUT, "x")
    assert rig.condition("Established")["lastTransitionTime"] == first
    rig.up()
    rig.child("hq")
    assert rig.condition("Established")["lastTransitionTime"] != first


# Files


def test_files_are_yaml_and_for_root_alone(rig: Rig, make, tmp_path: Path) -> None:
    rig.apply(make.peer())
    rig.down(Reason.TIMEOUT, 'quotes " and: colons\n#')
    sink = FileStatusSink(tmp_path / "state")
    assert sink.open() == {}
    sink.write(rig.board.changes())
    path = tmp_path / "state/status/ipsecpeer/default/hq.yaml"
    read = yaml.safe_load(path.read_text())
    assert read["status"] == rig.status()
    assert read["kind"] == "IPsecPeer"
    assert read["metadata"] == {"name": "hq", "namespace": "default"}
    assert (tmp_path / "state/status").stat().st_mode & 0o077 == 0
    assert [p.name for p in path.parent.iterdir()] == ["hq.yaml"], "no temporary file stays"


def test_a_new_process_goes_on_where_the_old_one_was(rig: Rig, make, clock, tmp_path: Path) -> None:
    rig.apply(make.peer())
    sink = FileStatusSink(tmp_path)
    sink.open()
    sink.write(rig.board.changes())
    old = rig.condition("Accepted")["lastTransitionTime"]
    again = Rig(clock, make)
    again.board.remember(FileStatusSink(tmp_path).open())
    again.apply(make.peer())
    assert again.condition("Accepted")["lastTransitionTime"] == old


def test_files_of_vanished_objects_go(rig: Rig, make, tmp_path: Path) -> None:
    rig.apply(make.peer(), make.policy("more", **MORE))
    sink = FileStatusSink(tmp_path)
    sink.open()
    sink.write(rig.board.changes())
    sink.drop({PEER})
    assert [p.name for p in tmp_path.rglob("*.yaml")] == ["hq.yaml"]
    sink.write({PEER: None})
    assert list(tmp_path.rglob("*.yaml")) == []


@pytest.mark.parametrize(
    "text", ["true", "No", "null", "12", "", "a b", "0x1", "é", "[", "1e3", "plain"]
)
def test_any_text_survives(text: str) -> None:
    status = {"message": text, "list": [text, {"a": text, "b": [1, True]}], "empty": [], "map": {}}
    assert yaml.safe_load(document(PEER, status))["status"] == status


def test_effective_mtu_is_what_its_sas_carry_and_the_peer_allows(rig: Rig) -> None:
    rig.apply(rig.make.peer())
    rig.board.sized({NAME: 1438})
    assert "effectiveMTU" not in rig.status(), "nothing is up"
    rig.up()
    assert rig.status()["effectiveMTU"] == 1438
    rig.board.changes()
    rig.board.sized({NAME: 1400})
    assert rig.status()["effectiveMTU"] == 1400
    rig.apply(rig.make.peer(mtu=1300))
    assert rig.status()["effectiveMTU"] == 1300
