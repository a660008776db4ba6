"""What stays in force when documents become bad, and what goes when they are deleted."""

from __future__ import annotations

from ipsec_gateway.lastgood import InForce, Key, LastGood

PEER = Key("IPsecPeer", "default", "hq")


def remotes(in_force: InForce) -> dict[str, set[str]]:
    """Remote networks by peer."""
    return {
        t.source.name: {s.dst for p in t.policies for s in p.selectors} for t in in_force.tunnels
    }


def test_good_ones_run_beside_bad_ones(make) -> None:
    bad = make.peer("bad", "203.0.113.10", remoteSubnets=["not a network"])
    found = LastGood().take(make.files(a=[make.secret(), make.peer()], b=[bad]))
    assert remotes(found) == {"hq": {"10.2.0.0/16"}}
    (error,) = found.errors
    assert (error.file, error.kind, error.name) == ("b.yaml", "IPsecPeer", "bad")
    assert error.field.startswith("spec.remoteSubnets")
    assert not found.held


def test_a_document_that_becomes_bad_keeps_its_last_good_version(make) -> None:
    memory = LastGood()
    memory.take(make.files(a=[make.secret()], b=[make.peer()]))
    broken = make.peer(remoteSubnets=["10.3.0.0/16"], address="not an address!")
    found = memory.take(make.files(a=[make.secret()], b=[broken]))
    assert remotes(found) == {"hq": {"10.2.0.0/16"}}
    assert found.held == {PEER}
    assert found.errors
    # And again: the memory does not wear off.
    found = memory.take(make.files(a=[make.secret()], b=[broken]))
    assert remotes(found) == {"hq": {"10.2.0.0/16"}}
    mended = make.peer(remoteSubnets=["10.3.0.0/16"])
    found = memory.take(make.files(a=[make.secret()], b=[mended]))
    assert remotes(found) == {"hq": {"10.3.0.0/16"}}
    assert not found.held
    assert not found.errors


def test_a_file_that_is_no_yaml_keeps_all_of_its_objects(make) -> None:
    memory = LastGood()
    memory.take(make.files(a=[make.secret()], b=[make.peer()]))
    found = memory.take(make.files(a=[make.secret()], b="{"))
    assert remotes(found) == {"hq": {"10.2.0.0/16"}}
    assert found.held == {PEER}


def test_a_deleted_document_is_deleted_even_beside_a_broken_file(make) -> None:
    memory = LastGood()
    memory.take(make.files(a=[make.secret()], b=[make.peer()]))
    found = memory.take(make.files(a=[make.secret()], c="{"))
    assert remotes(found) == {}
    assert memory.take(make.files(a=[make.secret()])).objects == {}


def test_a_folder_that_cannot_be_read_deletes_nothing(make, tmp_path) -> None:
    from ipsec_gateway.sources.directory import DirectorySource

    memory = LastGood()
    memory.take(make.files(a=[make.secret(), make.peer()]))
    found = memory.take(DirectorySource(tmp_path / "gone").read_once().files)
    assert remotes(found) == {"hq": {"10.2.0.0/16"}}


def test_a_rejected_version_leaves_the_accepted_one_in_force(make) -> None:
    """Valid by the schema, but compile refuses it."""
    memory = LastGood()
    memory.take(make.files(a=[make.secret(), make.peer()]))
    refused = make.peer(exchangeMode="main", remoteSubnets=["10.3.0.0/16"])
    found = memory.take(make.files(a=[make.secret(), refused]))
    assert remotes(found) == {"hq": {"10.2.0.0/16"}}
    assert found.held == {PEER}
    assert {r.reason for r in found.rejections} == {"NotYetSupported"}
    found = memory.take(make.files(a=[make.secret(), make.peer()]))
    assert not found.held
    assert not found.rejections


def test_a_secret_that_goes_away_takes_no_tunnel_down(make) -> None:
    memory = LastGood()
    policy = make.policy("more", selectors=[{"src": "10.1.0.0/16", "dst": "10.9.0.0/16"}])
    memory.take(make.files(a=[make.secret()], b=[make.peer(), policy]))
    found = memory.take(make.files(b=[make.peer(), policy]))
    assert remotes(found) == {"hq": {"10.2.0.0/16", "10.9.0.0/16"}}
    assert found.held == {PEER}
    assert [(r.source.kind, r.reason) for r in found.rejections] == [
        ("IPsecPeer", "SecretNotFound")
    ]
    # A peer that never had it does not start.
    assert LastGood().take(make.files(b=[make.peer()])).tunnels == ()
    # Disabling and deleting work all the same.
    assert memory.take(make.files(b=[make.peer(disabled=True)])).tunnels == ()


def test_a_bad_policy_keeps_its_last_good_version(make) -> None:
    memory = LastGood()
    good = make.policy("more", selectors=[{"src": "10.1.0.0/16", "dst": "10.9.0.0/16"}])
    peer = make.peer(remoteSubnets=None, localSubnets=None)
    memory.take(make.files(a=[make.secret(), peer], b=[good]))
    bad = make.policy("more", selectors=[{"src": "10.1.0.0/16", "dst": "10.9.0.0/99"}])
    found = memory.take(make.files(a=[make.secret(), peer], b=[bad]))
    assert remotes(found) == {"hq": {"10.9.0.0/16"}}
    assert found.held == {Key("IPsecPolicy", "default", "more")}


def test_the_same_object_twice_is_an_error_of_the_second(make) -> None:
    other = make.peer(remoteSubnets=["10.3.0.0/16"])
    found = LastGood().take(make.files(a=[make.secret(), make.peer()], b=[other]))
    assert remotes(found) == {"hq": {"10.2.0.0/16"}}
    (error,) = found.errors
    assert error.file == "b.yaml"
    assert "a.yaml" in error.message


def test_a_policy_that_compile_refuses_keeps_its_last_good_version(make) -> None:
    memory = LastGood()
    pair = {"selectors": [{"src": "10.1.0.0/16", "dst": "10.9.0.0/16"}]}
    peer = make.peer()
    memory.take(make.files(a=[make.secret(), peer], b=[make.policy("more", **pair)]))
    refused = make.policy("more", proposalRef={"name": "shared"}, **pair)
    found = memory.take(make.files(a=[make.secret(), peer], b=[refused]))
    assert remotes(found) == {"hq": {"10.2.0.0/16", "10.9.0.0/16"}}
    assert found.held == {Key("IPsecPolicy", "default", "more")}
    assert [r.reason for r in found.rejections] == ["NotYetSupported"]
